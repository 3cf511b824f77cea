#!/bin/bash
# A long link with and without a tunnel, side by side in one run: 10 ms of round trip, then 1 % loss on top, then a
# slow line under load. The goal: with 1 % loss, inner BBR through identun has at least 0.8 of the bare link.
#
#   cargo build --release --bin identun --example delay-relay
#   LAB_LIB=.../lib.sh netns/lab/loss.sh [clean] [loss] [slow]      as root, on a quiet machine; all three by default
#
#   A eth0 192.0.2.1 --- to-a [ R: delay relay on a TUN ] to-b --- eth0 192.0.2.2 B
#
# R holds every packet for half the round trip, each way. Its links send single packets to A and B (no segmentation
# offload there), and there, before anything else sees them, nft drops one of a hundred: on each way, each packet by
# itself. (For that the hosts do without GRO, bare and tunnelled alike.) Bare and tunnelled runs alternate. Each is one
# TCP stream from A to B; figures are medians, with the least and the most. CPU is that of the whole machine, relay and
# bystanders included. Output: a table, the same in $LAB_OUT/loss.json, and exit code 1 when the goal is missed.
#
#   REPS  runs of each (3)      DUR   seconds a run (10)     CC    congestion control of the stream (bbr)
#   DELAY each way (5ms)        LOSS  of 100 packets (1)     RATE  of the slow line (200mbit)   QUEUE of it (1MiB)
#   LINE  rate of the line in the other cases (none: as fast as the processors; then it is they that are compared)
#   PEERS what is compared with `none` (identun)             RELAY the relay's binary
#
# Trust a run only if the table says `link ok`: nothing was lost that was not asked for, single packets were dropped.
# shellcheck disable=SC1090,SC2153 # the lab says where its library is, and that names the namespaces
LAB=${LAB:-lossy}
. "${LAB_LIB:?set LAB_LIB to the lib.sh of the lab}"
HERE=$(cd "$(dirname "$0")" && pwd)
NS_R=$LAB-r
REPS=${REPS:-3} DUR=${DUR:-10} CC=${CC:-bbr} DELAY=${DELAY:-5ms} LOSS=${LOSS:-1} RATE=${RATE:-200mbit} QUEUE=${QUEUE:-1MiB} LINE=${LINE:-}
PEERS=${PEERS-identun}
RELAY=${RELAY:-$HERE/../../target/release/examples/delay-relay}
CASES=${*:-clean loss slow}
WORK=$LAB_RUN/loss RELAY_PID='' RELAY_CPU=0 COUNTERS=''

inR() { ip netns exec "$NS_R" "$@"; }
mac() { ip -n "$1" -j link show dev "$2" | jq -r '.[0].address'; }
script() { if [ -x "$HERE/$1.sh" ]; then echo "$HERE/$1.sh"; else echo "$LAB_DIR/peers/$1.sh"; fi; }

up() {
  local ns
  for ns in "$NS_A" "$NS_B" "$NS_R"; do
    ip netns add "$ns" || die "cannot make namespaces (be root; is another lab called $LAB up?)"
    ip -n "$ns" link set lo up
    # Room for what is under way on a fast long link; the same for everyone.
    ip netns exec "$ns" sysctl -qw net.ipv4.tcp_rmem='4096 131072 33554432' net.ipv4.tcp_wmem='4096 65536 33554432'
  done
  side "$NS_A" to-a "$U_A" "$U_B"
  side "$NS_B" to-b "$U_B" "$U_A"
  ip -n "$NS_R" addr add 203.0.113.1/32 dev lo
  inR sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 \
    net.ipv4.conf.all.send_redirects=0 net.ipv6.conf.all.disable_ipv6=1
}

# side NAMESPACE PORT ADDRESS OTHER: a host as the lab knows it, and R in the middle of what looks like one wire. All
# three know each other's hardware addresses, so that no ARP is needed, nor lost.
side() {
  ip link add eth0 netns "$1" mtu "$LAB_MTU" type veth peer name "$2" netns "$NS_R" || die "cannot make veth"
  ip -n "$NS_R" link set dev "$2" mtu "$LAB_MTU" up
  ip -n "$1" link set eth0 up
  ip -n "$1" addr add "$3/$U_LEN" dev eth0
  ip -n "$NS_R" route add "$3/32" dev "$2"
  ip -n "$1" neigh replace "$4" lladdr "$(mac "$NS_R" "$2")" dev eth0 nud permanent
  ip -n "$NS_R" neigh replace "$3" lladdr "$(mac "$1" eth0)" dev "$2" nud permanent
  ip -n "$NS_R" rule add iif "$2" lookup 100
  # To the host come single packets, and nothing joins them again before nft has seen them.
  inR ethtool -K "$2" tso off gso off tx-udp-segmentation off >/dev/null || die "ethtool -K $2"
  ip netns exec "$1" ethtool -K eth0 gro off >/dev/null || die "ethtool -K eth0"
}

down() {
  local ns p
  for p in $PEERS; do [ ! -d "$LAB_RUN/state/$p" ] || "$(script "$p")" down >/dev/null 2>&1; done
  relay_stop
  for ns in "$NS_A" "$NS_B" "$NS_R"; do
    # Everything inside was started by this script.
    for p in $(ip netns pids "$ns" 2>/dev/null); do kill -9 "$p" 2>/dev/null; done
    ip netns del "$ns" 2>/dev/null
  done
}

relay_start() { # relay_start OPTIONS...
  setsid ip netns exec "$NS_R" "$RELAY" --delay "$DELAY" "$@" >"$WORK/relay.log" 2>&1 </dev/null &
  RELAY_PID=$!
  wait_for 5 grep -q ^ready "$WORK/relay.log" || die "the relay did not start: $(cat "$WORK/relay.log")"
  ip -n "$NS_R" link set relay0 up || die "the relay's device does not come up"
  ip -n "$NS_R" route add default dev relay0 table 100 || die "no route by the relay"
  wait_for 5 inA ping -c1 -W1 "$U_B" || die "no path through the relay"
}
relay_stop() { # its counters are in COUNTERS then
  [ -n "$RELAY_PID" ] || return 0
  RELAY_CPU=$(awk -v hz="$(getconf CLK_TCK)" '{ sub(/.*\) /, ""); print ($12 + $13) / hz }' "/proc/$RELAY_PID/stat")
  kill "$RELAY_PID" 2>/dev/null
  wait "$RELAY_PID" 2>/dev/null
  RELAY_PID=''
  COUNTERS=$(tail -n 1 "$WORK/relay.log")
}

# loss_on | loss_off; packets above the MTU would be super-packets, which die whole: they are counted, and must be none
loss_on() {
  local ns
  for ns in "$NS_A" "$NS_B"; do
    ip netns exec "$ns" nft -f - <<N || die "nft"
table netdev lossy {
  counter seen {}
  counter lost {}
  counter super {}
  chain in {
    type filter hook ingress device "eth0" priority -500;
    meta length > $LAB_MTU counter name super
    counter name seen
    numgen random mod 100 < $LOSS counter name lost drop
  }
}
N
  done
}
loss_off() { inA nft delete table netdev lossy 2>/dev/null; inB nft delete table netdev lossy 2>/dev/null; return 0; }
# dropped COUNTER: packets that B's rule counted
dropped() { inB nft -j list counter netdev lossy "$1" 2>/dev/null | jq -rn '[inputs.nftables[].counter // empty | .packets][0] // 0'; }

# stream FILE: one TCP stream from A to B
stream() {
  local out=$1 server
  inB timeout $((DUR + 15)) iperf3 -s -1 -p "$PORT_IPERF" >/dev/null 2>&1 &
  server=$!
  wait_for 5 listening "$NS_B" "$PORT_IPERF"
  inA timeout $((DUR + 12)) iperf3 -c "$U_B" -p "$PORT_IPERF" -t "$DUR" -C "$CC" -J >"$out" 2>/dev/null
  kill $server 2>/dev/null
  wait $server 2>/dev/null
  jq -e '.end.sum_received.bits_per_second > 0' "$out" >/dev/null
}

# run CASE PEER REP: one run, one line of JSON
run() {
  local case=$1 peer=$2 base=$WORK/$1.$2.$3 before after ping_pid
  [ "$peer" = none ] || timeout 60 "$(script "$peer")" up >"$base.up" 2>&1 || { say "$peer did not come up: $(tail -n 3 "$base.up")"; return 1; }
  inA ping -q -c 20 -i 0.02 "$U_B" >"$base.idle"
  before=$(cpu)
  if [ "$case" = slow ]; then
    # The queue has filled when the pings begin.
    (sleep 2 && inA ping -c $(((DUR - 3) * 20)) -i 0.05 -W 2 "$U_B" >"$base.ping") &
    ping_pid=$!
  fi
  stream "$base.json" || say "$case $peer: no result"
  after=$(cpu)
  [ -z "${ping_pid:-}" ] || wait "$ping_pid"
  jq -n --arg case "$case" --arg peer "$peer" --slurpfile run "$base.json" --argjson cpu "$(awk -v a="$before" -v b="$after" 'BEGIN { print b - a }')" \
    --arg idle "$(awk -F/ '/^rtt/ { split($4, least, " "); print least[3] }' "$base.idle")" \
    --argjson loaded "$(loaded "$base.ping")" '
    ($run[0].end // {}) as $sum | { $case, $peer, mbps: (($sum.sum_received.bits_per_second // 0) / 1e6),
    retransmits: ($sum.sum_sent.retransmits // null), cpu_s_per_gb: (if ($sum.sum_received.bytes // 0) > 0 then $cpu / ($sum.sum_received.bytes / 1e9) else null end),
    rtt_idle_ms: ($idle | tonumber? // null), rtt_loaded_ms: $loaded }' | jq -c . >>"$WORK/runs"
  say "$(tail -n 1 "$WORK/runs")"
  [ "$peer" = none ] || timeout 60 "$(script "$peer")" down
}
# CPU seconds of the machine, all of it
cpu() { awk -v hz="$(getconf CLK_TCK)" '/^cpu / { print ($2 + $3 + $4 + $7 + $8) / hz }' /proc/stat; }
# loaded FILE: [median, 99 %] of the pings in it, in milliseconds
loaded() {
  [ -s "$1" ] || { echo null; return; }
  sed -n 's/.*time=\([0-9.]*\) ms.*/\1/p' "$1" | sort -n |
    awk '{ t[NR] = $1 } END { if (NR) printf "[%s,%s]\n", t[int((NR + 1) / 2)], t[int(NR * .99 + .5)]; else print "null" }'
}

measure() { # measure CASE
  local case=$1 peer rep options=()
  [ -z "$LINE" ] || options=(--rate "$LINE" --queue "$QUEUE")
  [ "$case" != slow ] || options=(--rate "$RATE" --queue "$QUEUE")
  relay_start "${options[@]}"
  [ "$case" != loss ] || loss_on
  for rep in $(seq "$REPS"); do for peer in none $PEERS; do run "$case" "$peer" "$rep"; done; done
  local seen lost super
  seen=$(dropped seen) lost=$(dropped lost) super=$(dropped super)
  loss_off
  relay_stop
  echo "$COUNTERS cpu_s=$RELAY_CPU" | tr ' ' '\n' | jq -Rn --arg case "$case" --argjson seen "$seen" --argjson lost "$lost" --argjson super "$super" '
    ([inputs | split("=") | { (.[0]): (.[1] | tonumber) }] | add) as $relay | { $case, $relay, nft: { $seen, $lost, $super },
    ok: ($relay.refused == 0 and $relay.unread == 0 and $relay.memory_full == 0 and $super == 0 and ($case != "loss" or $lost > 0)) }' |
    jq -c . >>"$WORK/links"
}

# The runs and links as one document: medians with least and most, and the ratio to the bare link.
summary() {
  jq -n --slurpfile runs "$WORK/runs" --slurpfile links "$WORK/links" --arg delay "$DELAY" --arg loss "$LOSS" --arg rate "$RATE" --arg line "$LINE" --arg queue "$QUEUE" \
    --arg cc "$CC" --argjson dur "$DUR" --argjson reps "$REPS" --arg kernel "$(uname -r)" --argjson cores "$(nproc)" --arg when "$(date -u +%FT%TZ)" '
    def mid: map(select(. != null)) | sort | if length == 0 then null else .[(length - 1) / 2 | floor] end;
    def spread: [mid, min, max];
    ($runs | group_by([.case, .peer != "none", .peer]) | map({ case: .[0].case, peer: .[0].peer, mbps: (map(.mbps) | spread), retransmits: (map(.retransmits) | mid),
      cpu_s_per_gb: (map(.cpu_s_per_gb) | mid), rtt_idle_ms: (map(.rtt_idle_ms) | mid),
      rtt_loaded_ms: (if .[0].rtt_loaded_ms == null then null else [(map(.rtt_loaded_ms[0]) | mid), (map(.rtt_loaded_ms[1]) | mid)] end) })) as $rows
    | { $when, $kernel, $cores, $cc, $dur, $reps, $delay, loss_percent: ($loss | tonumber), $rate, $line, $queue, links: $links,
        results: ($rows | map(. as $row | . + { of_bare: (($rows[] | select(.case == $row.case and .peer == "none").mbps[0]) as $bare | if $bare > 0 then $row.mbps[0] / $bare else null end) })) }'
}

table() {
  jq -r '
    def r(n): if . == null then "-" else (. * n | round) / n | tostring end;
    ["case", "peer", "Mbit/s", "least", "most", "of bare", "retr.", "CPU-s/GB", "RTT ms", "loaded", "99 %"],
    (.results[] | [.case, .peer, (.mbps[] | r(1)), (.of_bare | r(100)), (.retransmits | r(1)), (.cpu_s_per_gb | r(100)), (.rtt_idle_ms | r(10)),
      ((.rtt_loaded_ms // [null, null])[] | r(10))]) | @tsv' "$1" | awk -F '\t' '
    { printf "%-6s %-9s %7s %6s %6s %8s %6s %9s %7s %7s %6s\n", $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11 }'
  jq -r '.links[] | "\(.case): link \(if .ok then "ok" else "NOT OK" end); relay refused \(.relay.refused), unread \(.relay.unread), queue full \(.relay.queue_full), \(.relay.cpu_s * 10 | round / 10) CPU-s for \(.relay.bytes / 1e8 | round / 10) GB" +
    (if .case == "loss" then "; nft at B dropped \(.nft.lost) of \(.nft.seen), \(.nft.super) of them super-packets" else "" end)' "$1"
}

for case in $CASES; do
  case $case in clean | loss | slow) ;; *) die "no case is called '$case': clean, loss, slow" ;; esac
done
[ -x "$RELAY" ] || die "$RELAY is missing: cargo build --release --example delay-relay"
for c in ip ping iperf3 jq ethtool nft ss; do command -v $c >/dev/null || die "$c is missing"; done
[[ " $(sysctl -n net.ipv4.tcp_available_congestion_control) " == *" $CC "* ]] || die "no congestion control $CC here"
rm -rf "$WORK"
mkdir -p "$WORK" "$LAB_OUT" || die "cannot write to $LAB_RUN"
: >"$WORK/runs"
: >"$WORK/links"
export LAB
trap down EXIT
up
for case in $CASES; do measure "$case"; done
summary >"$LAB_OUT/loss.json" || die "no summary"
table "$LAB_OUT/loss.json"
say "wrote $LAB_OUT/loss.json"
jq -e '[.links[].ok] | all' "$LAB_OUT/loss.json" >/dev/null || die "a link was not what was asked for"
jq -e '[.results[] | select(.case == "loss" and .peer == "identun") | .of_bare >= 0.8] | all' "$LAB_OUT/loss.json" >/dev/null ||
  die "goal missed: with loss, identun has less than 0.8 of the bare link"
