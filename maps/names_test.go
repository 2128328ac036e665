// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// enumerators reads the constants of a type from loader's generated file.
func enumerators(t *testing.T, typ string) map[string]int {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "../loader/bpf_bpfel.go", nil, 0)
	require.NoError(t, err)
	values := make(map[string]int)
	for _, d := range f.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.CONST {
			continue
		}
		for _, s := range g.Specs {
			v := s.(*ast.ValueSpec)
			if id, ok := v.Type.(*ast.Ident); ok && id.Name == typ {
				n, err := strconv.Atoi(v.Values[0].(*ast.BasicLit).Value)
				require.NoError(t, err)
				values[strings.TrimPrefix(v.Names[0].Name, typ)] = n
			}
		}
	}
	require.NotEmpty(t, values)
	return values
}

// Every enumerator has its name, so that none that is added is forgotten.
func TestNames(t *testing.T) {
	for _, enum := range []struct {
		typ, prefix string
		name        func(int) string
	}{
		{"BPFReason", "REASON_", func(i int) string { return Reason(i).String() }},
		{"BPFCounter", "COUNTER_", func(i int) string { return strings.ToUpper(counterNames.of("", i)) }},
		{"BPFFlowKind", "FLOW_", func(i int) string { return strings.ToUpper(FlowKind(i).String()) }},
		{"BPFFlowState", "FLOW_", func(i int) string { return strings.ToUpper(FlowState(i).String()) }},
		{"BPFVerdict", "VERDICT_", func(i int) string { return strings.ToUpper(Verdict(i).String()) }},
	} {
		for name, value := range enumerators(t, enum.typ) {
			if name == enum.prefix+"COUNT" {
				continue
			}
			require.Equal(t, strings.TrimPrefix(name, enum.prefix), enum.name(value))
		}
	}
	require.Equal(t, "REASON_4711", Reason(4711).String())
	require.Equal(t, "kind-200", FlowKind(200).String())
}

func TestReasons(t *testing.T) {
	for name, value := range enumerators(t, "BPFReason") {
		if name == "REASON_COUNT" {
			continue
		}
		r, ok := ReasonNamed(strings.TrimPrefix(name, "REASON_"))
		require.True(t, ok, name)
		require.Equal(t, Reason(value), r)
		require.NotContains(t, r.Text(), "unknown to", name)
	}
	_, ok := ReasonNamed("")
	require.False(t, ok)
	require.Contains(t, Reason(4711).Text(), "unknown")
}
