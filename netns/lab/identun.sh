#!/bin/bash
# identun as a peer of the lab: identun.sh up|down. A workload's address is its host's own, so the target is the
# underlay address itself; what reaches it is in the tunnel, which `up` checks before anything is measured.
# IDENTUN is the binary (default: the release build of this tree).
# shellcheck disable=SC1090 # the lab says where its library is
. "${LAB_LIB:?set LAB_LIB to the lib.sh of the lab}"
NAME=identun
BIN=${IDENTUN:-$(cd "$(dirname "$0")/../.." && pwd)/target/release/identun}

settings() { # settings SIDE
  cat >"$ST/$1.yaml" <<Y
policies: [policy.yaml]
identities: [{ certificate: $1/$1.pem, key: $1/$1.key }]
trust_bundles: { cluster.local: $1/bundle.pem }
tun: { name: tun$1 }
state_dir: $ST/$1/state
admin_socket: $ST/$1/admin.sock
metrics: null
Y
}

up() {
  [ -x "$BIN" ] || die "$BIN is missing: cargo build --release"
  state_new $NAME
  echo "$U_B" >"$ST/target"
  cat >"$ST/policy.yaml" <<Y
apiVersion: authentication.istio.io/v1alpha1
kind: MeshPolicy
metadata: { name: default }
spec: { peers: [{ mtls: { mode: STRICT } }] }
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: { name: default, namespace: istio-system }
spec: { host: "*.local", trafficPolicy: { tls: { mode: ISTIO_MUTUAL } } }
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: { name: a }
spec: { address: $U_A, serviceAccount: a, labels: { app: a } }
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: { name: b }
spec: { address: $U_B, serviceAccount: b, labels: { app: b } }
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: { name: b }
spec:
  hosts: [b.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports:
$(for port in $PORTS; do echo "  - { number: $port, name: port-$port, protocol: TCP }"; done)
  workloadSelector: { labels: { app: b } }
Y
  "$BIN" ca init --trust-domain cluster.local --dir "$ST/ca" >/dev/null || die "$NAME: no CA"
  for side in a b; do
    "$BIN" ca issue "spiffe://cluster.local/ns/default/sa/$side" --dir "$ST/ca" --out "$ST/$side" >/dev/null ||
      die "$NAME: no identity"
    settings $side
  done
  spawn B daemon-b "$BIN" daemon --config "$ST/b.yaml"
  spawn A daemon-a "$BIN" daemon --config "$ST/a.yaml"
  for side in a b; do
    wait_for 10 "$BIN" status --socket "$ST/$side/admin.sock" ||
      die "$NAME did not start: $(tail -n 5 "$ST/daemon-$side.log")"
  done
  echo "udp icmp" >"$ST/caps"
  wait_for 10 inA ping -c1 -W1 "$U_B" || die "$NAME: no path: $(tail -n 5 "$ST"/daemon-*.log)"
  "$BIN" status -o json --socket "$ST/a/admin.sock" | jq -e '[.tunnels[] | select(.state == "up")] | length > 0' >/dev/null ||
    die "$NAME: the ping did not go through the tunnel"
  echo "$("$BIN" version); QUIC datagrams, mutual TLS 1.3, $("$BIN" status -o json --socket "$ST/a/admin.sock" | jq -r '.tunnels[0] | "\(.cipher), \(.group), inner MTU \(.inner_mtu)"')" >"$ST/info"
}

down() {
  state $NAME
  local p
  while read -r _ p; do kill -9 "$p" 2>/dev/null; done <"$ST/pids"
  # A killed daemon takes its time to go, and `down` refuses while it is attached to the TUN.
  wait_for 10 inA "$BIN" down --config "$ST/a.yaml" || say "$NAME: host A is not clean: $(inA "$BIN" down --config "$ST/a.yaml" 2>&1)"
  wait_for 10 inB "$BIN" down --config "$ST/b.yaml" || say "$NAME: host B is not clean: $(inB "$BIN" down --config "$ST/b.yaml" 2>&1)"
  state_stop
}

case ${1:-} in up) up ;; down) down ;; *) die "usage: identun.sh up|down" ;; esac
