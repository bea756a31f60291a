//! Emptying a member while a journal is written.

use super::{Bed, drain, state, units};
use crate::fixture::{assert_whole, bytes_of, entries, new_journal, options, write};
use afterimage_journal::format::record::Kind;
use afterimage_journal::merge::release::held_files;
use afterimage_journal::pool::{DrainStep, FileName, Limit, MEMBER_FILE, Places, Pool, UnitUse};
use afterimage_journal::storage::LockKind;
use afterimage_journal::{History, Options, Seq};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

/// A journal with sealed units, some of which lie on `b`: moved there by hand, as the names of
/// units are all that says where they are.
fn journal_on_two(bed: &Bed) -> BTreeMap<Seq, Vec<u8>> {
    let dir = bed.path("pool/web");
    let journal = new_journal(&dir, options());
    let mut written = BTreeMap::new();
    for i in 0..60 {
        let payload = bytes_of(i, 100_000);
        written.insert(write(&journal, 0, &payload), payload);
    }
    journal.close().unwrap();
    std::fs::create_dir_all(bed.path("b/web")).unwrap();
    for name in units(&dir).iter().step_by(2) {
        std::fs::copy(dir.join(name), bed.path("b/web").join(name)).unwrap();
        std::fs::remove_file(dir.join(name)).unwrap();
    }
    written
}

fn used(is_written: bool) -> UnitUse {
    if is_written { UnitUse::Written } else { UnitUse::Idle }
}

/// A directory of somebody else's, with a file; and what a link to it in this place costs.
fn victim(bed: &Bed, link: &str) -> impl Fn() -> bool + use<> {
    let dir = bed.path("victim");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("precious"), "x").unwrap();
    std::os::unix::fs::symlink(&dir, bed.path(link)).unwrap();
    move || std::fs::read_dir(&dir).unwrap().count() == 1 && dir.join("precious").exists()
}

#[test]
fn link_in_the_place_of_held_leads_no_drain_elsewhere() {
    let bed = Bed::new();
    let pool = bed.open();
    pool.add(&bed.path("b"), Limit::Keep).unwrap();
    let written = journal_on_two(&bed);
    let is_whole = victim(&bed, "b/web/held");
    let pin = bed.storage.lock(&bed.path("pool/web/pin"), LockKind::Shared).unwrap();
    pool.remove(&bed.path("b"), false).unwrap();
    for _ in 0..3 {
        // With a reader there, what is given up would be held.
        let _ = pool.drain_step(&|_, _| UnitUse::Written);
    }
    drop(pin);
    for _ in 0..100 {
        if matches!(pool.drain_step(&|_, _| UnitUse::Written), Ok(DrainStep::Done(_))) {
            break;
        }
    }
    assert!(is_whole(), "a drain reached a directory that is not the pool's");
    assert_all_home(&bed, &written);
}

#[test]
fn link_in_the_place_of_held_leads_no_keeper_and_no_purge_elsewhere() {
    let bed = Bed::new();
    let pool = bed.open();
    journal_on_two(&bed);
    let is_whole = victim(&bed, "pool/web/held");
    let dirs = [bed.path("pool/web")];
    assert!(held_files(&bed.storage, &dirs).unwrap().is_empty());
    let group = afterimage_journal::layout::read_identity(&dirs[0]).unwrap().group;
    pool.begin_purge("web", group).unwrap();
    std::fs::remove_file(dirs[0].join("journal.json")).unwrap();
    let _ = pool.purge();
    assert!(is_whole(), "a purge reached a directory that is not the pool's");
}

/// The home holds everything again, byte for byte what was written.
fn assert_all_home(bed: &Bed, written: &BTreeMap<Seq, Vec<u8>>) {
    let history = History::load(&bed.path("pool/web")).unwrap();
    assert_whole(&history);
    let mut found = 0;
    let mut payload = Vec::new();
    for entry in entries(&history).iter().filter(|e| e.record.kind == Kind::Write) {
        history.read_payload(entry, &mut payload).unwrap();
        assert_eq!(Some(&payload), written.get(&entry.record.seq));
        found += 1;
    }
    assert_eq!(found, written.len());
}

fn assert_gone(bed: &Bed, pool: &Pool) {
    assert!(pool.list().iter().all(|m| m.path != bed.path("b")), "{:?}", pool.list());
    let left: Vec<_> = std::fs::read_dir(bed.path("b")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_drained_member_ends_empty_and_nothing_is_lost() {
    let bed = Bed::new();
    let pool = bed.open();
    pool.add(&bed.path("b"), Limit::Keep).unwrap();
    let written = journal_on_two(&bed);
    pool.remove(&bed.path("b"), false).unwrap();
    assert_eq!(drain(&pool), DrainStep::Done(bed.path("b")));
    assert_all_home(&bed, &written);
    assert_gone(&bed, &pool);
    assert_eq!(pool.drain_step(&|_, _| UnitUse::Written).unwrap(), DrainStep::Idle);
}

#[test]
fn draining_goes_on_after_a_restart_and_adding_the_member_again_ends_it() {
    let bed = Bed::new();
    let pool = bed.open();
    pool.add(&bed.path("b"), Limit::Keep).unwrap();
    let written = journal_on_two(&bed);
    let before = units(&bed.path("b/web")).len();
    pool.remove(&bed.path("b"), false).unwrap();
    assert!(matches!(pool.drain_step(&|_, _| UnitUse::Written).unwrap(), DrainStep::Moved(_)));
    drop(pool);
    let pool = bed.open();
    assert_eq!(state(&pool, &bed.path("b")).0, "draining");
    assert!(matches!(pool.drain_step(&|_, _| UnitUse::Written).unwrap(), DrainStep::Moved(_)));
    assert_eq!(units(&bed.path("b/web")).len(), before - 2);
    pool.add(&bed.path("b"), Limit::Keep).unwrap();
    assert_eq!(pool.drain_step(&|_, _| UnitUse::Written).unwrap(), DrainStep::Idle);
    assert_eq!(state(&pool, &bed.path("b")).0, "active");
    pool.remove(&bed.path("b"), false).unwrap();
    drain(&pool);
    assert_all_home(&bed, &written);
}

#[test]
fn without_room_elsewhere_it_says_so_and_waits() {
    let bed = Bed::new();
    let pool = bed.open();
    pool.add(&bed.path("b"), Limit::Keep).unwrap();
    let written = journal_on_two(&bed);
    pool.add(&bed.home(), Limit::Bytes(1 << 20)).unwrap();
    pool.remove(&bed.path("b"), false).unwrap();
    assert!(matches!(drain(&pool), DrainStep::Waiting(why) if why.contains("no room")));
    assert!(state(&pool, &bed.path("b")).1.contains("no room"));
    pool.add(&bed.path("c"), Limit::Keep).unwrap();
    assert_eq!(drain(&pool), DrainStep::Done(bed.path("b")));
    assert!(!units(&bed.path("c/web")).is_empty());
    let places = Places::of(&bed.storage, &bed.path("pool/web")).unwrap();
    let count = places.units().unwrap().len();
    for name in units(&bed.path("c/web")) {
        std::fs::rename(bed.path("c/web").join(&name), bed.path("pool/web").join(&name)).unwrap();
    }
    assert_eq!(units(&bed.path("pool/web")).len(), count);
    assert_all_home(&bed, &written);
}

#[test]
fn what_a_reader_may_need_is_held_until_it_ends() {
    let bed = Bed::new();
    let pool = bed.open();
    pool.add(&bed.path("b"), Limit::Keep).unwrap();
    let written = journal_on_two(&bed);
    let before = units(&bed.path("b/web"));
    let pin = bed.storage.lock(&bed.path("pool/web/pin"), LockKind::Shared).unwrap();
    pool.remove(&bed.path("b"), false).unwrap();
    assert!(matches!(drain(&pool), DrainStep::Waiting(why) if why.contains("still reads")));
    assert_eq!(units(&bed.path("b/web/held")), before);
    assert_all_home(&bed, &written);
    drop(pin);
    assert_eq!(drain(&pool), DrainStep::Done(bed.path("b")));
    assert_gone(&bed, &pool);
}

#[test]
fn an_open_unit_stays_until_it_is_sealed() {
    let bed = Bed::new();
    let pool = bed.open();
    pool.add(&bed.path("b"), Limit::Keep).unwrap();
    let journal = new_journal(&bed.path("pool/web"), options());
    write(&journal, 0, &[1; 512]);
    journal.sync().unwrap();
    drop(journal);
    std::fs::create_dir(bed.path("b/web")).unwrap();
    let open = units(&bed.path("pool/web")).pop().unwrap();
    std::fs::rename(bed.path("pool/web").join(&open), bed.path("b/web").join(&open)).unwrap();
    pool.remove(&bed.path("b"), false).unwrap();
    assert_eq!(drain(&pool), DrainStep::Open(vec!["web".into()]));
    assert!(state(&pool, &bed.path("b")).1.contains("web still writes"));
    assert!(bed.path("b").join(MEMBER_FILE).exists());
    // One that nobody writes any more moves as it is.
    assert!(matches!(pool.drain_step(&|_, _| UnitUse::Idle).unwrap(), DrainStep::Moved(_)));
    assert!(bed.path("pool/web").join(&open).exists());
    assert_eq!(drain(&pool), DrainStep::Done(bed.path("b")));
}

/// The writer appends all the while, and is asked for a new unit when its own is in the way.
#[test]
fn a_member_is_drained_under_a_writer() {
    let bed = Bed::new();
    let pool = bed.open();
    pool.add(&bed.path("b"), Limit::Keep).unwrap();
    pool.add(&bed.home(), Limit::Bytes(0)).unwrap();
    let allocator: std::sync::Arc<dyn afterimage_journal::pool::Allocate> = pool.clone();
    let dir = bed.path("pool/web");
    let journal = new_journal(&dir, Options { allocator, ..options() });
    let mut written = BTreeMap::new();
    let mut append = |i: u64| {
        let payload = bytes_of(i, 50_000);
        written.insert(write(&journal, 0, &payload), payload);
    };
    (0..60).for_each(&mut append);
    assert!(!units(&bed.path("b/web")).is_empty() && units(&dir).is_empty());
    pool.add(&bed.home(), Limit::None).unwrap();
    pool.remove(&bed.path("b"), false).unwrap();
    let begin = Instant::now();
    for i in 60.. {
        append(i);
        match pool.drain_step(&|_, number| used(number >= journal.open_from())).unwrap() {
            DrainStep::Open(groups) => {
                assert_eq!(groups, ["web"]);
                let _ = journal.turn();
            }
            DrainStep::Done(_) => break,
            DrainStep::Waiting(why) => panic!("{why}"),
            DrainStep::Moved(_) | DrainStep::Idle => {}
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", pool.list());
    }
    assert_gone(&bed, &pool);
    journal.close().unwrap();
    assert_all_home(&bed, &written);
}

#[test]
fn a_file_that_is_not_the_unit_is_set_aside_and_the_drain_ends() {
    let bed = Bed::new();
    let pool = bed.open();
    pool.add(&bed.path("b"), Limit::Keep).unwrap();
    let written = journal_on_two(&bed);
    let name = units(&bed.path("b/web")).remove(0);
    std::fs::write(bed.path("pool/web").join(&name), "something else").unwrap();
    pool.remove(&bed.path("b"), false).unwrap();
    assert_eq!(drain(&pool), DrainStep::Done(bed.path("b")));
    assert_all_home(&bed, &written);
    let aside = bed.path("pool/web/strays").join(format!("{name}.0"));
    assert_eq!(std::fs::read(aside).unwrap(), b"something else");
}

/// Readers look for units all the while: each is found, whole, at every moment.
#[test]
fn a_unit_is_found_at_every_moment_of_its_move() {
    let bed = Bed::new();
    let pool = bed.open();
    pool.add(&bed.path("b"), Limit::Keep).unwrap();
    journal_on_two(&bed);
    let web = bed.path("pool/web");
    let names: Vec<_> =
        units(&bed.path("b/web")).iter().map(|n| FileName::parse(n).unwrap()).collect();
    let bytes: Vec<_> = names
        .iter()
        .map(|n| std::fs::read(bed.path("b/web").join(n.to_string())).unwrap())
        .collect();
    let begin = Instant::now();
    for _ in 0..5 {
        pool.remove(&bed.path("b"), false).unwrap();
        let places = Places::of(&bed.storage, &web).unwrap();
        std::thread::scope(|scope| {
            let drained = scope.spawn(|| drain(&pool));
            while !drained.is_finished() {
                for (name, bytes) in names.iter().zip(&bytes) {
                    assert_eq!(&read(&places, *name), bytes, "{name}");
                }
                assert!(begin.elapsed() < Duration::from_secs(60), "it hangs");
            }
            assert_eq!(drained.join().unwrap(), DrainStep::Done(bed.path("b")));
        });
        pool.add(&bed.path("b"), Limit::Keep).unwrap();
        std::fs::create_dir(bed.path("b/web")).unwrap();
        for name in &names {
            let name = name.to_string();
            std::fs::copy(web.join(&name), bed.path("b/web").join(&name)).unwrap();
            std::fs::remove_file(web.join(&name)).unwrap();
        }
    }
}

/// As readers do: what moved between looking and opening is looked for again.
fn read(places: &Places, name: FileName) -> Vec<u8> {
    for _ in 0..100 {
        let path = places.find(name);
        match path.as_deref().map(|p: &Path| std::fs::read(p)) {
            Some(Ok(bytes)) => return bytes,
            Some(Err(e)) => assert_eq!(e.kind(), std::io::ErrorKind::NotFound),
            None => {}
        }
    }
    panic!("{name} is nowhere");
}

/// A journal is being opened while its units lie on a member that is drained: who opens it has the lock.
#[test]
fn an_open_unit_of_a_journal_that_nobody_here_knows_moves_under_its_lock_alone() {
    let bed = Bed::new();
    let pool = bed.open();
    pool.add(&bed.path("b"), Limit::Keep).unwrap();
    pool.add(&bed.home(), Limit::Bytes(0)).unwrap();
    let web = bed.path("pool/web");
    let allocator: std::sync::Arc<dyn afterimage_journal::pool::Allocate> = pool.clone();
    let journal = new_journal(&web, Options { allocator, ..options() });
    let seq = write(&journal, 0, &bytes_of(1, 4096));
    journal.sync().unwrap();
    pool.add(&bed.home(), Limit::None).unwrap();
    pool.remove(&bed.path("b"), false).unwrap();
    let step = || pool.drain_step(&|_, _| UnitUse::Unknown).unwrap();
    for _ in 0..3 {
        assert_eq!(step(), DrainStep::Open(vec!["web".into()]));
    }
    drop(journal);
    while matches!(step(), DrainStep::Moved(_)) {}
    assert_gone(&bed, &pool);
    assert_eq!(crate::fixture::content(&web, seq, 0, 4096), bytes_of(1, 4096));
}
