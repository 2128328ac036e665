// SPDX-License-Identifier: Apache-2.0

package dockerdriver

import (
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"
)

// The messages of libnetwork's remote drivers (its docs/remote.md, drivers/remote/api). What
// an Engine says beyond them is passed over.

const contentType = "application/vnd.docker.plugins.v1.2+json"

type options map[string]json.RawMessage

type ipamData struct {
	Pool    string // "172.18.0.0/16"
	Gateway string // "172.18.0.1/16"
}

type networkRequest struct {
	NetworkID string
	Options   options
	IPv4Data  []ipamData
	IPv6Data  []ipamData
}

type endpointRequest struct {
	NetworkID  string
	EndpointID string
	SandboxKey string // of Join
	Interface  *interfaceData
	Options    options
}

type interfaceData struct {
	Address     string `json:",omitempty"` // "172.18.0.2/16"
	AddressIPv6 string `json:",omitempty"`
	MacAddress  string `json:",omitempty"`
}

type empty struct{}

type activation struct{ Implements []string }

type capabilities struct{ Scope, ConnectivityScope string }

type endpointResponse struct{ Interface *interfaceData }

type joinResponse struct {
	InterfaceName         interfaceName
	Gateway               string `json:",omitempty"`
	GatewayIPv6           string `json:",omitempty"`
	DisableGatewayService bool   // no bridge of the Engine's own as a way out
}

// interfaceName is the device to take into the sandbox, and how its name there begins.
type interfaceName struct{ SrcName, DstPrefix string }

type infoResponse struct{ Value map[string]any }

// handler has every method of the protocol.
func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /Plugin.Activate", answer(s, func(*empty) (any, error) { return activation{[]string{"NetworkDriver"}}, nil }))
	driver := func(method string, h http.HandlerFunc) { mux.HandleFunc("POST /NetworkDriver."+method, h) }
	driver("GetCapabilities", answer(s, func(*empty) (any, error) { return capabilities{"local", "local"}, nil }))
	driver("CreateNetwork", answer(s, s.createNetwork))
	driver("DeleteNetwork", answer(s, s.deleteNetwork))
	driver("CreateEndpoint", answer(s, s.createEndpoint))
	driver("EndpointOperInfo", answer(s, s.endpointInfo))
	driver("DeleteEndpoint", answer(s, s.deleteEndpoint))
	driver("Join", answer(s, s.join))
	driver("Leave", answer(s, s.leave))
	driver("ProgramExternalConnectivity", answer(s, s.publish))
	driver("RevokeExternalConnectivity", answer(s, s.unpublish))
	// Other hosts, which nothing here depends on.
	driver("DiscoverNew", answer(s, func(*empty) (any, error) { return empty{}, nil }))
	driver("DiscoverDelete", answer(s, func(*empty) (any, error) { return empty{}, nil }))
	return mux
}

// answer serves one method. An error is told in the answer: the Engine shows its text.
func answer[T any](s *server, do func(*T) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", contentType)
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			fail(w, http.StatusBadRequest, err)
			return
		}
		slog.Debug("docker driver", "request", r.URL.Path, "body", string(body))
		var req T
		if err := decode(body, &req); err != nil {
			fail(w, http.StatusBadRequest, err)
			return
		}
		s.mu.Lock()
		start := time.Now()
		res, err := do(&req)
		slog.Debug("docker driver", "answer", r.URL.Path, "took", time.Since(start))
		s.mu.Unlock()
		if err != nil {
			s.log("docker driver: " + strings.TrimPrefix(r.URL.Path, "/NetworkDriver.") + ": " + err.Error())
			fail(w, http.StatusOK, err)
			return
		}
		_ = json.NewEncoder(w).Encode(res)
	}
}

func decode(body []byte, into any) error {
	if len(body) == 0 {
		return nil // of Plugin.Activate
	}
	if err := json.Unmarshal(body, into); err != nil {
		return errors.New("request: no JSON of this method: " + err.Error())
	}
	return nil
}

func fail(w http.ResponseWriter, status int, err error) {
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(struct{ Err string }{strings.ReplaceAll(err.Error(), "\n", "; ")})
}
