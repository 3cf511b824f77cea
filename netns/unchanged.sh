#!/bin/bash
# Runs COMMAND and fails when it leaves anything behind on this host: namespaces, nft rules, routing rules, routes, links.
#
# Usage: unchanged.sh COMMAND...
set -u

state() {
  for look in 'ip netns list' 'nft -s list ruleset' 'ip -4 rule' 'ip -6 rule' 'ip -4 route show table all' \
    'ip -6 route show table all' 'ls /sys/class/net'; do
    echo "# $look"
    # Without the right to look the answer is the same error before and after. Life times count down by themselves.
    $look 2>&1 | sed 's/ expires [0-9]*sec//'
  done
}

before=$(state)
"$@"
status=$?
if ! diff <(echo "$before") <(state) >&2; then
  echo "unchanged: '$1' left something behind on this host, see above" >&2
  exit 1
fi
exit $status
