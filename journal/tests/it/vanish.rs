//! A site whose files vanish under it: that is noticed at the next look, and all is there again afterwards.

use crate::rounds::{Bench, names};
use afterimage_journal::feed::Feed;
use afterimage_journal::replica::{Replica, ReplicaOptions};
use afterimage_journal::storage::RealStorage;
use afterimage_journal::wire::{Op, Sink, SinkError};
use afterimage_journal::{History, Journal};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

fn replica(bench: &Bench, dir: &Path) -> Replica {
    let storage = RealStorage::shared();
    let clock = Arc::new(bench.watch.clone());
    let options = ReplicaOptions { clock, ..ReplicaOptions::at_home(&storage) };
    Replica::open(&storage, dir, options).unwrap()
}

fn ship(journal: &Journal, site: &mut Replica) {
    let mut feed = Feed::new(journal);
    let inventory = site.open(&feed.hello()).unwrap();
    feed.start(&inventory, false).unwrap();
    loop {
        let op = match feed.fresh().unwrap() {
            Some(op) => Some(op),
            None => feed.background().unwrap(),
        };
        match op {
            Some(op) => site.apply(op).unwrap(),
            None if feed.backlog().fresh_bytes == 0 => return,
            None => drop(feed.wait(Duration::from_millis(10))),
        }
    }
}

#[test]
fn files_that_vanish_under_a_site_are_noticed_and_sent_again() {
    type Loss = fn(&Path);
    let losses: [(&str, Loss); 5] = [
        ("the open unit", |dir| {
            let last = names(dir, "unit-").pop().unwrap();
            std::fs::remove_file(dir.join(last)).unwrap();
        }),
        ("another file in its place", |dir| {
            let last = dir.join(names(dir, "unit-").pop().unwrap());
            std::fs::copy(&last, dir.join("copy")).unwrap();
            std::fs::rename(dir.join("copy"), last).unwrap();
        }),
        ("a whole unit", |dir| {
            std::fs::remove_file(dir.join(&names(dir, "unit-")[1])).unwrap();
        }),
        ("all files", |dir| {
            names(dir, "").iter().for_each(|n| std::fs::remove_file(dir.join(n)).unwrap());
        }),
        ("its directory", |dir| std::fs::remove_dir_all(dir).unwrap()),
    ];
    for (what, lose) in losses {
        let mut bench = Bench::new(3);
        let at = tempfile::tempdir().unwrap();
        let dir = at.path().join("g");
        bench.round(3);
        let (journal, _) = Journal::open(&bench.dir, bench.options()).unwrap();
        journal.sync().unwrap();
        let mut site = replica(&bench, &dir);
        ship(&journal, &mut site);
        bench.pass(2_000_000_000);
        let sync = || Op::Sync { token: 9, watermark: 1, wall_ns: 1 };
        site.apply(sync()).unwrap();
        let before = History::load(&dir).unwrap().head;
        lose(&dir);
        bench.pass(2_000_000_000);
        let said = site.apply(sync()).expect_err(what);
        assert!(matches!(&said, SinkError::Away(why) if why.contains("again")), "{what}: {said}");
        drop(site);
        ship(&journal, &mut replica(&bench, &dir));
        let history = History::load(&dir).unwrap();
        assert!(history.damage.is_empty(), "{what}: {:?}", history.damage);
        assert_eq!(history.head, before, "{what}");
    }
}
