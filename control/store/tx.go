// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.etcd.io/bbolt"
)

var (
	errOver     = errors.New("store: the transaction is over")
	errReadOnly = errors.New("store: a View cannot write")
	errName     = errors.New("store: empty bucket or key")
)

// fillPercent of a page: keys mostly grow, so that little is inserted in the
// middle later.
const fillPercent = 0.9

// Tx is a transaction, valid until the function that got it returns.
type Tx struct {
	db      *DB
	bolt    *bbolt.Tx
	write   bool
	pending map[string]*changes // by bucket
	buf     bytes.Buffer
	enc     *json.Encoder
	room    []byte // for values to come
}

// changes are what Put and Delete left for a bucket. They go to bbolt in key
// order: an insertion in the middle of 10,000 fresh keys moves half of them.
type changes struct {
	list  []pair         // in the order of the calls; a nil raw deletes
	index map[string]int // into list; nil as long as the keys rise
}

type pair struct {
	key string
	raw []byte
}

func (c *changes) add(key string, raw []byte) {
	n := len(c.list)
	if c.index == nil && (n == 0 || key > c.list[n-1].key) {
		c.list = append(c.list, pair{key, raw})
		return
	}
	c.hash()
	if i, ok := c.index[key]; ok {
		c.list[i].raw = raw
		return
	}
	c.index[key] = n
	c.list = append(c.list, pair{key, raw})
}

func (c *changes) find(key string) (raw []byte, ok bool) {
	if c == nil {
		return nil, false
	}
	if c.index == nil { // still in order
		i, ok := slices.BinarySearchFunc(c.list, key, func(p pair, key string) int { return strings.Compare(p.key, key) })
		if !ok {
			return nil, false
		}
		return c.list[i].raw, true
	}
	i, ok := c.index[key]
	if !ok {
		return nil, false
	}
	return c.list[i].raw, true
}

// hash prepares for keys that do not come in order.
func (c *changes) hash() {
	if c.index != nil {
		return
	}
	c.index = make(map[string]int, 2*len(c.list))
	for i, p := range c.list {
		c.index[p.key] = i
	}
}

// Get returns ok == false for a key, or bucket, that is not there.
func Get[T any](tx *Tx, bucket, key string) (v T, ok bool, err error) {
	raw, err := tx.get(bucket, key)
	if err != nil || raw == nil {
		return v, false, err
	}
	if err := tx.decode(bucket, key, raw, &v); err != nil {
		return v, false, err
	}
	return v, true, nil
}

// Put replaces the value; the bucket is made when it is missing.
func Put[T any](tx *Tx, bucket, key string, v T) error {
	if tx.enc == nil {
		tx.enc = json.NewEncoder(&tx.buf)
		tx.enc.SetEscapeHTML(false)
	}
	tx.buf.Reset()
	if err := tx.enc.Encode(v); err != nil {
		return &Error{Path: tx.db.path, Err: fmt.Errorf("%s/%s: %w", bucket, key, err)}
	}
	return tx.set(bucket, key, tx.keep(tx.buf.Bytes()[:tx.buf.Len()-1])) // without the newline
}

// Delete of a key that is not there is no error.
func Delete(tx *Tx, bucket, key string) error {
	return tx.set(bucket, key, nil)
}

// Each calls fn in the keys' byte order until it fails. fn may change the
// bucket: this Each goes on with what was there when it began.
func Each[T any](tx *Tx, bucket string, fn func(key string, v T) error) error {
	return EachPrefix(tx, bucket, "", fn)
}

// EachPrefix is Each over the keys that begin with prefix.
func EachPrefix[T any](tx *Tx, bucket, prefix string, fn func(key string, v T) error) error {
	pairs, err := tx.scan(bucket, prefix)
	if err != nil {
		return err
	}
	for _, p := range pairs {
		var v T
		if err := tx.decode(bucket, p.key, p.raw, &v); err != nil {
			return err
		}
		if err := fn(p.key, v); err != nil {
			return err
		}
	}
	return nil
}

func (tx *Tx) decode(bucket, key string, raw []byte, v any) error {
	if err := json.Unmarshal(raw, v); err != nil {
		return corrupt(tx.db.path, bucket+"/"+key+": "+err.Error())
	}
	return nil
}

// get returns a copy, or nil: a value in a mapped page must be read under guard.
func (tx *Tx) get(bucket, key string) (raw []byte, err error) {
	if tx.bolt == nil {
		return nil, errOver
	}
	if raw, ok := tx.pending[bucket].find(key); ok {
		return raw, nil
	}
	err = tx.db.guard(func() error {
		if b := tx.bolt.Bucket([]byte(bucket)); b != nil {
			raw = bytes.Clone(b.Get([]byte(key)))
		}
		return nil
	})
	return raw, err
}

func (tx *Tx) set(bucket, key string, raw []byte) error {
	switch {
	case tx.bolt == nil:
		return errOver
	case !tx.write:
		return errReadOnly
	case bucket == "" || key == "":
		return errName
	}
	c := tx.pending[bucket]
	if c == nil {
		if tx.pending == nil {
			tx.pending = make(map[string]*changes)
		}
		c = new(changes)
		tx.pending[bucket] = c
	}
	c.add(key, raw)
	return nil
}

func (tx *Tx) scan(bucket, prefix string) (pairs []pair, err error) {
	if tx.bolt == nil {
		return nil, errOver
	}
	if err := tx.flush(bucket); err != nil {
		return nil, err
	}
	err = tx.db.guard(func() error {
		b := tx.bolt.Bucket([]byte(bucket))
		if b == nil {
			return nil
		}
		c := b.Cursor()
		for k, v := c.Seek([]byte(prefix)); bytes.HasPrefix(k, []byte(prefix)) && k != nil; k, v = c.Next() {
			pairs = append(pairs, pair{string(k), bytes.Clone(v)})
		}
		return nil
	})
	return pairs, err
}

// keep copies a value into memory that many share: 10,000 small allocations
// are a tenth of a large commit.
func (tx *Tx) keep(raw []byte) []byte {
	if len(raw) > cap(tx.room)-len(tx.room) {
		tx.room = make([]byte, 0, max(len(raw), 64<<10))
	}
	start := len(tx.room)
	tx.room = append(tx.room, raw...)
	return tx.room[start:len(tx.room):len(tx.room)]
}

// flush hands a bucket's changes to bbolt.
func (tx *Tx) flush(bucket string) error {
	c := tx.pending[bucket]
	if c == nil {
		return nil
	}
	if c.index != nil {
		slices.SortFunc(c.list, func(a, b pair) int { return strings.Compare(a.key, b.key) })
	}
	err := tx.db.guard(func() error {
		b, err := tx.bolt.CreateBucketIfNotExists([]byte(bucket))
		if err != nil {
			return err
		}
		b.FillPercent = fillPercent
		var key []byte
		for _, p := range c.list {
			key = append(key[:0], p.key...) // bbolt copies it, but not the value
			if p.raw == nil {
				err = b.Delete(key)
			} else {
				err = b.Put(key, p.raw)
			}
			if err != nil {
				return fmt.Errorf("%s/%s: %w", bucket, p.key, err)
			}
		}
		return nil
	})
	if err != nil {
		return explain(tx.db.path, err)
	}
	delete(tx.pending, bucket)
	return nil
}

func (tx *Tx) commit() error {
	if tx.pending == nil {
		return nil // nothing was ever put: end rolls nothing back, and nobody waits for the disk
	}
	for bucket := range tx.pending {
		if err := tx.flush(bucket); err != nil {
			return err
		}
	}
	bolt := tx.bolt
	err := tx.db.guard(bolt.Commit)
	if err != nil {
		return explain(tx.db.path, err)
	}
	tx.bolt = nil
	return nil
}

// end rolls back what was not committed. Its own error says nothing that the
// one before has not.
func (tx *Tx) end() {
	if bolt := tx.bolt; bolt != nil {
		tx.bolt = nil
		_ = tx.db.guard(func() error {
			if bolt.DB() != nil { // a failed commit has rolled back already
				return bolt.Rollback()
			}
			return nil
		})
	}
}
