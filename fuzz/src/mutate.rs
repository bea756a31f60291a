//! The next input from the ones there are.

use crate::INPUT_BYTES_MAX;
use crate::rng::Rng;

/// Numbers at which decoders tend to break.
const EDGES: &[u64] = &[
    0,
    1,
    63,
    64,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 40,
    u64::MAX >> 1,
    1 << 63,
    u64::MAX - 63,
    u64::MAX,
];

/// A changed copy of one of `inputs`.
pub fn mutate(inputs: &[Vec<u8>], words: &[&[u8]], rng: &mut Rng) -> Vec<u8> {
    let mut input = match inputs.is_empty() {
        true => Vec::new(),
        false => inputs[rng.below(inputs.len() as u64) as usize].clone(),
    };
    for _ in 0..=rng.below(4) {
        step(&mut input, inputs, words, rng);
    }
    input.truncate(INPUT_BYTES_MAX);
    input
}

fn place(input: &[u8], rng: &mut Rng) -> usize {
    rng.below(input.len() as u64 + 1) as usize
}

fn step(input: &mut Vec<u8>, inputs: &[Vec<u8>], words: &[&[u8]], rng: &mut Rng) {
    let at = place(input, rng);
    match rng.below(9) {
        0 | 1 if at < input.len() => input[at] ^= 1 << rng.below(8),
        2 if at < input.len() => input[at] = rng.next() as u8,
        3 => {
            let to = (at + 1 + rng.below(16) as usize).min(input.len());
            input.drain(at..to.max(at));
        }
        4 => {
            let bytes: Vec<u8> = (0..=rng.below(8)).map(|_| rng.next() as u8).collect();
            input.splice(at..at, bytes);
        }
        5 => {
            let width = rng.pick(&[1usize, 2, 4, 8]);
            let number = rng.pick(EDGES).wrapping_add(rng.below(3)).wrapping_sub(1);
            let mut bytes = number.to_le_bytes()[..width].to_vec();
            if rng.percent(30) {
                bytes.reverse();
            }
            let end = (at + width).min(input.len());
            input.splice(at..end, bytes);
        }
        6 if !words.is_empty() => {
            let word = rng.pick(words);
            let end = if rng.percent(50) { at } else { (at + word.len()).min(input.len()) };
            input.splice(at..end, word.iter().copied());
        }
        7 if !inputs.is_empty() => {
            let other = &inputs[rng.below(inputs.len() as u64) as usize];
            let from = place(other, rng);
            let to = (from + 1 + rng.below(64) as usize).min(other.len());
            let part = other[from..to].to_vec();
            input.splice(at..at, part);
        }
        _ => {
            let to = place(input, rng);
            let part = input[at.min(to)..at.max(to)].to_vec();
            let into = place(input, rng);
            input.splice(into..into, part);
        }
    }
}
