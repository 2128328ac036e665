// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
)

// A test run tells that a program redirects, not where. So the programs are loaded with
// some of their calls of helpers going through a function of ours, which notes what they
// ask for in the witness map; and the two helpers that answer differently every time,
// the clock and the dice, answer what the test put there. Nothing else of them changes.

// Layout of the witness map's one value.
const (
	witnessTime  = 0 // u64, nanoseconds
	witnessDice  = 8 // u32, stepped by each throw
	witnessCount = 12
	witnessCalls = 64 // so many are kept
	witnessFirst = 16 // of 32 bytes each: kind, ifindex, flags, next hop's family and address
	witnessCopy  = witnessFirst + 32*witnessCalls
	copyLen      = 2304 // bytes kept of a copied packet, its length in front
	witnessSize  = witnessCopy + copyLen*witnessCalls
)

func (w way) String() string {
	return [...]string{"nowhere", "egress", "ingress", "peer", "neigh", "copy to egress", "copy to ingress"}[w]
}

func (c call) String() string {
	s := fmt.Sprintf("%v %d", c.way, c.ifindex)
	if c.next.IsValid() {
		s += " by " + c.next.String()
	}
	if c.copied != "" {
		s += fmt.Sprintf(" %x", c.copied)
	}
	return s
}

// interpose makes the helpers' calls of all programs go through the witness.
func interpose(spec *ebpf.CollectionSpec) {
	spec.Maps["witness"] = &ebpf.MapSpec{Name: "witness", Type: ebpf.Array, KeySize: 4, ValueSize: witnessSize, MaxEntries: 1, Flags: 1 << 10}
	shadows := map[asm.BuiltinFunc]struct {
		name string
		body asm.Instructions
	}{
		asm.FnRedirect:         {"witness_redirect", noting(wayOut, asm.FnRedirect)},
		asm.FnRedirectPeer:     {"witness_peer", noting(wayPeer, asm.FnRedirectPeer)},
		asm.FnRedirectNeigh:    {"witness_neigh", noting(wayNeigh, asm.FnRedirectNeigh)},
		asm.FnCloneRedirect:    {"witness_clone", copying()},
		asm.FnKtimeGetCoarseNs: {"witness_time", asm.Instructions{witness(asm.R1), asm.LoadMem(asm.R0, asm.R1, witnessTime, asm.DWord), asm.Return()}},
		asm.FnGetPrandomU32: {"witness_dice", asm.Instructions{
			witness(asm.R1), asm.LoadMem(asm.R0, asm.R1, witnessDice, asm.Word),
			asm.Mul.Imm32(asm.R0, 1103515245), asm.Add.Imm32(asm.R0, 12345),
			asm.StoreMem(asm.R1, witnessDice, asm.R0, asm.Word),
			asm.RSh.Imm32(asm.R0, 8), asm.Return()}},
	}
	for _, p := range spec.Programs {
		if p.Type != ebpf.SchedCLS {
			continue
		}
		used, line := map[asm.BuiltinFunc]bool{}, p.Instructions[0].Source()
		for i, ins := range p.Instructions {
			if !ins.IsBuiltinCall() {
				continue
			}
			shadow, ok := shadows[asm.BuiltinFunc(ins.Constant)]
			if !ok {
				continue
			}
			used[asm.BuiltinFunc(ins.Constant)] = true
			p.Instructions[i] = asm.Instruction{OpCode: ins.OpCode, Src: asm.PseudoCall, Constant: -1, Metadata: ins.Metadata}.WithReference(shadow.name)
		}
		for fn := range used {
			body := append(asm.Instructions(nil), shadows[fn].body...)
			kind := &btf.Func{Name: shadows[fn].name, Linkage: btf.StaticFunc, Type: &btf.FuncProto{Return: &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}}}
			body[0] = btf.WithFuncMetadata(body[0].WithSymbol(kind.Name), kind).WithSource(line)
			p.Instructions = append(p.Instructions, body...)
		}
	}
}

// witness points a register at the map's value.
func witness(r asm.Register) asm.Instruction {
	return asm.LoadMapValue(r, 0, 0).WithReference("witness")
}

// next leaves the place of the next call in R8 and its number in R9, or goes to a label.
func next(done string) asm.Instructions {
	return asm.Instructions{
		witness(asm.R8),
		asm.LoadMem(asm.R9, asm.R8, witnessCount, asm.Word),
		asm.JGT.Imm(asm.R9, witnessCalls-1, done),
		asm.Mov.Reg(asm.R0, asm.R9),
		asm.Add.Imm(asm.R0, 1),
		asm.StoreMem(asm.R8, witnessCount, asm.R0, asm.Word),
		asm.Mov.Reg(asm.R0, asm.R9),
		asm.LSh.Imm(asm.R0, 5),
		asm.Add.Reg(asm.R8, asm.R0),
	}
}

// noting writes down the call's arguments and makes it.
func noting(w way, fn asm.BuiltinFunc) asm.Instructions {
	ins := asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1), asm.Mov.Reg(asm.R7, asm.R2)}
	done := fmt.Sprintf("witness_done_%d", w)
	ins = append(ins, next(done)...)
	ins = append(ins,
		asm.StoreImm(asm.R8, witnessFirst, int64(w), asm.Word),
		asm.StoreMem(asm.R8, witnessFirst+4, asm.R6, asm.Word))
	if fn == asm.FnRedirectNeigh {
		for i := int16(0); i < 20; i += 4 {
			ins = append(ins, asm.LoadMem(asm.R0, asm.R7, i, asm.Word), asm.StoreMem(asm.R8, witnessFirst+12+i, asm.R0, asm.Word))
		}
	} else {
		ins = append(ins, asm.StoreMem(asm.R8, witnessFirst+8, asm.R7, asm.Word))
	}
	return append(ins, asm.Mov.Reg(asm.R1, asm.R6).WithSymbol(done), asm.Mov.Reg(asm.R2, asm.R7), fn.Call(), asm.Return())
}

// copying keeps the packet that would be copied, and sends nothing.
func copying() asm.Instructions {
	ins := asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1), asm.Mov.Reg(asm.R7, asm.R2), asm.Mov.Reg(asm.R1, asm.R3)}
	const done = "witness_done_copy"
	ins = append(ins, next(done)...)
	return append(ins,
		asm.StoreImm(asm.R8, witnessFirst, int64(wayCopyOut), asm.Word),
		asm.StoreMem(asm.R8, witnessFirst+4, asm.R7, asm.Word),
		asm.StoreMem(asm.R8, witnessFirst+8, asm.R1, asm.Word),
		witness(asm.R8),
		asm.Mul.Imm(asm.R9, copyLen),
		asm.Add.Reg(asm.R8, asm.R9),
		asm.Add.Imm(asm.R8, witnessCopy),
		asm.LoadMem(asm.R4, asm.R6, 0, asm.Word), // skb->len
		asm.StoreMem(asm.R8, 0, asm.R4, asm.Word),
		asm.JLT.Imm(asm.R4, 1, done), // before 6.8 the verifier learns nothing from "is not 0"
		asm.JGT.Imm(asm.R4, copyLen-4, done),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Imm(asm.R2, 0),
		asm.Mov.Reg(asm.R3, asm.R8),
		asm.Add.Imm(asm.R3, 4),
		asm.FnSkbLoadBytes.Call(),
		asm.Mov.Imm(asm.R0, 0).WithSymbol(done),
		asm.Return(),
	)
}

// calls reads what was noted, oldest first.
func (k *kernel) calls() (out []call) {
	var head [witnessCopy]byte
	must(k.witness.ReadAt(head[:], 0))
	for i := range binary.NativeEndian.Uint32(head[witnessCount:]) {
		b := head[witnessFirst+32*i:]
		c := call{way: way(binary.NativeEndian.Uint32(b)), ifindex: binary.NativeEndian.Uint32(b[4:])}
		ingress := binary.NativeEndian.Uint32(b[8:])&1 != 0
		switch {
		case c.way == wayOut && ingress:
			c.way = wayIn
		case c.way == wayNeigh && binary.NativeEndian.Uint32(b[12:]) == 2:
			c.next = netip.AddrFrom4([4]byte(b[16:]))
		case c.way == wayNeigh:
			c.next = netip.AddrFrom16([16]byte(b[16:]))
		case c.way == wayCopyOut:
			if ingress {
				c.way = wayCopyIn
			}
			var length [4]byte
			must(k.witness.ReadAt(length[:], int64(witnessCopy+copyLen*i)))
			packet := make([]byte, min(binary.NativeEndian.Uint32(length[:]), copyLen-4))
			must(k.witness.ReadAt(packet, int64(witnessCopy+copyLen*i+4)))
			c.copied = string(packet)
		}
		out = append(out, c)
	}
	return out
}
