// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control"
)

// The control plane is measured by the Manager's methods, in this process: what a command
// does without its own start. Everything that is there already (Scale) stays.

// command is a step and its opposite; each becomes a case.
type command struct {
	titles [2]string // of the cases
	do     func(s *site) (steps [2]func() error, err error)
}

// publishes are how many ports a command publishes.
var publishes = []int{1, 1000, 10000}

// commands are what a workload of the control plane consists of.
func commands(w workload) []command {
	if w.name == workContainer {
		return []command{{[2]string{"container up", "container down"}, updown}}
	}
	var list []command
	for _, n := range publishes {
		list = append(list, command{[2]string{fmt.Sprintf("publish %d", n), fmt.Sprintf("unpublish %d", n)}, publish(n)})
	}
	return list
}

// publish gives peer n ports more. They are UDP's, of which only one is taken at any scale.
func publish(n int) func(*site) ([2]func() error, error) {
	return func(s *site) ([2]func() error, error) {
		specs := make([]string, n)
		for i := range specs {
			specs[i] = fmt.Sprintf("%d:%d/udp", 1024+i, 1024+i)
		}
		return [2]func() error{
			func() error { _, err := s.m.Publish("peer", specs...); return err },
			func() error { return s.m.Unpublish("peer", specs...) },
		}, nil
	}
}

// updown attaches a namespace, which is there before, with one port, and removes it.
func updown(s *site) (steps [2]func() error, err error) {
	ns, err := s.Namespace()
	if err != nil {
		return steps, err
	}
	return [2]func() error{
		func() error {
			_, err := s.m.CreateContainer(control.ContainerOptions{Name: "one-more", Attach: "netns:" + ns.Path(),
				Publish: []string{"1023:80/tcp"}})
			return err
		},
		func() error { return errors.Join(s.m.RemoveContainer("one-more"), ns.Close()) },
	}, nil
}

// order runs both steps of a command, and gives a measurement of each.
func order(c command, s *site, round int) (m [2]Measurement, err error) {
	steps, err := c.do(s)
	if err != nil {
		return m, err
	}
	for i, step := range steps {
		m[i].Round, m[i].Begun = round, time.Now()
		cpu, all := processTime(), busyTime()
		if err := step(); err != nil {
			return m, fmt.Errorf("%s: %w", c.titles[i], err)
		}
		m[i].Ended = time.Now()
		took, ours := m[i].Ended.Sub(m[i].Begun), processTime()-cpu
		m[i].Seconds, m[i].Ops, m[i].Rate = took.Seconds(), 1, 1/took.Seconds()
		m[i].CPU = float64(ours.Microseconds())
		m[i].Others = max(0, (busyTime()-all-ours).Seconds()/took.Seconds())
	}
	return m, nil
}

// processTime is the CPU time of this process and of those that it has waited for.
func processTime() time.Duration {
	var sum time.Duration
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var r unix.Rusage
		if unix.Getrusage(who, &r) == nil {
			sum += time.Duration(r.Utime.Nano() + r.Stime.Nano())
		}
	}
	return sum
}

func busyTime() time.Duration {
	t, _ := machineBusy()
	return t
}
