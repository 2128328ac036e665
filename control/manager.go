// Package control is the control plane: it keeps what the user asked for in the
// store and makes the kernel match it.
package control

import "errors"

var errTODO = errors.New("not built yet")

// Manager works on one host. It is opened per command; several processes may
// have one at once.
type Manager struct{}

func Open(o Options) (*Manager, error) { return nil, errTODO }
func (m *Manager) Close() error        { return nil }

// Init sets the host up, or changes its configuration: nil keeps what is there.
func (m *Manager) Init(c *Config) error { return errTODO }

// Reconcile makes the kernel match the store and says what it had to do, a line each.
func (m *Manager) Reconcile() ([]string, error) { return nil, errTODO }

// Uninstall takes everything of ours down, running containers' endpoints included.
func (m *Manager) Uninstall() error { return errTODO }

func (m *Manager) Status() (*Status, error)               { return nil, errTODO }
func (m *Manager) Flows(f FlowFilter) ([]FlowInfo, error) { return nil, errTODO }
func (m *Manager) FlushFlows(f FlowFilter) (int, error)   { return 0, errTODO }

func (m *Manager) CreateNetwork(o NetworkOptions) (*Network, error) { return nil, errTODO }
func (m *Manager) Networks() ([]*Network, error)                    { return nil, errTODO }
func (m *Manager) Network(ref string) (*Network, error)             { return nil, errTODO }
func (m *Manager) RemoveNetwork(ref string) error                   { return errTODO }

// PruneNetworks removes unused networks and returns their names.
func (m *Manager) PruneNetworks() ([]string, error)                           { return nil, errTODO }
func (m *Manager) Connect(network, container string, o EndpointOptions) error { return errTODO }
func (m *Manager) Disconnect(network, container string) error                 { return errTODO }

// CreateContainer makes the namespace (or takes the one of o.Attach), joins the
// networks and publishes the ports. A failure leaves nothing.
func (m *Manager) CreateContainer(o ContainerOptions) (*Container, error) { return nil, errTODO }

// PrepareStart gives a stopped container its namespace and networks again.
func (m *Manager) PrepareStart(ref string) (*Container, error) { return nil, errTODO }

// Started records the command of a container; supervisor may be 0.
func (m *Manager) Started(id string, pid, supervisor int) error { return errTODO }

// Finished takes the container's network down and records the exit code; a
// container with AutoRemove is removed.
func (m *Manager) Finished(id string, exitCode int) error { return errTODO }

// RemoveContainer removes a stopped or attached container.
func (m *Manager) RemoveContainer(ref string) error { return errTODO }

// Containers lists all containers, oldest first, with states as they are now.
func (m *Manager) Containers() ([]*Container, error)                    { return nil, errTODO }
func (m *Manager) Container(ref string) (*Container, error)             { return nil, errTODO }
func (m *Manager) Publications(container string) ([]Publication, error) { return nil, errTODO }

// Publish adds ports to a running container: all of them or none.
func (m *Manager) Publish(ref string, specs ...string) ([]Publication, error) { return nil, errTODO }
func (m *Manager) Unpublish(ref string, specs ...string) error                { return errTODO }
func (m *Manager) Link(ref, target string) error                              { return errTODO }
func (m *Manager) Unlink(ref, target string) error                            { return errTODO }

// ContainerDir is the directory of a container's hosts, hostname, resolv.conf and log.
func (m *Manager) ContainerDir(id string) string { return "" }
