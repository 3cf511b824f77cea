#!/bin/bash
# How long a start takes: from the start of `identun daemon` on the client to the first packet that its tunnel delivers on
# the server, whose daemon runs. Of a start on a host that identun has not touched, and of one after `kill -9`. The client
# sends to the server all the time, a new flow each time; the server takes nothing in plaintext. Then how long it takes until
# rules that others flushed stand again, where the table is nobody's property. Needs root or the right to make user namespaces;
# changes nothing outside.
#
# Usage: start.sh [ROUNDS] [FOLDER]   ROUNDS: 20 starts of each kind; FOLDER holds the built `identun`: target/release
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
rounds=${1:-20}
bin=$(cd "${2:-$here/../target/release}" && pwd)
if [ "${IDENTUN_START:-}" != inside ]; then
  export PATH=$PATH:/usr/sbin:/sbin
  IDENTUN_START=inside exec bash "$here/topology.sh" enter bash "$here/start.sh" "$rounds" "$bin"
fi

work=/run/start id=spiffe://cluster.local/ns/default/sa
mkdir -p $work
cd $work

die() {
  echo "start: $*" >&2
  tail -n 5 ./*.log >&2
  exit 1
}

policy() {
  cat <<'Y'
apiVersion: authentication.istio.io/v1alpha1
kind: MeshPolicy
metadata: { name: default }
spec: { peers: [{ mtls: { mode: STRICT } }] }
Y
  local host
  for host in client=198.18.1.2 server=198.18.2.2; do
    cat <<Y
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: { name: ${host%=*} }
spec: { address: ${host#*=}, serviceAccount: ${host%=*} }
Y
  done
}
host() { # host HOST: its identity and settings
  mkdir -p "$1"
  "$bin/identun" ca issue "$id/$1" --dir ca --out "$1/ids" >/dev/null
  cat >"$1/daemon.yaml" <<Y
policies: [$work/policy.yaml]
identities: [{ certificate: ids/$1.pem, key: ids/$1.key }]
trust_bundles: { cluster.local: ids/bundle.pem }
state_dir: $work/$1/state
admin_socket: $work/$1/admin.sock
metrics: null
log: { level: warn }
Y
}

ready() { # ready HOST: its daemon answers
  for _ in $(seq 200); do
    ! ip netns exec "$1" "$bin/identun" status --socket "$1/admin.sock" >/dev/null 2>&1 || return 0
    sleep 0.05
  done
  die "the daemon on the $1 does not start"
}

bash "$here/topology.sh" up
"$bin/identun" ca init --trust-domain cluster.local --dir ca >/dev/null
policy >policy.yaml
for host in client server; do host $host; done
(exec ip netns exec server "$bin/identun" daemon --config server/daemon.yaml) >>server.log 2>&1 &
ready server

"$bin/identun" version
ip netns exec client python3 "$here/start.py" "$rounds" "$bin/identun" client/daemon.yaml client/admin.sock 198.18.2.2 || die 'no packet came'

echo 'own_nft_table: false' >>client/daemon.yaml
(exec ip netns exec client "$bin/identun" daemon --config client/daemon.yaml) >>client.log 2>&1 &
ready client
ip netns exec client python3 "$here/start.py" flush "${FLUSHES:-50}" || die 'the rules did not come back'
