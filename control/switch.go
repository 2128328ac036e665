// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"strings"
)

// switchPath makes another datapath carry the packets: it is set up and told everything
// beside the one that runs, which then goes. What was connected may have to connect anew.
func (o *op) switchPath(to string) (err error) {
	if list, err := o.engines(); err != nil {
		return err
	} else if len(list) > 0 && to != DatapathBPF {
		return conflict("datapath %s: does not carry the packets of %s: end the daemon that follows it first, and its containers", to, list[0].Name)
	}
	from, name := o.path(), o.host.Datapath
	o.host.Datapath, o.dp = to, nil
	o.rebuild = true
	if o.host.Cgroup == "" {
		if o.host.Cgroup, err = cgroupMount(); err != nil && to == DatapathBPF {
			return err
		}
	}
	if err := kinds[to].probe(); err != nil {
		return err
	}
	if err := o.path().Install(); err != nil {
		return err
	}
	err = o.reconcile()
	o.reconciling = false // from here on a failure is taken back
	if err == nil && len(o.problems) > 0 {
		err = errors.New(strings.Join(o.problems, "; "))
	}
	if err == nil {
		err = o.path().Flush()
	}
	if err == nil {
		err = from.Remove()
	}
	if err != nil {
		return err
	}
	o.did("datapath: %s in the place of %s", to, name)
	return o.putHost()
}
