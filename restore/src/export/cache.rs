//! Payloads of records that were read and checked, so that small reads of a large record do not
//! check megabytes each time.
//!
//! What always holds: what is in it matched its checksum (I-12); its memory is bounded
//! ([`CACHE_BYTES_MAX`], I-11); a payload that several connections want at once is read once;
//! no lock of the cache itself is held over a read.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most bytes of payloads that the exports of one process keep.
pub(super) const CACHE_BYTES_MAX: usize = 64 << 20;
/// Parts with a lock of their own: connections seldom meet in one.
const SHARDS: usize = 8;
/// What an entry costs beside its payload, roughly, in bytes.
const ENTRY_BYTES: usize = 160;

/// Names a payload in the cache.
pub(super) type Key = (u64, u64);

type Payload = Arc<Vec<u8>>;

/// A payload, or the place where one who wants it reads it while the others wait.
struct Slot {
    payload: Mutex<Option<Payload>>,
    used: AtomicBool,
}

struct Kept {
    slot: Arc<Slot>,
    bytes: usize,
}

#[derive(Default)]
struct Shard {
    kept: HashMap<Key, Kept>,
    /// The keys in the order of their coming; one that was used since goes to the end once more.
    order: VecDeque<Key>,
    bytes: usize,
}

/// The cache.
pub(super) struct PayloadCache {
    shards: [Mutex<Shard>; SHARDS],
    shard_bytes_max: usize,
}

impl PayloadCache {
    /// A cache of at most `bytes_max` bytes.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { shards: Default::default(), shard_bytes_max: bytes_max / SHARDS }
    }

    /// The payload of `bytes` bytes with this name; `read` fills it when it is not here.
    pub(super) fn get<E>(
        &self,
        key: Key,
        bytes: usize,
        read: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<Payload, E> {
        let slot = self.slot(key, bytes);
        // Held while reading, so that the others wait for this one and not for the disk.
        let mut payload = locked(&slot.payload);
        if let Some(payload) = &*payload {
            return Ok(Arc::clone(payload));
        }
        let mut fresh = vec![0; bytes];
        read(&mut fresh)?;
        let fresh = Arc::new(fresh);
        *payload = Some(Arc::clone(&fresh));
        Ok(fresh)
    }

    fn slot(&self, key: Key, bytes: usize) -> Arc<Slot> {
        let mix = (key.0.rotate_left(32) ^ key.1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut shard = locked(&self.shards[(mix >> 32) as usize % SHARDS]);
        if let Some(kept) = shard.kept.get(&key) {
            kept.slot.used.store(true, Ordering::Relaxed);
            return Arc::clone(&kept.slot);
        }
        let slot = Arc::new(Slot { payload: Mutex::new(None), used: AtomicBool::new(false) });
        let bytes = bytes + ENTRY_BYTES;
        if bytes <= self.shard_bytes_max {
            shard.make_room(self.shard_bytes_max - bytes);
            shard.bytes += bytes;
            shard.order.push_back(key);
            shard.kept.insert(key, Kept { slot: Arc::clone(&slot), bytes });
        }
        slot
    }

    #[cfg(test)]
    fn bytes(&self) -> usize {
        self.shards.iter().map(|shard| locked(shard).bytes).sum()
    }
}

impl Shard {
    /// Drops payloads, those first that were not used since they came or were spared.
    fn make_room(&mut self, bytes_max: usize) {
        while self.bytes > bytes_max {
            let Some(key) = self.order.pop_front() else { return };
            let spared =
                self.kept.get(&key).is_some_and(|k| k.slot.used.swap(false, Ordering::Relaxed));
            if spared {
                self.order.push_back(key);
            } else if let Some(gone) = self.kept.remove(&key) {
                self.bytes -= gone.bytes;
            }
        }
    }
}

/// A panic of another thread has broken nothing here: what is kept is whole.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(byte: u8) -> impl FnOnce(&mut [u8]) -> Result<(), ()> {
        move |buf| {
            buf.fill(byte);
            Ok(())
        }
    }

    #[test]
    fn memory_stays_within_its_bound_and_what_is_used_stays_longer() {
        let cache = PayloadCache::new(SHARDS * 100_000);
        for n in 0..500_u64 {
            cache.get((1, n), 4096, fill(n as u8)).unwrap();
            // Read again and again: it is never the one that goes.
            let hot = cache.get((0, 0), 4096, |buf| {
                assert_eq!(n, 0, "it was dropped");
                buf.fill(7);
                Ok::<(), ()>(())
            });
            assert_eq!(hot.unwrap()[0], 7);
            assert!(cache.bytes() <= SHARDS * 100_000);
        }
        assert!(cache.bytes() > SHARDS * 50_000, "{} bytes are kept", cache.bytes());
    }

    #[test]
    fn a_failed_read_is_tried_again_and_a_huge_payload_is_not_kept() {
        let cache = PayloadCache::new(SHARDS * 10_000);
        assert_eq!(cache.get((1, 1), 100, |_| Err("rot")).unwrap_err(), "rot");
        assert_eq!(cache.get((1, 1), 100, fill(3)).unwrap()[99], 3);
        cache.get((2, 2), 20_000, fill(1)).unwrap();
        assert_eq!(cache.get((2, 2), 20_000, fill(2)).unwrap()[0], 2);
    }

    #[test]
    fn those_who_want_the_same_payload_at_once_read_it_once() {
        let cache = PayloadCache::new(1 << 20);
        let reads = std::sync::atomic::AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let payload = cache.get((5, 5), 1000, |buf| {
                        reads.fetch_add(1, Ordering::SeqCst);
                        std::thread::sleep(std::time::Duration::from_millis(20));
                        buf.fill(9);
                        Ok::<(), ()>(())
                    });
                    assert!(payload.unwrap().iter().all(|b| *b == 9));
                });
            }
        });
        assert_eq!(reads.into_inner(), 1);
    }
}
