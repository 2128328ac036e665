// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// publication has the size and the types of what one published port costs.
type publication struct {
	Rule      uint32         `json:"rule"`
	Container string         `json:"container"`
	Spec      string         `json:"spec"`
	Proto     string         `json:"proto"`
	HostIP    netip.Addr     `json:"hostIP"`
	HostPort  uint16         `json:"hostPort"`
	Port      uint16         `json:"port"`
	Count     uint32         `json:"count"`
	From      []netip.Prefix `json:"from,omitempty"`
}

func samplePublication(i int) publication {
	return publication{
		Rule: uint32(4096 + i), Container: "4c01db0b339c4c01db0b339c4c01db0b339c4c01db0b339c4c01db0b339c0000",
		Spec: fmt.Sprintf("%d:80", i), Proto: "tcp", HostIP: netip.IPv4Unspecified(), HostPort: uint16(i), Port: 80, Count: 1,
	}
}

// One publish of n ports: open, n values in one transaction, close. Orders of
// keys: rising, and two runs of rising keys in turns (one per family).
func BenchmarkPublish(b *testing.B) {
	keys := map[string]func(i int) string{
		"rising":   func(i int) string { return fmt.Sprintf("%08d", i) },
		"families": func(i int) string { return fmt.Sprintf("tcp/%d/%08d", i%2, i) },
	}
	for _, stored := range []int{0, 50_000} {
		for _, n := range []int{1, 1_000, 10_000} {
			for order, key := range keys {
				b.Run(fmt.Sprintf("stored=%d/n=%d/%s", stored, n, order), func(b *testing.B) {
					path := filepath.Join(b.TempDir(), "store.db")
					put(b, path, samples(0, stored, key))
					fresh := samples(stored, n, key)
					for b.Loop() {
						put(b, path, fresh)
						b.StopTimer()
						remove(b, path, fresh)
						b.StartTimer()
					}
				})
			}
		}
	}
}

func BenchmarkOpenRead(b *testing.B) {
	path := filepath.Join(b.TempDir(), "store.db")
	key := func(i int) string { return fmt.Sprintf("%08d", i) }
	put(b, path, samples(0, 10_000, key))
	for b.Loop() {
		db, err := OpenRead(path)
		require.NoError(b, err)
		require.NoError(b, db.View(func(tx *Tx) error {
			_, ok, err := Get[publication](tx, "publications", key(77))
			require.True(b, ok)
			return err
		}))
		require.NoError(b, db.Close())
	}
}

type sample struct {
	key   string
	value publication
}

func samples(from, n int, key func(int) string) []sample {
	list := make([]sample, n)
	for i := range list {
		list[i] = sample{key(from + i), samplePublication(from + i)}
	}
	return list
}

func put(b *testing.B, path string, list []sample) {
	change(b, path, func(tx *Tx) error {
		for i := range list {
			if err := Put(tx, "publications", list[i].key, list[i].value); err != nil {
				return err
			}
		}
		return nil
	})
}

func remove(b *testing.B, path string, list []sample) {
	change(b, path, func(tx *Tx) error {
		for i := range list {
			if err := Delete(tx, "publications", list[i].key); err != nil {
				return err
			}
		}
		return nil
	})
}

func change(b *testing.B, path string, fn func(*Tx) error) {
	db, err := Open(path)
	require.NoError(b, err)
	require.NoError(b, db.Update(fn))
	require.NoError(b, db.Close())
}
