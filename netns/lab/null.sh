#!/bin/bash
# Two TUNs and one loop that copies frames between them, as a peer of the lab: null.sh up|down. What it reaches is the
# ceiling of any tunnel through a TUN on this machine. NULL_TUNNEL is the program (default: the release build's example).
# shellcheck disable=SC1090 # the lab says where its library is
. "${LAB_LIB:?set LAB_LIB to the lib.sh of the lab}"
NAME=null
BIN=${NULL_TUNNEL:-$(cd "$(dirname "$0")/../.." && pwd)/target/release/examples/null-tunnel}

up() {
  [ -x "$BIN" ] || die "$BIN is missing: cargo build --release --example null-tunnel"
  state_new $NAME
  "$BIN" --mtu $((LAB_MTU - 68)) "/run/netns/$NS_A" "/run/netns/$NS_B" >"$ST/$NAME.log" 2>&1 </dev/null &
  echo "A $!" >>"$ST/pids"
  wait_for 5 grep -q ready "$ST/$NAME.log" || die "$(cat "$ST/$NAME.log")"
  inA ip addr add "$I_A/$I_LEN" dev null0 && inA ip link set null0 up
  inB ip addr add "$I_B/$I_LEN" dev null0 && inB ip link set null0 up
  wait_for 5 inA ping -c1 -W1 "$I_B" || die "no path through the two TUNs"
  echo "udp icmp" >"$ST/caps"
  echo "two TUNs and a loop that copies: no socket, no encryption, no policy" >"$ST/info"
}

down() {
  state $NAME
  state_stop
  ip -n "$NS_A" link del null0
  ip -n "$NS_B" link del null0
}

case "${1:-}" in
  up) up ;;
  down) down ;;
  *) die "usage: null.sh up|down" ;;
esac
