// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"sync/atomic"
	"time"
)

// A worker is this program again, as one end of a request/response or of a flood. Its
// parent has put it into its namespace and on its CPU before it began. It speaks a line of
// JSON at a time: it says that it is ready, a client then waits for a line and says what
// it did; a server says what it has seen so far for every line that it gets.
//
// The loops make raw system calls: the scheduler of Go, told of each of them, would
// hand the processor on and take it back, which costs as much as what is measured.
const workerName = "bpfnet-bench-worker"

// Init becomes a worker if this process was started as one, and does not return then.
// Programs that call Run call it first thing in main.
func Init() {
	if len(os.Args) != 2 || os.Args[0] != workerName {
		return
	}
	w := &worker{out: json.NewEncoder(os.Stdout), in: bufio.NewReader(os.Stdin)}
	if err := w.run(os.Args[1]); err != nil {
		_ = w.out.Encode(said{Err: err.Error()})
		os.Exit(1)
	}
	os.Exit(0)
}

// What the two ends do with each other.
const (
	talkRR    = "rr"    // one connection (or socket), requests and answers of a byte (UDP: four)
	talkCRR   = "crr"   // a connection for each request; the server closes first
	talkFlood = "flood" // datagrams of floodSize bytes one way, as fast as they go
)

// floodSize makes an Ethernet frame of the least size: 14+20+8+18 and its checksum, 64 bytes.
const floodSize = 18

// job is what a worker is told.
type job struct {
	Server bool           `json:"server"`
	UDP    bool           `json:"udp"`
	Talk   string         `json:"talk"`
	Addr   netip.AddrPort `json:"addr"` // to listen on, or to connect to
	Warm   time.Duration  `json:"warm"` // of a client: before it says that it is ready
	Time   time.Duration  `json:"time"`
}

// said is a line of a worker's.
type said struct {
	Ready   bool          `json:"ready,omitempty"`
	Err     string        `json:"err,omitempty"`
	Ops     uint64        `json:"ops"`            // client: in Elapsed; server: since it began
	Lost    uint64        `json:"lost,omitempty"` // datagrams that no answer came for
	Elapsed time.Duration `json:"elapsed,omitempty"`
	From    netip.Addr    `json:"from,omitzero"` // whom a server saw last
	CPU     int           `json:"cpu"`           // where the loop ran last
}

type worker struct {
	job job
	out *json.Encoder
	in  *bufio.Reader

	// Of a server: what report reads while the loop runs.
	ops  atomic.Uint64
	from atomic.Uint32 // IPv4, 0 for nobody yet
	cpu  atomic.Int32
}

func (w *worker) run(spec string) error {
	if err := json.Unmarshal([]byte(spec), &w.job); err != nil {
		return fmt.Errorf("job: %w", err)
	}
	// The loop holds its thread and never yields to the collector; on one CPU there
	// would be no other processor for report.
	debug.SetGCPercent(-1)
	runtime.GOMAXPROCS(2)
	runtime.LockOSThread()
	if !w.job.Server {
		return w.client()
	}
	go w.report()
	return w.server()
}

// report answers the parent, and ends the server with it.
func (w *worker) report() {
	for {
		if _, err := w.in.ReadString('\n'); err != nil {
			os.Exit(0)
		}
		s := said{Ops: w.ops.Load(), CPU: int(w.cpu.Load())}
		if a := w.from.Load(); a != 0 {
			s.From = netip.AddrFrom4([4]byte{byte(a >> 24), byte(a >> 16), byte(a >> 8), byte(a)})
		}
		_ = w.out.Encode(s)
	}
}

func (w *worker) saw(addr [4]byte) {
	w.from.Store(uint32(addr[0])<<24 | uint32(addr[1])<<16 | uint32(addr[2])<<8 | uint32(addr[3]))
}

func (w *worker) server() error {
	fd, err := listen(w.job)
	if err != nil {
		return err
	}
	if err := w.out.Encode(said{Ready: true}); err != nil {
		return err
	}
	switch {
	case w.job.UDP && w.job.Talk == talkFlood:
		return w.sink(fd)
	case w.job.UDP:
		return w.echo(fd)
	default:
		return w.accept(fd)
	}
}

// client warms up, says so, and works when it is told to.
func (w *worker) client() error {
	turn, err := w.turn()
	if err != nil {
		return err
	}
	if _, err := repeat(turn, w.job.Warm); err != nil {
		return fmt.Errorf("warming up: %w", err)
	}
	if err := w.out.Encode(said{Ready: true}); err != nil {
		return err
	}
	if _, err := w.in.ReadString('\n'); err != nil {
		return err
	}
	s, err := repeat(turn, w.job.Time)
	if err != nil {
		return err
	}
	s.CPU = getcpu()
	return w.out.Encode(s)
}

// turn is the client's loop body: some operations, and how many were lost.
func (w *worker) turn() (func() (ops, lost uint64, err error), error) {
	if w.job.Talk == talkCRR {
		to := sockaddr(w.job.Addr)
		return func() (uint64, uint64, error) { return 1, 0, connectRequest(to) }, nil
	}
	fd, err := dial(w.job)
	if err != nil {
		return nil, err
	}
	switch {
	case w.job.UDP && w.job.Talk == talkFlood:
		f := newFlood(fd)
		return f.send, nil
	case w.job.UDP:
		a := &asker{fd: fd}
		return a.ask, nil
	case w.job.Talk == talkRR:
		return func() (uint64, uint64, error) { return requests(fd) }, nil
	}
	return nil, errors.New("job: unknown")
}

// repeat takes turns until the time is over.
func repeat(turn func() (ops, lost uint64, err error), limit time.Duration) (said, error) {
	var s said
	begun := time.Now()
	for {
		ops, lost, err := turn()
		if err != nil {
			return s, fmt.Errorf("after %d: %w", s.Ops, err)
		}
		s.Ops += ops
		s.Lost += lost
		if s.Elapsed = time.Since(begun); s.Elapsed >= limit {
			return s, nil
		}
	}
}
