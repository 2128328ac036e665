// SPDX-License-Identifier: Apache-2.0

// Package store keeps what the user asked for in one bbolt file. The Manager
// opens it per operation, so that several commands can run at once: writers one
// after the other, readers together. Values are JSON.
package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// lockTimeout is how long a command waits for the others.
const lockTimeout = 60 * time.Second

// mmapSize is mapped at once (address space, not memory), so that growing does
// not remap, and copy, in the middle of a commit. Beyond it bbolt remaps.
const mmapSize = 64 << 20

// growth is what the file grows by, in bytes.
const growth = 1 << 20

// DB is an open store and holds its lock: exclusive from Open, shared from
// OpenRead. A transaction is for one goroutine.
type DB struct {
	path   string
	file   *os.File
	bolt   *bbolt.DB
	broken atomic.Pointer[Error]
}

// Open opens the store for reading and writing, and makes the file (mode 0600)
// and its directory (0700) when they are missing. It waits up to 60 s for other
// commands: then the error is ErrLocked. A damaged file is ErrCorrupt.
func Open(path string) (*DB, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, explain(path, err)
	}
	return open(path, false, lockTimeout)
}

// OpenRead opens the store for View only, beside other readers. A store that
// nobody has written yet is fs.ErrNotExist.
func OpenRead(path string) (*DB, error) {
	return open(path, true, lockTimeout)
}

func open(path string, readOnly bool, timeout time.Duration) (*DB, error) {
	db := &DB{path: path}
	options := &bbolt.Options{
		ReadOnly:        readOnly,
		FreelistType:    bbolt.FreelistMapType,
		InitialMmapSize: mmapSize,
		NoStatistics:    true,
		// bbolt's own lock polls every 50 ms; the one taken here is of the
		// same open file, so that bbolt then finds it free.
		OpenFile: func(name string, flag int, mode os.FileMode) (*os.File, error) {
			f, err := os.OpenFile(name, flag, mode)
			if err != nil {
				return nil, err
			}
			if err := lock(f, readOnly, timeout); err != nil {
				return nil, err
			}
			db.file = f
			return f, prepare(f, readOnly)
		},
	}
	err := db.guard(func() (err error) {
		db.bolt, err = bbolt.Open(path, 0o600, options)
		return err
	})
	if err != nil {
		if db.file != nil {
			_ = db.release() // bbolt may have been stopped before it did
		}
		return nil, explain(path, err)
	}
	db.bolt.AllocSize = growth
	return db, nil
}

// prepare looks at the locked file before bbolt does.
func prepare(f *os.File, readOnly bool) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errors.New("not a regular file")
	}
	if readOnly {
		if info.Size() == 0 {
			return fs.ErrNotExist // made by a command that died before it wrote
		}
		return nil
	}
	if info.Mode().Perm()&0o077 != 0 {
		return f.Chmod(0o600)
	}
	return nil
}

// Close gives the lock back.
func (db *DB) Close() error {
	if db.broken.Load() != nil {
		return db.release()
	}
	if err := db.guard(db.bolt.Close); err != nil {
		return explain(db.path, err)
	}
	return nil
}

// release closes the file behind bbolt's back: after a panic its own locks are
// in an unknown state, and its Close could wait for ever. The mapping stays, and
// would keep the file's lock.
func (db *DB) release() error {
	_ = unix.Flock(int(db.file.Fd()), unix.LOCK_UN)
	return db.file.Close()
}

// Update runs fn in a transaction: all of it is on the disk when Update returns
// nil, nothing of it otherwise. An error of fn comes back as it is.
func (db *DB) Update(fn func(*Tx) error) error {
	return db.run(true, fn)
}

// View runs fn on one unchanging state of the store.
func (db *DB) View(fn func(*Tx) error) error {
	return db.run(false, fn)
}

func (db *DB) run(write bool, fn func(*Tx) error) error {
	tx := &Tx{db: db, write: write}
	err := db.guard(func() (err error) {
		tx.bolt, err = db.bolt.Begin(write)
		return err
	})
	if err != nil {
		return explain(db.path, err)
	}
	defer tx.end() // fn failed, or panicked
	if err := fn(tx); err != nil || !write {
		return err
	}
	return tx.commit()
}

// lock waits with flock(2) itself, which wakes the next in line at once.
func lock(f *os.File, shared bool, timeout time.Duration) error {
	how := unix.LOCK_EX
	if shared {
		how = unix.LOCK_SH
	}
	fd := int(f.Fd())
	err := unix.Flock(fd, how|unix.LOCK_NB)
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.EWOULDBLOCK) {
		_ = f.Close()
		return fmt.Errorf("lock: %w", err)
	}
	got := make(chan error, 1)
	go func() {
		for {
			err := unix.Flock(fd, how)
			if !errors.Is(err, unix.EINTR) {
				got <- err
				return
			}
		}
	}()
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case err := <-got:
		if err != nil {
			_ = f.Close()
			return fmt.Errorf("lock: %w", err)
		}
		return nil
	case <-timer.C:
		go func() {
			<-got
			_ = f.Close() // gives back what came too late
		}()
		return ErrLocked
	}
}
