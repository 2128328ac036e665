// SPDX-License-Identifier: Apache-2.0

package rows

import (
	"go/ast"
	"go/build/constraint"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const root = "../../.."

// functions are the tests of a directory; those in files with a build tag are the kernel lab's.
func functions(t *testing.T, dir string) (found []Test) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, dir, "*_test.go"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution|parser.ParseComments)
		require.NoError(t, err)
		home := dir
		for _, c := range f.Comments {
			if c.Pos() < f.Package && constraint.IsGoBuild(c.List[0].Text) {
				require.Equal(t, "//go:build kernellab", c.List[0].Text, file)
				home = Lab
			}
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Test") {
				found = append(found, Test{home, fn.Name.Name})
			}
		}
	}
	return found
}

// tested are the rows' tests that exist, by row.
func tested(t *testing.T) map[string][]Test {
	t.Helper()
	found := make(map[string][]Test)
	var inLab []string
	for _, x := range functions(t, Dir) {
		if x.Dir == Lab {
			inLab = append(inLab, x.Name)
		}
		if id := Of(x); id != "" {
			found[id] = append(found[id], x)
		}
	}
	require.ElementsMatch(t, InLab, inLab)
	for id, list := range Elsewhere {
		for _, x := range list {
			require.Contains(t, functions(t, x.Dir), x, "row %s", id)
			found[id] = append(found[id], x)
		}
	}
	return found
}

// Every row that holds has its tests, and what tests a row says that it does.
func TestRowsAndTests(t *testing.T) {
	found := tested(t)
	ids := make(map[string]bool)
	for _, r := range All {
		require.False(t, ids[r.ID], "row %s twice", r.ID)
		ids[r.ID] = true
		require.NotEmpty(t, r.Promise, r.ID)
		if r.Missing == "" {
			require.NotEmpty(t, found[r.ID], "row %s: no Test%s; say why in its Missing", r.ID, r.ID)
			require.NotEmpty(t, r.Families, r.ID)
			require.NotEmpty(t, r.Protos, r.ID)
		} else {
			require.Empty(t, found[r.ID], "row %s has a test: take its Missing away, or say in it what does not hold and name the test otherwise", r.ID)
		}
	}
	for id, list := range found {
		require.True(t, ids[id], "%v tests no row", list)
	}
}

func TestOf(t *testing.T) {
	for name, id := range map[string]string{"TestA3": "A3", "TestA3a": "A3a", "TestE1Kinds": "E1", "TestE10": "E10", "TestE4Rate": "E4",
		"TestBarPublish": "", "TestCost": "", "TestH1": "", "TestMain": ""} {
		require.Equal(t, id, Of(Test{Dir, name}), name)
	}
	require.Equal(t, "A19", Of(Test{Lab, "TestA19Sums"}))
	require.Equal(t, "G4", Of(Test{"control", "TestReboot"}))
	require.Empty(t, Of(Test{"control", "TestA1"}))
}

// Of several tests of a row one that fails is the row's; a row that did not run keeps its line.
func TestTable(t *testing.T) {
	table := Table(map[Test]Outcome{
		{Dir, "TestE1"}: {Result: "pass", Seconds: 1}, {Dir, "TestE1Kinds"}: {Result: "fail", Seconds: 2.5}, {Dir, "TestE1Refused"}: {Result: "pass"},
		{Dir, "TestA1"}: {Result: "pass", Seconds: 0.25}, {Lab, "TestA19"}: {Result: "pass", Seconds: 9},
		{Dir, "TestA17"}: {Result: "pass", Seconds: 1}, {Lab, "TestA17WireGuard"}: {Result: "fail", Seconds: 2},
	}, "", false)
	require.Regexp(t, `(?m)^\| A19 \|.*\| pass \(kernel lab\) \| 9.0 \|$`, table)
	require.Regexp(t, `(?m)^\| A17 \|.*\| fail \(in part in the kernel lab\) \| 3.0 \|$`, table)
	require.Regexp(t, `(?m)^\| E1 \|.*\| fail \| 3.5 \|$`, table)
	require.Regexp(t, `(?m)^\| A1 \|.*\| pass \| 0.2 \|$`, table)
	require.Regexp(t, `(?m)^\| A2 \|.*\| not run \| 0.0 \|$`, table)
	again := Table(map[Test]Outcome{{Dir, "TestA2"}: {Result: "pass", Seconds: 7}}, table, false)
	require.Regexp(t, `(?m)^\| E1 \|.*\| fail \| 3.5 \|$`, again)
	require.Regexp(t, `(?m)^\| A2 \|.*\| pass \| 7.0 \|$`, again)
	require.NotEqual(t, table, again)
	require.Equal(t, WithoutTimes(table), WithoutTimes(strings.ReplaceAll(table, "| 3.5 |", "| 9.9 |")))
}

// The committed table is that of these rows, and all of them held. Whether they still do
// is what the tests say: a run in which one fails is red by itself.
func TestTableIsCurrent(t *testing.T) {
	outcomes := make(map[Test]Outcome)
	for _, list := range tested(t) {
		for _, x := range list {
			outcomes[x] = Outcome{Result: "pass"}
		}
	}
	text, err := os.ReadFile(filepath.Join(root, "docs", "conformance.md"))
	require.NoError(t, err)
	_, table, ok := strings.Cut(string(text), "\n| row |")
	require.True(t, ok)
	table, _, _ = strings.Cut(table, "\n\n")
	table = strings.TrimSuffix(table, "\n")
	want := strings.Split(WithoutTimes(Table(outcomes, "", false)), "\n")
	have := strings.Split(WithoutTimes("| row |"+table+"\n"), "\n")
	for i := range min(len(want), len(have)) {
		require.Equal(t, want[i], have[i], "run make conformance, or tests/conformance/run with -run for what is new")
	}
	require.Len(t, have, len(want))
}
