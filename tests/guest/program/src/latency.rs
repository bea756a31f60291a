//! How long operations took: the worst exactly, the quantiles to an eighth of a power of two.

use std::time::Duration;

const SUB_BUCKETS: usize = 8;
const BUCKETS: usize = 40 * SUB_BUCKETS;

/// Times of finished operations, in microseconds.
pub struct Latency {
    count: u64,
    worst_us: u64,
    buckets: Box<[u64; BUCKETS]>,
}

impl Latency {
    /// Nothing measured yet.
    pub fn new() -> Self {
        Self { count: 0, worst_us: 0, buckets: Box::new([0; BUCKETS]) }
    }

    /// Counts one operation.
    pub fn add(&mut self, took: Duration) {
        let us = took.as_micros() as u64;
        self.count += 1;
        self.worst_us = self.worst_us.max(us);
        self.buckets[bucket(us)] += 1;
    }

    /// `count=.. p50_us=.. p99_us=.. worst_us=..`, as the port's lines carry it.
    pub fn report(&self) -> String {
        format!(
            "count={} p50_us={} p99_us={} worst_us={}",
            self.count,
            self.quantile_us(50),
            self.quantile_us(99),
            self.worst_us
        )
    }

    fn quantile_us(&self, percent: u64) -> u64 {
        let wanted = (self.count * percent).div_ceil(100);
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= wanted && seen > 0 {
                return upper_us(index).min(self.worst_us);
            }
        }
        self.worst_us
    }
}

fn bucket(us: u64) -> usize {
    if us < SUB_BUCKETS as u64 {
        return us as usize;
    }
    let power = us.ilog2() as usize; // >= 3
    let sub = ((us >> (power - 3)) & 7) as usize;
    ((power - 2) * SUB_BUCKETS + sub).min(BUCKETS - 1)
}

/// The greatest number of microseconds that falls into bucket `index`.
fn upper_us(index: usize) -> u64 {
    if index < SUB_BUCKETS {
        return index as u64;
    }
    let power = index / SUB_BUCKETS + 2;
    let sub = (index % SUB_BUCKETS) as u64;
    ((SUB_BUCKETS as u64 + sub + 1) << (power - 3)) - 1
}
