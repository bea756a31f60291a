//! Random histories against a plain array.

use crate::fixture::{VOLUME_BYTES, bytes_of, new_journal, options, session};
use afterimage_journal::catalogue::{self, Catalogue};
use afterimage_journal::format::record::{FLAG_COPIED, Kind};
use afterimage_journal::log::Draft;
use afterimage_journal::meta::{
    Checkpoint, CheckpointKind, Copy, CopyCause, CopyEvent, Meta, SessionEvent,
};
use afterimage_journal::storage::RealStorage;
use afterimage_journal::{History, Journal, Options, Seq, View, layout};
use proptest::prelude::*;
use std::path::{Path, PathBuf};
use std::time::Duration;

const SECTOR: usize = 512;
const SECTORS: usize = 96;

#[derive(Debug, Clone)]
pub enum Op {
    Write {
        at: usize,
        sectors: usize,
    },
    Zero {
        at: usize,
        sectors: usize,
    },
    /// A resync: captured writes land between its blocks.
    CopyAll {
        captured_at: usize,
    },
    Open,
    Close,
    Mark,
    /// Large enough to turn to the next unit now and then.
    Bulk,
    Reopen {
        clean: bool,
    },
    /// What is known of the sealed units is saved.
    Save,
}

pub fn op() -> impl Strategy<Value = Op> {
    let place = (0..SECTORS, 1usize..20);
    prop_oneof![
        6 => place.clone().prop_map(|(at, sectors)| Op::Write { at, sectors }),
        2 => place.prop_map(|(at, sectors)| Op::Zero { at, sectors }),
        1 => (0..SECTORS).prop_map(|captured_at| Op::CopyAll { captured_at }),
        2 => Just(Op::Open),
        1 => Just(Op::Close),
        2 => Just(Op::Mark),
        2 => Just(Op::Bulk),
        1 => Just(Op::Save),
        1 => any::<bool>().prop_map(|clean| Op::Reopen { clean }),
    ]
}

pub struct Run {
    pub dir: PathBuf,
    pub journal: Option<Journal>,
    disk: Vec<u8>,
    level: bool,
    session: u32,
    copy: u32,
    marks: Vec<(Seq, bool)>,
    /// Position, contents, restorable.
    points: Vec<(Seq, Vec<u8>, bool)>,
    count: u64,
}

fn often() -> Options {
    Options { sync_interval: Duration::from_millis(2), ..options() }
}

impl Run {
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            journal: Some(new_journal(dir, often())),
            disk: vec![0; SECTORS * SECTOR],
            level: false,
            session: 0,
            copy: 0,
            marks: vec![],
            points: vec![],
            count: 0,
        }
    }

    fn journal(&self) -> &Journal {
        self.journal.as_ref().unwrap()
    }

    fn data(&mut self, at: usize, sectors: usize, kind: Kind, scope: u32) -> Seq {
        let at = at * SECTOR;
        let end = (at + sectors * SECTOR).min(SECTORS * SECTOR);
        self.count += 1;
        let bytes = match kind {
            Kind::Write => bytes_of(self.count, end - at),
            _ => vec![0; end - at],
        };
        let flags = if scope == 0 { 0 } else { FLAG_COPIED };
        let (addr, len) = (at as u64, bytes.len() as u32);
        let draft = Draft { kind, flags, volume: 1, addr, len, scope };
        let payload: &[u8] = if kind == Kind::Write { &bytes } else { &[] };
        let seq = self.journal().append(&draft, payload).unwrap();
        self.disk[at..end].copy_from_slice(&bytes);
        seq
    }

    fn point(&mut self, seq: Seq, restorable: bool) {
        self.points.push((seq, self.disk.clone(), restorable));
    }

    fn copy_event(&self, event: CopyEvent) -> Seq {
        let (id, cause) = (self.copy, CopyCause::Compare);
        let copy = Copy { id, volume: 1, event, cause, upto: VOLUME_BYTES, whole: true };
        self.journal().append_meta(&Meta::Copy(copy)).unwrap()
    }

    fn copy_all(&mut self, captured_at: usize) {
        self.copy += 1;
        self.copy_event(CopyEvent::Start);
        self.data(captured_at, 3, Kind::Write, 0);
        let captured = self.disk.clone();
        let seq = self.data(0, SECTORS, Kind::Write, self.copy);
        let range = captured_at * SECTOR..((captured_at + 3) * SECTOR).min(captured.len());
        self.disk[range.clone()].copy_from_slice(&captured[range]);
        self.points.push((seq, vec![], false));
        self.data(captured_at / 2, 1, Kind::Zero, 0);
        self.copy_event(CopyEvent::End);
    }

    pub fn step(&mut self, op: &Op) {
        match *op {
            Op::Write { at, sectors } => {
                let seq = self.data(at, sectors, Kind::Write, 0);
                self.point(seq, self.level);
            }
            Op::Zero { at, sectors } => {
                let seq = self.data(at, sectors, Kind::Zero, 0);
                self.point(seq, self.level);
            }
            Op::Bulk => {
                for _ in 0..8 {
                    let seq = self.data(0, SECTORS, Kind::Write, 0);
                    self.point(seq, self.level);
                }
            }
            Op::CopyAll { captured_at } if !self.level => self.copy_all(captured_at),
            Op::Open if !self.level => {
                self.session += 1;
                self.level = true;
                let meta = session(self.session, SessionEvent::Open);
                let seq = self.journal().append_meta(&meta).unwrap();
                self.point(seq, true);
            }
            Op::Close if self.level => {
                self.level = false;
                let meta = session(self.session, SessionEvent::Close);
                let seq = self.journal().append_meta(&meta).unwrap();
                self.point(seq, true);
            }
            Op::Mark => {
                let id = self.marks.len() as u64 + 1;
                let mark = Checkpoint { id, kind: CheckpointKind::Crash, tag: None, memory: None };
                let seq = self.journal().append_meta(&Meta::Mark(mark)).unwrap();
                self.marks.push((seq, self.level));
            }
            Op::Save => save(&self.dir),
            Op::Reopen { clean } => {
                let journal = self.journal.take().unwrap();
                if clean {
                    journal.close().unwrap();
                } else {
                    drop(journal);
                }
                self.journal = Some(Journal::open(&self.dir, often()).unwrap().0);
                self.level = false;
            }
            _ => {}
        }
    }

    pub fn check(&self) {
        let history = History::load(&self.dir).unwrap();
        assert!(history.damage.is_empty(), "{:?}", history.damage);
        let listed: Vec<Seq> = history.checkpoints.iter().map(|c| c.seq).collect();
        let expected = self.marks.iter().filter(|(_, level)| *level).map(|(seq, _)| *seq);
        assert_eq!(listed, expected.collect::<Vec<_>>());
        for (seq, _, restorable) in &self.points {
            assert_eq!(history.is_restorable(*seq), *restorable, "position {seq}");
        }
        let restorable: Vec<_> = self.points.iter().filter(|p| p.2).collect();
        let step = restorable.len() / 12 + 1;
        for (seq, disk, _) in restorable.into_iter().rev().step_by(step) {
            let mut found = vec![0xff; disk.len()];
            View::at(&history, 1, *seq).unwrap().read(0, &mut found).unwrap();
            assert!(found == *disk, "position {seq} differs");
        }
    }
}

/// Brings a journal's catalogue up to date.
pub fn save(dir: &Path) {
    let storage = RealStorage::shared();
    let identity = layout::read_identity(dir).unwrap();
    let mut catalogue = Catalogue::open(&storage, dir).unwrap();
    catalogue::save(&*storage, dir, &identity, &mut catalogue).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn every_listed_position_equals_a_plain_array_and_no_other_is_listed(
        ops in prop::collection::vec(op(), 1..60),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut run = Run::new(&dir.path().join("j"));
        for op in &ops {
            run.step(op);
        }
        run.check();
        run.step(&Op::Reopen { clean: false });
        run.check();
    }
}
