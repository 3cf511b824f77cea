#!/bin/bash
# Hosts-in-namespaces: `client`, `server`, `naked` and `impostor`, each with a link of its own to `wire`, a router that
# plays the network between them and sees every packet. Demo, tests and the lab use the same hosts.
#
#   client 198.18.1.2 fd00:1::2 --+                +-- server   198.18.2.2 fd00:2::2
#                                 +----- wire -----+
#   naked  198.18.3.2 fd00:3::2 --+                +-- impostor 198.18.4.2 fd00:4::2
#
# Usage: topology.sh enter COMMAND...   run COMMAND where names, processes and rules are its own and end with it
#        topology.sh up                 make the hosts (inside `enter`)
#        topology.sh workload HOST      add a host `HOST-workload` behind HOST: 198.18.1X.2 and fd00:1X::2
#        topology.sh reroute HOST TO    the wire leads HOST's addresses to TO, which takes them on its loopback
#        topology.sh unroute HOST TO    undo that
set -eu

hosts='client server naked impostor'
number() {
  case $1 in client) echo 1 ;; server) echo 2 ;; naked) echo 3 ;; impostor) echo 4 ;; *)
    echo "topology: no host is called '$1'" >&2
    exit 2
    ;;
  esac
}

# A private mount, network and process namespace, and a user namespace for those who are not root: nothing that is made
# inside is seen outside, and all of it is gone when COMMAND ends, however it ends.
enter() {
  local user=
  [ "$(id -u)" = 0 ] || user='--user --map-root-user'
  # shellcheck disable=SC2086 # words
  unshare $user --mount --net --pid --fork true || {
    echo 'topology: cannot make namespaces here: be root, or a user who may make user namespaces' >&2
    exit 4
  }
  # shellcheck disable=SC2086 # words
  exec unshare $user --mount --net --pid --fork --kill-child --mount-proc bash "$0" inside "$@"
}

inside() {
  mount -t tmpfs -o mode=755 tmpfs /run
  mkdir -p /run/netns
  ip link set lo up
  exec "$@"
}

# link HOST PORT NUMBER ROUTER: HOST's eth0 to ROUTER's PORT, and HOST's way out
link() {
  ip link add eth0 netns "$1" type veth peer name "$2" netns "$4"
  ip -n "$1" addr add "198.18.$3.2/24" dev eth0
  ip -n "$1" -6 addr add "fd00:$3::2/64" dev eth0 nodad
  ip -n "$4" addr add "198.18.$3.1/24" dev "$2"
  ip -n "$4" -6 addr add "fd00:$3::1/64" dev "$2" nodad
  ip -n "$1" link set eth0 up
  ip -n "$4" link set "$2" up
  ip -n "$1" route add default via "198.18.$3.1"
  ip -n "$1" -6 route add default via "fd00:$3::1"
}

namespace() {
  ip netns add "$1"
  ip -n "$1" link set lo up
  # Captures count packets: no router solicitations, and no duplicate address detection between test and answer.
  ip netns exec "$1" sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0 \
    net.ipv6.conf.all.accept_ra=0 net.ipv6.conf.default.accept_ra=0
}

forwarding() { ip netns exec "$1" sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1; }

# The kernel notes a link's carrier some time after both ends are up; before that there is no route by it.
settle() {
  for _ in $(seq 100); do
    ip -n "$1" link show up | grep -q NO-CARRIER || return 0
    sleep 0.05
  done
  echo "topology: the links of $1 did not come up" >&2
  exit 1
}

up() {
  namespace wire
  forwarding wire
  for host in $hosts; do
    namespace "$host"
    link "$host" "$host" "$(number "$host")" wire
  done
  for host in wire $hosts; do settle "$host"; done
}

workload() {
  local n
  n=1$(number "$1")
  namespace "$1-workload"
  link "$1-workload" workload "$n" "$1"
  forwarding "$1"
  settle "$1"
  ip -n wire route add "198.18.$n.0/24" via "198.18.$(number "$1").2"
  ip -n wire -6 route add "fd00:$n::/64" via "fd00:$(number "$1")::2"
}

reroute() {
  local from to
  from=$(number "$1") to=$(number "$2")
  ip -n wire route add "198.18.$from.2/32" via "198.18.$to.2"
  ip -n wire -6 route add "fd00:$from::2/128" via "fd00:$to::2"
  ip -n "$2" addr add "198.18.$from.2/32" dev lo
  ip -n "$2" -6 addr add "fd00:$from::2/128" dev lo nodad
}

unroute() {
  local from to
  from=$(number "$1") to=$(number "$2")
  ip -n wire route del "198.18.$from.2/32" via "198.18.$to.2"
  ip -n wire -6 route del "fd00:$from::2/128" via "fd00:$to::2"
  ip -n "$2" addr del "198.18.$from.2/32" dev lo
  ip -n "$2" -6 addr del "fd00:$from::2/128" dev lo
}

case ${1:-} in
  enter | inside | up | workload | reroute | unroute)
    command=$1
    shift
    "$command" "$@"
    ;;
  *)
    sed -n 's/^# \{0,1\}//; 2,14p' "$0"
    exit 2
    ;;
esac
