//! Reading frames of objects: from memory, by ranges, or the whole object where they are read in order,
//! and then those behind it ahead of their time.
//!
//! What always holds:
//! * memory is bounded: the cache (what it has no room for goes to a temporary file, if there is one),
//!   [`AHEAD_THREADS`] objects under way, [`AHEAD_MAX`] waiting (names only);
//! * no more is fetched ahead than the cache keeps until its time comes;
//! * an object that is fetched whole is fetched by one thread; others wait for it.

use super::cache::{FrameId, Frames};
use super::spill::Spill;
use crate::object::{FRAME_BYTES, Index, tail_bytes};
use crate::store::{Patient, StoreError};
use bytes::Bytes;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

/// Objects that are fetched ahead at a time.
pub const AHEAD_THREADS: usize = 8;
/// Objects that wait to be fetched ahead.
pub const AHEAD_MAX: usize = 12;
/// Objects that were fetched whole and are not fetched ahead again.
const RECENT_MAX: usize = 32;
/// An object of at most so many bytes is fetched whole: a request costs more than they do.
const SMALL_BYTES: u64 = 1 << 20;
/// What is fetched together with an index when the object's end is asked for: a unit's own index lies there.
const END_BYTES: u64 = 1 << 20;
/// A miss at most so many frames behind the one before is reading in order.
const NEAR_FRAMES: usize = 4;
/// Most indexes in memory: one has 0.6 KB.
const INDEXES_MAX: usize = 16_384;

/// An object that holds a stretch of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// Its whole key.
    pub key: String,
    /// Its random part.
    pub random: [u8; 16],
    /// Bytes of the file.
    pub bytes: u64,
    /// Bytes of the object.
    pub object_bytes: u64,
}

/// Why a frame is not there.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum FetchError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("object {key}: {why}")]
    Damaged { key: String, why: String },
}

/// Reads frames of objects.
#[derive(Debug)]
pub(crate) struct Fetcher {
    store: Patient,
    spill: Option<Spill>,
    state: Mutex<Held>,
    /// Something came, or nothing of it will.
    changed: Condvar,
    /// Something waits to be fetched ahead.
    work: Condvar,
}

#[derive(Debug)]
struct Held {
    frames: Frames,
    indexes: HashMap<[u8; 16], Arc<Index>>,
    /// The frame of each object that was asked for last, where it wasn't there.
    missed: HashMap<[u8; 16], usize>,
    /// Objects that are being fetched whole.
    running: HashSet<[u8; 16]>,
    ahead: VecDeque<Place>,
    /// Objects that were fetched whole, the newest last.
    recent: VecDeque<[u8; 16]>,
    /// Objects that were fetched ahead and not asked for yet.
    came_ahead: HashSet<[u8; 16]>,
    threads: usize,
}

impl Fetcher {
    /// Over a store, with a cache of so many bytes.
    pub fn new(store: Patient, cache_bytes_max: usize, spill: Option<Spill>) -> Arc<Self> {
        Arc::new(Self {
            store,
            spill,
            state: Mutex::new(Held {
                frames: Frames::new(cache_bytes_max),
                indexes: HashMap::new(),
                missed: HashMap::new(),
                running: HashSet::new(),
                ahead: VecDeque::new(),
                recent: VecDeque::with_capacity(RECENT_MAX),
                came_ahead: HashSet::new(),
                threads: 0,
            }),
            changed: Condvar::new(),
            work: Condvar::new(),
        })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // What is in there is whole after each change: a thread that fell does no harm.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads bytes of a frame from its byte `skip` on; whether objects behind this one are wanted soon.
    ///
    /// # Errors
    /// It can't be read, or is damaged, or ends before them.
    pub fn read(
        &self,
        place: &Place,
        i: usize,
        skip: usize,
        bytes: &mut [u8],
    ) -> Result<bool, FetchError> {
        let id = (place.random, i);
        let mut held = self.held();
        let (frame, in_order) = loop {
            if let Some(frame) = held.frames.get(&id) {
                break (frame, held.came_ahead.remove(&place.random));
            }
            // The part alone: what a frame has else is for another time.
            if let Some(spill) = self.spill.as_ref().filter(|s| s.has(&id)) {
                let came_ahead = held.came_ahead.remove(&place.random);
                drop(held);
                if spill.read(&id, skip, bytes) {
                    return Ok(came_ahead);
                }
                held = self.held();
            }
            if !held.running.contains(&place.random) {
                break self.missing(held, place, i)?;
            }
            held = self.changed.wait(held).unwrap_or_else(PoisonError::into_inner);
        };
        let part = frame.get(skip..skip + bytes.len());
        bytes.copy_from_slice(part.ok_or_else(|| damaged(place, "a frame is too short"))?);
        Ok(in_order)
    }

    /// Fetches a frame that is nowhere here, alone or with all of its object.
    fn missing(
        &self,
        mut held: MutexGuard<'_, Held>,
        place: &Place,
        i: usize,
    ) -> Result<(Bytes, bool), FetchError> {
        if held.missed.len() >= INDEXES_MAX {
            held.missed.clear();
        }
        let before = held.missed.insert(place.random, i);
        // The end alone is read for a unit's index, long before or after the rest.
        let is_end = frames_of(place).saturating_sub(i) <= NEAR_FRAMES;
        let in_order = !is_end && before.is_some_and(|b| (b..=b + NEAR_FRAMES).contains(&i));
        if in_order || place.object_bytes <= SMALL_BYTES {
            held.running.insert(place.random);
            drop(held);
            let fetched = self.whole(place);
            let mut held = self.held();
            held.running.remove(&place.random);
            held.frames.get(&(place.random, i));
            self.changed.notify_all();
            drop(held);
            let frames = fetched?;
            let frame = frames.get(i).ok_or_else(|| damaged(place, "it has fewer frames"))?;
            return Ok((frame.clone(), in_order));
        }
        drop(held);
        self.single(place, i).map(|frame| (frame, false))
    }

    /// Fetches an object and keeps all its frames.
    fn whole(&self, place: &Place) -> Result<Vec<Bytes>, FetchError> {
        let object = Bytes::from(self.store.get(&place.key, Some(0..place.object_bytes))?);
        let tail = place.object_bytes.saturating_sub(tail_bytes(place.bytes)) as usize;
        let index = decode(place, &object[tail..])?;
        let mut frames = Vec::with_capacity(index.frames().len());
        for frame in index.frames() {
            let stored = object.slice(frame.at as usize..(frame.at + frame.stored_bytes) as usize);
            frames.push(frame.unpack(&stored).map_err(|why| damaged(place, &why))?);
        }
        // A frame that is stored plainly is a part of the object, which stays as long as it does: few such
        // frames would hold much that nobody counts.
        if index.plain_bytes() * 2 < place.object_bytes {
            let is_part = |frame: &Bytes| object.as_ptr_range().contains(&frame.as_ptr());
            for frame in frames.iter_mut().filter(|frame| is_part(frame)) {
                *frame = Bytes::copy_from_slice(frame);
            }
        }
        self.keep(frames.iter().enumerate().map(|(i, f)| ((place.random, i), f.clone())));
        let mut held = self.held();
        if held.recent.len() == RECENT_MAX {
            held.recent.pop_front();
        }
        held.recent.push_back(place.random);
        drop(held);
        Ok(frames)
    }

    fn single(&self, place: &Place, i: usize) -> Result<Bytes, FetchError> {
        let known = self.held().indexes.get(&place.random).cloned();
        let index = match known {
            Some(index) => index,
            None => self.index(place, i)?,
        };
        if let Some(frame) = self.held().frames.get(&(place.random, i)) {
            return Ok(frame);
        }
        let wanted = index.frames().get(i).ok_or_else(|| damaged(place, "it has fewer frames"))?;
        let range = wanted.at..wanted.at + wanted.stored_bytes;
        let stored = Bytes::from(self.store.get(&place.key, Some(range))?);
        let frame = wanted.unpack(&stored).map_err(|why| damaged(place, &why))?;
        self.keep(std::iter::once(((place.random, i), frame.clone())));
        self.held().frames.get(&(place.random, i));
        Ok(frame)
    }

    /// Takes frames into the cache; those that it has no room for any more go to the temporary file.
    fn keep(&self, frames: impl Iterator<Item = (FrameId, Bytes)>) {
        for (id, frame) in frames {
            let gone = self.held().frames.put(id, frame);
            if let Some(spill) = &self.spill {
                gone.iter().for_each(|(id, frame)| spill.put(*id, frame));
            }
        }
    }

    /// Fetches an object's index; where its end is asked for, with what lies there.
    fn index(&self, place: &Place, wanted: usize) -> Result<Arc<Index>, FetchError> {
        let last = frames_of(place).saturating_sub(1);
        let tail = tail_bytes(place.bytes).min(place.object_bytes);
        let near_end = last.saturating_sub(wanted) < 2;
        let from = place.object_bytes - if near_end { tail.max(END_BYTES) } else { tail };
        let bytes = Bytes::from(self.store.get(&place.key, Some(from..place.object_bytes))?);
        let index = decode(place, &bytes[bytes.len() - tail as usize..])?;
        let mut came = Vec::new();
        for (i, frame) in index.frames().iter().enumerate().filter(|(_, f)| f.at >= from) {
            let at = (frame.at - from) as usize;
            let stored = bytes.slice(at..at + frame.stored_bytes as usize);
            let frame = frame.unpack(&stored).map_err(|why| damaged(place, &why))?;
            came.push(((place.random, i), frame));
        }
        let index = Arc::new(index);
        let mut held = self.held();
        if held.indexes.len() >= INDEXES_MAX {
            held.indexes.clear();
        }
        held.indexes.insert(place.random, Arc::clone(&index));
        drop(held);
        self.keep(came.into_iter());
        Ok(index)
    }

    /// Fetches objects ahead of their time, as far as there is room for that.
    pub fn ahead(self: &Arc<Self>, places: impl Iterator<Item = Place>) {
        let mut held = self.held();
        let (mut bytes, bytes_max) = (0, held.frames.ahead_bytes_max());
        for (i, place) in places.take(AHEAD_MAX).enumerate() {
            bytes += place.bytes;
            if i > 0 && bytes > bytes_max {
                break;
            }
            let waits = held.ahead.iter().any(|p| p.random == place.random);
            // Who is behind others in the same stretch of the log must not fetch what they are done with.
            let came = held.recent.contains(&place.random);
            if waits || came || held.running.contains(&place.random) || self.has_all(&held, &place)
            {
                continue;
            }
            if held.ahead.len() >= AHEAD_MAX {
                break;
            }
            held.ahead.push_back(place);
        }
        while held.threads < AHEAD_THREADS.min(held.ahead.len()) {
            let fetcher = Arc::downgrade(self);
            let made = std::thread::Builder::new()
                .name("s3-ahead".into())
                .spawn(move || fetch_ahead(&fetcher));
            // Without a thread everything is fetched when it is asked for.
            let Ok(_) = made else { break };
            held.threads += 1;
        }
        self.work.notify_all();
    }

    /// Whether all frames of an object are in memory or in the temporary file. Its first alone says nothing:
    /// that may have been read for what it holds.
    fn has_all(&self, held: &Held, place: &Place) -> bool {
        (0..frames_of(place)).map(|i| (place.random, i)).all(|id| {
            held.frames.has(&id) || self.spill.as_ref().is_some_and(|spill| spill.has(&id))
        })
    }

    /// The next object to be fetched ahead; `None` after a while without.
    fn next_ahead(&self) -> Option<Place> {
        let mut held = self.held();
        loop {
            if let Some(place) = held.ahead.pop_front() {
                if held.running.insert(place.random) {
                    return Some(place);
                }
                continue;
            }
            let (back, waited) = self
                .work
                .wait_timeout(held, std::time::Duration::from_millis(500))
                .unwrap_or_else(PoisonError::into_inner);
            held = back;
            if waited.timed_out() {
                break;
            }
        }
        held.threads -= 1;
        None
    }
}

/// A thread that fetches ahead, for as long as there is something to fetch.
fn fetch_ahead(fetcher: &Weak<Fetcher>) {
    while let Some(fetcher) = fetcher.upgrade() {
        let Some(place) = fetcher.next_ahead() else { return };
        // Whoever needs it asks again, and is told what is wrong.
        let fetched = fetcher.whole(&place);
        if let Err(error) = fetched {
            tracing::debug!(%error, "fetching ahead");
        }
        let mut held = fetcher.held();
        held.running.remove(&place.random);
        if held.came_ahead.len() >= INDEXES_MAX {
            held.came_ahead.clear();
        }
        held.came_ahead.insert(place.random);
        drop(held);
        fetcher.changed.notify_all();
    }
}

fn frames_of(place: &Place) -> usize {
    place.bytes.div_ceil(FRAME_BYTES as u64) as usize
}

fn decode(place: &Place, tail: &[u8]) -> Result<Index, FetchError> {
    Index::decode(place.random, place.bytes, place.object_bytes, tail)
        .map_err(|why| damaged(place, &why))
}

fn damaged(place: &Place, why: &str) -> FetchError {
    FetchError::Damaged { key: place.key.clone(), why: why.to_owned() }
}
