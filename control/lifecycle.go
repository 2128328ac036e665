// SPDX-License-Identifier: Apache-2.0

package control

import (
	"slices"
	"time"

	"github.com/bpfnet/bpfnet/control/store"
)

// PrepareStart gives a stopped container its namespace and networks again.
// ErrConflict when it is running, or attached and so not ours to start.
func (m *Manager) PrepareStart(ref string) (*Container, error) {
	var c *Container
	err := m.change(notFound("No such container: %s", ref), func(o *op) (err error) {
		if c, err = ownContainer(o, ref); err != nil {
			return err
		}
		if c.Attached {
			return conflict("container %s: is attached, its command is not ours to start", c.Name)
		}
		if o.up(c) {
			return conflict("container %s: is running already", c.Name)
		}
		if c.State != StateExited {
			if err := o.lowerContainer(c); err != nil {
				return err
			}
		}
		return o.raiseContainer(c, nil)
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}

// Started records the command of a container that was prepared for it; supervisor may be 0.
// ErrConflict when its network has been taken down since.
func (m *Manager) Started(id string, pid, supervisor int) error {
	return m.change(notFound("No such container: %s", id), func(o *op) error {
		c, err := containerByID(o.tx, id)
		if err != nil {
			return err
		}
		if c.State != StateCreated {
			return conflict("container %s: was ended while its command was started", c.Name)
		}
		c.PID, c.PIDStart = pid, startTime(pid)
		if c.PIDStart == 0 {
			return notFound("container %s: no process %d", c.Name, pid)
		}
		c.Supervisor, c.SupStart = supervisor, startTime(supervisor)
		c.State, c.Started = StateRunning, time.Now()
		c.ExitCode, c.Finished = 0, time.Time{}
		return o.putContainer(c)
	})
}

// Finished takes the container's network down and records the exit code; a container with
// AutoRemove is removed. pid is the command that has ended: nothing is done when somebody has
// recorded that already (who waits for it and who stops it both may), or another one has been
// started since. 0: its command, whichever that is.
func (m *Manager) Finished(id string, pid, exitCode int) error {
	return m.change(notFound("No such container: %s", id), func(o *op) error {
		c, err := containerByID(o.tx, id)
		if err != nil {
			return err
		}
		if pid != 0 && (!c.Finished.IsZero() || c.PID != 0 && c.PID != pid) {
			return nil
		}
		c.ExitCode = exitCode
		return o.finish(c)
	})
}

// finish ends a container whose command has ended.
func (o *op) finish(c *Container) error {
	if err := o.lowerContainer(c); err != nil {
		return err
	}
	c.Finished = time.Now()
	if c.AutoRemove {
		return o.deleteContainer(c)
	}
	return o.putContainer(c)
}

// RemoveContainer removes a stopped or attached container. ErrConflict when its
// command runs.
func (m *Manager) RemoveContainer(ref string) error {
	return m.change(notFound("No such container: %s", ref), func(o *op) error {
		c, err := ownContainer(o, ref)
		if err != nil {
			return err
		}
		if !c.Attached && o.up(c) {
			return conflict("cannot remove container \"/%s\": container is running: stop the container before removing or force remove", c.Name)
		}
		if err := o.lowerContainer(c); err != nil {
			return err
		}
		return o.deleteContainer(c)
	})
}

// Containers lists all containers, oldest first, with states as they are now.
func (m *Manager) Containers() ([]*Container, error) {
	var list []*Container
	_, err := m.view(func(o *op) error {
		return store.Each(o.tx, bucketContainers, func(_ string, c Container) error {
			list = append(list, &c)
			return o.present(&c)
		})
	})
	slices.SortFunc(list, func(a, b *Container) int { return a.Created.Compare(b.Created) })
	return list, err
}

// Container finds a container by name, ID or unique prefix, with its state as it
// is now. ErrNotFound.
func (m *Manager) Container(ref string) (*Container, error) {
	var c *Container
	ok, err := m.view(func(o *op) (err error) {
		if c, err = findContainer(o.tx, ref); err != nil {
			return err
		}
		return o.present(c)
	})
	if err == nil && !ok {
		err = notFound("No such container: %s", ref)
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

// present fills what is not in the record, and corrects what is not true any more.
func (o *op) present(c *Container) error {
	if c.State != StateExited && !o.up(c) {
		if !c.Attached && c.State == StateRunning {
			c.ExitCode = exitUnseen
		}
		c.State, c.PID, c.Supervisor = StateExited, 0, 0
	}
	var err error
	c.Publish, err = o.specs(c.ID)
	return err
}
