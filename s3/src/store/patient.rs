//! Requests that are repeated where that is right, and counted.
//!
//! What always holds:
//! * what is repeated says the same twice: a read, a delete, a write of the same bytes to a key of their
//!   own;
//! * a conditional write whose outcome is not known is read back, and told by its bytes: a server that
//!   lost its reply answers the repetition with "exists";
//! * a request ends within [`Patience::whole`] plus one request's own time limit.

use super::{Listed, Store, StoreError};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

/// How long requests are repeated.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// Pause before the first repetition; doubled each time.
    pub first: Duration,
    /// Longest pause.
    pub longest: Duration,
    /// No repetition begins after this time.
    pub whole: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        let ms = Duration::from_millis;
        Self { first: ms(100), longest: ms(3000), whole: ms(20_000) }
    }
}

/// Counts of requests and bytes since the beginning: what a bucket costs.
#[derive(Debug, Default)]
pub struct Stats {
    gets: AtomicU64,
    puts: AtomicU64,
    deletes: AtomicU64,
    lists: AtomicU64,
    repeated: AtomicU64,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
}

/// [`Stats`] at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StatsNow {
    /// Reads, and questions whether an object is there.
    pub gets: u64,
    /// Writes.
    pub puts: u64,
    /// Deletions.
    pub deletes: u64,
    /// Listings.
    pub lists: u64,
    /// Of all these, repetitions.
    pub repeated: u64,
    /// Bytes of bodies that were sent.
    pub sent_bytes: u64,
    /// Bytes of bodies that were received.
    pub received_bytes: u64,
}

impl Stats {
    /// The counts now.
    #[must_use]
    pub fn now(&self) -> StatsNow {
        StatsNow {
            gets: self.gets.load(Relaxed),
            puts: self.puts.load(Relaxed),
            deletes: self.deletes.load(Relaxed),
            lists: self.lists.load(Relaxed),
            repeated: self.repeated.load(Relaxed),
            sent_bytes: self.sent_bytes.load(Relaxed),
            received_bytes: self.received_bytes.load(Relaxed),
        }
    }
}

/// What became of a conditional write.
#[derive(Debug, PartialEq, Eq)]
pub enum Created {
    /// It is there, with our bytes.
    Ours,
    /// Somebody else's bytes are there.
    Theirs(Vec<u8>),
}

/// A store whose requests are repeated and counted.
#[derive(Debug, Clone)]
pub struct Patient {
    store: Arc<dyn Store>,
    patience: Patience,
    stats: Arc<Stats>,
}

impl Patient {
    /// Of a store.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, patience: Patience) -> Self {
        Self { store, patience, stats: Arc::default() }
    }

    /// The counts of its requests.
    #[must_use]
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// As [`Store::get`].
    ///
    /// # Errors
    /// As there.
    pub fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Vec<u8>, StoreError> {
        let bytes = self.repeat(&self.stats.gets, || {
            let bytes = self.store.get(key, range.clone())?;
            match &range {
                Some(range) if bytes.len() as u64 != range.end - range.start => {
                    let got = bytes.len();
                    Err(StoreError::Unclear(format!(
                        "the server sent {got} bytes of {key}: {range:?}"
                    )))
                }
                _ => Ok(bytes),
            }
        })?;
        self.stats.received_bytes.fetch_add(bytes.len() as u64, Relaxed);
        Ok(bytes)
    }

    /// As [`Store::has`].
    ///
    /// # Errors
    /// As there.
    pub fn has(&self, key: &str) -> Result<bool, StoreError> {
        self.repeat(&self.stats.gets, || self.store.has(key))
    }

    /// As [`Store::put`].
    ///
    /// # Errors
    /// As there.
    pub fn put(
        &self,
        key: &str,
        bytes: &[u8],
        until: Option<SystemTime>,
    ) -> Result<(), StoreError> {
        self.repeat(&self.stats.puts, || {
            self.stats.sent_bytes.fetch_add(bytes.len() as u64, Relaxed);
            self.store.put(key, bytes, until)
        })
    }

    /// As [`Store::create`]; no two callers write the same bytes.
    ///
    /// # Errors
    /// As there: then it may be there, or may come to be.
    pub fn create(
        &self,
        key: &str,
        bytes: &[u8],
        until: Option<SystemTime>,
    ) -> Result<Created, StoreError> {
        let asked = self.repeat(&self.stats.puts, || {
            self.stats.sent_bytes.fetch_add(bytes.len() as u64, Relaxed);
            self.store.create(key, bytes, until)
        });
        match asked {
            Ok(()) => Ok(Created::Ours),
            // Whose it is, its bytes tell: ours, if a reply was lost.
            Err(StoreError::Exists(_)) => match self.get(key, None)? {
                found if found == bytes => Ok(Created::Ours),
                found => Ok(Created::Theirs(found)),
            },
            Err(e) => Err(e),
        }
    }

    /// As [`Store::delete`].
    ///
    /// # Errors
    /// As there.
    pub fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.repeat(&self.stats.deletes, || self.store.delete(key))
    }

    /// As [`Store::list`].
    ///
    /// # Errors
    /// As there.
    pub fn list(&self, prefix: &str, after: &str, delimiter: bool) -> Result<Listed, StoreError> {
        self.repeat(&self.stats.lists, || self.store.list(prefix, after, delimiter))
    }

    /// As [`Store::can_lock`].
    ///
    /// # Errors
    /// As there.
    pub fn can_lock(&self) -> Result<bool, StoreError> {
        self.repeat(&self.stats.gets, || self.store.can_lock())
    }

    fn repeat<T>(
        &self,
        count: &AtomicU64,
        ask: impl Fn() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let begin = Instant::now();
        let mut pause = self.patience.first;
        loop {
            count.fetch_add(1, Relaxed);
            match ask() {
                Err(StoreError::Unclear(why)) => {
                    if begin.elapsed() + pause > self.patience.whole {
                        return Err(StoreError::Unclear(why));
                    }
                    tracing::debug!(why, "a request is repeated");
                }
                told => return told,
            }
            self.stats.repeated.fetch_add(1, Relaxed);
            std::thread::sleep(pause);
            pause = (pause * 2).min(self.patience.longest);
        }
    }
}
