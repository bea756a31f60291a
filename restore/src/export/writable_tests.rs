//! A scratch layer whose file fails: each block is as it was or as it was to be.

use super::*;
use crate::export::scratch::ScratchFile;
use afterimage_nbd::MemoryExport;
use proptest::prelude::*;
use std::io;

/// The last block is a short one.
const BYTES: u64 = 24 * BLOCK_BYTES + 700;

/// A file in memory that can't punch or take room if told so, and fails as told.
#[derive(Default)]
struct Faulty {
    bytes: Mutex<Vec<u8>>,
    /// Changes that still work, and how much of the one behind them is done, in bytes.
    left: Mutex<Option<(u32, usize)>>,
    is_plain: bool,
}

impl Faulty {
    /// Whether a change fails now; a part of a write is done before.
    fn fails(&self) -> Option<usize> {
        let mut left = self.left.lock().unwrap();
        match &mut *left {
            Some((0, done)) => Some(std::mem::take(done)),
            Some((count, _)) => {
                *count -= 1;
                None
            }
            None => None,
        }
    }

    fn full() -> io::Error {
        io::Error::from_raw_os_error(28)
    }

    fn unsupported() -> io::Error {
        io::Error::from_raw_os_error(95)
    }
}

impl ScratchFile for Arc<Faulty> {
    fn read_exact_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        let at = at as usize;
        buf.copy_from_slice(&self.bytes.lock().unwrap()[at..at + buf.len()]);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], at: u64) -> io::Result<usize> {
        let fails = self.fails();
        let done = fails.unwrap_or(bytes.len()).min(bytes.len());
        let at = at as usize;
        self.bytes.lock().unwrap()[at..at + done].copy_from_slice(&bytes[..done]);
        if fails.is_some() && done == 0 { Err(Faulty::full()) } else { Ok(done) }
    }

    fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        if self.is_plain {
            return Err(Faulty::unsupported());
        }
        if self.fails().is_some() {
            return Err(Faulty::full());
        }
        self.bytes.lock().unwrap()[at as usize..(at + len) as usize].fill(0);
        Ok(())
    }

    fn allocate(&self, _: u64, _: u64) -> io::Result<()> {
        match (self.is_plain, self.fails()) {
            (true, _) => Err(Faulty::unsupported()),
            (false, Some(_)) => Err(Faulty::full()),
            (false, None) => Ok(()),
        }
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }
}

#[derive(Debug, Clone, Copy)]
enum Act {
    Write,
    Zero(bool),
    Trim,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![Just(Act::Write), Just(Act::Zero(false)), Just(Act::Zero(true)), Just(Act::Trim)]
}

fn layer(is_plain: bool) -> (WritableExport, Arc<Faulty>, Vec<u8>) {
    let base: Vec<u8> = (0..BYTES).map(|i| (i / BLOCK_BYTES) as u8 | 0x80).collect();
    let point = MemoryExport::new(BYTES as usize);
    let mut payload = &base[..];
    point.write(0, &mut Payload::from_slice(&mut payload), WriteFlags::default()).unwrap();
    // What the file holds where nothing was written must not matter.
    let bytes = Mutex::new(vec![0xee; BYTES as usize]);
    let file = Arc::new(Faulty { bytes, is_plain, ..Faulty::default() });
    let scratch = Scratch::over(Box::new(Arc::clone(&file)), false);
    (WritableExport::new(Arc::new(point), scratch), file, base)
}

fn run(layer: &WritableExport, act: Act, at: u64, bytes: &[u8]) -> Result<(), Errno> {
    let len = bytes.len() as u64;
    match act {
        Act::Write => {
            let mut payload = bytes;
            layer.write(at, &mut Payload::from_slice(&mut payload), WriteFlags::default())
        }
        Act::Zero(no_hole) => {
            layer.write_zeroes(at, len, ZeroFlags { no_hole, ..ZeroFlags::default() })
        }
        Act::Trim => layer.trim(at, len, WriteFlags::default()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn a_failed_write_leaves_each_block_old_or_new(
        is_plain in any::<bool>(),
        acts in prop::collection::vec(
            (act(), 0..BYTES, 1..6 * BLOCK_BYTES, any::<bool>(), prop::option::of((0..4_u32, 0..9000_usize))),
            1..40,
        ),
    ) {
        let (layer, file, mut model) = layer(is_plain);
        for (round, (act, at, len, aligned, fault)) in acts.into_iter().enumerate() {
            let at = if aligned { at / BLOCK_BYTES * BLOCK_BYTES } else { at };
            let len = if aligned { len.next_multiple_of(BLOCK_BYTES) } else { len };
            let end = (at + len).min(BYTES);
            let value = if matches!(act, Act::Write) { round as u8 + 1 } else { 0 };
            let bytes = vec![value; (end - at) as usize];
            let mut wanted = model.clone();
            wanted[at as usize..end as usize].copy_from_slice(&bytes);
            *file.left.lock().unwrap() = fault;
            let done = run(&layer, act, at, &bytes);
            *file.left.lock().unwrap() = None;
            let mut now = vec![0; BYTES as usize];
            layer.read(0, &mut now).unwrap();
            for start in (0..BYTES).step_by(BLOCK_BYTES as usize) {
                let block = start as usize..(start + BLOCK_BYTES).min(BYTES) as usize;
                let is_new = now[block.clone()] == wanted[block.clone()];
                let is_old = now[block.clone()] == model[block.clone()];
                prop_assert!(is_new || (done.is_err() && is_old), "block {} {act:?}", start / BLOCK_BYTES);
            }
            model = now;
        }
    }
}

#[test]
fn fast_zero_is_refused_where_it_would_write() {
    for is_plain in [false, true] {
        let (layer, _, base) = layer(is_plain);
        let fast = |no_hole| ZeroFlags { fast: true, no_hole, ..ZeroFlags::default() };
        for (at, len, no_hole) in [(1, 4096, false), (0, 4095, false), (0, 4096, true)] {
            assert_eq!(layer.write_zeroes(at, len, fast(no_hole)), Err(Errno::NotSup));
        }
        let mut now = vec![0; BYTES as usize];
        layer.read(0, &mut now).unwrap();
        assert!(now == base, "a refused request changed something");
        // The volume's last block is a whole one, short as it is.
        layer.write_zeroes(BLOCK_BYTES, BYTES - BLOCK_BYTES, fast(false)).unwrap();
        layer.read(0, &mut now).unwrap();
        assert!(now[BLOCK_BYTES as usize..].iter().all(|byte| *byte == 0));
    }
}

#[test]
fn trim_of_any_range_reads_back_as_zeroes_and_no_more_than_it() {
    let (layer, _, mut model) = layer(false);
    for (at, end) in [(5, 6), (100, 4196), (4095, 12289), (20_000, 20_480), (BYTES - 10, BYTES)] {
        layer.trim(at, end - at, WriteFlags::default()).unwrap();
        model[at as usize..end as usize].fill(0);
        let mut now = vec![1; BYTES as usize];
        layer.read(0, &mut now).unwrap();
        assert!(now == model, "trim of {at}..{end}");
    }
}

#[test]
fn a_layer_that_holds_too_much_in_memory_takes_no_more_writes() {
    let (layer, _, _) = layer(false);
    layer.held_count.store(HELD_MAX, Ordering::Relaxed);
    assert_eq!(run(&layer, Act::Write, 0, &[1; 4096]), Err(Errno::Io));
}
