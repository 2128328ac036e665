// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control/datapath"
	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/control/watch"
)

// The daemon decides when to look, and nothing else: what it then does is what init and
// reconcile do, one command among others. Traffic does not depend on it.

// Paces of the daemon.
const (
	settleFor = 10 * time.Millisecond // without a change, before it looks;
	settleMax = 50 * time.Millisecond // or so long after the first one
	restFor   = 3                     // times what a look took, before the next one,
	restMax   = 200 * time.Millisecond
	patrolAt  = 400 * time.Millisecond
	patrolFor = 50 // times what a patrol took, before the next one
	retryMin  = 100 * time.Millisecond
	retryMax  = 10 * time.Second
	finishFor = 5 * time.Second // to a look that runs when the daemon is told to end
)

// Daemon makes the kernel's maps and hooks follow the host's devices, addresses, routes
// and rules until ctx ends, and puts back programs that somebody has detached. log gets
// a line for each change; ready is called once, when the host is up to date and followed. It
// sets the host up if nobody has, and returns nil when somebody uninstalls it. ErrConflict
// when one runs for this root already.
func (m *Manager) Daemon(ctx context.Context, log func(line string), ready func()) error {
	if err := m.makeRoot(); err != nil {
		return err
	}
	root, err := m.lockRoot()
	if err != nil {
		return err
	}
	defer root.Close()
	d := &daemon{m: m, log: log, ready: sync.OnceFunc(ready), root: root}
	m.o.Warn = d.warn
	steps, err := m.Reconcile()
	if ok, _ := m.view(func(*op) error { return nil }); err != nil && !ok {
		_ = os.Remove(m.root) // if nothing is in it
		return err
	}
	d.report(steps, err) // what cannot be restored keeps nothing else from being followed
	for {
		again, err := d.session(ctx)
		if err != nil || !again {
			return err
		}
	}
}

// lockRoot holds the root directory itself, which leaves nothing behind.
func (m *Manager) lockRoot() (*os.File, error) {
	root, err := os.Open(m.root)
	if err != nil {
		return nil, fmt.Errorf("root directory: %w", err)
	}
	err = unix.Flock(int(root.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return root, nil
	}
	_ = root.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, conflict("daemon: one runs for %s already", m.root)
	}
	return nil, fmt.Errorf("root directory %s: lock: %w", m.root, err)
}

type daemon struct {
	m     *Manager
	log   func(string)
	ready func()
	root  *os.File

	ns     *netns.NS
	watch  *watch.Watcher
	patrol datapath.Patrol

	said     map[string]bool // warnings and errors of the look before
	saying   map[string]bool // of this one
	lastLook time.Duration
	lastSeen time.Duration // what a patrol took
	failures int           // looks
	futile   int           // looks that did not mend what was missing
	gone     bool          // there is no host to follow any more

	engines atomic.Pointer[func(device string) bool] // says that an engine gives its veths such names
}

// ignored are devices that come and go without changing anything for the host.
func (d *daemon) ignored(device string) bool {
	if strings.HasPrefix(device, vethPrefix) {
		return true
	}
	engines := d.engines.Load()
	return engines != nil && (*engines)(device)
}

// meet learns what engines there are.
func (d *daemon) meet(o *op) error {
	engines, err := o.engineDevices()
	if err == nil {
		d.engines.Store(&engines)
	}
	return err
}

// session follows one namespace; again says that the host is in another one now.
func (d *daemon) session(ctx context.Context) (again bool, err error) {
	looks, path, err := d.host()
	if errors.Is(err, ErrNotSetUp) {
		d.log(err.Error())
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if d.ns, err = openHostNetns(path); err != nil {
		return false, err
	}
	defer d.ns.Close()
	d.watch, err = watch.Open(d.ns, d.ignored)
	if err != nil {
		return false, err
	}
	defer d.watch.Close()
	d.patrol = looks
	d.log("following " + d.m.root)

	// From here on nothing is missed; what changed before is found by this look.
	due := within(d.look(ctx, watch.All))
	d.ready()
	patrol := time.NewTimer(patrolAt)
	defer patrol.Stop()
	for {
		if d.gone {
			d.log(ErrNotSetUp.Error())
			return false, nil
		}
		var retry <-chan time.Time
		if !due.IsZero() {
			retry = time.After(time.Until(due))
		}
		select {
		case <-ctx.Done():
			return false, nil
		case <-d.watch.Done():
			return false, d.watch.Err()
		case <-retry:
			due = within(d.look(ctx, watch.All))
		case <-d.watch.Notice():
			d.settle(ctx)
			due = within(d.look(ctx, d.watch.Take()))
			d.rest(ctx)
		case <-patrol.C:
			if d.moved(path) {
				return true, nil
			}
			d.gone = d.m.uninstalled(d.root)
			if due.IsZero() && !d.gone {
				due = within(d.mend(ctx))
			}
			patrol.Reset(max(patrolAt, patrolFor*d.lastSeen))
		}
	}
}

// host is how to look after the packets' path, and which namespace plays the host.
func (d *daemon) host() (looks datapath.Patrol, path string, err error) {
	ok, err := d.m.view(func(o *op) error {
		looks, path = kinds[o.host.Datapath].patrol(&pathHost{o}), o.host.Netns
		return d.meet(o)
	})
	if err == nil && !ok {
		err = ErrNotSetUp
	}
	return looks, path, err
}

// uninstalled says whether the root that the daemon was started for is there no more.
func (m *Manager) uninstalled(root *os.File) bool {
	was, err := root.Stat()
	if err != nil {
		return true
	}
	is, err := os.Stat(m.root)
	if err != nil || !os.SameFile(was, is) {
		return true
	}
	_, err = os.Stat(m.storePath())
	return errors.Is(err, os.ErrNotExist)
}

// moved says whether another namespace plays the host now. One that is missing may come back.
func (d *daemon) moved(path string) bool {
	if path == "" {
		return false
	}
	ns, err := netns.Open(path)
	if err != nil {
		return false
	}
	defer ns.Close()
	return !ns.Equal(d.ns)
}

// settle waits for the end of a burst.
func (d *daemon) settle(ctx context.Context) {
	end := time.NewTimer(settleMax)
	defer end.Stop()
	for {
		quiet := time.NewTimer(settleFor)
		select {
		case <-d.watch.Notice():
			quiet.Stop()
			continue
		case <-quiet.C:
		case <-end.C:
		case <-ctx.Done():
		}
		quiet.Stop()
		return
	}
}

// rest leaves the host to others after a look.
func (d *daemon) rest(ctx context.Context) {
	select {
	case <-time.After(min(restFor*d.lastLook, restMax)):
	case <-ctx.Done():
	}
}

// look brings the host up to date. After a failure it says how soon to try again.
func (d *daemon) look(ctx context.Context, what watch.Change) (retry time.Duration) {
	d.saying = make(map[string]bool)
	start := time.Now()
	type outcome struct {
		steps []string
		err   error
	}
	done := make(chan outcome, 1)
	go func() {
		steps, err := d.follow(what&watch.Hooks != 0)
		done <- outcome{steps, err}
	}()
	var got outcome
	select {
	case got = <-done:
	case <-ctx.Done():
		// It may wait for another command, or be at work: then a moment is enough. If not,
		// it ends as by SIGKILL: the next command reconciles.
		select {
		case got = <-done:
		case <-time.After(finishFor):
			return 0
		}
	}
	d.lastLook = time.Since(start)
	if errors.Is(got.err, ErrNotSetUp) {
		d.gone = true
		return 0
	}
	d.report(got.steps, got.err)
	if got.err == nil {
		d.failures = 0
		return 0
	}
	d.failures++
	return backoff(d.failures)
}

// report says what was done, and what failed or is not as it should be once.
func (d *daemon) report(steps []string, err error) {
	for _, s := range steps {
		d.log(s)
	}
	if err != nil {
		d.once("error: " + err.Error())
	}
	d.said, d.saying = d.saying, nil
}

func (d *daemon) warn(line string) { d.once("warning: " + line) }

func (d *daemon) once(line string) {
	if d.saying == nil {
		d.saying = make(map[string]bool)
	}
	if !d.said[line] && !d.saying[line] {
		d.log(line)
	}
	d.saying[line] = true
}

// mend puts back what is missing. What cannot be is tried again, less and less often.
func (d *daemon) mend(ctx context.Context) (retry time.Duration) {
	if s, err := d.see(); err == nil && s.Lost == 0 && !s.Changed {
		d.futile = 0
		return 0
	}
	retry = d.look(ctx, watch.Hooks)
	if s, err := d.see(); retry == 0 && !d.gone && (err != nil || s.Lost > 0) {
		d.futile++
		return backoff(d.futile)
	}
	return retry
}

// backoff is how long to wait after so many failures.
func backoff(failures int) time.Duration {
	return min(retryMin<<min(failures-1, 20), retryMax)
}

// within is the time of the next try; the patrol comes sooner and does not put it off. Zero: none.
func within(wait time.Duration) time.Time {
	if wait == 0 {
		return time.Time{}
	}
	return time.Now().Add(wait)
}

// see looks whether the programs are where they were put.
func (d *daemon) see() (s datapath.Sight, err error) {
	start := time.Now()
	err = d.ns.Do(func() (err error) {
		s, err = d.patrol.Look()
		return err
	})
	d.lastSeen = time.Since(start)
	return s, err
}

// follow is one look: refreshHost, and if programs are missing all of reconcile.
func (d *daemon) follow(hooks bool) (steps []string, err error) {
	err = d.m.change(ErrNotSetUp, func(o *op) error {
		defer func() { steps = o.steps }()
		if err := d.meet(o); err != nil {
			return err
		}
		if err := o.refreshHost(); err != nil || !hooks {
			return err
		}
		wrong, err := o.path().Wrong(d.patrol)
		if err != nil || !wrong {
			return err
		}
		if err := o.reconcile(); err != nil {
			return err
		}
		if len(o.problems) > 0 {
			return errors.New(strings.Join(o.problems, "; "))
		}
		return nil
	})
	return steps, err
}
