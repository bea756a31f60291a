//! Frames that were unpacked, in memory. Bounded in bytes.
//!
//! What always holds: frames that nobody asked for yet are given up in the order in which they came, and
//! only when they are more than [`unread_max`] or nothing else is there: what was fetched ahead of its time
//! doesn't go for what was read already. Of the others the least recently used goes first.

use bytes::Bytes;
use std::collections::{BTreeMap, HashMap};

/// An object's random part, and the number of a frame in it.
pub(super) type FrameId = ([u8; 16], usize);

/// Frames that came behind one that nobody asked for until it is no better than the others.
const STALE_PUTS: u64 = 2048;

/// Bytes of a cache's that frames may take that nobody asked for yet.
fn unread_max(bytes_max: usize) -> usize {
    bytes_max / 8 * 7
}

/// Frames in memory.
#[derive(Debug)]
pub(super) struct Frames {
    bytes_max: usize,
    bytes: usize,
    unread_bytes: usize,
    clock: u64,
    puts: u64,
    held: HashMap<FrameId, Held>,
    /// By when they were last asked for.
    read: BTreeMap<u64, FrameId>,
    /// Those that nobody asked for, by when they came; with how many had come before.
    unread: BTreeMap<u64, (FrameId, u64)>,
}

#[derive(Debug)]
struct Held {
    age: u64,
    frame: Bytes,
}

impl Frames {
    pub fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            bytes: 0,
            unread_bytes: 0,
            clock: 0,
            puts: 0,
            held: HashMap::new(),
            read: BTreeMap::new(),
            unread: BTreeMap::new(),
        }
    }

    /// Bytes that may be fetched ahead of their time, so that they are still there when that comes.
    pub fn ahead_bytes_max(&self) -> u64 {
        self.bytes_max as u64 / 2
    }

    pub fn has(&self, id: &FrameId) -> bool {
        self.held.contains_key(id)
    }

    pub fn get(&mut self, id: &FrameId) -> Option<Bytes> {
        let held = self.held.get_mut(id)?;
        if self.unread.remove(&held.age).is_some() {
            self.unread_bytes -= held.frame.len();
        }
        self.read.remove(&held.age);
        self.clock += 1;
        held.age = self.clock;
        self.read.insert(self.clock, *id);
        Some(held.frame.clone())
    }

    /// Takes a frame, as one that nobody asked for, also where it was there; gives those back that there
    /// is no room for any more. The newest stays, however large.
    pub fn put(&mut self, id: FrameId, frame: Bytes) -> Vec<(FrameId, Bytes)> {
        let mut gone = Vec::new();
        if let Some(old) = self.held.remove(&id) {
            self.bytes -= old.frame.len();
            if self.unread.remove(&old.age).is_some() {
                self.unread_bytes -= old.frame.len();
            }
            self.read.remove(&old.age);
        }
        self.bytes += frame.len();
        self.unread_bytes += frame.len();
        self.clock += 1;
        self.puts += 1;
        self.unread.insert(self.clock, (id, self.puts));
        self.held.insert(id, Held { age: self.clock, frame });
        while self.bytes > self.bytes_max
            && let Some((id, frame)) = self.give_up()
        {
            gone.push((id, frame));
        }
        gone
    }

    /// Gives one up, but not the newest.
    fn give_up(&mut self) -> Option<(FrameId, Bytes)> {
        let oldest = self.unread.first_key_value().filter(|_| self.unread.len() > 1);
        let is_stale = oldest.is_some_and(|(_, (_, n))| n + STALE_PUTS < self.puts);
        let is_over = self.unread_bytes > unread_max(self.bytes_max);
        let is_unread = oldest.is_some() && (is_stale || is_over || self.read.is_empty());
        let id = match is_unread {
            true => self.unread.pop_first()?.1.0,
            false => self.read.pop_first()?.1,
        };
        let frame = self.held.remove(&id)?.frame;
        self.bytes -= frame.len();
        self.unread_bytes -= if is_unread { frame.len() } else { 0 };
        Some((id, frame))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(bytes_max: usize, of: impl IntoIterator<Item = u8>) -> Frames {
        let mut frames = Frames::new(bytes_max);
        of.into_iter().for_each(|n| put(&mut frames, n));
        frames
    }

    fn put(frames: &mut Frames, n: u8) {
        frames.put(([n; 16], 0), Bytes::from(vec![n; 100]));
        let held: usize = frames.held.values().map(|h| h.frame.len()).sum();
        assert_eq!(frames.bytes, held);
        let unread: usize = frames.unread.values().map(|(id, _)| frames.held[id].frame.len()).sum();
        assert_eq!(frames.unread_bytes, unread);
        assert_eq!(frames.held.len(), frames.unread.len() + frames.read.len());
    }

    fn held(frames: &Frames) -> Vec<u8> {
        let mut held: Vec<u8> = frames.held.keys().map(|(n, _)| n[0]).collect();
        held.sort_unstable();
        held
    }

    fn get(frames: &mut Frames, n: u8) -> bool {
        frames.get(&([n; 16], 0)).is_some()
    }

    #[test]
    fn what_was_read_goes_before_what_was_not_the_least_recently_used_first() {
        let mut frames = frames(400, 0..4);
        assert!(get(&mut frames, 2) && get(&mut frames, 1) && get(&mut frames, 2));
        put(&mut frames, 4);
        assert_eq!(held(&frames), [0, 2, 3, 4]);
        put(&mut frames, 5);
        // There were more of them than seven eighths.
        assert_eq!(held(&frames), [2, 3, 4, 5]);
        assert!(get(&mut frames, 3));
        put(&mut frames, 6);
        assert_eq!(held(&frames), [3, 4, 5, 6]);
    }

    #[test]
    fn what_comes_again_is_as_if_it_came_now() {
        let mut frames = frames(300, 0..3);
        assert!(get(&mut frames, 0));
        put(&mut frames, 0);
        put(&mut frames, 3);
        assert_eq!(held(&frames), [0, 2, 3]);
        put(&mut frames, 2);
        put(&mut frames, 4);
        assert_eq!(held(&frames), [2, 3, 4]);
    }

    #[test]
    fn a_frame_larger_than_the_cache_is_held_alone() {
        let mut frames = frames(50, 0..1);
        assert_eq!(held(&frames), [0]);
        assert!(get(&mut frames, 0));
        put(&mut frames, 1);
        assert_eq!(held(&frames), [1]);
        put(&mut frames, 2);
        assert_eq!(held(&frames), [2]);
    }

    /// A reader that goes on in order, with a window that is fetched ahead of it, finds each frame.
    #[test]
    fn what_is_fetched_ahead_is_there_when_its_time_comes() {
        let mut frames = Frames::new(2000);
        let ahead = frames.ahead_bytes_max() as usize / 100;
        for n in 0..200 {
            put(&mut frames, n);
            // Each is asked for several times.
            let at = usize::from(n).checked_sub(ahead - 1);
            let mut again = at.into_iter().flat_map(|at| [at, at, at.saturating_sub(2)]);
            assert!(again.all(|at| get(&mut frames, at as u8)), "{n}: {:?}", held(&frames));
        }
    }

    #[test]
    fn what_nobody_ever_asks_for_makes_room_in_time() {
        let mut frames = frames(1000, 0..5);
        for n in 0..STALE_PUTS + 50 {
            let id = ([9; 16], n as usize);
            frames.put(id, Bytes::from(vec![0; 100]));
            assert!(frames.get(&id).is_some());
        }
        assert_eq!((frames.unread.len(), frames.read.len()), (0, 10));
    }
}
