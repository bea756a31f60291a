//! Frames that were unpacked, in memory, the least recently used given up first. Bounded in bytes.

use bytes::Bytes;
use std::collections::{BTreeMap, HashMap};

/// An object's random part, and the number of a frame in it.
pub(super) type FrameId = ([u8; 16], usize);

/// Frames in memory.
#[derive(Debug)]
pub(super) struct Frames {
    bytes_max: usize,
    bytes: usize,
    clock: u64,
    held: HashMap<FrameId, (u64, Bytes)>,
    by_age: BTreeMap<u64, FrameId>,
}

impl Frames {
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, bytes: 0, clock: 0, held: HashMap::new(), by_age: BTreeMap::new() }
    }

    pub fn has(&self, id: &FrameId) -> bool {
        self.held.contains_key(id)
    }

    pub fn get(&mut self, id: &FrameId) -> Option<Bytes> {
        let (age, frame) = self.held.get_mut(id)?;
        self.by_age.remove(age);
        self.clock += 1;
        *age = self.clock;
        self.by_age.insert(self.clock, *id);
        Some(frame.clone())
    }

    /// Takes a frame and gives those back that there is no room for any more. The newest stays, however
    /// large.
    pub fn put(&mut self, id: FrameId, frame: Bytes) -> Vec<(FrameId, Bytes)> {
        let mut gone = Vec::new();
        if self.held.contains_key(&id) {
            return gone;
        }
        self.bytes += frame.len();
        self.clock += 1;
        self.by_age.insert(self.clock, id);
        self.held.insert(id, (self.clock, frame));
        while self.bytes > self.bytes_max && self.held.len() > 1 {
            let Some((_, oldest)) = self.by_age.pop_first() else { break };
            if let Some((_, frame)) = self.held.remove(&oldest) {
                self.bytes -= frame.len();
                gone.push((oldest, frame));
            }
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let mut frames = Frames::new(300);
        for n in 0..3 {
            frames.put(([n; 16], 0), Bytes::from(vec![n; 100]));
        }
        assert!(frames.get(&([0; 16], 0)).is_some());
        frames.put(([3; 16], 0), Bytes::from(vec![3; 100]));
        let held: Vec<bool> = (0..4).map(|n| frames.has(&([n; 16], 0))).collect();
        assert_eq!((held, frames.bytes), (vec![true, false, true, true], 300));
    }
}
