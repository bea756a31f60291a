//! Runs a target: over its corpus, or on and on with changed inputs.

use crate::cover::Reached;
use crate::rng::Rng;
use crate::targets::Target;
use crate::{corpus, mutate};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// Longest time that one input may take: a decoder that takes longer can be held up by its input.
pub const INPUT_MS_MAX: u64 = 2000;

/// What a run came to.
#[derive(Debug)]
pub struct Outcome {
    /// Inputs tried.
    pub runs: u64,
    /// Inputs in the corpus at its end.
    pub inputs: usize,
    /// Edges reached; 0 without counters.
    pub edges: usize,
    /// The input that broke a claim, and how.
    pub failure: Option<(Vec<u8>, String)>,
}

/// Tries one input; the error says which claim it broke.
///
/// # Errors
/// The decoder panicked, broke a claim of its target, or took too long.
pub fn try_one(target: &Target, input: &[u8]) -> Result<(), String> {
    let begun = Instant::now();
    catch_unwind(AssertUnwindSafe(|| (target.run)(input))).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        text.unwrap_or_else(|| "it panicked".to_owned())
    })?;
    let took_ms = begun.elapsed().as_millis();
    if took_ms > u128::from(INPUT_MS_MAX) {
        return Err(format!("it took {took_ms} ms, the limit is {INPUT_MS_MAX}"));
    }
    Ok(())
}

/// The inputs that a target starts from: its examples, and what was kept.
///
/// # Errors
/// The corpus can't be read.
pub fn inputs(target: &Target) -> io::Result<Vec<Vec<u8>>> {
    let mut inputs = (target.examples)();
    inputs.extend(corpus::read(&corpus::path(target.name))?);
    Ok(inputs)
}

/// Changes inputs for `length`; keeps those that reach new code.
///
/// # Errors
/// The corpus can't be read.
pub fn fuzz(target: &Target, length: Duration, seed: u64) -> io::Result<Outcome> {
    let mut rng = Rng::new(seed);
    let mut reached = Reached::default();
    let mut kept: Vec<Vec<u8>> = Vec::new();
    let mut runs = 0;
    let examples = (target.examples)();
    let mut failure = None;
    let mut attempt = |input: Vec<u8>, kept: &mut Vec<Vec<u8>>, reached: &mut Reached| {
        runs += 1;
        Reached::reset();
        if let Err(why) = try_one(target, &input) {
            failure = Some((input, why));
            return false;
        }
        if reached.add() || (!Reached::is_counted() && examples.contains(&input)) {
            kept.push(input);
        }
        true
    };
    let mut going = inputs(target)?.into_iter().all(|i| attempt(i, &mut kept, &mut reached));
    let begun = Instant::now();
    while going && begun.elapsed() < length {
        let input = mutate::mutate(&kept, target.words, &mut rng);
        going = attempt(input, &mut kept, &mut reached);
    }
    // What the examples reach needs no line of its own.
    kept.retain(|input| !examples.contains(input));
    if Reached::is_counted() && failure.is_none() {
        corpus::write(&corpus::path(target.name), &kept)?;
    }
    Ok(Outcome { runs, inputs: kept.len(), edges: reached.edges(), failure })
}
