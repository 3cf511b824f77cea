#!/bin/bash
# The main job of identun on real hosts-in-namespaces, told and checked. Every claim is checked by this script: it exits
# non-zero when one is false. Needs root or the right to make user namespaces; changes nothing outside.
#
# Usage: demo.sh FOLDER    FOLDER holds the built `identun`, and `examples/hostile-server` for one of the steps
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
bin=$(cd "${1:-$here/../target/release}" && pwd)
if [ "${IDENTUN_DEMO:-}" != inside ]; then
  export PATH=$PATH:/usr/sbin:/sbin
  missing=
  for tool in unshare:util-linux ip:iproute2 nft:nftables curl:curl ping:iputils-ping python3:python3; do
    command -v "${tool%:*}" >/dev/null || missing="$missing ${tool#*:}"
  done
  if [ -n "$missing" ]; then
    echo "demo: programs are missing; try: apt-get install$missing" >&2
    exit 2
  fi
  IDENTUN_DEMO=inside exec bash "$here/topology.sh" enter bash "$here/demo.sh" "$bin"
fi

work=/run/demo marker=PLAINTEXT-MARKER
server4=198.18.2.2 server6=fd00:2::2
id=spiffe://cluster.local/ns/default/sa
mkdir -p $work/policies $work/www
cd $work

# --- telling and checking --------------------------------------------------------------------------------------
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold=$'\e[1m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'; else bold='' green='' red='' plain=''; fi
checked=0
chapter() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
say() { printf '      %s\n' "$*"; }
ok() { checked=$((checked + 1)); printf '  %sok%s  %s\n' "$green" "$plain" "$*"; }
fail() {
  printf '  %sNO%s  %s\n' "$red" "$plain" "$*"
  for log in client server impostor http capture curl; do
    [ ! -s $log.log ] || { echo "--- the last lines of $log.log"; tail -n 8 $log.log; }
  done
  exit 1
}
claim() { # claim TEXT COMMAND...: TEXT is true when COMMAND succeeds
  local text=$1
  shift
  if "$@"; then ok "$text"; else fail "$text"; fi
}
not() { ! "$@"; }
# within SECONDS COMMAND...: the event must come in that time
within() {
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do [ $SECONDS -lt $end ] || return 1; sleep 0.05; done
}
on() { ip netns exec "$@"; }
# in_background HOST LOG COMMAND...: $! is the command's own process
in_background() {
  local host=$1 log=$2
  shift 2
  (exec ip netns exec "$host" "$@") >>"$log" 2>&1 &
}

# --- daemons, captures, questions ------------------------------------------------------------------------------
identity() { # identity HOST ACCOUNT
  "$bin/identun" ca issue "$id/$2" --dir ca --out "$1/$2" >/dev/null
}
settings() { # settings HOST ACCOUNT
  cat >"$1/daemon.yaml" <<Y
policies: [$work/policies]
identities: [{ certificate: $2/$2.pem, key: $2/$2.key }]
trust_bundles: { cluster.local: $2/bundle.pem }
state_dir: $work/$1/state
admin_socket: $work/$1/admin.sock
metrics: null
Y
}
start() { # start HOST: its daemon, until it is ready
  in_background "$1" "$1.log" "$bin/identun" daemon --config "$1/daemon.yaml"
  echo $! >"$1.pid"
  within 10 status "$1" || fail "the daemon on $1 starts"
}
status() { on "$1" "$bin/identun" status -o json --socket "$work/$1/admin.sock"; }
kill_9() { kill -9 "$(cat "$1.pid")"; wait "$(cat "$1.pid")" 2>/dev/null || true; }

capture() { # capture FILE: everything that the wire sees
  : >capture.log
  in_background wire capture.log python3 "$here/wire.py" record "$1"
  capture=$!
  within 10 grep -q listening capture.log || fail 'the capture starts'
}
captured() { # ends the capture; what was queued is written first
  kill -TERM "$capture"
  wait "$capture" || fail "the capture is complete: $(tail -n1 capture.log)"
}
shows() { grep -qa "$1" "$2"; }
# Nothing but the tunnel; neighbour discovery and errors about tunnel packets (they quote ciphertext) do not count.
only_tunnel() {
  if python3 "$here/wire.py" others "$1" >others.log 2>&1 && [ ! -s others.log ]; then return 0; fi
  head -n 5 others.log
  return 1
}
finds_plaintext() { { python3 "$here/wire.py" others "$1" 2>/dev/null || true; } | grep -q 'protocol 6, 198.18.1.2 -> 198.18.2.2'; }
fetch() { # fetch HOST [CURL ARGUMENT...]: the page of the server
  local host=$1
  shift
  on "$host" curl -sS --noproxy '*' --max-time 10 -A $marker "$@" 2>>curl.log
}
refused() { # refused HOST URL: the connection is reset at once (curl's exit code 7), not merely unanswered
  local code=0
  fetch "$1" "$2" -o /dev/null || code=$?
  [ $code = 7 ]
}
hash_of() { sha256sum "$1" | cut -d' ' -f1; }

# refusal PRESENTED WORD: the client's last failed dial wanted the server, met PRESENTED (`-`: nobody proved anything) and
# gave a reason with WORD. The values are in refusal.txt.
refusal() {
  on client curl -sS --unix-socket client/admin.sock http://identun/v1/events >events.json || return 1
  python3 - events.json "$id/server" "$1" "$2" >refusal.txt <<'P'
import json, sys
path, expected, presented, word = sys.argv[1:]
events = json.load(open(path))["events"]
fields = [e["fields"] for e in events if e["kind"] == "dial_failed"][-1]
assert fields["expected"] == expected and word in fields["reason"], fields
assert fields.get("presented", "-") == presented and fields["traffic"] == "no inner byte was sent", fields
fields["presented"] = fields.get("presented", "nothing, it closed the handshake")
for name in ("dialled", "expected", "presented", "issuer", "traffic"):
    if name in fields:
        print(f"      {name:<10} {fields[name]}")
P
}
nothing_received() { # nothing_received HOST: its daemon took no packet out of a tunnel
  status "$1" | python3 -c 'import json, sys; sys.exit(json.load(sys.stdin)["packets"]["ingress_packets"] != 0)'
}

# The five steps of the Istio mTLS introduction with the values of this run.
steps() {
  python3 - "$1" <<'P'
import json, sys
status = json.load(open(sys.argv[1]))
flow = next(f for f in status["flows"] if f["protocol"] == "tcp")
tunnel = next(t for t in status["tunnels"] if t["state"] == "up")
rule, place = flow["rule"].split(" (")
assert flow["accepted"] and tunnel["peer"] in flow["accepted"] and flow["bytes_sent"] and flow["bytes_received"]
for line in (
    "1 the client's packet is intercepted:",
    f"    tcp {flow['local']} -> {flow['remote']}",
    "2 its daemon starts a mutual TLS handshake with the server's:",
    f"    TLSv1.3, {tunnel['cipher']}, {tunnel['group']}",
    f"    from {tunnel['local']}",
    f"    to   {tunnel['peer']}",
    "3 secure naming: who may answer for this destination, and who did:",
    *(f"    may answer: {accepted}" for accepted in flow["accepted"]),
    f"    matched:    {tunnel['peer']}",
    f"    because of  {rule}",
    f"                ({place}",
    "4 the packets travel in the tunnel:",
    f"    {flow['bytes_sent']} bytes out, {flow['bytes_received']} bytes back, inner MTU {tunnel['inner_mtu']}",
    "5 the server's daemon hands them to the application, addresses unchanged",
):
    print("      " + line)
P
}

# --- the hosts -------------------------------------------------------------------------------------------------
chapter 'Hosts: client, server, naked, impostor, joined by a router that plays the wire'
bash "$here/topology.sh" up
echo "hello from the server, $marker" >www/index.html
head -c 40000000 /dev/urandom >www/big
in_background server http.log python3 -m http.server 80 --bind :: --directory www
in_background server dns.log python3 -c 'import socket
s=socket.socket(socket.AF_INET6,socket.SOCK_DGRAM); s.bind(("::",53))
while True: d,a=s.recvfrom(65535); s.sendto(d,a)'
within 10 fetch client "http://$server4/" || fail 'the HTTP server starts'

chapter '(a) No daemon: an ordinary request crosses the wire in plaintext'
capture a.pcap
claim "curl http://$server4/ works" fetch client "http://$server4/" -o a.html
captured
claim 'the captured wire shows the request and the answer' shows $marker a.pcap
claim 'and the check for plaintext, which is made again below, finds it' finds_plaintext a.pcap
say "on the wire: $(grep -aom1 'User-Agent: [A-Z-]*' a.pcap)"

chapter '(b) The daemons, with the two resources of the Istio mTLS introduction'
"$bin/identun" ca init --trust-domain cluster.local --dir ca >/dev/null
for host in client server impostor; do
  mkdir -p $host
  identity $host $host
  settings $host $host
done
cat >policies/policy.yaml <<'Y'
apiVersion: authentication.istio.io/v1alpha1
kind: MeshPolicy
metadata:
  name: default
spec:
  peers:
  - mtls:
      mode: STRICT
---
apiVersion: networking.istio.io/v1alpha3
kind: DestinationRule
metadata:
  name: default
  namespace: istio-system
spec:
  host: "*.local"
  trafficPolicy:
    tls:
      mode: ISTIO_MUTUAL
Y
{
  for host in client:1 server:2 impostor:4; do
    for address in 198.18.${host#*:}.2 fd00:${host#*:}::2; do
      cat <<Y
apiVersion: networking.istio.io/v1
kind: WorkloadEntry
metadata: { name: "${host%:*}-$(echo "$address" | tr -c 'a-z0-9\n' -)", namespace: default }
spec: { address: "$address", serviceAccount: ${host%:*}, labels: { app: ${host%:*} } }
---
Y
    done
  done | sed 's/--2"/-2"/'
  cat <<'Y'
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: { name: server, namespace: default }
spec:
  hosts: [server.default.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{ number: 80, name: http, protocol: HTTP }, { number: 53, name: dns, protocol: UDP }]
  workloadSelector: { labels: { app: server } }
Y
} >policies/registry.yaml
start server
start client
capture b.pcap
claim "the same curl works" fetch client "http://$server4/" -o b.html
captured
claim 'its answer is the same' cmp -s a.html b.html
claim 'the captured wire shows only UDP port 15008' only_tunnel b.pcap
claim 'and not one byte of the marker' not shows $marker b.pcap
say ''
say 'The five steps, as the client'"'"'s daemon saw them:'
on client "$bin/identun" status -o json --socket $work/client/admin.sock >client.json || true
steps client.json

chapter '(c) A host outside the mesh talks plaintext to the STRICT server'
claim 'TCP is refused at once' refused naked "http://$server4/"
claim 'over IPv6 too' refused naked "http://[$server6]/"
claim 'the twin: the client still gets its page' fetch client "http://$server4/" -o /dev/null

chapter '(d) The wire is rerouted to an impostor with a valid certificate of the same CA'
# Sessions to the real server end with the daemons; the client dials afresh.
kill_9 server
kill_9 client
bash "$here/topology.sh" reroute server impostor
start impostor
start client
capture d.pcap
claim 'an honest identun there: curl is refused' not fetch client "http://$server4/" -o /dev/null
claim 'the client says: the peer does not hold the expected identity' refusal - 'does not hold the expected identity'
cat refusal.txt
claim 'no inner packet reached the impostor' nothing_received impostor
kill_9 impostor
kill_9 client
on impostor "$bin/identun" down --config impostor/daemon.yaml >/dev/null
not_shown=
if [ -x "$bin/examples/hostile-server" ]; then
  in_background impostor hostile.log "$bin/examples/hostile-server" impostor/impostor/impostor.pem impostor/impostor/impostor.key
  hostile=$!
  within 10 grep -q listening hostile.log || fail 'the hostile server starts'
  start client
  claim 'a hostile server there, which presents its own certificate: refused' not fetch client "http://$server4/" -o /dev/null
  claim 'the client names the expected and the presented identity' refusal "$id/impostor" expected
  cat refusal.txt
  claim 'the client did knock at the hostile server' grep -q '^refused' hostile.log
  claim 'no inner packet reached it' not grep -q '^inner packets' hostile.log
  kill -9 $hostile
  wait $hostile 2>/dev/null || true
  kill_9 client
else
  not_shown='a hostile server in the place of the real one'
  say "not shown: $not_shown"
  say '  (its program, examples/hostile-server, is built from the source tree)'
fi
captured
claim 'no plaintext crossed the wire' not shows $marker d.pcap
bash "$here/topology.sh" unroute server impostor
start server
start client
claim 'the twin: with the wire as it was, the client gets its page' fetch client "http://$server4/" -o /dev/null

chapter '(e) Ping, UDP and IPv6 cross too'
capture e.pcap
pings() { on client ping -qc2 -W2 "$1" >ping.log; }
claim 'ping, IPv4' pings $server4
claim 'ping, IPv6' pings $server6
claim 'UDP, 4,000 bytes there and back' on client python3 -c '
import socket,os
s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.settimeout(5); d=os.urandom(4000)
s.sendto(d,("'$server4'",53)); assert s.recv(65535)==d'
claim 'HTTP over IPv6' fetch client "http://[$server6]/" -o e.html
captured
claim 'the captured wire shows only UDP port 15008' only_tunnel e.pcap

chapter '(f) Both daemons are killed with -9 in the middle of a download'
capture f.pcap
fetch client "http://$server4/big" --limit-rate 4M --max-time 60 -o big &
download=$!
size() { stat -c %s big 2>/dev/null || echo 0; }
grown() { [ "$(size)" -gt "$1" ]; }
within 10 grown 4000000 || fail 'the download starts'
for host in client server; do
  kill_9 $host
  say "killed the daemon on $host at $(size) bytes"
  start $host
  claim "within 5 s of its restart the same connection goes on" within 5 grown $(($(size) + 2000000))
done
wait $download || fail 'the download ends'
captured
claim 'the file arrived whole' [ "$(hash_of big)" = "$(hash_of www/big)" ]
claim 'nothing crossed in plaintext meanwhile' only_tunnel f.pcap

chapter "All $checked claims hold.${not_shown:+ Not shown: $not_shown.}"
