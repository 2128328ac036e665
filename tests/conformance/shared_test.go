// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/tests/lab"
)

// An Engine and its containers take their time to start and to end. So tests with Engines run side by
// side, a few at once, and those that need the main cast and take back what they change have it one after
// the other. So they do where the machine is emulated (-short), and the verifier takes its time.

// engines are taken by tests that have an Engine of their own.
var engines = make(chan struct{}, 3)

// beside has the names of the tests that run beside others.
var beside sync.Map

// parallel lets a test run beside others. One that measures time does not ask for it.
func parallel(t testing.TB) {
	if p, ok := t.(interface{ Parallel() }); ok {
		if _, already := beside.LoadOrStore(t.Name(), true); !already {
			p.Parallel()
		}
	}
}

// shared is the main cast that tests have one after the other.
var shared struct {
	sync.Mutex
	c       *cast
	t       *lasting
	s, p, o *actor
}

// sharedCast is the main cast as it was in the beginning.
func sharedCast(t testing.TB) (c *cast, s, p, o *actor) {
	t.Helper()
	parallel(t)
	shared.Lock()
	t.Cleanup(shared.Unlock)
	if shared.c == nil {
		shared.t = &lasting{TB: t}
		defer func() {
			if shared.t.done = true; shared.c == nil {
				shared.t.end()
			}
		}()
		own, s, p, o := buildCast(newCast(shared.t))
		shared.c, shared.s, shared.p, shared.o = own, s, p, o
	}
	c = shared.c.in(t)
	c.root = t
	t.Cleanup(func() {
		if t.Failed() {
			c.explain()
			endShared()
			return
		}
		c.restore(c, shared.s, shared.p, shared.o)
	})
	for _, a := range []*actor{shared.s, shared.p, shared.o} {
		c.serve(a, 80)
	}
	return c, shared.s, shared.p, shared.o
}

// endShared takes the shared cast down, and says whether nothing of it is left.
func endShared() bool {
	if shared.c == nil {
		return true
	}
	shared.c = nil
	return shared.t.end()
}

// lasting is the test that what is shared belongs to: its end is the process's.
type lasting struct {
	testing.TB // the first that needs it, while it is made
	done       bool
	failed     bool
	cleanups   []func()
}

func (l *lasting) end() bool {
	for _, f := range slices.Backward(l.cleanups) {
		f()
	}
	return !l.failed
}

func (l *lasting) Cleanup(f func()) { l.cleanups = append(l.cleanups, f) }

func (l *lasting) TempDir() string {
	dir, err := os.MkdirTemp("", "bpfnet-shared")
	require.NoError(l, err)
	l.Cleanup(func() { require.NoError(l, os.RemoveAll(dir)) })
	return dir
}

func (l *lasting) Failed() bool { return l.failed || !l.done && l.TB.Failed() }

func (l *lasting) Logf(format string, args ...any) {
	if !l.done {
		l.TB.Logf(format, args...)
		return
	}
	fmt.Fprintf(os.Stderr, "the shared cast: "+format+"\n", args...)
}

func (l *lasting) Errorf(format string, args ...any) {
	if !l.done {
		l.TB.Errorf(format, args...)
		return
	}
	l.failed = true
	l.Logf(format, args...)
}

func (l *lasting) Error(args ...any) { l.Errorf("%s", fmt.Sprint(args...)) }

func (l *lasting) Fatalf(format string, args ...any) {
	l.Errorf(format, args...)
	l.FailNow()
}

func (l *lasting) FailNow() {
	if !l.done {
		l.TB.FailNow()
	}
	panic("the shared cast cannot be taken down")
}

func (l *lasting) Helper() {}

func TestMain(m *testing.M) {
	flag.Parse()
	if testing.Short() {
		wait *= 5
	}
	code := lab.Main(m)
	if !endShared() {
		code = 1
	}
	os.Exit(code)
}
