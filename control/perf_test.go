package control

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestPublishSpeed(t *testing.T) {
	if os.Getenv("PERF") == "" {
		t.Skip("by hand")
	}
	l := newLab(t)
	l.container("web", ContainerOptions{})
	for _, n := range []int{1, 1000, 10000} {
		var specs []string
		for i := range n {
			specs = append(specs, fmt.Sprintf("%d:%d", 2000+i, 2000+i))
		}
		for range 3 {
			start := time.Now()
			_, err := l.m.Publish("web", specs...)
			require.NoError(t, err)
			d := time.Since(start)
			start = time.Now()
			require.NoError(t, l.m.Unpublish("web", specs...))
			t.Log(n, d, "unpublish", time.Since(start))
		}
	}
	for range 3 {
		start := time.Now()
		_, err := l.m.Publish("web", "5000-64999:5000-64999")
		require.NoError(t, err)
		d := time.Since(start)
		start = time.Now()
		require.NoError(t, l.m.Unpublish("web", "5000-64999:5000-64999"))
		t.Log("range", d, "unpublish", time.Since(start))
	}
	var specs []string
	for i := range 10000 {
		specs = append(specs, fmt.Sprintf("%d:%d", 2000+i, 2000+i))
	}
	_, err := l.m.Publish("web", specs...)
	require.NoError(t, err)
	for i := range 5 {
		start := time.Now()
		_, err := l.m.Publish("web", fmt.Sprintf("%d:80", 20000+i))
		require.NoError(t, err)
		t.Log("one more", time.Since(start))
	}
}

func TestAttachSpeed(t *testing.T) {
	if os.Getenv("PERF") == "" {
		t.Skip("by hand")
	}
	l := newLab(t)
	for i := range 300 {
		ns := newNetns(t)
		path := l.keep(ns, fmt.Sprintf("c%d", i))
		start := time.Now()
		_, err := l.m.CreateContainer(ContainerOptions{Name: fmt.Sprintf("c%d", i), Attach: "netns:" + path})
		require.NoError(t, err)
		if i < 11 || i > 290 {
			t.Log(i, time.Since(start))
		}
	}
}
