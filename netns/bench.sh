#!/bin/bash
# Measures identun beside the tunnels and proxies that are installed, all on this machine in one run, with the lab in
# LAB_DIR. The tables go to target/bench/table.md and, of a whole run, into docs/performance.md.
#
# Usage: bench.sh [PEER...]   of wg-go wg-go-deb quincy stunnel haproxy ztunnel (default: all that are installed)
#
#   LAB_DIR    folder of the lab (default: ../shared/lab beside this tree)
#   MTUS       MTUs of the link, a table each (default: 1500 9000)
#   DUR REPS SHORT ONLY AWAKE   as the lab's measure.sh has them (default here: DUR=4 REPS=3 SHORT=2, everything)
#   PAGE       the page whose table is written (default: docs/performance.md, and none when ONLY, MTUS or PEERs are given)
#   WG_GO WG_GO_DEB QUINCY_SERVER QUINCY_CLIENT ZTUNNEL   binaries of peers that are not in PATH
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(dirname "$here")
export LAB_DIR=${LAB_DIR:-$root/../shared/lab}
results=$root/target/bench
known=(wg-go wg-go-deb quincy stunnel haproxy ztunnel)
# Measured first: the bare link, and the fair floor of whatever handles every packet.
own=(none none-nogso identun)

say() { echo "bench: $*" >&2; }
die() {
  say "$*"
  exit 1
}

have() { local tool; for tool in "$@"; do command -v "$tool" >/dev/null || return 1; done; }

# installed PEER: its programs are there
installed() {
  case $1 in
    wg-go) have "${WG_GO:-wireguard-go-new}" wg ;;
    wg-go-deb) have "${WG_GO_DEB:-wireguard-go}" wg ;;
    quincy) have "${QUINCY_SERVER:-quincy-server}" "${QUINCY_CLIENT:-quincy-client}" ;;
    stunnel) have stunnel4 openssl ;;
    haproxy) have haproxy openssl ;;
    ztunnel) have "${ZTUNNEL:-ztunnel}" nft ;;
    *) die "no peer is called '$1'; there are: ${known[*]}" ;;
  esac
}

# Runs outside: finds what there is, builds, and measures in namespaces that end with the run.
main() {
  [ -x "$LAB_DIR/bench.sh" ] ||
    die "there is no lab in $LAB_DIR: set LAB_DIR to its folder. The hot paths alone: make bench-micro"
  LAB_DIR=$(cd "$LAB_DIR" && pwd)
  have ip ping iperf3 sockperf wrk nginx jq ss ethtool ||
    die 'missing tools (Debian: iproute2 iputils-ping iperf3 sockperf wrk nginx jq ethtool)'
  local peer peers=() asked=("$@") page=${PAGE:-}
  [ $# -gt 0 ] || asked=("${known[@]}")
  for peer in "${asked[@]}"; do
    if installed "$peer"; then peers+=("$peer"); else say "$peer is not installed, skipped"; fi
  done
  [ -n "$page" ] || [ $# -gt 0 ] || [ -n "${ONLY:-}" ] || [ -n "${MTUS:-}" ] || page=$root/docs/performance.md
  (cd "$root" && ${CARGO:-cargo} build --release --locked --quiet --bin identun)
  rm -rf "$results"
  mkdir -p "$results"
  # Keys and logs.
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  LAB_RUN=$scratch "$here/topology.sh" enter "$here/bench.sh" --inside "${peers[@]}"
  # Rows of what was not measured are left out, and the blanks at the ends of lines.
  tables | sed -E '/^\| [^|]*\|( - \|)+ ?$/d; s/ +$//' >"$results/table.md"
  cat "$results/table.md"
  [ -z "$page" ] || write "$page"
}

# Runs in namespaces of its own: whatever is made here is gone afterwards.
inside() {
  export LAB=idt PEER_DIR=$here/lab IDENTUN=$root/target/release/identun
  export DUR=${DUR:-4} REPS=${REPS:-3} SHORT=${SHORT:-2} ONLY=${ONLY:-tcp udp lat http} AWAKE=${AWAKE:-0}
  local mtu load
  for mtu in ${MTUS:-1500 9000}; do
    read -r load _ </proc/loadavg
    say "MTU $mtu: ${own[*]} $* (load of the machine before: $load)"
    # What the lab's peers call their own MTU follows the link's where they can be told.
    export LAB_MTU=$mtu LAB_OUT=$results/$mtu QUINCY_MTU=$((mtu - 100))
    "$LAB_DIR/bench.sh" "${own[@]}" "$@"
    [[ " $ONLY " != *' tcp '* ]] || both_ways none none-nogso identun "$@"
    [ -f "$LAB_OUT/identun.json" ] || die 'identun did not come up, see above'
  done
}

# both_ways NAME...: TCP both ways at once, which the lab does not measure; adds `tcp_both_gbps` to the results
both_ways() (
  # shellcheck disable=SC1091 # the lab says where its library is
  . "$LAB_DIR/lib.sh"
  trap '"$LAB_DIR/rig.sh" down' EXIT
  "$LAB_DIR/rig.sh" up
  for name in "$@"; do
    script=$LAB_DIR/peers/$name.sh
    [ -x "$script" ] || script=$PEER_DIR/$name.sh
    # What did not come up was said to have failed.
    [ -f "$LAB_OUT/$name.json" ] || continue
    timeout 60 "$script" up || continue
    state "$name"
    sums=$(for _ in $(seq "$REPS"); do both_ways_once "$(cat "$ST/target")"; done)
    say "  $name tcp_both_gbps = $(tr '\n' ' ' <<<"$sums")"
    jq --argjson sums "$(jq -s 'sort' <<<"$sums")" \
      '. + if $sums == [] then {} else {tcp_both_gbps: [$sums[($sums | length) / 2 | floor], $sums[0], $sums[-1]]} end' \
      "$LAB_OUT/$name.json" >"$LAB_RUN/both.json"
    mv "$LAB_RUN/both.json" "$LAB_OUT/$name.json"
    timeout 30 "$script" down || true
  done
)

# both_ways_once TARGET: the sum of both directions, Gbit/s
both_ways_once() {
  local server
  inB timeout $((DUR + 15)) iperf3 -s -1 -p "$PORT_IPERF" >/dev/null 2>&1 &
  server=$!
  wait_for 3 listening "$NS_B" "$PORT_IPERF"
  # A run in which one direction did not come about is none.
  inA timeout $((DUR + 12)) iperf3 -c "$1" -p "$PORT_IPERF" -t "$DUR" --bidir -J 2>/dev/null |
    jq '.end | [.sum_received.bits_per_second, .sum_received_bidir_reverse.bits_per_second]
      | select(all(. != null and . > 0)) | add / 1e9' || true
  kill "$server" 2>/dev/null || true
  wait "$server" 2>/dev/null || true
}

# The tables of every MTU, with what they were measured on.
tables() {
  local mtu names
  echo "Measured on $(date -u +%F) by \`make bench\`: identun $("$root/target/release/identun" version | awk '{print $2; exit}')" \
    "at $(git -C "$root" describe --always --dirty 2>/dev/null || echo 'no commit'), $(rustc --version | cut -d' ' -f1-2);"
  echo "$(awk -F': ' '/^model name/{print $2; exit}' /proc/cpuinfo), $(nproc) cores, Linux $(uname -r)." \
    'Both ends and both hosts shared these cores.'
  for mtu in ${MTUS:-1500 9000}; do
    export LAB_OUT=$results/$mtu
    names=$(names_of "$LAB_OUT")
    printf '\n### MTU %s\n\n' "$mtu"
    # shellcheck disable=SC2086 # words
    "$LAB_DIR/table.sh" $names | with_both_ways "$(both_ways_row $names)" |
      # The bare link is called by the MTU that it has without LAB_MTU.
      sed "s/^\(- none.*\), MTU 1500,/\1, MTU $mtu,/"
    printf '\nidentun divided by each; of cost and round trip less is better:\n\n'
    # shellcheck disable=SC2086 # words
    ratios $names
  done
}

# names_of FOLDER: who has results there, our own first
names_of() {
  local name
  for name in "${own[@]}" "${known[@]}"; do
    [ ! -f "$1/$name.json" ] || printf '%s ' "$name"
  done
}

both_ways_row() {
  local name
  printf '| TCP both ways at once, their sum, Gbit/s |'
  for name in "$@"; do
    jq -j 'def r: . * 100 | round / 100 | tostring;
      " " + (if .tcp_both_gbps then (.tcp_both_gbps | map(r) | "\(.[0]) (\(.[1])-\(.[2]))") else "-" end) + " |"' "$LAB_OUT/$name.json"
  done
}

with_both_ways() { awk -v row="$1" '{print} /^\| TCP 1 stream reverse/ {print row}'; }

# ratios NAME...: identun's figures divided by the others'
ratios() {
  local name row key others=()
  for name in "$@"; do case $name in none | identun) ;; *) others+=("$name") ;; esac done
  printf '| identun ÷ |%s\n|---|%s\n' "$(printf ' %s |' "${others[@]}")" "$(printf -- '---|%.0s' "${others[@]}")"
  while IFS='=' read -r key row; do
    printf '| %s |' "$row"
    for name in "${others[@]}"; do
      jq -rj --arg key "$key" --slurpfile us "$LAB_OUT/identun.json" '
        def figure: .[$key] | if type == "array" then .[0] else . end;
        figure as $them | ($us[0] | figure) as $us
        | " " + (if ($us | type) == "number" and ($them | type) == "number" and $them > 0
          then ($us / $them * 100 | round / 100 | tostring) else "-" end) + " |"' "$LAB_OUT/$name.json"
    done
    echo
  done <<'R'
tcp1_gbps=TCP 1 stream
tcp4_gbps=TCP 4 streams
tcp_both_gbps=TCP both ways at once
tcp1_tunnel_cpu_s_per_gb=CPU s/GB, both ends
udp64_clean_pps=UDP 64 B without loss
conn_per_s=new connections
http_per_s=HTTP requests
lat_tcp_us=RTT TCP p50
R
}

# write PAGE: puts the tables between its markers
write() {
  [ "$(grep -cE '^<!-- bench:(begin|end) -->$' "$1")" = 2 ] ||
    die "$1 needs one line '<!-- bench:begin -->' and one '<!-- bench:end -->'"
  awk -v table="$results/table.md" '
    /^<!-- bench:begin -->$/ {print; while ((getline line <table) > 0) print line; skip = 1}
    /^<!-- bench:end -->$/ {skip = 0}
    !skip {print}' "$1" >"$1.new"
  # Of the same file, so that it keeps its owner and mode.
  cat "$1.new" >"$1"
  rm "$1.new"
  say "wrote the tables into $1"
}

case ${1:-} in
  --inside)
    shift
    inside "$@"
    ;;
  -*) die 'usage: bench.sh [PEER...]; the head of this script has the settings' ;;
  *) main "$@" ;;
esac
