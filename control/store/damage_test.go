// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// fullStore is a store with two levels of pages and a freelist.
func fullStore(t *testing.T) (path string, image []byte) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "store.db")
	db, err := Open(path)
	require.NoError(t, err)
	for range 3 {
		require.NoError(t, db.Update(func(tx *Tx) error {
			for i := range 600 {
				require.NoError(t, Put(tx, "publications", fmt.Sprintf("%08d", i), samplePublication(i)))
				require.NoError(t, Put(tx, "other", fmt.Sprintf("%08d", i), i))
			}
			return nil
		}))
	}
	require.NoError(t, db.Close())
	image, err = os.ReadFile(path)
	require.NoError(t, err)
	return path, image
}

// use does what commands do, and returns the first error.
func use(path string) error {
	db, err := open(path, true, time.Minute)
	if err != nil {
		return err
	}
	err = db.View(func(tx *Tx) error {
		if err := Each(tx, "publications", func(string, publication) error { return nil }); err != nil {
			return err
		}
		_, _, err := Get[int](tx, "other", "00000300")
		return err
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	db, err = open(path, false, time.Minute)
	if err != nil {
		return err
	}
	err = db.Update(func(tx *Tx) error {
		for i := range 50 {
			if err := Put(tx, "publications", fmt.Sprintf("%08d", i*10), samplePublication(i)); err != nil {
				return err
			}
			if err := Delete(tx, "other", fmt.Sprintf("%08d", i*11)); err != nil {
				return err
			}
		}
		return nil
	})
	return errors.Join(err, db.Close())
}

func requireDamaged(t *testing.T, err error, path string) {
	t.Helper()
	require.ErrorIs(t, err, ErrCorrupt)
	require.ErrorContains(t, err, path)
	require.ErrorContains(t, err, "bpfnet reconcile")
	require.NotContains(t, err.Error(), "\n")
}

func TestTruncated(t *testing.T) {
	path, image := fullStore(t)
	require.NoError(t, use(path))
	for _, size := range []int{1, 100, 4096, 8192, 8193, 16384, 65536} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			require.NoError(t, os.WriteFile(path, image[:size], 0o600))
			requireDamaged(t, use(path), path)
		})
	}
	require.NoError(t, os.WriteFile(path, image, 0o600))
	require.NoError(t, use(path), "a copy put back works")
}

func TestOverwritten(t *testing.T) {
	path, image := fullStore(t)
	cases := map[string]func(b []byte) []byte{
		"text":          func([]byte) []byte { return []byte(strings.Repeat("not a store\n", 5000)) },
		"both metas":    func(b []byte) []byte { clear(b[:8192]); return b },
		"zeros":         func(b []byte) []byte { clear(b); return b },
		"all but metas": func(b []byte) []byte { clear(b[8192:]); return b },
		"all ones": func(b []byte) []byte {
			for i := range b[8192:] {
				b[8192+i] = 0xff
			}
			return b
		},
	}
	for name, damage := range cases {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, os.WriteFile(path, damage(append([]byte(nil), image...)), 0o600))
			requireDamaged(t, use(path), path)
		})
	}
}

// Whatever bytes change, a command ends with an error that names the file, or
// does not meet them.
func TestRandomDamage(t *testing.T) {
	path, image := fullStore(t)
	rnd := rand.New(rand.NewPCG(3, 4))
	damaged := 0
	for round := range 250 {
		b := append([]byte(nil), image...)
		for range 1 + rnd.IntN(20) {
			page := rnd.IntN(len(b) / 4096)
			switch rnd.IntN(4) {
			case 0: // its header
				b[page*4096+rnd.IntN(16)] = byte(rnd.Int())
			case 1: // its elements
				b[page*4096+16+rnd.IntN(256)] = byte(rnd.Int())
			case 2:
				b[rnd.IntN(len(b))] ^= 1 << rnd.IntN(8)
			case 3: // another page's bytes
				copy(b[page*4096+16:(page+1)*4096], b[rnd.IntN(len(b)/4096)*4096:])
			}
		}
		require.NoError(t, os.WriteFile(path, b, 0o600))
		if err := use(path); err != nil {
			require.ErrorContains(t, err, path, "round %d", round)
			require.NotContains(t, err.Error(), "\n", "round %d", round)
			damaged++
		}
	}
	require.Greater(t, damaged, 50, "the damage is met")
}

// After damage was met the lock is free again, and the DB says the same again.
func TestDamagedIsLeft(t *testing.T) {
	path, image := fullStore(t)
	b := append([]byte(nil), image...)
	clear(b[8192:])
	require.NoError(t, os.WriteFile(path, b, 0o600))
	db, err := open(path, true, time.Minute)
	require.NoError(t, err)
	for range 2 {
		err = db.View(func(tx *Tx) error {
			_, _, err := Get[int](tx, "other", "00000001")
			return err
		})
		requireDamaged(t, err, path)
	}
	require.NoError(t, db.Close())
	require.NoError(t, os.WriteFile(path, image, 0o600))
	db, err = open(path, false, time.Minute)
	require.NoError(t, err)
	require.NoError(t, db.Close())
}

func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	done := make(chan struct{})
	go func() { // a thread with mounts of its own, which ends with it
		defer close(done)
		runtime.LockOSThread()
		if err := errors.Join(
			unix.Unshare(unix.CLONE_FS|unix.CLONE_NEWNS),
			unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			unix.Mount("tmpfs", dir, "tmpfs", 0, "size=512k"),
		); err != nil {
			t.Errorf("tmpfs: %v", err)
			return
		}
		fillDisk(t, filepath.Join(dir, "store.db"))
	}()
	<-done
}

func fillDisk(t *testing.T, path string) {
	fill := func(from, n int) error {
		db, err := Open(path)
		if err != nil {
			return err
		}
		err = db.Update(func(tx *Tx) error {
			for i := from; i < from+n; i++ {
				if err := Put(tx, "publications", fmt.Sprintf("%08d", i), samplePublication(i)); err != nil {
					return err
				}
			}
			return nil
		})
		return errors.Join(err, db.Close())
	}
	if err := fill(0, 200); err != nil {
		t.Errorf("first: %v", err)
		return
	}
	err := fill(200, 5000)
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "nothing was changed") {
		t.Errorf("full disk: %v", err)
	}
	n := 0
	db, err := Open(path)
	if err != nil {
		t.Errorf("after: %v", err)
		return
	}
	err = errors.Join(db.View(func(tx *Tx) error {
		return Each(tx, "publications", func(string, publication) error { n++; return nil })
	}), db.Close())
	if err != nil || n != 200 {
		t.Errorf("after: %d left, %v", n, err)
	}

	// No room for a single page.
	empty := filepath.Join(filepath.Dir(path), "new", "store.db")
	rest, err := os.Create(filepath.Join(filepath.Dir(path), "rest"))
	if err != nil {
		t.Error(err)
		return
	}
	for err == nil {
		_, err = rest.Write(make([]byte, 1024))
	}
	_ = rest.Close()
	_, err = Open(empty)
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), empty) {
		t.Errorf("no room at all: %v", err)
	}
}
