// SPDX-License-Identifier: Apache-2.0

package control

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"regexp"
	"strings"

	"github.com/bpfnet/bpfnet/control/store"
)

// Docker's pattern for the names of containers and networks.
const namePattern = `[a-zA-Z0-9][a-zA-Z0-9_.-]+`

var (
	nameRule = regexp.MustCompile(`^` + namePattern + `$`)
	hexRule  = regexp.MustCompile(`^[0-9a-f]{1,64}$`)
)

const maxName = 128

func checkName(kind, name string) error {
	if !nameRule.MatchString(name) {
		return invalid("invalid %s name %q: only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed, two characters at least", kind, name)
	}
	if len(name) > maxName {
		return invalid("invalid %s name %.16s…: %d characters, at most %d", kind, name, len(name), maxName)
	}
	return nil
}

// checkID refuses what newID could not have made.
func checkID(id string) error {
	if len(id) != 64 || !hexRule.MatchString(id) {
		return invalid("container ID %.70q: not 64 hex digits", id)
	}
	return nil
}

// newID makes an identifier: 64 hex digits. As in Docker its first 12 are never
// all decimal, so that a short one is not mistaken for a number.
func newID() string {
	for {
		var b [32]byte
		_, _ = rand.Read(b[:]) // never fails (crypto/rand)
		id := hex.EncodeToString(b[:])
		if strings.ContainsAny(id[:12], "abcdef") {
			return id
		}
	}
}

var (
	nameFirst  = strings.Fields("able airy amber bold brave brisk calm clear clever cosy crisp eager fair fancy fresh gentle glad grand happy jolly keen kind lively lucky mellow merry mild neat nimble noble plain proud quick quiet rapid ready sharp shiny smart snappy solid steady sunny swift tidy vivid warm witty")
	nameSecond = strings.Fields("anchor arch badger beacon bridge brook cable canal cedar comet copper delta ember falcon ferry finch gate harbour hawk hazel heron island jetty lantern lark ledge linden lynx maple marsh meadow otter pebble pier pine plover quay raven reed ridge river robin spruce stone swallow thicket valley weir willow wren")
)

// freeName makes a name for a container that was given none.
func freeName(tx *store.Tx) (string, error) {
	for try := range 1000 {
		name := nameFirst[mrand.IntN(len(nameFirst))] + "_" + nameSecond[mrand.IntN(len(nameSecond))]
		if try > 3 {
			name += fmt.Sprint(mrand.IntN(100000))
		}
		if _, taken, err := store.Get[string](tx, bucketNames, name); err != nil || !taken {
			return name, err
		}
	}
	return "", errors.New("container name: no free one found; give one with --name")
}

// findID resolves a name, an ID or a unique prefix of one; "" when nothing has it.
// A whole ID outranks a name, and a name a prefix, as in Docker. Of an engine's the name
// alone will do where nothing of ours has it; "bridge" is always ours.
func findID[T any](tx *store.Tx, kind, bucket, names, ref string) (string, error) {
	if ref == "" {
		return "", nil
	}
	if len(ref) == 64 {
		if _, ok, err := store.Get[T](tx, bucket, ref); err != nil || ok {
			return ref, err
		}
	}
	if id, ok, err := store.Get[string](tx, names, ref); err != nil || ok {
		return id, err
	}
	if ref != DefaultNetwork && nameRule.MatchString(ref) {
		id := ""
		err := store.EachPrefix(tx, bucketHost, engineKey, func(_ string, r engineRecord) error {
			found, ok, err := store.Get[string](tx, names, r.Name+"/"+ref)
			if ok && id == "" {
				id = found
			}
			return err
		})
		if err != nil || id != "" {
			return id, err
		}
	}
	if !hexRule.MatchString(ref) {
		return "", nil
	}
	found := ""
	err := store.EachPrefix(tx, bucket, ref, func(id string, _ T) error {
		if found != "" {
			return invalid("%s %s: ambiguous, more than one ID begins with it", kind, ref)
		}
		found = id
		return nil
	})
	return found, err
}

func findContainer(tx *store.Tx, ref string) (*Container, error) {
	ref = strings.TrimPrefix(ref, "/")
	id, err := findID[Container](tx, "container", bucketContainers, bucketNames, ref)
	if err != nil {
		return nil, err
	}
	if id == "" {
		return nil, notFound("No such container: %s", ref)
	}
	return containerByID(tx, id)
}

func containerByID(tx *store.Tx, id string) (*Container, error) {
	c, ok, err := store.Get[Container](tx, bucketContainers, id)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, notFound("No such container: %s", id)
	}
	return &c, nil
}

func findNetwork(tx *store.Tx, ref string) (*Network, error) {
	id, err := findID[Network](tx, "network", bucketNetworks, bucketNetworkNames, ref)
	if err != nil {
		return nil, err
	}
	if id == "" {
		return nil, notFound("network %s not found", ref)
	}
	return networkByID(tx, id)
}

func networkByID(tx *store.Tx, id string) (*Network, error) {
	n, ok, err := store.Get[Network](tx, bucketNetworks, id)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, notFound("network %s not found", id)
	}
	return &n, nil
}
