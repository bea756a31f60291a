# The entrance for people and for CI. Everything here works in a fresh clone on Debian with Rust;
# what is missing on the machine is installed (as root or by sudo), what is there is left alone.
#
#   make demo        boot a real guest, protect it, destroy its database, bring it back
#   make test        all tests but the long ones          make test-long   the long ones too
#   make check       formatting and lints                 make bench       ours beside the peers
#   make fuzz        every decoder under mutated input    make planted     bugs that tests must catch
#   make install-tools

SHELL := /bin/bash
GUEST_MANIFEST := tests/guest/program/Cargo.toml
.PHONY: all demo test test-long bench check fuzz planted install-tools guest guest-demo

all:
	cargo build

# What the tests need on this machine, and the guest that they boot.
guest:
	@tests/guest/install.sh test
	@tests/guest/build.sh

# The same with less: the demo needs no other project's NBD clients.
guest-demo:
	@tests/guest/install.sh demo
	@tests/guest/build.sh

install-tools:
	@tests/guest/install.sh test

# A failed check fails the run, but only after the tests have had their say.
test: guest
	@tests/run.sh short

test-long: guest
	@tests/run.sh long

check:
	cargo fmt --all --check
	cargo fmt --manifest-path $(GUEST_MANIFEST) --check
	cargo clippy --quiet --workspace --all-targets -- -D warnings

# Seconds a target, and which: make fuzz FUZZ_SECONDS=60 FUZZ=record. Compiled with a counter on every
# edge, which plain rustc can do; for the target named, so that build scripts go without.
FUZZ ?= all
FUZZ_SECONDS ?= 10
FUZZ_SEED ?= $(shell date +%s)
FUZZ_HOST := $(shell rustc -vV | sed -n 's/^host: //p')
FUZZ_FLAGS := -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=3 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cdebug-assertions
fuzz:
	RUSTFLAGS="$(FUZZ_FLAGS)" cargo run --quiet -p afterimage-fuzz --target $(FUZZ_HOST) \
		--target-dir target/fuzz -- $(FUZZ) $(FUZZ_SECONDS) $(FUZZ_SEED)

# Each bug that is planted in the journal must be caught by a test: docs/testing.md.
planted:
	@tests/planted.sh $(PLANTED)

# Rounds and sections can be chosen, see docs/benchmarks.md.
bench: guest
	cargo bench --bench peers

demo: guest-demo
	cargo build --bin afterimage
	@"$${CARGO_TARGET_DIR:-target}/debug/afterimage" demo
