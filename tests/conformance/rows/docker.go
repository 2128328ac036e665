// SPDX-License-Identifier: Apache-2.0

package rows

// OnDocker is what of the rows A to D is otherwise with the containers of a Docker Engine, Debian's 20.10.
// tests/conformance/run -cast docker runs them, and fails if one fails that is not here, or one that is
// here does not.
var OnDocker = []Difference{
	{"A19", "SCTP is not tried", "only the kernel lab's kernels have it, where there is no Engine", nil, nil},
	{"A20", "no from=", "-p has no list of sources", []string{"TestA20"}, nil},
	{"B1", "ports of ip_local_reserved_ports are chosen, and another number for each family", "the Engine looks at ip_local_port_range alone, and asks for IPv4's port and IPv6's one after the other", nil, nil},
	{"B1, B14", "bpfnet's run, publish and init's ip are no part of it", "a container of Docker's keeps its ports; dockerd's --ip and host_binding_ipv4 are what the other tests have",
		[]string{"TestB1/many", "TestB1/command", "TestB14/command", "TestB14/file"}, nil},
	{"B3", "of a range only a port that another container has is passed over, not one that a process has", "the Engine's allocator knows its own ports; with what it cannot bind it tries no other of a range",
		[]string{"TestB3/tcp_process", "TestB3/tcp_process_on_one_address"}, nil},
	{"B3, B4, B5, B6, B7, B8, B9, B10, B13", "refused, in other words; the first of the tests' cases", "the Engine binds a port, and says what the kernel says; each case starts containers", nil, nil},
	{"B9", "[::1] of the port of an IPv4-only container is not taken: H's processes may bind it", "the Engine holds 0.0.0.0 alone, and bpfnet guards no ports of the Engine's", []string{"TestB9/four_8080:80/tcp"}, nil},
	{"B12", "not tried", "the docker command reads -p, not bpfnet", []string{"TestB12"}, nil},
	{"B13", "a port that the TIME_WAIT of a socket without SO_REUSEADDR has is refused", "the Engine binds it, which collides", []string{"TestB13Collides"}, nil},
	{"C2, C3, C4, C11", "icc off and links are of docker0, and bpfnet init --icc=false says so", "Docker's links open ports on its default network alone, where the Engine refuses icc off without its iptables", nil, nil},
	{"C4", "a link begins and ends with its client", "docker run --link is the only way to one", nil, nil},
	{"C5", "no isolate=false", "Docker's bridge networks are always isolated", []string{"TestC5/isolate_off"}, nil},
	{"C6", "a container of an internal network has a default route, which leads nowhere", "this Engine gives it one", []string{"TestC6/no_default_route"}, nil},
	{"C11", "with its first dual-stack network a container's default route and ports move there: connections by the old way are cut", "the Engine takes the default route by a network of both families, if there is one", []string{"TestC11/first_IPv6"}, nil},
	{"C11", "so they do with a network whose name comes first", "as above: by the name, when all else is equal", []string{"TestC11/published_network_left/back_again"}, nil},
	{"C12", "no network on which containers may be DHCP servers", "Docker has no such flag", []string{"TestC12/DHCP_servers"}, nil},
	{"C13", "--net none: no [::1]", "the Engine turns IPv6 off in a container without an IPv6 network", nil, nil},
	{"C13", "no namespace of somebody else's is attached", "Docker makes its own", nil, nil},
	{"D6", "H's own sockets never have a published port", "the Engine holds it: the tests require that", nil, nil},
	{"D10", "no --full-cone", "Docker has no such flag", []string{"TestD10/full_cone"}, nil},
}
