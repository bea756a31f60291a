//! A number that counts nowhere, since its record was torn off, costs only the runs over its unit.

use crate::fixture::{draft, new_journal, with_boot, write};
use crate::hooked::{Call, Hooked};
use afterimage_journal::keeper::{Home, Keeper, Setup};
use afterimage_journal::merge::Unpaced;
use afterimage_journal::storage::RealStorage;
use afterimage_journal::window::{Keep, Limits};
use afterimage_journal::{History, Journal, Options, ring};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

fn fill(journal: &Journal, units: u64) {
    let payload = [5; 60_000];
    for i in 0..units * 17 {
        journal.append(&draft(1, 512 * (i % 1000), payload.len()), &payload).unwrap();
    }
}

fn keep(dir: &Path) {
    let storage = RealStorage::shared();
    let mut keeper = Keeper::open(Setup {
        storage: Arc::clone(&storage),
        dir: dir.to_owned(),
        clock: with_boot(1).clock,
        ground: Arc::new(Home { storage }),
        pace: Arc::new(Unpaced),
        limits: Limits::thinned(Keep::every_write(u64::MAX), None),
        key: None,
    })
    .unwrap();
    while keeper.step().unwrap() {}
}

#[test]
fn a_void_number_leaves_the_runs_over_other_units_in_use() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("j");
    let journal = new_journal(&dir, with_boot(1));
    fill(&journal, 10);
    journal.sync().unwrap();
    let torn = write(&journal, 0, &[1; 512]);
    let void = write(&journal, 512, &[2; 512]);
    drop(journal);
    // The power goes: the first of both is lost, the second is not.
    std::fs::remove_file(dir.join(ring::NAME)).unwrap();
    let history = History::load(&dir).unwrap();
    let entry = history.entry(torn).unwrap().unwrap();
    let unit = history.units[entry.unit as usize].path.clone();
    drop(history);
    let file = File::options().write(true).open(&unit).unwrap();
    file.write_all_at(&[0; 64 + 512], entry.at).unwrap();
    // The next opening can't seal the unit anew, so that the number stays in it.
    let name = unit.file_name().unwrap().to_owned();
    let storage = Hooked::shared(move |call, path| match call {
        Call::Write if path.file_name() == Some(&name) => Err(rustix::io::Errno::IO.into()),
        _ => Ok(()),
    });
    let (journal, history) = Journal::open(&dir, Options { storage, ..with_boot(2) }).unwrap();
    assert!(history.torn && history.head < torn && journal.head() >= void);
    fill(&journal, 2);
    journal.sync().unwrap();
    keep(&dir);

    let opened = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&opened);
    let storage = Hooked::shared(move |call, path| {
        let name = path.file_name().map(|n| n.as_encoded_bytes()).unwrap_or_default();
        let is_unit = name.starts_with(b"unit-");
        if call == Call::Open && is_unit {
            count.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    });
    let history = History::load_in(&storage, &dir).unwrap();
    assert!(history.damage.is_empty(), "{:?}", history.damage);
    opened.store(0, Ordering::Relaxed);
    history.map(1, history.head).unwrap();
    let opened = opened.load(Ordering::Relaxed);
    assert!(opened <= 4, "{opened} of {} indexes are read", history.units.len());
    let mut found = [0; 512];
    afterimage_journal::View::at(&history, 1, history.head).unwrap().read(0, &mut found).unwrap();
    assert_eq!(found, [5; 512], "what counts is what was written before, and behind");
}
