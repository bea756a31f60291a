//! Appending, numbers, handles, and what a reader beside the writer sees.

use crate::fixture::{content, entries, new_journal, options, quiet, session, write};
use afterimage_journal::format::record::{FLAG_COPIED, Kind};
use afterimage_journal::history::When;
use afterimage_journal::log::Draft;
use afterimage_journal::meta::{Copy, CopyCause, CopyEvent, Meta, SessionEvent};
use afterimage_journal::{ErrorKind, History, Journal, Options};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[test]
fn every_position_reads_as_it_was_over_many_units() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("j");
    let journal = new_journal(&dir, options());
    journal.append_meta(&session(1, SessionEvent::Open)).unwrap();
    let mut seqs = vec![];
    for i in 0..2000u64 {
        seqs.push(write(&journal, (i % 16) * 4096, &vec![(i % 251) as u8; 4096]));
    }
    let live = History::load(&dir).unwrap();
    assert!(live.units.len() > 5, "{}", live.units.len());
    assert!(live.damage.is_empty(), "{:?}", live.damage);
    assert!(live.head >= *seqs.last().unwrap());
    journal.close().unwrap();
    let history = History::load(&dir).unwrap();
    assert!(history.closed && history.damage.is_empty());
    for i in [20usize, 700, 1999] {
        let byte = (i % 251) as u8;
        assert_eq!(content(&dir, seqs[i], (i as u64 % 16) * 4096, 4096), vec![byte; 4096]);
        let before = ((i - 16) % 251) as u8;
        assert_eq!(content(&dir, seqs[i] - 1, (i as u64 % 16) * 4096, 8), vec![before; 8]);
    }
}

#[test]
fn a_journal_left_open_continues_in_a_new_epoch_with_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("j");
    let journal = new_journal(&dir, options());
    journal.append_meta(&session(1, SessionEvent::Open)).unwrap();
    let last = write(&journal, 0, &[1; 512]);
    drop(journal);
    let (journal, history) = Journal::open(&dir, options()).unwrap();
    assert_eq!((history.head, history.closed, journal.epoch()), (last, false, 2));
    let outside = write(&journal, 0, &[2; 512]);
    journal.append_meta(&session(2, SessionEvent::Open)).unwrap();
    let inside = write(&journal, 0, &[3; 512]);
    journal.sync().unwrap();
    let history = History::load(&dir).unwrap();
    assert!(history.is_restorable(last) && history.is_restorable(inside));
    let refused = history.resolve(&When::Seq(outside)).unwrap_err();
    assert_eq!(refused.before.unwrap().seq, last);
    assert!(refused.after.unwrap().seq > outside);
    assert_eq!(history.gaps.len(), 1, "{:?}", history.gaps);
    assert!(matches!(
        Journal::open(&dir, options()),
        Err(afterimage_journal::Error::Locked { .. })
    ));
}

#[test]
fn copied_blocks_rank_where_their_copy_began() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("j");
    let journal = new_journal(&dir, options());
    let copy = |event| {
        Meta::Copy(Copy {
            id: 1,
            volume: 1,
            event,
            cause: CopyCause::Initial,
            upto: 0,
            whole: true,
        })
    };
    let early = write(&journal, 0, &[1; 512]);
    journal.append_meta(&copy(CopyEvent::Start)).unwrap();
    write(&journal, 512, &[2; 512]);
    let mut draft = Draft::of(Kind::Write);
    draft.volume = 1;
    draft.len = 1536;
    draft.flags = FLAG_COPIED;
    draft.scope = 1;
    journal.append(&draft, &[9; 1536]).unwrap();
    journal.append_meta(&copy(CopyEvent::End)).unwrap();
    let end = journal.append_meta(&session(1, SessionEvent::Open)).unwrap();
    let mut expected = vec![9u8; 512];
    expected.extend([2; 512]);
    expected.extend([9; 512]);
    assert_eq!(content(&dir, end, 0, 1536), expected);
    assert_eq!(content(&dir, early, 0, 1024)[..512], [1; 512]);
    assert_eq!(content(&dir, early, 0, 1024)[512..], [0; 512]);
    drop(journal);
}

#[test]
fn a_reader_beside_the_writer_sees_a_whole_prefix() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("j");
    let often = Options { sync_interval: Duration::from_millis(1), ..options() };
    let journal = new_journal(&dir, often);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..2u64 {
            let (journal, done) = (&journal, &done);
            scope.spawn(move || {
                let mut i = 0;
                while !done.load(Ordering::Relaxed) && i < 30_000 {
                    write(journal, (i % 200) * 512, &[thread as u8; 512]);
                    i += 1;
                }
            });
        }
        for _ in 0..25 {
            let before = journal.head();
            let history = History::load(&dir).unwrap();
            let (damage, head) = (&history.damage, history.head);
            let whole =
                entries(&history).windows(2).all(|p| p[1].record.seq == p[0].record.seq + 1);
            if !damage.is_empty() || head < before || !whole {
                done.store(true, Ordering::Relaxed);
            }
            assert!(damage.is_empty(), "{damage:?}");
            assert!(head >= before && whole, "{head} {before}");
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn an_idle_journal_ticks_and_a_busy_one_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("j");
    let fast = Options { tick_interval: Duration::from_millis(20), ..quiet() };
    let journal = new_journal(&dir, fast);
    let start = journal.head();
    let deadline = Instant::now() + Duration::from_secs(20);
    while journal.head() < start + 3 && Instant::now() < deadline {
        std::thread::yield_now();
    }
    drop(journal);
    let history = History::load(&dir).unwrap();
    let ticks = entries(&history).iter().filter(|e| e.record.kind == Kind::Tick).count();
    assert!(ticks >= 3, "{ticks}");
}

#[test]
fn the_last_handle_ends_the_journal_though_a_reservation_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("j");
    let journal = new_journal(&dir, options());
    let other = journal.clone();
    let left = journal.reserve(512).unwrap();
    drop(journal);
    write(&other, 0, &[1; 512]);
    drop(other);
    let error = left.commit(&Draft::of(Kind::Write)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Broken, "{error}");
    Journal::open(&dir, options()).unwrap();
}

#[test]
fn nothing_is_taken_behind_a_close() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("j");
    let journal = new_journal(&dir, options());
    let other = journal.clone();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let draft = Draft::of(Kind::Flush);
            while other.append(&draft, &[]).is_ok() {}
        });
        while journal.head() < 50 {
            std::thread::yield_now();
        }
        journal.close().unwrap();
    });
    let history = History::load(&dir).unwrap();
    assert!(history.closed && history.damage.is_empty() && !history.torn);
    drop(other);
    let next = Journal::open(&dir, options()).unwrap().0;
    assert!(next.head() > history.head && next.epoch() == 2);
}

#[test]
fn a_new_configuration_is_never_overtaken_by_the_repeated_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("j");
    let journal = new_journal(&dir, options());
    let mut config = History::load(&dir).unwrap().config().unwrap().clone();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                write(&journal, 0, &[0; 65536]);
            }
        });
        for i in 1..=100u64 {
            config.volumes[0].bytes = (1 << 20) + i * 512;
            journal.set_config(&config).unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    journal.close().unwrap();
    let history = History::load(&dir).unwrap();
    let sizes: Vec<u64> = history.configs.iter().map(|(_, c)| c.volumes[0].bytes).collect();
    assert!(sizes.is_sorted(), "{sizes:?}");
    assert_eq!(sizes.last(), Some(&((1 << 20) + 100 * 512)));
}

#[test]
fn what_a_smaller_volume_cut_off_does_not_come_back_when_it_grows() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("j");
    let journal = new_journal(&dir, quiet());
    let mut config = History::load(&dir).unwrap().config().unwrap().clone();
    write(&journal, 0, &[1; 4096]);
    let before = journal.head();
    for bytes in [1024, 1 << 20] {
        config.volumes[0].bytes = bytes;
        journal.set_config(&config).unwrap();
    }
    let grown = write(&journal, 2048, &[2; 512]);
    assert_eq!(content(&dir, before, 0, 4096), vec![1; 4096]);
    let mut expected = vec![1; 1024];
    expected.extend([0; 1024]);
    expected.extend([2; 512]);
    expected.extend([0; 1536]);
    assert_eq!(content(&dir, grown, 0, 4096), expected);
}
