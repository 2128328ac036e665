// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"go.etcd.io/bbolt"
)

// A record that somebody has changed is read as a record, or is an error that names the file; the
// others are read all the same.
func FuzzRecord(f *testing.F) {
	path := filepath.Join(f.TempDir(), "store.db")
	db, err := Open(path)
	require.NoError(f, err)
	require.NoError(f, db.Update(func(tx *Tx) error { return Put(tx, "publications", "good", samplePublication(1)) }))
	require.NoError(f, db.Close())
	for _, s := range []string{`{}`, `null`, `[`, `{"id":`, "", "\x00", `{"address":"::1%\n","port":-1}`, `"x"`, `1e400`} {
		f.Add("key", []byte(s))
	}
	f.Fuzz(func(t *testing.T, key string, raw []byte) {
		if key == "good" {
			key = "bad"
		}
		b, err := bbolt.Open(path, 0o600, nil)
		require.NoError(t, err)
		err = b.Update(func(tx *bbolt.Tx) error { return tx.Bucket([]byte("publications")).Put([]byte(key), raw) })
		require.NoError(t, b.Close())
		if err != nil {
			return // bbolt takes no such key
		}
		db, err := Open(path)
		require.NoError(t, err)
		defer db.Close()
		require.NoError(t, db.Update(func(tx *Tx) error {
			got, ok, err := Get[publication](tx, "publications", key)
			if err != nil {
				var e *Error
				require.True(t, errors.As(err, &e) && e.Path == path, "%v", err)
				require.NotContains(t, err.Error(), "\n")
				require.Error(t, Each(tx, "publications", func(string, publication) error { return nil }))
			} else {
				require.True(t, ok)
				require.NoError(t, Put(tx, "publications", key, got))
				again, _, err := Get[publication](tx, "publications", key)
				require.NoError(t, err)
				require.Equal(t, got, again)
			}
			good, ok, err := Get[publication](tx, "publications", "good")
			require.NoError(t, err)
			require.True(t, ok)
			require.Equal(t, samplePublication(1), good)
			return Delete(tx, "publications", key)
		}))
	})
}
