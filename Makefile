# The entrance for people and for CI. Everything here works in a fresh clone on Debian with Rust;
# what is missing on the machine is installed (as root or by sudo), what is there is left alone.
#
#   make demo        boot a real guest, protect it, destroy its database, bring it back
#   make test        all tests but the long ones          make test-long   the long ones too
#   make check       formatting and lints                 make bench       ours beside the peers
#   make install-tools

SHELL := /bin/bash
GUEST_MANIFEST := tests/guest/program/Cargo.toml
NEXTEST := $(shell command -v cargo-nextest 2>/dev/null)
ifdef NEXTEST
TEST := cargo nextest run --workspace
TEST_LONG := $(TEST) --run-ignored all
else
TEST := cargo test --workspace
TEST_LONG := $(TEST) -- --include-ignored
endif

.PHONY: all demo test test-long bench check install-tools guest guest-demo

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

# A failed check fails the run, but only after the tests have had their say. They are another make's:
# one that began without cargo-nextest chose its command before install.sh could install it.
test: guest
	@checked=0; $(MAKE) --no-print-directory check || checked=1; \
	$(MAKE) --no-print-directory run-tests && exit $$checked

test-long: guest
	@checked=0; $(MAKE) --no-print-directory check || checked=1; \
	$(MAKE) --no-print-directory run-tests-long && exit $$checked

.PHONY: run-tests run-tests-long
run-tests:
	$(TEST)

run-tests-long:
	$(TEST_LONG)

check:
	cargo fmt --all --check
	cargo fmt --manifest-path $(GUEST_MANIFEST) --check
	cargo clippy --quiet --workspace --all-targets -- -D warnings

# Rounds and sections can be chosen, see docs/benchmarks.md.
bench: guest
	cargo bench --bench peers

demo: guest-demo
	cargo build --bin afterimage
	@"$${CARGO_TARGET_DIR:-target}/debug/afterimage" demo
