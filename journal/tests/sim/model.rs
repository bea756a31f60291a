//! What a journal must say, from a plain list of what was put into it: each volume as an array.

use crate::run::{RAM, STATE};
use afterimage_journal::{History, Seq, View, VolumeId};
use std::collections::BTreeMap;

/// A write (or, without data, zeroes) as it went in.
#[derive(Debug, Clone)]
pub struct Put {
    pub volume: VolumeId,
    pub at: u64,
    pub len: u64,
    pub data: Option<Vec<u8>>,
    /// The copy's id, of a copied block.
    pub copy: Option<u32>,
}

/// What was asked of a journal when its process ended: it may have happened or not.
#[derive(Debug, Clone)]
pub enum Doubt {
    Nothing,
    Put(Put),
    Sizes(BTreeMap<VolumeId, u64>),
    Open(u32),
    Close(u32),
    /// Its number, and whether it has a tag.
    Mark(u64, bool),
    CopyStart(u32),
    /// A checkpoint with memory: its number and its instant.
    Commit(u64, Seq),
}

impl Doubt {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Put(_) => "a write",
            Self::Sizes(_) => "a configuration",
            Self::Open(_) | Self::Close(_) => "a session",
            Self::Mark(..) => "a checkpoint",
            Self::CopyStart(_) => "a copy",
            Self::Commit(..) => "a checkpoint with memory",
        }
    }
}

#[derive(Debug, Clone)]
struct Session {
    id: u32,
    from: Seq,
    to: Option<Seq>,
}

#[derive(Debug, Clone, Default)]
pub struct Model {
    puts: Vec<(Seq, Put)>,
    sizes: Vec<(Seq, BTreeMap<VolumeId, u64>)>,
    sessions: Vec<Session>,
    marks: Vec<(Seq, u64, bool)>,
    /// Instant, number of the record, and number of each checkpoint with memory.
    warm: Vec<(Seq, Seq, u64)>,
    /// Whether all tagged checkpoints are to stay as long as the run lasts.
    pub tags_stay: bool,
    /// Whether it is that of a site.
    pub is_site: bool,
    copies: BTreeMap<u32, Seq>,
    /// Newest number that was acknowledged and may not be lost by the end of a process.
    pub acked: Seq,
    /// Newest number that was called durable.
    pub durable: Seq,
    /// Newest number ever seen: none up to it may be given out again.
    pub seen: Seq,
}

impl Model {
    pub fn acknowledge(&mut self, seq: Seq) {
        assert!(seq > self.seen, "number {seq} was given out again, {} was seen", self.seen);
        self.seen = seq;
        self.acked = seq;
    }

    /// Something happened, at this number.
    pub fn happened(&mut self, seq: Seq, what: &Doubt) {
        match what {
            Doubt::Nothing => {}
            Doubt::Put(put) => self.puts.push((seq, put.clone())),
            Doubt::Sizes(sizes) => self.sizes.push((seq, sizes.clone())),
            Doubt::Open(id) => self.sessions.push(Session { id: *id, from: seq, to: None }),
            Doubt::Close(id) => {
                if let Some(session) = self.sessions.iter_mut().rev().find(|s| s.id == *id) {
                    session.to = Some(seq);
                }
            }
            Doubt::Mark(id, tagged) => self.marks.push((seq, *id, *tagged)),
            Doubt::CopyStart(id) => drop(self.copies.insert(*id, seq)),
            Doubt::Commit(id, instant) => self.warm.push((*instant, seq, *id)),
        }
    }

    /// The newest number up to this one at which something is known to have happened.
    pub fn newest(&self, upto: Seq) -> Seq {
        let puts = self.puts.iter().map(|(seq, _)| *seq);
        let others = self.sizes.iter().map(|(seq, _)| *seq).chain(self.marks.iter().map(|m| m.0));
        puts.chain(others).filter(|seq| *seq <= upto).max().unwrap_or(0)
    }

    pub fn sizes(&self, seq: Seq) -> BTreeMap<VolumeId, u64> {
        let counts = self.sizes.iter().rev().find(|(at, _)| *at <= seq);
        counts.map(|(_, sizes)| sizes.clone()).unwrap_or_default()
    }

    /// The volume as it was behind this number.
    pub fn contents(&self, volume: VolumeId, seq: Seq) -> Vec<u8> {
        let size = |sizes: &BTreeMap<VolumeId, u64>| sizes.get(&volume).copied().unwrap_or(0);
        let all = self.sizes.iter().map(|(_, sizes)| size(sizes)).max().unwrap_or(0);
        let mut disk = vec![0; all as usize];
        // What happened in the order in which it counts: a copied block where its copy began.
        let rank = |seq: Seq, put: &Put| match put.copy {
            Some(copy) => self.copies.get(&copy).copied().unwrap_or(0),
            None => seq,
        };
        let mut puts: Vec<_> = self
            .puts
            .iter()
            .filter(|(at, put)| *at <= seq && put.volume == volume)
            .map(|(at, put)| (rank(*at, put), *at, put))
            .collect();
        puts.sort_by_key(|(rank, at, _)| (*rank, *at));
        let mut sizes = self.sizes.iter().take_while(|(at, _)| *at <= seq).peekable();
        let mut resize = |disk: &mut Vec<u8>, upto: Seq| {
            while let Some((_, sizes)) = sizes.next_if(|(at, _)| *at < upto) {
                disk[size(sizes) as usize..].fill(0);
            }
        };
        for (rank, _, put) in puts {
            resize(&mut disk, rank);
            let range = put.at as usize..(put.at + put.len) as usize;
            match &put.data {
                Some(data) => disk[range].copy_from_slice(data),
                None => disk[range].fill(0),
            }
        }
        resize(&mut disk, Seq::MAX);
        disk.truncate(size(&self.sizes(seq)) as usize);
        disk
    }

    fn is_restorable(&self, seq: Seq, edge: Seq, head: Seq) -> bool {
        let within = |s: &Session| s.from <= seq && seq <= s.to.unwrap_or(head);
        seq >= edge && self.sessions.iter().any(within)
    }

    /// The process ended and `head` is what is left; sessions end there.
    pub fn truncate(&mut self, head: Seq) {
        self.puts.retain(|(seq, _)| *seq <= head);
        self.sizes.retain(|(seq, _)| *seq <= head);
        self.marks.retain(|(seq, ..)| *seq <= head);
        self.copies.retain(|_, seq| *seq <= head);
        self.warm.retain(|(_, seq, _)| *seq <= head);
        self.sessions.retain(|s| s.from <= head);
        for session in &mut self.sessions {
            session.to = Some(session.to.map_or(head, |to| to.min(head)));
        }
    }

    /// The journal was opened without a part of its end: what came behind `head` counts no more, and no
    /// number up to `seen` is given out again.
    pub fn cut(&mut self, head: Seq, seen: Seq) {
        self.truncate(head);
        (self.acked, self.durable) = (head, self.durable.min(head));
        self.seen = self.seen.max(seen);
    }

    /// Compares the contents at a position.
    pub fn check_contents(&self, history: &History, seq: Seq) {
        for (volume, _) in self.sizes(seq).into_iter().filter(|(id, _)| *id < RAM) {
            let expected = self.contents(volume, seq);
            let found = read(history, volume, seq, expected.len())
                .unwrap_or_else(|e| panic!("volume {volume} at {seq}: {e}"));
            assert!(found == expected, "volume {volume} at {seq} differs");
        }
    }

    /// Takes over what a history says of the end: which of the numbers behind the acknowledged ones
    /// there are, and whether what was in doubt is among them. It must be one of the two.
    pub fn settle(&mut self, history: &History, doubt: &Doubt, floor: Seq) {
        let head = history.head;
        assert!(head >= floor, "the head is {head}, {floor} must have survived");
        let first = self.acked + 1;
        let at = match doubt {
            Doubt::Nothing => None,
            Doubt::Put(_) => self.find_put(history, doubt, first),
            Doubt::Sizes(sizes) => history.configs.iter().rev().find_map(|(seq, config)| {
                let same = config.volumes.iter().all(|v| sizes.get(&v.id) == Some(&v.bytes));
                (same && *seq >= first).then_some(*seq)
            }),
            Doubt::Open(id) => history.sessions.iter().find(|s| s.id == *id).map(|s| s.from),
            Doubt::Close(id) => {
                let closed = history.sessions.iter().find(|s| s.id == *id && s.closed_by_record);
                closed.and_then(|s| s.to)
            }
            Doubt::Mark(id, _) => {
                history.checkpoints.iter().find(|c| c.checkpoint.id == *id).map(|c| c.seq)
            }
            Doubt::CopyStart(id) => history.copies.get(id).map(|c| c.as_of),
            Doubt::Commit(id, _) => {
                history.checkpoints.iter().find(|c| c.checkpoint.id == *id).map(|c| c.committed)
            }
        };
        if let Some(at) = at {
            assert!(first <= at && at <= head, "what was in doubt is at {at}, not behind {first}");
            self.happened(at, doubt);
        }
        self.truncate(head);
        self.acked = self.acked.min(head);
        self.seen = self.seen.max(head);
    }

    /// Where a write in doubt went to, by what is read there.
    fn find_put(&self, history: &History, doubt: &Doubt, first: Seq) -> Option<Seq> {
        let Doubt::Put(put) = doubt else { return None };
        (first..=history.head).find(|seq| {
            let mut with = self.clone();
            with.happened(*seq, doubt);
            let expected = with.contents(put.volume, *seq);
            // Nothing changed by it: then it makes no difference where it is.
            expected != self.contents(put.volume, *seq)
                && read(history, put.volume, *seq, expected.len()).is_ok_and(|d| d == expected)
        })
    }

    /// Compares what is listed with what must be, and the contents at these positions.
    pub fn check(&self, history: &History, at: &[Seq]) {
        assert!(history.damage.is_empty(), "damage: {:?}", history.damage);
        let head = history.head;
        let edge = history.edge;
        assert!(edge <= head, "the edge is {edge} of {head}");
        let floor = history.floor;
        let mut thinned = Vec::new();
        for seq in 1..=head.min(self.seen) {
            let is_listed = history.is_restorable(seq);
            if (floor..edge).contains(&seq) {
                // Which ones stay is a matter of ages; none that was in a gap can.
                assert!(!is_listed || self.is_restorable(seq, 0, head), "position {seq} of {head}");
                thinned.extend(is_listed.then_some(seq));
                continue;
            }
            let expected = self.is_restorable(seq, edge, head);
            assert_eq!(is_listed, expected, "position {seq} of {head}");
        }
        let is_listed = |seq: Seq| self.is_restorable(seq, edge, head) || thinned.contains(&seq);
        let marks = self.marks.iter().filter(|(seq, ..)| is_listed(*seq));
        let mut expected: Vec<_> = marks.map(|(seq, id, _)| (*seq, *id)).collect();
        let warm = self.warm.iter().filter(|(instant, ..)| is_listed(*instant));
        expected.extend(warm.map(|(instant, _, id)| (*instant, *id)));
        // Of those at one position, the one that was committed last is the last.
        expected.sort_unstable();
        let mut listed: Vec<_> =
            history.checkpoints.iter().map(|c| (c.seq, c.checkpoint.id)).collect();
        if self.is_site {
            // Of what was thinned at the source, a site may list positions whose checkpoints are gone.
            assert!(listed.iter().all(|c| expected.contains(c)), "checkpoints {listed:?}");
            listed.retain(|(seq, _)| *seq >= edge);
            expected.retain(|(seq, _)| *seq >= edge);
        }
        assert_eq!(listed, expected, "checkpoints");
        for (seq, id, tagged) in
            self.marks.iter().filter(|(seq, ..)| self.is_restorable(*seq, 0, head))
        {
            let stays = *tagged && self.tags_stay && *seq >= floor;
            assert!(!stays || is_listed(*seq), "the tagged checkpoint {id} at {seq} is gone");
        }
        // Of what was kept, some that the positions asked for point at.
        let kept = at.iter().filter_map(|seq| thinned.get(*seq as usize % thinned.len().max(1)));
        let at = at.iter().filter(|seq| self.is_restorable(**seq, edge, head)).chain(kept);
        for seq in at {
            for (volume, bytes) in self.sizes(*seq).into_iter().filter(|(id, _)| *id < RAM) {
                let expected = self.contents(volume, *seq);
                assert_eq!(expected.len() as u64, bytes);
                let found = read(history, volume, *seq, expected.len())
                    .unwrap_or_else(|e| panic!("volume {volume} at {seq}: {e}"));
                let differs = expected.iter().zip(&found).position(|(a, b)| a != b);
                assert_eq!(differs, None, "volume {volume} at {seq} of {head} differs");
            }
        }
        self.check_memory(history);
    }

    /// Whatever is in the window and was committed is warm, nothing else is, and it reads as it was.
    fn check_memory(&self, history: &History) {
        let listed: BTreeMap<u64, Seq> = history
            .checkpoints
            .iter()
            .filter(|c| c.is_warm())
            .map(|c| (c.checkpoint.id, c.committed))
            .collect();
        for (instant, _, id) in &self.warm {
            let is_due = self.is_restorable(*instant, history.edge, history.head);
            assert!(!is_due || listed.contains_key(id), "checkpoint {id} is not warm");
        }
        for (id, committed) in &listed {
            let made = self.warm.iter().any(|(_, seq, known)| (seq, known) == (committed, id));
            assert!(made, "checkpoint {id} has memory that was not committed at {committed}");
            for volume in [RAM, STATE] {
                let expected = self.contents(volume, *committed);
                let found = read(history, volume, *committed, expected.len()).unwrap();
                assert!(found == expected, "memory {volume} of checkpoint {id} differs");
            }
        }
    }
}

fn read(
    history: &History,
    volume: VolumeId,
    seq: Seq,
    len: usize,
) -> afterimage_journal::Result<Vec<u8>> {
    let mut found = vec![0xee; len];
    View::at(history, volume, seq)?.read(0, &mut found)?;
    Ok(found)
}
