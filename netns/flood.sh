#!/bin/bash
# A flood of first packets against a daemon that works: valid QUIC Initials for new connections under 65,536 spoofed
# addresses, beside a bulk TCP flow in a tunnel and ten honest new sessions a second. Prints a table and fails when a bound
# is broken. The attacker, both daemons and both applications share this machine, so the goodput under the flood is held
# against that under the same packets to a closed port: the difference is what the daemon does about them. For the same
# reason the bulk flow has a pace that leaves the machine some room; without one it takes all the CPU there is, and every
# packet of the attacker, whoever receives it, takes from that.
#
# Usage: flood.sh [SECONDS] [RATE] [FOLDER]   60 s of 50000/s; FOLDER holds the built `identun` and `examples/initial-flood`:
#                                             target/release
#   BULK   pace of the bulk flow, as iperf3 wants it (default: 1G; 0 for as fast as it goes)
#   QUIET  seconds of each of the two phases before (default: 10)
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
seconds=${1:-60} rate=${2:-50000}
bin=$(cd "${3:-$here/../target/release}" && pwd)
if [ "${IDENTUN_FLOOD:-}" != inside ]; then
  export PATH=$PATH:/usr/sbin:/sbin
  IDENTUN_FLOOD=inside exec bash "$here/topology.sh" enter bash "$here/flood.sh" "$seconds" "$rate" "$bin"
fi

work=/run/flood id=spiffe://cluster.local/ns/default/sa
quiet=${QUIET:-10} bulk=${BULK:-1G} hz=$(getconf CLK_TCK)
target=198.18.2.2 port=5201
mkdir -p $work
cd $work

die() {
  echo "flood: $*" >&2
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
# shellcheck disable=SC2317 # called through `within`
status() { on "$1" "$bin/identun" status -o json --socket "$work/$1/admin.sock"; }

# --- hosts: a pair with daemons, an honest peer without one, an attacker ---------------------------------------------
policy() {
  cat <<'Y'
apiVersion: authentication.istio.io/v1alpha1
kind: MeshPolicy
metadata: { name: default }
spec: { peers: [{ mtls: { mode: STRICT } }] }
Y
  local name address
  for name in client=198.18.1.2 server=$target prober=198.18.4.2; do
    address=${name#*=} name=${name%=*}
    cat <<Y
---
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: { name: $name, namespace: default }
spec: { address: $address, serviceAccount: $name }
Y
  done
}
issue() { "$bin/identun" ca issue "$id/$1" --dir ca --out "$1" >/dev/null; }
host() {
  issue "$1"
  cat >"$1/daemon.yaml" <<Y
policies: [$work/policy.yaml]
identities: [{ certificate: $1.pem, key: $1.key }]
trust_bundles: { cluster.local: bundle.pem }
state_dir: $work/$1/state
admin_socket: $work/$1/admin.sock
metrics: null
log: { level: warn }
Y
  in_background "$1" "$1.log" "$bin/identun" daemon --config "$1/daemon.yaml"
  echo $! >"$1.pid"
  within 30 status "$1" || die "the daemon on $1 does not start"
}

# --- what is read while it runs --------------------------------------------------------------------------------------
count() { on "$1" cat "/sys/class/net/$2/statistics/$3"; } # count HOST LINK NAME
rss() { awk '$1 == "VmRSS:" { print $2 }' "/proc/$(cat server.pid)/status"; }
ticks() { sed 's/.*) //' "/proc/$1/stat" | awk '{ print $12 + $13 }'; }
# phase NAME SECONDS TARGET-PORT|none: Mbit/s of the bulk flow, CPU and wire, in NAME.txt; the honest peer's times in
# NAME.dial
phase() {
  local name=$1 time=$2 towards=$3 most=0 made=0 now attacker=
  if [ "$towards" != none ]; then
    in_background naked "$name.attack" "$bin/examples/initial-flood" flood "$target:$towards" $id/server "$rate" "$time"
    attacker=$!
    within 60 grep -q ready "$name.attack" || die "the attacker does not start: $(cat "$name.attack")"
    made=$(ticks "$attacker")
  fi
  in_background impostor "$name.dial" "$bin/examples/initial-flood" dial $target:15008 $id/server 10 "$time" $id/prober prober/prober.pem prober/prober.key
  local prober=$! end=$((SECONDS + time)) inner wired answered server
  inner=$(count server identun0 rx_bytes) wired=$(count wire naked rx_bytes) answered=$(count wire naked tx_bytes)
  server=$(ticks "$(cat server.pid)")
  local begun spent=0
  begun=$(date +%s%N)
  while [ $SECONDS -lt $end ]; do
    sleep 1
    now=$(rss)
    [ "$now" -le "$most" ] || most=$now
    [ -z "$attacker" ] || ! kill -0 "$attacker" 2>/dev/null || spent=$(($(ticks "$attacker") - made))
  done
  awk -v ns=$(($(date +%s%N) - begun)) -v inner=$(($(count server identun0 rx_bytes) - inner)) \
    -v wired=$(($(count wire naked rx_bytes) - wired)) -v answered=$(($(count wire naked tx_bytes) - answered)) \
    -v server=$(($(ticks "$(cat server.pid)") - server)) -v spent="$spent" -v hz="$hz" -v most="$most" \
    'BEGIN { s = ns / 1e9; print inner * 8 / s / 1e6, server / hz / s * 100, spent / hz / s * 100, most, wired, answered }' >"$name.txt"
  wait "$prober" || die "the honest peer ended: $(cat "$name.dial")"
  [ -z "$attacker" ] || wait "$attacker" || die "the attacker ended: $(cat "$name.attack")"
}
row() { # row PHASE WORDS
  local mbit server attacker most wired answered
  read -r mbit server attacker most wired answered <"$1.txt"
  read -r dials failed p50 p99 max <"$1.dial"
  printf '%-30s %8.0f Mbit/s  server %3.0f %% CPU, attacker %3.0f %%  %4d sessions, %d failed: p50 %6.1f, p99 %6.1f, max %6.1f ms\n' \
    "$2" "$mbit" "$server" "$attacker" "$dials" "$failed" "$p50" "$p99" "$max"
}
broken=0
bound() { # bound WORDS VALUE MEANS LIMIT: MEANS is <= or >=
  local verdict=ok
  awk -v value="$2" -v means="$3" -v limit="$4" 'BEGIN { exit !(means == "<=" ? value <= limit : value >= limit) }' || {
    verdict=BROKEN
    broken=1
  }
  printf '%-46s %8s  (%s %s)  %s\n' "$1" "$2" "$3" "$4" "$verdict"
}

bash "$here/topology.sh" up
# The attacker's addresses, all of them its own, and so the answers come back to it.
on naked ip route add local 198.19.0.0/16 dev lo
ip -n wire route add 198.19.0.0/16 via 198.18.3.2
"$bin/identun" ca init --trust-domain cluster.local --dir ca >/dev/null
policy >policy.yaml
issue prober
for name in server client; do host $name; done
in_background server sink.log iperf3 -s -p $port
# shellcheck disable=SC2317 # called through `within`
sockets() { on server ss -Htn state "$1" "sport = :$port" | grep -q .; }
within 10 sockets listening || die 'the sink does not start'
in_background client bulk.log iperf3 -c $target -p $port -b "$bulk" -t $((seconds + 2 * quiet + 120))
within 20 sockets established || die 'the bulk flow does not start'
sleep 3

"$bin/identun" version
phase before "$quiet" none
phase closed "$quiet" 15009
phase flood "$seconds" 15008
kill %% 2>/dev/null || true

row before 'quiet:'
row closed 'the same packets, closed port:'
row flood 'the flood:'
read -r sent _ time <<<"$(tail -n 1 flood.attack)"
awk -v sent="$sent" -v time="$time" -v rate="$rate" 'BEGIN { printf "%d first packets in %.1f s: %d/s of the %d/s asked for\n", sent, time, sent / time, rate }'
read -r quiet_mbit _ <before.txt
read -r closed_mbit _ _ before_kib _ <closed.txt
read -r flood_mbit _ _ most_kib wired answered <flood.txt
read -r _ failed _ p99 _ <flood.dial
of() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f", a / b }'; }
echo "goodput beside quiet: $(of "$flood_mbit" "$quiet_mbit")"
bound 'goodput beside the same packets to a closed port' "$(of "$flood_mbit" "$closed_mbit")" '>=' 0.90
bound 'p99 of a new session, ms' "$p99" '<=' 1000
bound 'new sessions that failed' "$failed" '<=' 0
bound 'memory of the daemon grew by, MiB' "$(awk -v a="$most_kib" -v b="$before_kib" 'BEGIN { printf "%.1f", (a > b ? a - b : 0) / 1024 }')" '<=' 32
bound 'bytes out for each byte in' "$(of "$answered" "$wired")" '<=' 3.0
exit $broken
