//! Every decoder under mutated input.
//!
//! `make fuzz` compiles the program with edge counters and lets each target run for a while: an
//! input that reaches new code is kept in `corpus/`, one that breaks a claim is kept in
//! `failures/` and ends the run. Without counters (as in `make test`, which only replays the
//! corpus) mutation goes blind. What always holds: inputs are at most [`INPUT_BYTES_MAX`] long,
//! and files of inputs are text, one input in hex a line.

pub mod corpus;
pub mod cover;
pub mod mutate;
pub mod targets;
pub mod tries;

// The journal's simulated disk: what is read from files is read from there.
#[allow(dead_code)]
#[path = "../../journal/tests/sim/clock.rs"]
mod clock;
#[allow(dead_code)]
#[path = "../../journal/tests/sim/disk.rs"]
mod disk;
#[allow(dead_code)]
#[path = "../../journal/tests/sim/file.rs"]
mod file;
#[allow(dead_code)]
#[path = "../../journal/tests/sim/model.rs"]
mod model;
#[allow(dead_code)]
#[path = "../../journal/tests/sim/rng.rs"]
mod rng;
#[allow(dead_code)]
#[path = "../../journal/tests/sim/run.rs"]
mod run;
#[allow(dead_code)]
#[path = "../../journal/tests/sim/steps.rs"]
mod steps;
#[allow(dead_code)]
#[path = "../../journal/tests/sim/storage.rs"]
mod storage;
#[allow(dead_code)]
#[path = "../../journal/tests/sim/world.rs"]
mod world;

/// Longest input that is tried, in bytes.
pub const INPUT_BYTES_MAX: usize = 8192;
