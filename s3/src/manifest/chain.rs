//! The manifests of a journal in a bucket: finding the newest, reading the state, writing the next.
//!
//! ```text
//!  number   1 ...... 1023 1024 1025 ....... 2047 2048 2049 ... n     n+1
//!           f   f          M                      M              f     '- created only if nothing is there
//!           '---- gone below the floor ----'      '- the floor is never above the last M
//! ```
//!
//! What always holds:
//! * a manifest is created, never replaced; so two writers never both write number n + 1;
//! * every multiple of [`MILESTONE`] stays, and all behind the last of them, so that the newest is found by
//!   asking for single keys: a listing saves questions and decides nothing;
//! * the first manifest of each opening stays. Whoever lost the journal to another opening knows at most the
//!   manifest before that, and finds its own next number taken, whatever was deleted since;
//! * whoever opens looks again behind its first manifest: one that slept through a deletion wrote below the
//!   newest, where nobody reads.

use super::message::{self, Unreadable};
use super::state::{Change, State};
use crate::object::crc32c;
use crate::store::{Created, Patient, StoreError};
use afterimage_planted as planted;
use std::time::SystemTime;

/// Manifests of these multiples stay.
pub const MILESTONE: u64 = 1024;
/// Manifests behind one that says all; the next says all again.
const DELTAS_MAX: u64 = 64;
/// Requests for manifests under way.
const READS_MAX: usize = 8;
/// Tries to read a state whose manifests are deleted under the reader.
const LOADS_MAX: usize = 8;

/// Why the state can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// A request failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A manifest is damaged.
    #[error("manifest {key} is damaged: {why}")]
    Damaged {
        /// Its key.
        key: String,
        /// What is wrong: a clause.
        why: String,
    },
    /// A manifest can't be used: a newer program's, or of a journal whose manifests are incomplete.
    #[error("manifest {key}: {why}")]
    Unusable {
        /// Its key.
        key: String,
        /// What is wrong: a clause.
        why: String,
    },
}

/// What became of a manifest.
#[derive(Debug)]
pub enum Committed {
    /// It is the newest.
    Ours,
    /// Another writer's has its number: its epoch.
    Taken(u64),
}

/// What a bucket has of a journal.
#[derive(Debug)]
pub enum Found {
    /// No manifest.
    Nothing,
    /// A state.
    State(Box<State>),
    /// Manifests of which one that is needed is missing or damaged.
    Broken(Remains),
}

/// What is left of a broken chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remains {
    /// The newest manifest that is there.
    pub number: u64,
    /// The highest epoch of those at the end; 0: none of them can be read.
    pub epoch: u64,
    /// The journal's `journal.json`, if one of them says it.
    pub identity: Vec<u8>,
    /// What is missing or damaged: a clause.
    pub why: String,
}

impl Remains {
    /// A state without files behind all that is there; its next manifest says all.
    #[must_use]
    pub fn state(&self) -> State {
        let swept = self.number / MILESTONE * MILESTONE;
        State {
            number: self.number,
            epoch: self.epoch,
            identity: self.identity.clone(),
            floor: swept,
            swept,
            ..State::default()
        }
    }
}

/// The manifests of one journal.
#[derive(Debug, Clone)]
pub struct Chain {
    store: Patient,
    /// What all its keys begin with.
    root: String,
}

impl Chain {
    /// Of the journal whose keys begin with `root`.
    #[must_use]
    pub fn new(store: Patient, root: String) -> Self {
        Self { store, root }
    }

    /// The key of a manifest.
    #[must_use]
    pub fn key(&self, number: u64) -> String {
        format!("{}{number:020}", self.prefix())
    }

    fn prefix(&self) -> String {
        format!("{}/manifest/", self.root)
    }

    /// The newest number, at least `from`, which is one that was the newest once (0: none is known). `None`:
    /// there is no manifest.
    ///
    /// # Errors
    /// A request failed.
    pub fn newest(&self, from: u64) -> Result<Option<u64>, StoreError> {
        let has = |number: u64| self.store.has(&self.key(number));
        let stretch = last_where(from / MILESTONE, |m| has(m * MILESTONE))?;
        let first = from.max(stretch * MILESTONE);
        let hint = self.listed_last(stretch)?.filter(|h| *h > first);
        let known = match hint {
            Some(hint) if has(hint)? => hint,
            _ => first,
        };
        let mut newest = last_where(known, has)?;
        // Where some are missing in between, those behind them are the newest all the same.
        while let Some(beyond) = self.listed_beyond(newest)?.filter(|b| *b > newest) {
            if !has(beyond)? {
                break;
            }
            newest = last_where(beyond, has)?;
        }
        Ok((newest != 0).then_some(newest))
    }

    /// The last that a listing has behind a number.
    fn listed_beyond(&self, number: u64) -> Result<Option<u64>, StoreError> {
        let page = self.store.list(&self.prefix(), &self.key(number), false)?;
        let last = page.keys.last().and_then(|key| key.strip_prefix(&self.prefix()));
        Ok(last.and_then(|n| n.parse().ok()))
    }

    /// What a listing calls the last of a stretch.
    fn listed_last(&self, stretch: u64) -> Result<Option<u64>, StoreError> {
        let mut after = self.key(stretch * MILESTONE);
        let mut last = None;
        for _ in 0..2 {
            let page = self.store.list(&self.prefix(), &after, false)?;
            let Some(key) = page.keys.last() else { break };
            last = key.strip_prefix(&self.prefix()).and_then(|n| n.parse().ok());
            if !page.more {
                break;
            }
            after.clone_from(key);
        }
        // What lies behind the next milestone lies behind a stretch that isn't the last.
        Ok(last.filter(|n| *n < (stretch + 1) * MILESTONE))
    }

    /// What the bucket holds; `None`: nothing yet.
    ///
    /// # Errors
    /// A request failed, or a manifest is missing, damaged or a newer program's.
    pub fn load(&self) -> Result<Option<State>, ChainError> {
        match self.find()? {
            Found::Nothing => Ok(None),
            Found::State(state) => Ok(Some(*state)),
            Found::Broken(Remains { number, why, .. }) => {
                Err(ChainError::Unusable { key: self.key(number), why })
            }
        }
    }

    /// What there is.
    ///
    /// # Errors
    /// A request failed, or a manifest is a newer program's.
    pub fn find(&self) -> Result<Found, ChainError> {
        let (mut from, mut before) = (0, None);
        for _ in 0..LOADS_MAX {
            let Some(newest) = self.newest(from)? else { return Ok(Found::Nothing) };
            let why = match self.load_at(newest) {
                Err(ChainError::Store(StoreError::NotFound(key))) => {
                    format!(
                        "{key} is missing, though later ones are there: objects were deleted by somebody else \
                         than the agent (a lifecycle rule?), or the bucket was put back in part"
                    )
                }
                Err(damaged @ ChainError::Damaged { .. })
                    if !planted::is("damaged-manifests-are-refused") =>
                {
                    format!("{damaged}; its journal is sent anew when the agent connects next")
                }
                told => return told.map(|state| Found::State(Box::new(state))),
            };
            // Deleted by its writer meanwhile: then there is a newer one. Or it was read badly.
            if before == Some(newest) {
                return self.remains(newest, why).map(Found::Broken);
            }
            (from, before) = (newest, Some(newest));
        }
        Err(StoreError::Unclear(format!(
            "{}: manifests are deleted faster than they are read",
            self.prefix()
        ))
        .into())
    }

    /// What is known of a journal whose newest state can't be told, since a manifest is missing or damaged.
    fn remains(&self, newest: u64, why: String) -> Result<Remains, ChainError> {
        let mut remains = Remains { number: newest, epoch: 0, identity: Vec::new(), why };
        let first = newest.saturating_sub(DELTAS_MAX + 1).max(1);
        for number in (first..=newest).rev() {
            let bytes = match self.store.get(&self.key(number), None) {
                Ok(bytes) => bytes,
                Err(StoreError::NotFound(_)) => continue,
                Err(e) => return Err(e.into()),
            };
            let Ok(message) = message::decode(number, &bytes) else { continue };
            remains.epoch = remains.epoch.max(message.epoch);
            if remains.identity.is_empty() {
                remains.identity = message.identity;
            }
        }
        Ok(remains)
    }

    fn load_at(&self, newest: u64) -> Result<State, ChainError> {
        let key = self.key(newest);
        let damaged = |number, why| ChainError::Damaged { key: self.key(number), why };
        let unreadable = |number, why| match why {
            Unreadable::Newer(_) => {
                ChainError::Unusable { key: self.key(number), why: why.to_string() }
            }
            Unreadable::Damaged(why) => damaged(number, why),
        };
        let last = self.store.get(&key, None)?;
        let message = message::decode(newest, &last).map_err(|why| unreadable(newest, why))?;
        let base = message.base;
        if base > newest || newest - base > DELTAS_MAX + 1 || (base == newest) != message.whole {
            return Err(damaged(newest, format!("it can't be based on {base}")));
        }
        let mut all = self.read(base, newest)?;
        all.push(last);
        let mut state = State::default();
        for (number, bytes) in (base..=newest).zip(&all) {
            let message = message::decode(number, bytes).map_err(|why| unreadable(number, why))?;
            if number == base && !message.whole {
                return Err(damaged(number, "it doesn't say all".into()));
            }
            state.apply(&message, crc32c(bytes)).map_err(|why| damaged(number, why))?;
        }
        Ok(state)
    }

    /// The bytes of manifests, some at a time.
    fn read(&self, from: u64, to: u64) -> Result<Vec<Vec<u8>>, StoreError> {
        let numbers: Vec<u64> = (from..to).collect();
        let mut all = Vec::with_capacity(numbers.len());
        for some in numbers.chunks(READS_MAX) {
            let read = std::thread::scope(|scope| {
                let each = some.iter().map(|n| scope.spawn(|| self.store.get(&self.key(*n), None)));
                let running: Vec<_> = each.collect();
                let broke = |_| Err(StoreError::Unclear("a read broke off".into()));
                running.into_iter().map(|r| r.join().unwrap_or_else(broke)).collect::<Vec<_>>()
            });
            for bytes in read {
                all.push(bytes?);
            }
        }
        Ok(all)
    }

    /// Writes the next manifest: that of `state`, which the change has led to and which still has the
    /// number of the one before. If it is ours, the state has its number and checksum afterwards; if not,
    /// the state is worth nothing any more.
    ///
    /// # Errors
    /// A request failed: the manifest may be there or not, or come to be.
    pub fn commit(
        &self,
        state: &mut State,
        change: &Change,
        stamp: &Stamp,
    ) -> Result<Committed, ChainError> {
        let (number, before_crc) = (state.number + 1, state.crc);
        let opening = if stamp.opens { number } else { state.opening };
        let swept = state.swept;
        state.step(number, stamp.epoch, opening, swept);
        // A milestone stays for good: it is kept small.
        let due = number - state.base >= DELTAS_MAX && !number.is_multiple_of(MILESTONE);
        if before_crc == 0 || due {
            state.base = number;
        }
        let key = self.key(number);
        let unusable = |why| ChainError::Unusable { key: key.clone(), why };
        let message = state.message(change, before_crc, stamp.wall_ns);
        let nonce = uuid::Uuid::new_v4().into_bytes();
        let bytes = message::encode(&message, nonce).map_err(unusable)?;
        match self.store.create(&key, &bytes, stamp.until)? {
            Created::Ours => {
                state.crc = crc32c(&bytes);
                Ok(Committed::Ours)
            }
            Created::Theirs(bytes) => {
                let theirs =
                    message::decode(number, &bytes).map_err(|why| unusable(why.to_string()))?;
                Ok(Committed::Taken(theirs.epoch))
            }
        }
    }
}

/// What a writer says of itself.
#[derive(Debug, Clone, Copy)]
pub struct Stamp {
    /// Its epoch.
    pub epoch: u64,
    /// Whether this is the first manifest since it opened.
    pub opens: bool,
    /// The time, nanoseconds since the Unix epoch.
    pub wall_ns: u64,
    /// Until when the manifest is kept from deletion.
    pub until: Option<SystemTime>,
}

/// The last number for which `has` holds, which it does for `known` and for no number behind one for which it
/// doesn't.
fn last_where(
    known: u64,
    has: impl Fn(u64) -> Result<bool, StoreError>,
) -> Result<u64, StoreError> {
    let (mut last, mut step) = (known, 1);
    while has(last.saturating_add(step))? {
        last += step;
        step *= 2;
    }
    while step > 1 {
        step /= 2;
        if has(last + step)? {
            last += step;
        }
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_one_is_found_from_any_that_was_there() {
        for last in 0..70 {
            for known in 0..=last {
                assert_eq!(last_where(known, |n| Ok(n <= last)), Ok(last), "{known}");
            }
        }
    }
}
