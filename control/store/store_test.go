// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestMain is also the other process of TestProcesses and TestKilledWriter.
func TestMain(m *testing.M) {
	if path := os.Getenv("STORE_TEST_COUNT"); path != "" {
		if err := count(path, 50); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if path := os.Getenv("STORE_TEST_HOLD"); path != "" {
		hold(path)
	}
	os.Exit(m.Run())
}

// count adds 1 to a number n times, each time as a command would.
func count(path string, n int) error {
	for range n {
		db, err := Open(path)
		if err != nil {
			return err
		}
		err = db.Update(func(tx *Tx) error {
			v, _, err := Get[int](tx, "numbers", "n")
			if err != nil {
				return err
			}
			return Put(tx, "numbers", "n", v+1)
		})
		if err != nil {
			return err
		}
		if err := db.Close(); err != nil {
			return err
		}
	}
	return nil
}

// hold sits in the middle of an Update until it is killed.
func hold(path string) {
	db, err := Open(path)
	if err != nil {
		os.Exit(1)
	}
	_ = db.Update(func(tx *Tx) error {
		if err := Put(tx, "numbers", "n", -1); err != nil {
			return err
		}
		if err := Each(tx, "numbers", func(string, int) error { return nil }); err != nil { // hands it to bbolt
			return err
		}
		fmt.Println("holding")
		for { // select {} would be a deadlock to the runtime, and end the process
			time.Sleep(time.Hour)
		}
	})
}

func tempStore(t *testing.T) (string, *DB) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "root", "store.db")
	db, err := Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { _ = db.Close() })
	return path, db
}

func contents(t *testing.T, db *DB, bucket, prefix string) (keys []string, values []int) {
	t.Helper()
	require.NoError(t, db.View(func(tx *Tx) error {
		return EachPrefix(tx, bucket, prefix, func(k string, v int) error {
			keys, values = append(keys, k), append(values, v)
			return nil
		})
	}))
	return keys, values
}

func TestPutGetDelete(t *testing.T) {
	path, db := tempStore(t)
	type record struct {
		Name string            `json:"name"`
		Map  map[string]string `json:"map,omitempty"`
	}
	want := record{Name: "a<b>&", Map: map[string]string{"k": "v\n"}}
	require.NoError(t, db.Update(func(tx *Tx) error {
		_, ok, err := Get[record](tx, "none", "x")
		require.NoError(t, err)
		require.False(t, ok, "a missing bucket")
		require.NoError(t, Delete(tx, "none", "x"))
		require.NoError(t, Put(tx, "records", "x", want))
		got, ok, err := Get[record](tx, "records", "x")
		require.NoError(t, err)
		require.True(t, ok, "its own change is seen")
		require.Equal(t, want, got)
		return nil
	}))
	require.NoError(t, db.Close())

	db, err := OpenRead(path)
	require.NoError(t, err)
	require.NoError(t, db.View(func(tx *Tx) error {
		got, ok, err := Get[record](tx, "records", "x")
		require.NoError(t, err)
		require.True(t, ok)
		require.Equal(t, want, got)
		_, ok, err = Get[record](tx, "records", "y")
		require.NoError(t, err)
		require.False(t, ok)
		return nil
	}))
	require.NoError(t, db.Close())

	db, err = Open(path)
	require.NoError(t, err)
	require.NoError(t, db.Update(func(tx *Tx) error {
		require.NoError(t, Delete(tx, "records", "x"))
		_, ok, err := Get[record](tx, "records", "x")
		require.NoError(t, err)
		require.False(t, ok)
		return nil
	}))
	keys, _ := contents(t, db, "records", "")
	require.Empty(t, keys)
	require.NoError(t, db.Close())
}

func TestEachOrderAndPrefix(t *testing.T) {
	_, db := tempStore(t)
	require.NoError(t, db.Update(func(tx *Tx) error {
		for i, k := range []string{"b/2", "a", "b/10", "c", "b", "b/1"} {
			require.NoError(t, Put(tx, "n", k, i))
		}
		return Put(tx, "n", "a", 7)
	}))
	keys, values := contents(t, db, "n", "")
	require.Equal(t, []string{"a", "b", "b/1", "b/10", "b/2", "c"}, keys)
	require.Equal(t, []int{7, 4, 5, 2, 0, 3}, values)
	keys, _ = contents(t, db, "n", "b/")
	require.Equal(t, []string{"b/1", "b/10", "b/2"}, keys)
	keys, _ = contents(t, db, "n", "d")
	require.Empty(t, keys)
	keys, _ = contents(t, db, "missing", "")
	require.Empty(t, keys)

	stop := errors.New("stop")
	seen := 0
	err := db.View(func(tx *Tx) error {
		return Each(tx, "n", func(string, int) error { seen++; return stop })
	})
	require.Equal(t, stop, err, "the callback's own error")
	require.Equal(t, 1, seen)
}

// Each shows what was there when it began, whatever its callback does.
func TestEachWhileChanging(t *testing.T) {
	_, db := tempStore(t)
	require.NoError(t, db.Update(func(tx *Tx) error {
		for i := range 500 {
			require.NoError(t, Put(tx, "n", fmt.Sprintf("%04d", i), i))
		}
		seen := 0
		require.NoError(t, Each(tx, "n", func(k string, v int) error {
			require.Equal(t, seen, v)
			seen++
			require.NoError(t, Delete(tx, "n", k))
			require.NoError(t, Put(tx, "n", "x"+k, v))
			if v == 250 { // a nested Each hands all of that to bbolt
				nested := 0
				require.NoError(t, EachPrefix(tx, "n", "x", func(string, int) error { nested++; return nil }))
				require.Equal(t, 251, nested)
			}
			return nil
		}))
		require.Equal(t, 500, seen)
		return nil
	}))
	keys, _ := contents(t, db, "n", "")
	require.Len(t, keys, 500)
	require.Equal(t, "x0000", keys[0])
}

// A long random history against a map, with transactions that fail.
func TestAgainstMap(t *testing.T) {
	path, db := tempStore(t)
	rnd := rand.New(rand.NewPCG(1, 2))
	want := map[string]int{}
	fail := errors.New("fail")
	for round := range 150 {
		next := maps.Clone(want)
		err := db.Update(func(tx *Tx) error {
			for range rnd.IntN(60) {
				k := fmt.Sprint(rnd.IntN(300))
				switch rnd.IntN(5) {
				case 0, 1:
					next[k] = rnd.Int()
					require.NoError(t, Put(tx, "n", k, next[k]))
				case 2:
					delete(next, k)
					require.NoError(t, Delete(tx, "n", k))
				case 3:
					v, ok, err := Get[int](tx, "n", k)
					require.NoError(t, err)
					expected, there := next[k]
					require.Equal(t, there, ok)
					require.Equal(t, expected, v)
				case 4:
					var keys []string
					require.NoError(t, Each(tx, "n", func(k string, v int) error {
						require.Equal(t, next[k], v)
						keys = append(keys, k)
						return nil
					}))
					require.Equal(t, slices.Sorted(maps.Keys(next)), keys)
				}
			}
			if round%3 == 0 {
				return fail
			}
			return nil
		})
		if round%3 == 0 {
			require.Equal(t, fail, err)
		} else {
			require.NoError(t, err)
			want = next
		}
		if round%10 == 0 {
			require.NoError(t, db.Close())
			db, err = Open(path)
			require.NoError(t, err)
		}
	}
	keys, _ := contents(t, db, "n", "")
	require.Equal(t, slices.Sorted(maps.Keys(want)), keys)
}

func TestPanicRollsBack(t *testing.T) {
	_, db := tempStore(t)
	require.NoError(t, db.Update(func(tx *Tx) error { return Put(tx, "n", "a", 1) }))
	require.PanicsWithValue(t, "mine", func() {
		_ = db.Update(func(tx *Tx) error {
			require.NoError(t, Put(tx, "n", "a", 2))
			panic("mine")
		})
	})
	_, values := contents(t, db, "n", "")
	require.Equal(t, []int{1}, values)
	require.NoError(t, db.Update(func(tx *Tx) error { return Put(tx, "n", "a", 3) }), "not locked")
}

func TestMisuse(t *testing.T) {
	path, db := tempStore(t)
	var old *Tx
	require.NoError(t, db.Update(func(tx *Tx) error {
		old = tx
		require.ErrorIs(t, Put(tx, "", "k", 1), errName)
		require.ErrorIs(t, Put(tx, "b", "", 1), errName)
		require.ErrorContains(t, Put(tx, "b", "k", func() {}), "b/k: json: unsupported type")
		return Put(tx, "b", "text", "x")
	}))
	require.ErrorIs(t, Put(old, "b", "k", 1), errOver)
	_, _, err := Get[int](old, "b", "k")
	require.ErrorIs(t, err, errOver)
	require.ErrorIs(t, Each(old, "b", func(string, int) error { return nil }), errOver)
	require.NoError(t, db.View(func(tx *Tx) error {
		require.ErrorIs(t, Put(tx, "b", "k", 1), errReadOnly)
		require.ErrorIs(t, Delete(tx, "b", "k"), errReadOnly)
		_, _, err := Get[int](tx, "b", "text")
		require.ErrorIs(t, err, ErrCorrupt, "a value of another type")
		require.ErrorContains(t, err, "b/text")
		return nil
	}))
	err = db.Update(func(tx *Tx) error { return Put(tx, "b", strings.Repeat("k", 40_000), 1) })
	require.ErrorContains(t, err, "key too large")
	require.ErrorContains(t, err, path)
	keys, _ := contents(t, db, "b", "m")
	require.Empty(t, keys)
}

func TestModes(t *testing.T) {
	path, db := tempStore(t)
	dir, err := os.Stat(filepath.Dir(path))
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o700), dir.Mode().Perm())
	file, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o600), file.Mode().Perm())
	require.NoError(t, db.Close())

	require.NoError(t, os.Chmod(path, 0o644)) // as a copy put back by hand may be
	db, err = Open(path)
	require.NoError(t, err)
	require.NoError(t, db.Close())
	file, err = os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o600), file.Mode().Perm())
}

func TestOpenReadNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "sub", "store.db")
	_, err := OpenRead(path)
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.NoDirExists(t, filepath.Dir(path), "a reader makes nothing")

	path = filepath.Join(dir, "empty.db")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	_, err = OpenRead(path)
	require.ErrorIs(t, err, fs.ErrNotExist)
	db, err := Open(path)
	require.NoError(t, err, "a writer begins")
	require.NoError(t, db.Close())

	_, err = Open(dir)
	require.EqualError(t, err, "store "+dir+": is a directory")
	fifo := filepath.Join(dir, "fifo")
	require.NoError(t, unix.Mkfifo(fifo, 0o600))
	_, err = Open(fifo)
	require.ErrorContains(t, err, "not a regular file")
	_, err = Open(filepath.Join(fifo, "store.db"))
	require.ErrorContains(t, err, "not a directory")
}

func TestLocks(t *testing.T) {
	path, db := tempStore(t)
	require.NoError(t, db.Update(func(tx *Tx) error { return Put(tx, "n", "a", 1) }))

	_, err := open(path, false, 30*time.Millisecond)
	require.ErrorIs(t, err, ErrLocked)
	require.ErrorContains(t, err, path)
	require.ErrorContains(t, err, "another bpfnet command holds it")
	_, err = open(path, true, 30*time.Millisecond)
	require.ErrorIs(t, err, ErrLocked)
	require.NoError(t, db.Close())

	// What waited in vain gives the lock back when it comes after all.
	one, err := open(path, true, time.Minute)
	require.NoError(t, err)
	two, err := open(path, true, time.Minute)
	require.NoError(t, err, "readers share")
	_, err = open(path, false, 30*time.Millisecond)
	require.ErrorIs(t, err, ErrLocked, "a writer does not")
	require.NoError(t, one.Close())
	require.NoError(t, two.Close())

	// A waiting writer goes on as soon as the other is done.
	first, err := Open(path)
	require.NoError(t, err)
	got := make(chan error, 1)
	go func() {
		db, err := open(path, false, time.Minute)
		if err == nil {
			err = db.Close()
		}
		got <- err
	}()
	select {
	case err := <-got:
		t.Fatalf("two writers at once: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	require.NoError(t, first.Close())
	require.NoError(t, <-got)
}

func TestProcesses(t *testing.T) {
	path, db := tempStore(t)
	require.NoError(t, db.Close())
	const n = 6
	errs := make(chan error, n)
	for range n {
		go func() {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), "STORE_TEST_COUNT="+path)
			out, err := cmd.CombinedOutput()
			if err != nil {
				err = fmt.Errorf("%w: %s", err, out)
			}
			errs <- err
		}()
	}
	for range n {
		require.NoError(t, <-errs)
	}
	db, err := OpenRead(path)
	require.NoError(t, err)
	_, values := contents(t, db, "numbers", "")
	require.Equal(t, []int{n * 50}, values)
	require.NoError(t, db.Close())
}

// A command killed in the middle of a transaction leaves the state before it.
func TestKilledWriter(t *testing.T) {
	path, db := tempStore(t)
	require.NoError(t, db.Update(func(tx *Tx) error { return Put(tx, "numbers", "n", 1) }))
	require.NoError(t, db.Close())
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "STORE_TEST_HOLD="+path)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	line := make([]byte, 7)
	_, err = out.Read(line)
	require.NoError(t, err)
	require.Equal(t, "holding", string(line))
	_, err = open(path, true, 20*time.Millisecond)
	require.ErrorIs(t, err, ErrLocked)
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()

	db, err = Open(path)
	require.NoError(t, err)
	_, values := contents(t, db, "numbers", "")
	require.Equal(t, []int{1}, values)
	require.NoError(t, db.Close())
}
