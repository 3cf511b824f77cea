# The two commands of a newcomer: `make demo` and `make test`. CI calls the same targets.
export PATH := $(CURDIR)/target/tools/bin:$(PATH):/usr/sbin:/sbin
CARGO ?= cargo

.PHONY: demo test check fmt clippy doc unit netns shell deny advisories bench bench-micro bench-gate bench-peers bench-flood bench-start fuzz soak kills chaos fix

## demo: the main job on real hosts-in-namespaces, every claim checked (about two minutes after the build)
demo:
	@.ci/setup demo
	$(CARGO) build --release --locked --bin identun --example hostile-server
	netns/demo.sh target/release

## test: everything CI runs
test: setup-test fmt clippy shell doc unit deny

.PHONY: setup-test
setup-test:
	@.ci/setup test

## check: the fast part of `test`, no root and no namespaces
check: fmt clippy

fmt:
	$(CARGO) fmt --check

clippy:
	$(CARGO) clippy --locked --all-targets -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items --quiet

## unit: the four rings; the fourth enters network namespaces and fails where it cannot
unit:
	netns/unchanged.sh $(CARGO) test --locked

## netns: only the fourth ring
netns:
	netns/unchanged.sh $(CARGO) test --locked --test netns

shell:
	shellcheck -x .ci/run .ci/setup $$(git ls-files 'netns/*.sh' 'fuzz/*.sh')

deny:
	cargo-deny --locked check bans licenses sources

## advisories: known holes in our dependencies (needs the advisory database, which is fetched)
advisories:
	cargo-deny --locked check advisories

## bench: identun beside the tunnels and proxies that are installed, and the tables of docs/performance.md
bench:
	netns/bench.sh $(PEERS)

## bench-micro: the hot paths, nanoseconds and allocations a packet; compare only what one run measured
bench-micro:
	$(CARGO) bench --locked

## bench-gate: instructions a packet against benches/instructions.txt; ACCEPT=1 writes that file
bench-gate:
	$(CARGO) bench --locked --quiet --bench gate -- $(if $(ACCEPT),accept,compare $(ONLY))

## bench-peers: 10,000 sessions on one host: their memory, what they cost when idle, and what a packet costs beside them
bench-peers:
	$(CARGO) build --release --locked --bin identun
	netns/peers.sh $(SIDE)

## bench-flood: a minute of 50,000 spoofed first packets a second against a daemon that works; fails when a bound is broken
bench-flood:
	$(CARGO) build --release --locked --bin identun --example initial-flood
	netns/flood.sh $(TIME) $(RATE)

## bench-start: from the start of a daemon to its first packet, ROUNDS times cold and after kill -9; from a flush of the rules to their return
bench-start:
	$(CARGO) build --release --locked --bin identun
	netns/start.sh $(ROUNDS)

## fuzz: a minute each for the seven targets of fuzz/README.md against their judges, then the bombs against the clock
fuzz:
	fuzz/run.sh
	IDENTUN_BOMBS_TIMED=1 $(CARGO) test --release --locked --test policy_bombs -- --nocapture

## soak: ten thousand stories of hosts under all that may happen to them, new ones each time; STORIES=n, SEED=n
soak:
	IDENTUN_STATE_CASES=$(or $(STORIES),10000) IDENTUN_STATE_SEED=$(or $(SEED),$(shell date +%s)) \
		$(CARGO) test --locked --test state_machine -- --nocapture

## kills: a hundred daemons die under connections and a storm of packets; KILLS=n
kills:
	IDENTUN_KILLS=$(or $(KILLS),100) netns/unchanged.sh $(CARGO) test --release --locked --test netns -- --nocapture \
		kills::every_connection_outlives_every_kill_and_nothing_leaks

## chaos: ten minutes of everything at once; SECONDS=n, SEED=n, LIFE=life for what a long life keeps
chaos:
	netns/chaos.sh $(or $(SECONDS),600) $(or $(SEED),$$(date +%s)) $(LIFE)

fix:
	$(CARGO) fmt
	$(CARGO) clippy --locked --all-targets --fix --allow-dirty
