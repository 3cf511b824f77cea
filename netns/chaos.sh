#!/bin/bash
# Everything at once: two hosts under TCP, UDP and a storm of packets that must be encrypted, and one mishap after the
# other, of an administrator, of another program, of the network or of the daemon itself: kill -9, stop and start, upgrade,
# reload, new certificates, rules deleted, routes flushed, a foreign `nft flush ruleset`, a hijacked route, the TUN down
# or deleted, conntrack flushed, cable pulled, link down, address changed, loss, delay. It fails on a packet in plaintext,
# a wrong byte, a connection that breaks, a daemon that dies by itself or does not get up again, a packet missing in the
# books, growing memory, and on anything left behind at the end. What happens is the seed's choice; when it happens is not.
#
# Usage: chaos.sh [SECONDS] [SEED] [life]   600 s; the time of day; `life`: nothing that ends a daemon, so that one life is
#                                           long, and its memory must be as little at the end as in the middle
set -euo pipefail
cd "$(dirname "$0")/.."
export IDENTUN_CHAOS_SECONDS=${1:-600} IDENTUN_CHAOS_SEED=${2:-$(date +%s)} CI=${CI-required}
[ "${3-}" = life ] && export IDENTUN_CHAOS_LIFE=1
exec netns/unchanged.sh "${CARGO:-cargo}" test --locked --test netns -- --nocapture --exact \
  chaos::whatever_happens_nothing_leaks_and_no_byte_is_wrong
