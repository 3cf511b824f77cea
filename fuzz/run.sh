#!/bin/sh
# Builds the fuzz targets with coverage and runs each for a while (`make fuzz`). What is found lies in fuzz/artifacts.
# Usage: fuzz/run.sh [SECONDS [TARGET...]]  all targets or these, 60 seconds each
#        fuzz/run.sh TARGET FILE            one target with one input
set -eu
case ${1:-60} in *[!0-9]*) input=$(realpath "${2:?a file}") ;; esac
cd "$(dirname "$0")"

host=$(rustc -vV | sed -n 's/^host: //p')
# What cargo-fuzz passes without a sanitizer. All of it is stable; a sanitizer is not, and safe code has little for one.
flags='--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table
-Cllvm-args=-sanitizer-coverage-trace-compares'
RUSTFLAGS=$(echo "$flags" | tr '\n' ' ') cargo build --release --quiet --target "$host"
programs=target/$host/release

if [ -n "${input:-}" ]; then
  exec "$programs/$1" "$input"
fi
run() { # TARGET LENGTH SEEDS...
  target=$1 length=$2
  shift 2
  case " $wanted " in *" $target "* | "  ") ;; *) return 0 ;; esac
  mkdir -p "corpus/$target" "artifacts/$target"
  echo "fuzz: $target for $seconds seconds"
  "$programs/$target" -max_total_time="$seconds" -timeout=5 -rss_limit_mb=1024 -max_len="$length" -len_control=0 \
    -print_final_stats=1 -artifact_prefix="artifacts/$target/" "corpus/$target" "$@" 2>"artifacts/$target.log" || {
    tail -n 60 "artifacts/$target.log"
    echo "fuzz: $target failed; again with: fuzz/run.sh $target FILE" >&2
    exit 1
  }
  sed -n 's/^stat::/  /p' "artifacts/$target.log"
}

seconds=${1:-60}
[ $# -eq 0 ] || shift
wanted=$*
run load 8192 -dict=yaml.dict seeds/load ../config/example ../config/policies
run decide 2048
run segment 4096 seeds/segment
run capsule 2048 seeds/capsule
run datagram 4096
run certificate 256
run admin 2048 -dict=http.dict seeds/admin
