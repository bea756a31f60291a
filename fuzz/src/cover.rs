//! Which code an input reached: the counters that the compiler puts on every edge
//! (`-sanitizer-coverage-inline-8bit-counters`, see the Makefile's `fuzz`).

use std::sync::Mutex;

/// A module's counters: start and number of bytes.
static RANGES: Mutex<Vec<(usize, usize)>> = Mutex::new(Vec::new());

fn ranges() -> Vec<(usize, usize)> {
    RANGES.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
}

/// Called by the instrumented code before `main`.
///
/// # Safety
/// `start` to `stop` are the counters of one linked module, there until the process ends.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __sanitizer_cov_8bit_counters_init(start: *mut u8, stop: *mut u8) {
    let range = (start as usize, stop as usize - start as usize);
    let mut all = RANGES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !all.contains(&range) {
        all.push(range);
    }
}

/// Called by the instrumented code before `main`; the table is not used.
///
/// # Safety
/// None is needed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __sanitizer_cov_pcs_init(_: *const usize, _: *const usize) {}

/// What has been reached so far, in classes of how often.
#[derive(Debug, Default)]
pub struct Reached {
    seen: Vec<u8>,
}

impl Reached {
    /// Whether this program counts at all.
    #[must_use]
    pub fn is_counted() -> bool {
        !ranges().is_empty()
    }

    /// Sets all counters to zero.
    pub fn reset() {
        for (start, bytes) in ranges() {
            // SAFETY: the compiler's counters, plain bytes that live as long as the program. Other
            // threads may count meanwhile: a lost count is no harm.
            unsafe { std::ptr::write_bytes(start as *mut u8, 0, bytes) };
        }
    }

    /// Adds what the counters say; returns whether any of it is new.
    pub fn add(&mut self) -> bool {
        let mut new = false;
        let mut base = 0;
        for (start, bytes) in ranges() {
            self.seen.resize(self.seen.len().max(base + bytes), 0);
            // SAFETY: the compiler's counters, plain bytes that live as long as the program. Other
            // threads that count meanwhile have ended, or a lost count is no harm.
            let counts = unsafe { std::slice::from_raw_parts(start as *const u8, bytes) };
            // Most were not reached: eight of them at a time.
            for (at, eight) in
                counts.chunks(8).enumerate().filter(|(_, c)| c.iter().any(|n| *n != 0))
            {
                for (i, count) in eight.iter().enumerate() {
                    let (seen, class) = (&mut self.seen[base + 8 * at + i], class(*count));
                    new |= *seen & class != class;
                    *seen |= class;
                }
            }
            base += bytes;
        }
        new
    }

    /// Edges reached.
    #[must_use]
    pub fn edges(&self) -> usize {
        self.seen.iter().filter(|c| **c != 0).count()
    }
}

/// One bit for each class of counts: once, twice, thrice, few, many.
fn class(count: u8) -> u8 {
    match count {
        0 => 0,
        1 => 1,
        2 => 2,
        3 => 4,
        4..=7 => 8,
        8..=15 => 16,
        16..=31 => 32,
        32..=127 => 64,
        _ => 128,
    }
}
