//! Errors of the host (no file descriptors, no memory, a failing device) are neither damage nor a torn tail,
//! and nothing is given up for them.

use crate::fixture::{draft, new_journal, quiet, session, with_boot, write};
use crate::hooked::{Call, Hooked};
use crate::pool::{Bed, units};
use afterimage_journal::catalogue;
use afterimage_journal::keeper::{Home, Keeper, Setup};
use afterimage_journal::merge::Unpaced;
use afterimage_journal::meta::SessionEvent;
use afterimage_journal::pool::{Allocate, Limit};
use afterimage_journal::storage::{RealStorage, Storage};
use afterimage_journal::window::{Keep, Limits};
use afterimage_journal::{Error, History, Journal, Options, Result, layout, ring};
use rustix::io::Errno;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Storage that fails with this error at calls that `is_hit` picks; how often it did.
fn failing(
    errno: Errno,
    is_hit: impl Fn(Call, &str) -> bool + Send + Sync + 'static,
) -> (Arc<dyn Storage>, Arc<AtomicU64>) {
    let hits = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&hits);
    let storage = Hooked::shared(move |call, path| {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if !is_hit(call, name) {
            return Ok(());
        }
        count.fetch_add(1, Ordering::Relaxed);
        Err(io::Error::from(errno))
    });
    (storage, hits)
}

/// A journal with sealed units, one in use, a catalogue if wanted, and records in the ring alone.
fn journal(dir: &Path, with_catalogue: bool) -> u64 {
    journal_with(dir, with_catalogue, quiet())
}

fn journal_with(dir: &Path, with_catalogue: bool, options: Options) -> u64 {
    let journal = new_journal(dir, options);
    journal.append_meta(&session(1, SessionEvent::Open)).unwrap();
    for i in 0..40_u64 {
        let payload = vec![i as u8 + 1; 60_000];
        journal.append(&draft(1, 4096 * i, payload.len()), &payload).unwrap();
    }
    journal.sync().unwrap();
    if with_catalogue {
        let storage = RealStorage::shared();
        let identity = layout::read_identity(dir).unwrap();
        let mut all = catalogue::Catalogue::open(&storage, dir).unwrap();
        catalogue::save(&*storage, dir, &identity, &mut all).unwrap();
    }
    write(&journal, 0, &[77; 512])
}

fn of_host(result: &Result<History>) -> bool {
    match result {
        Err(e) => e.is_host() || matches!(e, Error::Unusable { .. }),
        Ok(history) => history.damage.iter().all(|d| d.unread) && !history.damage.is_empty(),
    }
}

/// One failing call more each time, until all of an opening is through.
fn each_call(errno: Errno, dir: &Path, open: impl Fn(Arc<dyn Storage>) -> Result<History>) {
    let expected = History::load(dir).unwrap();
    for nth in 0.. {
        let seen = AtomicU64::new(0);
        let (storage, hits) = failing(errno, move |call, name| {
            let is_looked_at = matches!(call, Call::Open | Call::Read | Call::List | Call::Lock);
            let is_draft = name.ends_with(".tmp");
            is_looked_at && !is_draft && seen.fetch_add(1, Ordering::Relaxed) == nth
        });
        let result = open(storage);
        if hits.load(Ordering::Relaxed) == 0 {
            assert!(nth > 5, "too few calls fail");
            return;
        }
        // Some of what is derived is as good as not there: then all is as it was.
        if let Ok(history) = &result
            && history.damage.is_empty()
        {
            assert_eq!(history.head, expected.head, "{errno} at call {nth}");
            assert!(!history.torn, "{errno} at call {nth} is no torn tail");
            continue;
        }
        let told = result.as_ref().map(|h| &h.damage);
        assert!(of_host(&result), "{errno} at call {nth}: {told:?}");
    }
}

#[test]
fn host_errors_while_reading_are_no_damage() {
    for with_catalogue in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        journal(dir.path(), with_catalogue);
        for errno in [Errno::MFILE, Errno::NOMEM, Errno::IO] {
            each_call(errno, dir.path(), |storage| History::load_in(&storage, dir.path()));
        }
    }
}

#[test]
fn host_errors_make_no_member_of_a_pool_away() {
    let bed = Bed::new();
    let pool = bed.open();
    for member in ["b", "c"] {
        pool.add(&bed.path(member), Limit::None).unwrap();
    }
    pool.add(&bed.home(), Limit::Bytes(0)).unwrap();
    let web = bed.path("pool/web");
    let allocator: Arc<dyn Allocate> = pool;
    journal_with(&web, false, Options { allocator, ..quiet() });
    assert!(!units(&bed.path("b/web")).is_empty() || !units(&bed.path("c/web")).is_empty());
    for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM] {
        each_call(errno, &web, |storage| History::load_in(&storage, &web));
    }
}

#[test]
fn host_errors_while_opening_give_no_record_up() {
    for with_catalogue in [false, true] {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("j");
        let head = journal(&dir, with_catalogue);
        for errno in [Errno::MFILE, Errno::IO] {
            let (storage, hits) = failing(errno, |call, name| {
                call == Call::Open && (name == ring::NAME || name.starts_with("unit-"))
            });
            let opened = Journal::open(&dir, Options { storage, ..quiet() });
            assert!(opened.is_err() && hits.load(Ordering::Relaxed) > 0);
            drop(opened);
            // In the ring alone, the newest record is there still.
            assert_eq!(History::load(&dir).unwrap().head, head);
        }
        let is_hit = |call, name: &str| call == Call::Read && name.starts_with("unit-");
        let (storage, _) = failing(Errno::IO, is_hit);
        let opened = Journal::open(&dir, Options { storage, ..quiet() });
        let told = opened.err().unwrap().to_string();
        assert!(told.contains("Input/output error"), "{told}");
        let (_, history) = Journal::open(&dir, quiet()).unwrap();
        assert!(history.damage.is_empty() && !history.torn);
        assert_eq!(history.head, head);
    }
}

#[test]
fn a_ring_that_the_host_cannot_read_is_not_given_up() {
    for errno in [Errno::MFILE, Errno::IO] {
        let home = tempfile::tempdir().unwrap();
        let first = crate::ring::killed(home.path());
        let dir = home.path().join("j");
        for failing_call in [Call::Open, Call::Read] {
            let (storage, hits) =
                failing(errno, move |call, name| call == failing_call && name == ring::NAME);
            let read = History::load_in(&storage, &dir);
            assert!(read.err().is_some_and(|e| e.is_host()) && hits.load(Ordering::Relaxed) > 0);
            let opened = Journal::open(&dir, Options { storage, ..quiet() });
            assert!(opened.err().is_some_and(|e| e.is_host()));
        }
        let (_, history) = Journal::open(&dir, quiet()).unwrap();
        assert!(crate::ring::has_all(&history, first), "acknowledged records are lost");
    }
}

#[test]
fn a_full_opening_under_any_host_error_loses_nothing_later() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("j");
    journal(&dir, false);
    for nth in 0..60 {
        let copy = home.path().join("copy");
        crate::rounds::copy_files(&dir, &copy);
        let _ = std::fs::remove_file(copy.join(ring::NAME));
        let before = History::load(&copy).unwrap().head;
        let seen = AtomicU64::new(0);
        let (storage, _) = failing(Errno::MFILE, move |call, _| {
            matches!(call, Call::Open | Call::List) && seen.fetch_add(1, Ordering::Relaxed) == nth
        });
        drop(Journal::open(&copy, Options { storage, ..with_boot(1) }));
        let after = History::load(&copy).unwrap();
        assert!(after.damage.is_empty(), "call {nth}: {:?}", after.damage);
        assert!(after.head >= before, "call {nth}: {} is behind {before}", after.head);
        std::fs::remove_dir_all(&copy).unwrap();
    }
}

#[test]
fn scrubbing_tells_what_it_could_not_read_from_damage() {
    let dir = tempfile::tempdir().unwrap();
    let journal = new_journal(dir.path(), quiet());
    let payload = [5; 60_000];
    for i in 0..60 {
        journal.append(&draft(1, 4096 * i, payload.len()), &payload).unwrap();
    }
    journal.close().unwrap();
    for errno in [Errno::IO, Errno::MFILE] {
        let is_hit = |_, name: &str| name == "unit-0000000002";
        let (storage, hits) = failing(errno, is_hit);
        let catalogue = catalogue::Catalogue::open(&RealStorage::shared(), dir.path()).unwrap();
        let identity = layout::read_identity(dir.path()).unwrap();
        let mut scrub = afterimage_journal::scrub::Scrub::default();
        let mut found = Vec::new();
        for _ in 0..20 {
            found.extend(scrub.step(&storage, &identity, &catalogue, 1 << 20));
        }
        assert!(hits.load(Ordering::Relaxed) > 0);
        let is_unread = |f: &_| matches!(f, afterimage_journal::scrub::Finding::Unread(w) if w.contains("unit-"));
        assert!(found.iter().all(is_unread), "{found:?}");
        assert_eq!(found.is_empty(), errno == Errno::MFILE, "{found:?}");
    }
}

#[test]
fn a_unit_that_is_released_while_it_is_scrubbed_is_not_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let journal = new_journal(dir.path(), quiet());
    let payload = [5; 60_000];
    for i in 0..60 {
        journal.append(&draft(1, 4096 * i, payload.len()), &payload).unwrap();
    }
    journal.close().unwrap();
    let storage = RealStorage::shared();
    let identity = layout::read_identity(dir.path()).unwrap();
    let catalogue = catalogue::Catalogue::open(&storage, dir.path()).unwrap();
    let mut scrub = afterimage_journal::scrub::Scrub::default();
    // In the middle of the first unit.
    assert_eq!(scrub.step(&storage, &identity, &catalogue, 200_000), None);
    let unit = layout::unit_path(dir.path(), 1);
    let spare = dir.path().join("spare");
    std::fs::rename(&unit, &spare).unwrap();
    let bytes = vec![0xee; std::fs::metadata(&spare).unwrap().len() as usize];
    let file = std::fs::File::options().write(true).open(&spare).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
    for _ in 0..20 {
        assert_eq!(scrub.step(&storage, &identity, &catalogue, 1 << 20), None);
    }
    // Under its own name it is damage.
    std::fs::rename(&spare, &unit).unwrap();
    let found = (0..20).find_map(|_| scrub.step(&storage, &identity, &catalogue, 1 << 20));
    let is_damage = |f: &_| matches!(f, afterimage_journal::scrub::Finding::Damage(w) if w.contains("unit-0000000001"));
    assert!(found.as_ref().is_some_and(is_damage), "{found:?}");
}

#[test]
fn a_keeper_without_file_descriptors_keeps_the_catalogue() {
    let dir = tempfile::tempdir().unwrap();
    journal(dir.path(), true);
    let saved = std::fs::read(dir.path().join(catalogue::NAME)).unwrap();
    let (storage, hits) =
        failing(Errno::MFILE, |call, name| call == Call::Open && name == catalogue::NAME);
    let opened = Keeper::open(Setup {
        storage: Arc::clone(&storage),
        dir: dir.path().to_owned(),
        clock: quiet().clock,
        ground: Arc::new(Home { storage }),
        pace: Arc::new(Unpaced),
        limits: Limits::thinned(Keep::every_write(u64::MAX), None),
        key: None,
    });
    assert!(opened.is_err() && hits.load(Ordering::Relaxed) == 1);
    assert_eq!(std::fs::read(dir.path().join(catalogue::NAME)).unwrap(), saved);
}

#[test]
fn a_journal_that_cannot_be_read_is_not_absent() {
    let home = tempfile::tempdir().unwrap();
    journal(&layout::journal_dir(home.path(), "g").unwrap(), false);
    for kind in [io::ErrorKind::InvalidData, io::ErrorKind::TimedOut, io::ErrorKind::Other] {
        let storage = Hooked::shared(move |call, path| match call {
            Call::Open if path.ends_with("journal.json") => Err(kind.into()),
            _ => Ok(()),
        });
        assert!(layout::is_journal(&*storage, home.path(), "g").is_err(), "{kind}");
        assert_eq!(layout::journals_in(&*storage, home.path()).unwrap(), ["g"], "{kind}");
        assert!(!layout::is_journal(&*storage, home.path(), "other").unwrap_or(false));
    }
    assert!(!layout::is_journal(&RealStorage, home.path(), "other").unwrap());
    assert!(layout::is_journal(&RealStorage, home.path(), "g").unwrap());
}
