//! Which file is unit N when several members have one of that name: never the order of directories decides.

use super::{Bed, UNIT, drain, units};
use crate::fixture::{Rng, bytes_of, content, draft, new_journal, options, write};
use crate::members::InTurn;
use afterimage_journal::pool::{DrainStep, FileName, Limit, Places, Pool, STRAY_DIR, table};
use afterimage_journal::{History, Journal, Options, Seq};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

fn three(bed: &Bed) -> Arc<Pool> {
    let pool = bed.open();
    pool.add(&bed.path("b"), Limit::Keep).unwrap();
    pool.add(&bed.path("c"), Limit::Keep).unwrap();
    pool
}

fn in_turn(bed: &Bed, pool: &Arc<Pool>, first: usize) -> Options {
    let dirs = vec![bed.home(), bed.path("b"), bed.path("c")];
    let allocator = InTurn { pool: Arc::clone(pool), dirs, next: AtomicUsize::new(first) };
    Options { allocator: Arc::new(allocator), ..options() }
}

/// Everything that was acknowledged reads back, and no name is on two members.
fn assert_all(bed: &Bed, written: &BTreeMap<Seq, Vec<u8>>, what: &str) {
    let web = bed.path("pool/web");
    let history = History::load(&web).unwrap();
    assert!(history.damage.is_empty(), "{what}: {:?}", history.damage);
    for (seq, data) in written {
        let entry = history.entry(*seq).unwrap().unwrap_or_else(|| panic!("{what}: lost {seq}"));
        let mut payload = Vec::new();
        history.read_payload(&entry, &mut payload).unwrap();
        assert!(payload == *data, "{what}: {seq} differs");
    }
    let strays = Places::of(&bed.storage, &web).unwrap().listing().unwrap().strays;
    assert!(strays.is_empty(), "{what}: {strays:?}");
}

#[test]
fn acknowledged_records_survive_kills_over_three_members() {
    let bed = Bed::new();
    let pool = three(&bed);
    let web = bed.path("pool/web");
    new_journal(&web, in_turn(&bed, &pool, 0)).close().unwrap();
    let mut rng = Rng(7);
    let (mut written, mut last) = (BTreeMap::new(), 0);
    for round in 0..14 {
        let first = (rng.next() % 3) as usize;
        let (journal, history) = Journal::open(&web, in_turn(&bed, &pool, first)).unwrap();
        assert_eq!(history.loss, None, "round {round}");
        for i in 0..rng.next() % 20 {
            let data = bytes_of(round << 32 | i, 60_000 + (rng.next() % 60_000) as usize);
            let seq = journal.append(&draft(1, 0, data.len()), &data).unwrap();
            assert!(seq > last, "round {round}: {seq} was given out twice");
            last = seq;
            written.insert(seq, data);
        }
        // The threads end without a close, as with the process.
        drop(journal);
        assert_all(&bed, &written, &format!("round {round}"));
    }
    // And a drain comes to its end.
    pool.add(&bed.home(), Limit::None).unwrap();
    pool.remove(&bed.path("b"), false).unwrap();
    let (journal, _) =
        Journal::open(&web, Options { allocator: pool.clone(), ..options() }).unwrap();
    journal.close().unwrap();
    assert_eq!(drain(&pool), DrainStep::Done(bed.path("b")));
    assert_all(&bed, &written, "drained");
}

/// What a version that trusted the order of directories left behind: an unused unit in the home, and one of
/// the same number on another member with what was acknowledged.
fn shadowed(bed: &Bed, pool: &Arc<Pool>) -> (Seq, PathBuf) {
    let web = bed.path("pool/web");
    let journal = new_journal(&web, in_turn(bed, pool, 0));
    write(&journal, 0, &[1; 512]);
    journal.close().unwrap();
    // Its first unit is on b.
    let (journal, _) = Journal::open(&web, in_turn(bed, pool, 1)).unwrap();
    let seq = write(&journal, 4096, &bytes_of(9, 4096));
    let number = journal.open_from();
    journal.close().unwrap();
    let name = format!("unit-{number:010}");
    let on_b = bed.path("b/web").join(&name);
    assert!(on_b.exists(), "{:?}", units(&bed.path("b/web")));
    // The same number, an older epoch, no records.
    let mut header = std::fs::read(&on_b).unwrap()[..4096].to_vec();
    rewrite(&mut header, |h| {
        h.epoch -= 1;
        h.salt = [5; 16];
    });
    header.resize(UNIT as usize, 0);
    std::fs::write(web.join(&name), header).unwrap();
    (seq, web.join(&name))
}

fn rewrite(
    block: &mut [u8],
    change: impl FnOnce(&mut afterimage_journal::format::unit_header::UnitHeader),
) {
    let mut header = afterimage_journal::format::unit_header::UnitHeader::decode(block).unwrap();
    change(&mut header);
    block[..4096].copy_from_slice(&header.encode());
}

#[test]
fn a_journal_of_an_older_version_is_healed_by_its_headers() {
    for has_table in [false, true] {
        let bed = Bed::new();
        let pool = three(&bed);
        let (seq, shadow) = shadowed(&bed, &pool);
        let web = bed.path("pool/web");
        if !has_table {
            std::fs::remove_file(web.join(table::NAME)).unwrap();
        }
        assert_eq!(content(&web, seq, 4096, 4096), bytes_of(9, 4096), "a reader sees it");
        let (journal, history) = Journal::open(&web, in_turn(&bed, &pool, 0)).unwrap();
        assert!(history.head >= seq && history.damage.is_empty(), "{:?}", history.damage);
        journal.close().unwrap();
        assert!(!shadow.exists(), "it was never used");
        assert_eq!(content(&web, seq, 4096, 4096), bytes_of(9, 4096));
    }
}

#[test]
fn a_lost_or_damaged_table_hides_nothing() {
    let bed = Bed::new();
    let pool = three(&bed);
    let web = bed.path("pool/web");
    let journal = new_journal(&web, in_turn(&bed, &pool, 0));
    let mut written = BTreeMap::new();
    for i in 0..30 {
        let data = bytes_of(i, 100_000);
        written.insert(journal.append(&draft(1, 0, data.len()), &data).unwrap(), data);
    }
    journal.close().unwrap();
    let path = web.join(table::NAME);
    let good = std::fs::read(&path).unwrap();
    let rows = good.len() / 64;
    assert!(rows > 6, "{rows}");
    let flipped = |at: usize| {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        bytes
    };
    let zeroed = |from: usize| {
        let mut bytes = good.clone();
        bytes[from..].fill(0);
        bytes
    };
    let mut cases = vec![Vec::new(), flipped(3), flipped(20), good[..good.len() - 64].to_vec()];
    cases.extend((1..rows).map(|row| flipped(row * 64 + 40)));
    cases.extend([zeroed(64), zeroed(good.len() - 64), good[..good.len() - 20].to_vec()]);
    for (i, bytes) in cases.into_iter().enumerate() {
        std::fs::write(&path, bytes).unwrap();
        assert_all(&bed, &written, &format!("case {i}, read"));
        let (journal, _) = Journal::open(&web, in_turn(&bed, &pool, i)).unwrap();
        journal.close().unwrap();
        assert_all(&bed, &written, &format!("case {i}, opened"));
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, &good).unwrap();
    }
    std::fs::remove_file(&path).unwrap();
    assert_all(&bed, &written, "without a table");
}

/// The newest units were on a member that is away now: no number of a unit or record that it may
/// hold is given out again, none is left out, and all is well when it is back.
#[test]
fn a_member_with_the_newest_units_may_be_away_for_one_opening() {
    let bed = Bed::new();
    let pool = three(&bed);
    let web = bed.path("pool/web");
    let open = || Options { allocator: pool.clone(), ..options() };
    let only = |dir: PathBuf| {
        for other in [bed.home(), bed.path("b"), bed.path("c")] {
            let limit = if other == dir { Limit::None } else { Limit::Bytes(0) };
            let _ = pool.add(&other, limit);
        }
    };
    only(bed.home());
    let journal = new_journal(&web, open());
    let first = write(&journal, 0, &bytes_of(1, 4096));
    only(bed.path("b"));
    for i in 0..40 {
        write(&journal, 0, &bytes_of(i, 100_000));
    }
    journal.sync().unwrap();
    let head = journal.head();
    drop(journal);
    let newest = units(&bed.path("b/web")).pop().unwrap();
    let last = FileName::parse(&newest).unwrap().numbers().1;
    std::fs::rename(bed.path("b"), bed.path("gone")).unwrap();
    pool.tend();
    only(bed.home());
    let (journal, history) = Journal::open(&web, open()).unwrap();
    let damage = &history.damage[0].what;
    assert!(damage.contains("/b is not there"), "compare all: {damage}");
    assert!(history.loss.is_some_and(|l| l.certain == history.head), "records are lost for now");
    assert!(journal.head() > head, "{} {head}", journal.head());
    assert_eq!(journal.open_from(), last + 1, "no number is left out");
    let epoch = journal.epoch();
    let late = write(&journal, 0, &bytes_of(2, 4096));
    journal.close().unwrap();
    let before = History::load(&web).unwrap();
    std::fs::rename(bed.path("gone"), bed.path("b")).unwrap();
    pool.tend();
    let history = History::load(&web).unwrap();
    assert!(history.damage.is_empty(), "{:?}", history.damage);
    assert_eq!(history.head, before.head);
    assert_eq!(content(&web, first, 0, 4096), bytes_of(1, 4096));
    // What was compared with in between is what counts.
    assert_eq!(content(&web, late, 0, 4096), bytes_of(2, 4096));
    let (journal, _) = Journal::open(&web, open()).unwrap();
    assert_eq!(journal.epoch(), epoch + 1, "no epoch is left out");
    journal.close().unwrap();
    assert!(History::load(&web).unwrap().damage.is_empty());
}

/// A journal that was opened in one directory gets its table with its first unit elsewhere.
#[test]
fn no_number_on_a_member_that_came_under_an_open_journal_is_given_out_again() {
    let bed = Bed::new();
    let pool = bed.open();
    let web = bed.path("pool/web");
    let open = || Options { allocator: pool.clone(), ..options() };
    let journal = new_journal(&web, open());
    write(&journal, 0, &bytes_of(1, 4096));
    pool.add(&bed.path("b"), Limit::Keep).unwrap();
    pool.add(&bed.home(), Limit::Bytes(0)).unwrap();
    for i in 0..40 {
        write(&journal, 0, &bytes_of(i, 100_000));
    }
    journal.sync().unwrap();
    let head = journal.head();
    drop(journal);
    assert!(!units(&bed.path("b/web")).is_empty());
    std::fs::rename(bed.path("b"), bed.path("gone")).unwrap();
    pool.tend();
    pool.add(&bed.home(), Limit::None).unwrap();
    let (journal, history) = Journal::open(&web, open()).unwrap();
    assert!(history.damage[0].what.contains("/b is not there"), "{:?}", history.damage);
    assert!(journal.head() > head, "{} {head}", journal.head());
    journal.close().unwrap();
}

#[test]
fn units_of_a_purged_journal_on_a_member_that_was_away_do_not_come_back() {
    for is_back_first in [false, true] {
        let bed = Bed::new();
        let pool = three(&bed);
        let web = bed.path("pool/web");
        let journal = new_journal(&web, in_turn(&bed, &pool, 0));
        for i in 0..60 {
            write(&journal, 0, &bytes_of(i, 100_000));
        }
        let group = journal.identity().group;
        journal.close().unwrap();
        let old = units(&bed.path("b/web"));
        assert!(old.len() > 1);
        std::fs::rename(bed.path("b"), bed.path("gone")).unwrap();
        pool.tend();
        pool.begin_purge("web", group).unwrap();
        std::fs::remove_dir_all(&web).unwrap();
        pool.purge().unwrap();
        assert!(units(&bed.path("c/web")).is_empty(), "what serves is cleared at once");
        // A word that got lost leaves them, and they still don't count.
        std::fs::remove_dir_all(bed.path("pool/.purged")).unwrap();
        if is_back_first {
            std::fs::rename(bed.path("gone"), bed.path("b")).unwrap();
            pool.tend();
        }
        let journal = new_journal(&web, in_turn(&bed, &pool, 0));
        let mut written = BTreeMap::new();
        for i in 0..20 {
            let data = bytes_of(i + 1000, 100_000);
            written.insert(journal.append(&draft(1, 0, data.len()), &data).unwrap(), data);
            if i == 10 && !is_back_first {
                std::fs::rename(bed.path("gone"), bed.path("b")).unwrap();
                pool.tend();
            }
        }
        journal.close().unwrap();
        let history = History::load(&web).unwrap();
        assert!(history.damage.is_empty(), "{:?}", history.damage);
        for (seq, data) in &written {
            assert_eq!(&content(&web, *seq, 0, data.len()), data);
        }
        drop(history);
        // Nothing of them was overwritten, and a drain sets them aside and ends.
        pool.remove(&bed.path("b"), false).unwrap();
        assert_eq!(drain(&pool), DrainStep::Done(bed.path("b")));
        let left = std::fs::read_dir(bed.path("b/web").join(STRAY_DIR)).unwrap().count();
        assert_eq!(left, old.len());
    }
}

#[test]
fn a_purge_reaches_a_member_that_was_away() {
    let bed = Bed::new();
    let pool = three(&bed);
    let web = bed.path("pool/web");
    let fill = |journal: &Journal| {
        for i in 0..60 {
            write(journal, 0, &bytes_of(i, 100_000));
        }
    };
    let journal = new_journal(&web, in_turn(&bed, &pool, 0));
    fill(&journal);
    let group = journal.identity().group;
    journal.close().unwrap();
    std::fs::rename(bed.path("b"), bed.path("gone")).unwrap();
    pool.tend();
    // One that was not deleted after all keeps what it has.
    pool.begin_purge("web", group).unwrap();
    pool.purge().unwrap();
    assert!(!units(&bed.path("c/web")).is_empty());
    pool.begin_purge("web", group).unwrap();
    std::fs::remove_dir_all(&web).unwrap();
    pool.purge().unwrap();
    let journal = new_journal(&web, in_turn(&bed, &pool, 0));
    fill(&journal);
    journal.close().unwrap();
    std::fs::rename(bed.path("gone"), bed.path("b")).unwrap();
    pool.tend();
    assert!(units(&bed.path("b/web")).is_empty(), "{:?}", units(&bed.path("b/web")));
    assert!(History::load(&web).unwrap().damage.is_empty());
    let words = std::fs::read_dir(bed.path("pool/.purged")).unwrap().count();
    assert_eq!(words, 0, "there is nothing left to remember");
}
