//! Which checkpoints are listed: those that a look behind them has proved, and none of them is taken back.

use crate::fixture::{Rng, new_journal, session, with_boot, write};
use afterimage_journal::format::record::Kind;
use afterimage_journal::log::Draft;
use afterimage_journal::meta::{Checkpoint, CheckpointKind, Meta, Session, SessionEvent};
use afterimage_journal::{History, Journal, Seq};
use std::collections::BTreeSet;
use std::path::Path;

fn confirm(journal: &Journal, id: u32, position: Seq) {
    let tick = Draft { addr: position, scope: id, ..Draft::of(Kind::Tick) };
    journal.append(&tick, &[]).unwrap();
}

fn mark(journal: &Journal, id: u64) -> Seq {
    let mark = Checkpoint { id, kind: CheckpointKind::Crash, tag: None, memory: None };
    journal.append_meta(&Meta::Mark(mark)).unwrap()
}

fn listed(dir: &Path) -> BTreeSet<u64> {
    History::load(dir).unwrap().checkpoints.iter().map(|c| c.checkpoint.id).collect()
}

/// As an agent opens a session: its first position is proved.
fn open(journal: &Journal, id: u32) {
    let seq = journal.append_meta(&session(id, SessionEvent::Open)).unwrap();
    confirm(journal, id, seq);
}

/// As an agent ends a session whose agent was killed: at what was confirmed last.
fn close(journal: &Journal, id: u32, confirmed: Seq) {
    let Meta::Session(closed) = session(id, SessionEvent::Close) else { unreachable!() };
    let closed = Session { upto: Some(confirmed), ..closed };
    journal.append_meta(&Meta::Session(closed)).unwrap();
}

#[test]
fn a_checkpoint_is_listed_once_a_look_has_proved_it() {
    let dir = tempfile::tempdir().unwrap();
    let journal = new_journal(dir.path(), with_boot(1));
    open(&journal, 1);
    let first = mark(&journal, 1);
    assert!(listed(dir.path()).is_empty(), "nobody looked behind it");
    confirm(&journal, 1, first);
    // A checkpoint with memory confirms an instant that lies before the newest look.
    confirm(&journal, 1, first - 1);
    assert_eq!(listed(dir.path()), [1].into());
    mark(&journal, 2);
    assert_eq!(listed(dir.path()), [1].into());
    drop(journal);
    assert_eq!(listed(dir.path()), [1].into(), "the agent was killed");
    let (journal, history) = Journal::open(dir.path(), with_boot(1)).unwrap();
    assert_eq!(history.confirmed.get(&1), Some(&first));
    close(&journal, 1, first);
    assert_eq!(listed(dir.path()), [1].into());
}

#[test]
fn no_listed_checkpoint_is_taken_back_whatever_ends_the_agent() {
    for seed in 1..=12 {
        let dir = tempfile::tempdir().unwrap();
        let mut rng = Rng(seed);
        let mut journal = new_journal(dir.path(), with_boot(1));
        let (mut id, mut checkpoint, mut seen) = (1, 0, BTreeSet::new());
        open(&journal, id);
        for _ in 0..40 {
            match rng.next() % 8 {
                0 | 1 => {
                    checkpoint += 1;
                    mark(&journal, checkpoint);
                }
                2 => confirm(&journal, id, journal.head()),
                3 => {
                    // A look that began before newer records.
                    let position = journal.head();
                    checkpoint += 1;
                    mark(&journal, checkpoint);
                    confirm(&journal, id, position);
                }
                4 => {
                    drop(journal);
                    seen.extend(listed(dir.path()));
                    let opened = Journal::open(dir.path(), with_boot(1)).unwrap();
                    journal = opened.0;
                    close(&journal, id, opened.1.confirmed[&id]);
                    seen.extend(listed(dir.path()));
                    id += 1;
                    open(&journal, id);
                }
                _ => drop(write(&journal, 0, &[3; 512])),
            }
            seen.extend(listed(dir.path()));
            let now = listed(dir.path());
            assert!(seen.is_subset(&now), "seed {seed}: {seen:?} were listed, now {now:?}");
        }
        assert!(!seen.is_empty());
    }
}
