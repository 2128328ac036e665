// SPDX-License-Identifier: Apache-2.0

package control

import (
	"cmp"
	"errors"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/bpfnet/bpfnet/control/store"
)

// Adopted is what another engine has, for which we carry the packets. The engine owns the
// bridges, the veths, the addresses and the names, and chooses the host ports; we own the
// hooks, the maps, and what is published. Nothing of the engine's is made, changed or deleted.
//
// In the store an adopted record has its engine's name, and ENGINE/ before its own. Only
// Adopt changes it; reconcile keeps it up, and lets go what is gone.
type Adopted struct {
	Engine string // "docker"; letters, digits and -

	// Held says that the engine has sockets on the host ports, and binds them again when
	// it is restarted. Without it they are guarded and reserved as ours are.
	Held bool

	// Devices is a regular expression for the names of the veths that the engine makes, so
	// that none is taken for an uplink before it is a bridge's port. Empty: none.
	Devices string

	// SetUp says that the host was set up before: if it was uninstalled since, nothing is
	// done, and the error is ErrNotSetUp.
	SetUp bool

	// Whole says that this is everything: what of the engine's is not here is let go.
	// Without it only what is named here changes.
	Whole      bool
	Networks   []AdoptedNetwork
	Containers []AdoptedContainer
	Gone       []string // IDs of containers and networks to let go
}

// AdoptedNetwork is a network of an engine's: a bridge, cables that end at the host, or macvlans
// of a device, of which only published ports are ours. One without a bridge is let go with its
// last container.
type AdoptedNetwork struct {
	ID         string // 64 hex digits
	Name       string
	Default    bool   // masquerade is as the host's configuration has it, icc off if either says so
	Bridge     string // device; it exists; "": none
	Parent     string // device, an uplink; "": none
	Subnets    []Subnet
	Internal   bool
	ICC        bool
	Masquerade bool
	Isolate    bool
	Routed     bool
	MTU        int // 0: 1500
	Created    time.Time
}

// AdoptedContainer is a running container of an engine's.
type AdoptedContainer struct {
	ID        string // 64 hex digits
	Name      string
	Hostname  string
	Netns     string // path; "" of one that is only being started: its ports are published, and lead nowhere
	PID       int    // of a process whose end is the container's; 0: the namespace's end is
	Created   time.Time
	Started   time.Time
	Args      []string
	Endpoints []AdoptedEndpoint
	Ports     []AdoptedPort
	Exposed   []string // "80/tcp"
	Links     []Link   // Target is an ID; one whose target is not adopted rests
}

// AdoptedEndpoint is a veth from a container to a port of its network's bridge, or to the host.
type AdoptedEndpoint struct {
	Network string // ID
	Device  string // host's end, on a network without a bridge or parent
	MAC     string // of the container's end
	IPv4    netip.Prefix
	IPv6    netip.Prefix
	Aliases []string
	// Gateway says that its network carries the container's default route, on whose
	// addresses ports are published. If none says so the container's own route does.
	Gateway bool
}

// AdoptedPort is a host port that leads to a container.
type AdoptedPort struct {
	Proto    string     // tcp, udp, sctp
	HostIP   netip.Addr // 0.0.0.0, :: or one address
	HostPort uint16
	Port     uint16
}

var engineRule = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)

func (a *Adopted) check() error {
	if !engineRule.MatchString(a.Engine) {
		return invalid("engine %q: not a name", a.Engine)
	}
	if _, err := regexp.Compile(a.Devices); err != nil {
		return invalid("engine %s: devices: %v", a.Engine, err)
	}
	return nil
}

// engineRecord is what the store knows of an engine.
type engineRecord struct {
	Name     string   `json:"name"`
	Devices  string   `json:"devices,omitempty"`
	Problems []string `json:"problems,omitempty"` // of the last Adopt of everything
}

const engineKey = "engine/"

// Adopt makes networks and containers of another engine's known as they are, and lets go
// what is gone: desired minus observed, in one transaction. It says what has changed, a
// line each. What could not be done is in the error, and in Status; all else has been done.
func (m *Manager) Adopt(a Adopted) (changes []string, err error) {
	if err := a.check(); err != nil {
		return nil, err
	}
	var problems []string
	update := m.update
	if a.SetUp {
		update = func(fn func(*op) error) error { return m.change(ErrNotSetUp, fn) }
	}
	err = update(func(o *op) error {
		if o.host.Datapath != DatapathBPF {
			return conflict("engine %s: only the datapath bpf carries another engine's packets: bpfnet init --datapath bpf switches", a.Engine)
		}
		err := o.adopt(&a)
		changes, problems = o.steps, o.problems
		return err
	})
	if err == nil && len(problems) > 0 {
		err = errors.New(strings.Join(problems, "; "))
	}
	return changes, err
}

func (o *op) adopt(a *Adopted) error {
	o.rebuild = true // what was known and is told anew is not taken back step by step
	rec, err := o.meetEngine(a)
	if err != nil {
		return err
	}
	if err := o.letGo(a); err != nil {
		return err
	}
	for i := range a.Networks {
		n := &a.Networks[i]
		o.attempt("network "+a.Engine+"/"+n.Name, func() error { return o.adoptNetwork(a.Engine, n) })
	}
	for i := range a.Containers {
		c := &a.Containers[i]
		o.attempt("container "+a.Engine+"/"+c.Name, func() error { return o.adoptContainer(a, c) })
	}
	// A link may be to a container further down.
	for i := range a.Containers {
		c := &a.Containers[i]
		o.attempt("links of "+a.Engine+"/"+c.Name, func() error { return o.adoptLinks(c) })
	}
	networks, err := o.allNetworks()
	if err != nil {
		return err
	}
	if _, err := o.letGoEmpty(networks); err != nil {
		return err
	}
	switch {
	case !a.Whole:
		return nil
	case len(a.Networks)+len(a.Containers) == 0:
		return store.Delete(o.tx, bucketHost, engineKey+a.Engine)
	}
	// What is wrong with a container that is adopted is in its own record.
	rec.Problems = slices.DeleteFunc(slices.Clone(o.problems), func(p string) bool { return o.recorded[p] })
	return store.Put(o.tx, bucketHost, engineKey+a.Engine, rec)
}

// meetEngine makes an engine known, before the first of its devices is looked at.
func (o *op) meetEngine(a *Adopted) (engineRecord, error) {
	rec, had, err := store.Get[engineRecord](o.tx, bucketHost, engineKey+a.Engine)
	if err != nil || had && rec.Devices == a.Devices {
		return rec, err
	}
	rec.Name, rec.Devices = a.Engine, a.Devices
	return rec, store.Put(o.tx, bucketHost, engineKey+a.Engine, rec)
}

// letGo takes down what of an engine's is there no more, containers first.
func (o *op) letGo(a *Adopted) error {
	gone := make(map[string]bool, len(a.Gone))
	for _, id := range a.Gone {
		gone[id] = true
	}
	if a.Whole {
		kept := make(map[string]bool)
		for i := range a.Networks {
			kept[a.Networks[i].ID] = true
		}
		for i := range a.Containers {
			kept[a.Containers[i].ID] = true
		}
		err := store.Each(o.tx, bucketContainers, func(id string, c Container) error {
			if c.Engine == a.Engine && !kept[id] {
				gone[id] = true
			}
			return nil
		})
		if err == nil {
			err = store.Each(o.tx, bucketNetworks, func(id string, n Network) error {
				if n.Engine == a.Engine && !kept[id] {
					gone[id] = true
				}
				return nil
			})
		}
		if err != nil {
			return err
		}
	}
	for id := range gone {
		c, ok, err := store.Get[Container](o.tx, bucketContainers, id)
		if err != nil {
			return err
		}
		if ok && c.Engine == a.Engine {
			o.attempt("container "+c.Name, func() error { return o.finish(&c) })
		}
	}
	for id := range gone {
		n, ok, err := store.Get[Network](o.tx, bucketNetworks, id)
		if err != nil {
			return err
		}
		if ok && n.Engine == a.Engine {
			o.attempt("network "+n.Name, func() error { return o.letGoNetwork(&n) })
		}
	}
	return nil
}

// engines are those that something was adopted of.
func (o *op) engines() (list []engineRecord, err error) {
	err = store.EachPrefix(o.tx, bucketHost, engineKey, func(_ string, r engineRecord) error {
		list = append(list, r)
		return nil
	})
	return list, err
}

// engineDevices says which names are of the veths that engines make; nil: none is.
func (o *op) engineDevices() (func(name string) bool, error) {
	list, err := o.engines()
	var rules []*regexp.Regexp
	for _, r := range list {
		if rule, err := regexp.Compile(r.Devices); err == nil && r.Devices != "" {
			rules = append(rules, rule)
		}
	}
	return func(name string) bool {
		return slices.ContainsFunc(rules, func(r *regexp.Regexp) bool { return r.MatchString(name) })
	}, err
}

// engineVeths says which devices are cables of engines' containers, adopted or not yet.
func (o *op) engineVeths() (func(netlink.Link) bool, error) {
	names, err := o.engineDevices()
	if err != nil {
		return nil, err
	}
	bridges := make(map[int]bool)
	err = store.Each(o.tx, bucketNetworks, func(_ string, n Network) error {
		if n.Engine == "" {
			return nil
		}
		dev, err := o.device(n.Bridge)
		if err == nil && dev != nil {
			bridges[dev.Attrs().Index] = true
		}
		return err
	})
	return func(l netlink.Link) bool {
		return l.Type() == "veth" && (bridges[l.Attrs().MasterIndex] || names(l.Attrs().Name))
	}, err
}

// engineProblems adds what the engines ask for and do not get.
func (o *op) engineProblems(s *Status) error {
	list, err := o.engines()
	if err != nil || len(list) == 0 {
		return err
	}
	for _, e := range list {
		s.Problems = append(s.Problems, e.Problems...)
	}
	return store.Each(o.tx, bucketContainers, func(_ string, c Container) error {
		for _, p := range c.Problems {
			s.Problem("container %s: %s", c.Name, p)
		}
		return nil
	})
}

// engineName is the name of an engine's object among ours; the engine may have any name,
// and one twice.
func (o *op) engineName(bucket, engine, name, id string) (string, error) {
	if checkName("", name) != nil {
		name = id[:12]
	}
	name = engine + "/" + name
	other, taken, err := store.Get[string](o.tx, bucket, name)
	if err == nil && taken && other != id {
		name += "." + id[:12]
	}
	return name, err
}

// notAdopted refuses what is only the engine's to do.
func notAdopted(kind, name, engine string) error {
	if engine == "" {
		return nil
	}
	engine = strings.TrimSuffix(engine, "-driver")
	return conflict("%s %s: belongs to %s: use %s", kind, name, engine, engine)
}

func checkEngineID(kind, id string) error {
	if len(id) != 64 || !hexRule.MatchString(id) {
		return invalid("%s %.80q: not an ID", kind, id)
	}
	return nil
}

// ownContainer is findContainer for what only we may do to our own.
func ownContainer(o *op, ref string) (*Container, error) {
	c, err := findContainer(o.tx, ref)
	if err == nil {
		err = notAdopted("container", c.Name, c.Engine)
	}
	return c, err
}

// ownNetwork is findNetwork for what only we may do to our own.
func ownNetwork(o *op, ref string) (*Network, error) {
	n, err := findNetwork(o.tx, ref)
	if err == nil {
		err = notAdopted("network", n.Name, n.Engine+n.Driver)
	}
	return n, err
}

// mtu is the MTU of a network that may not say.
func (n *AdoptedNetwork) mtu() int { return cmp.Or(n.MTU, 1500) }
