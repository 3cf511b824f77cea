#!/bin/bash
# What many sessions cost a host: SIDE identities on each of two hosts, a session between every two of them (SIDE x SIDE).
# Memory of both daemons before and after, what they do and send when nobody says anything, and what a packet of one
# session costs beside all the others; then how soon all of them stand again when a daemon was killed. Needs root or the right to make user namespaces; changes nothing outside.
#
# Usage: peers.sh [SIDE] [FOLDER]   SIDE: 100 (10,000 sessions); FOLDER holds the built `identun`: target/release
#
#   IDLE   seconds without traffic (default: 20)
#   PPS    packets a second of the one busy session (default: 20000), for 5 s
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
side=${1:-100}
bin=$(cd "${2:-$here/../target/release}" && pwd)
if [ "${IDENTUN_PEERS:-}" != inside ]; then
  export PATH=$PATH:/usr/sbin:/sbin
  IDENTUN_PEERS=inside exec bash "$here/topology.sh" enter bash "$here/peers.sh" "$side" "$bin"
fi

work=/run/peers id=spiffe://cluster.local/ns/default/sa
idle=${IDLE:-20} pps=${PPS:-20000}
mkdir -p $work
cd $work

die() {
  echo "peers: $*" >&2
  tail -n 5 ./*.log >&2
  exit 1
}
on() { ip netns exec "$@"; }
# in_background HOST LOG COMMAND...: $! is the command's own process
in_background() {
  local host=$1 log=$2
  shift 2
  (exec ip netns exec "$host" "$@") >>"$log" 2>&1 &
}
# within SECONDS COMMAND...: the event must come in that time
within() {
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || return 1; sleep 0.05; done
}
status() { on "$1" "$bin/identun" status -o json --socket "$work/$1/admin.sock"; }
number() { if [ "$1" = client ]; then echo 1; else echo 2; fi; }

# --- two hosts, and identities with an address each ------------------------------------------------------------
workloads() {
  local host n index
  for host in client server; do
    n=$(number $host)
    for index in $(seq "$side"); do
      cat <<Y
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: { name: $host-$index, annotations: { identun.io/gateway: "198.18.$n.2" } }
spec: { address: 10.$n.0.$index, serviceAccount: $host-$index }
Y
    done
  done
}
policy() {
  cat <<'Y'
apiVersion: authentication.istio.io/v1alpha1
kind: MeshPolicy
metadata: { name: default }
spec: { peers: [{ mtls: { mode: STRICT } }] }
Y
  workloads
}
host() { # host HOST: its addresses, identities and settings
  local n index
  n=$(number "$1")
  mkdir -p "$1"
  {
    echo "policies: [$work/policy.yaml]"
    echo 'identities:'
    for index in $(seq "$side"); do
      on "$1" ip addr add "10.$n.0.$index/32" dev lo
      "$bin/identun" ca issue "$id/$1-$index" --dir ca --out "$1/ids" >/dev/null
      echo "- { certificate: ids/$1-$index.pem, key: ids/$1-$index.key }"
    done
    echo 'trust_bundles: { cluster.local: ids/bundle.pem }'
    echo "state_dir: $work/$1/state"
    echo "admin_socket: $work/$1/admin.sock"
    echo 'metrics: null'
    echo 'log: { level: warn }'
  } >"$1/daemon.yaml"
  on "$1" ip route add "10.$((3 - n)).0.0/16" via "198.18.$n.1"
}

start() {
  in_background "$1" "$1.log" "$bin/identun" daemon --config "$1/daemon.yaml"
  echo $! >"$1.pid"
}

# --- what is read of a daemon ----------------------------------------------------------------------------------
kib() { awk -v field="$2:" '$1 == field { print $2 }' "/proc/$(cat "$1.pid")/smaps_rollup"; } # kib HOST Rss|Pss
ticks() { sed 's/.*) //' "/proc/$(cat "$1.pid")/stat" | awk '{ print $12 + $13 }'; }
wire() { on "$1" cat /sys/class/net/eth0/statistics/{rx,tx}_packets | awk '{ sum += $1 } END { print sum }'; } # wire HOST
standing() { status "$1" | python3 "$here/peers.py" standing; }
handshakes() { status "$1" | python3 "$here/peers.py" handshakes; }

# busy: what a packet of one session costs
busy() {
  local client server before=$1
  client=$(ticks client) server=$(ticks server)
  on client python3 "$here/peers.py" stream "$pps" 5 >stream.txt || die "the stream does not run: $(cat stream.txt)"
  awk -v before="$before" -v client=$(($(ticks client) - client)) -v server=$(($(ticks server) - server)) -v hz="$(getconf CLK_TCK)" \
    '{ printf "%-34s client %.2f us, server %.2f us CPU a packet; %d of %d echoed, round trip p50 %d us\n", before, client / hz / $1 * 1e6, server / hz / $1 * 1e6, $2, $1, $3 }' stream.txt
}

bash "$here/topology.sh" up
"$bin/identun" ca init --trust-domain cluster.local --dir ca >/dev/null
policy >policy.yaml
for host in client server; do host $host; done
for host in server client; do
  start $host
  within 30 status $host || die "the daemon on $host does not start"
done
in_background server echo.log python3 "$here/peers.py" echo
within 10 grep -q listening echo.log || die 'the echo does not start'

"$bin/identun" version
# The first session is not counted: buffers of the daemon itself come with it.
on client python3 "$here/peers.py" open 1 >open.txt || die "no session: $(cat open.txt)"
busy 'one session:'
for host in client server; do
  kib $host Rss >$host.rss
  kib $host Pss >$host.pss
done
client_ticks=$(ticks client) server_ticks=$(ticks server)
on client python3 "$here/peers.py" open "$side" >open.txt || die "not all sessions: $(tail -n 2 open.txt)"
sessions=$((side * side))
stand=$(standing client)
[ "$stand $(standing server)" = "$sessions $sessions" ] || die "$stand sessions stand and not $sessions"
awk -v n=$((sessions - 1)) -v client=$(($(ticks client) - client_ticks)) -v server=$(($(ticks server) - server_ticks)) -v hz="$(getconf CLK_TCK)" \
  '{ printf "%-34s %.1f s; client %.2f ms, server %.2f ms CPU a session\n", n + 1 " sessions opened:", $1, client / hz / n * 1e3, server / hz / n * 1e3 }' open.txt
# `status` of so many tunnels is a large text, and the allocator keeps what it took: counted, as it is what an operator sees.
for which in 'just opened' "after $idle s of silence"; do
  for host in client server; do
    awk -v which="$which" -v host=$host -v n=$((sessions - 1)) -v rss="$(kib $host Rss)" -v pss="$(kib $host Pss)" -v from="$(cat $host.rss)" -v from_pss="$(cat $host.pss)" \
      'BEGIN { printf "%-34s %s RSS %.1f MiB (%.1f before), %.1f KiB a session; PSS %.1f KiB a session\n", which ":", host, rss / 1024, from / 1024, (rss - from) / n, (pss - from_pss) / n }'
  done
  [ "$which" = 'just opened' ] || break
  made=$(handshakes client)
  client_ticks=$(ticks client) server_ticks=$(ticks server) packets=$(wire client)
  sleep "$idle"
  awk -v s="$idle" -v client=$(($(ticks client) - client_ticks)) -v server=$(($(ticks server) - server_ticks)) -v packets=$(($(wire client) - packets)) -v hz="$(getconf CLK_TCK)" \
    'BEGIN { printf "%-34s client %.2f s, server %.2f s CPU; %d packets on the wire\n", s " s of silence:", client / hz, server / hz, packets }'
  [ "$(handshakes client)" = "$made" ] || die 'sessions were lost in the silence'
  busy "one session among $sessions:"
done
for host in server client; do
  { kill -9 "$(cat $host.pid)" && wait "$(cat $host.pid)"; } 2>/dev/null || true
  rm $host/admin.sock
  start $host
  python3 "$here/peers.py" back "$work/$host/admin.sock" $sessions >back.txt || die "$host: $(cat back.txt)"
  awk -v host=$host -v n=$sessions '{ printf "%-34s ready after %d ms; from there the first session after %d, half after %d, all %d after %d ms\n", host " killed and started again:", $1, $2, $3, n, $4 }' back.txt
done
