// SPDX-License-Identifier: Apache-2.0

package control

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const adoptEnv = "BPFNET_TEST_ADOPT" // an Adopted that a child tells again and again

// adoptRounds is a child's work until it is killed.
func adoptRounds(o Options, raw string) error {
	var all Adopted
	if err := json.Unmarshal([]byte(raw), &all); err != nil {
		return err
	}
	one := all
	one.Whole, one.Networks, one.Containers = false, nil, []AdoptedContainer{all.Containers[0]}
	one.Containers[0].Ports = []AdoptedPort{port(9000, 80)}
	gone := Adopted{Engine: all.Engine, Devices: all.Devices, Gone: []string{all.Containers[1].ID}}
	none := Adopted{Engine: all.Engine, Devices: all.Devices, Whole: true}
	for {
		for _, a := range []Adopted{all, one, gone, all, none} {
			m, err := Open(o)
			if err != nil {
				return err
			}
			if _, err := m.Adopt(a); err != nil {
				return err
			}
			fmt.Println("told")
		}
	}
}

// Killed at any moment, reconcile finds everything right, and the next word of the engine
// is in force.
func TestAdoptKilled(t *testing.T) {
	e := newEngine(t)
	web, _ := e.run("web", 2, port(8080, 80), port(8082, 80))
	other, _ := e.run("other", 3, port(8090, 80))
	all := Adopted{Engine: "docker", Held: true, Devices: "^veth[0-9a-f]{7}$", Whole: true, Networks: []AdoptedNetwork{e.network}, Containers: []AdoptedContainer{web, other}}
	e.adopt(true)
	told, err := json.Marshal(all)
	require.NoError(t, err)
	options, err := json.Marshal(childOptions(e.o))
	require.NoError(t, err)
	for i := range 10 {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), childEnv+"="+string(options), adoptEnv+"="+string(told))
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		_, err = out.Read(make([]byte, 1)) // it is at work
		require.NoError(t, err)
		<-time.After(time.Duration(i) * 17 * time.Millisecond)
		require.NoError(t, cmd.Process.Kill())
		_ = cmd.Wait()

		_, err = e.m.Reconcile()
		require.NoError(t, err, "round %d", i)
		again, err := e.m.Reconcile()
		require.NoError(t, err)
		require.Empty(t, again, "round %d", i)
		st, err := e.m.Status()
		require.NoError(t, err)
		require.Empty(t, st.Problems, "round %d", i)
		_, err = e.m.Adopt(all)
		require.NoError(t, err, "round %d", i)
		for name, p := range map[string]uint16{"web": 8082, "other": 8090} {
			c, err := e.m.Container(name)
			require.NoError(t, err)
			require.Equal(t, c.Endpoints[e.network.ID].Slot, e.leadsTo(p), "round %d", i)
		}
		require.Zero(t, e.leadsTo(9000), "round %d", i)
	}
	_, err = e.m.Adopt(Adopted{Engine: "docker", Whole: true})
	require.NoError(t, err)
	require.NoError(t, e.m.empty())
}
