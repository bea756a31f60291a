//! A recovery site's daemon as a process: what is sent there is held there byte for byte, whatever is
//! killed meanwhile, and restored with the source gone.

use crate::conform::source::{LIMIT, Source, images, send};
use crate::kit::{Cli, Outcome, Site, poll};
use afterimage_journal::feed::Feed;
use afterimage_journal::layout;
use afterimage_journal::replica::{Replica, ReplicaOptions};
use afterimage_journal::storage::{RealStorage, Storage};
use afterimage_journal::wire::{Ack, Hello, Inventory, Op, Sink, SinkError};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_afterimage");

fn replica(dir: &Path) -> Replica {
    let storage: Arc<dyn Storage> = RealStorage::shared();
    Replica::open(&storage, dir, ReplicaOptions::at_home(&storage)).unwrap()
}

/// The journal's files, by name. What a keeper derives from them is not among them.
fn files(state: &Path) -> BTreeMap<String, Vec<u8>> {
    let dir = layout::journal_dir(state, "shop").unwrap();
    let names = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap());
    let names = names.map(|e| e.file_name().into_string().unwrap());
    let names =
        names.filter(|n| n.starts_with("unit-") || n.starts_with("merged-") || n == "journal.json");
    names.map(|n| (n.clone(), std::fs::read(dir.join(&n)).unwrap())).collect()
}

/// The same without the zeroes at their ends: room for more, and what was refused and cleared away.
pub fn filled(state: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = files(state);
    for bytes in files.values_mut() {
        let end = bytes.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
        bytes.truncate(end);
    }
    files
}

#[track_caller]
fn same_files(one: &Path, other: &Path) {
    let (one, other) = (files(one), files(other));
    assert_eq!(one.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>());
    for (name, bytes) in &one {
        assert!(*bytes == other[name], "{name} differs");
    }
}

#[track_caller]
pub fn refused(outcome: &Outcome, code: i32, words: &[&str]) {
    assert_eq!(outcome.code, code, "{outcome:?}");
    for word in words {
        assert!(outcome.stderr.contains(word), "{word}: {outcome:?}");
    }
}

/// The disks as they were last.
#[track_caller]
pub fn latest(cli: &Cli) -> Vec<Vec<u8>> {
    images(cli, "latest").unwrap()
}

#[test]
fn a_site_holds_the_same_files_as_a_directory_that_was_sent_the_same() {
    let mut source = Source::new();
    let dir = TempDir::with_prefix("site-").unwrap();
    let site = Site::start(PROGRAM, dir.path().join("s"), None);
    let local = dir.path().join("local");
    layout::check_state(&local, true).unwrap();
    let mut near = replica(&layout::journal_dir(&local, "shop").unwrap());
    let mut far = source.come_to(&site);
    let mut feeds = [Feed::new(&source.journal), Feed::new(&source.journal)];
    let mut acked = [Ack::default(), Ack::default()];
    for round in 0..4 {
        source.write(400 + 100 * round);
        send(&mut feeds[0], &mut near, &mut acked[0]).unwrap();
        send(&mut feeds[1], &mut far, &mut acked[1]).unwrap();
        assert_eq!(acked[0].watermark, acked[1].watermark);
        let hello = feeds[0].hello();
        assert_eq!(near.open(&hello).unwrap(), far.open(&hello).unwrap());
        same_files(&local, site.state());
    }
    assert!(acked[1].watermark >= 2200 && files(&local).len() > 6, "{:?}", files(&local).keys());
}

#[test]
fn with_the_source_gone_the_site_restores_lists_exports_and_verifies() {
    let mut source = Source::new();
    let dir = TempDir::with_prefix("site-").unwrap();
    let site = Site::start(PROGRAM, dir.path().join("s"), None);
    assert!(site.ok(&["status"]).contains("no group was sent here yet"));
    source.write(600);
    let mut sink = source.come_to(&site);
    let mut acked = Ack::default();
    let mut feed = Feed::new(&source.journal);
    send(&mut feed, &mut sink, &mut acked).unwrap();
    let status = site.json(&["status", "shop"]);
    assert_eq!(status["watermark"], acked.watermark, "{status}");
    assert_eq!(status["connection"]["epoch"], feed.hello().epoch);
    assert_eq!(status["offline"], false);
    assert!(status["lag_ms"].as_u64().unwrap() < 60_000, "{status}");
    assert!(status["units"].as_u64().unwrap() >= 3 && status["error"].is_null(), "{status}");
    assert!(site.ok(&["status"]).contains("connected"));
    let expected = latest(&source.cli());
    drop((feed, sink, source));
    // With the daemon and without it.
    assert_eq!(latest(&site), expected);
    let status = poll(LIMIT, || {
        let status = site.json(&["status", "shop"]);
        status["connection"].is_null().then_some(status)
    });
    assert!(status.unwrap()["ended"].as_str().unwrap().contains("ended"));
    let state = site.state().to_owned();
    assert!(site.stop().success());
    let cli = Cli::new(PROGRAM, &state);
    assert_eq!(latest(&cli), expected);
    assert_eq!(cli.json(&["checkpoints", "web"]).as_array().unwrap().len(), 1);
    cli.ok(&["verify", "shop"]);
    let offline = cli.json(&["status", "shop"]);
    assert_eq!(offline["offline"], true);
    assert_eq!(offline["watermark"], acked.watermark, "{offline}");
    refused(&cli.run(&["status", "nobody"]), 2, &["holds no group"]);
    let shown = cli.run(&["status"]);
    assert!(shown.stderr.contains("daemon doesn't run") && shown.code == 0, "{shown:?}");
}

#[test]
fn a_site_that_is_killed_again_and_again_ends_with_the_same_files() {
    let mut source = Source::new();
    let dir = TempDir::with_prefix("site-").unwrap();
    let state = dir.path().join("s");
    let mut site = Site::start(PROGRAM, &state, None);
    let mut sink = source.come_to(&site);
    let addr = site.addr.clone();
    let (mut acked, mut kills) = (Ack::default(), 0);
    let mut feed = Feed::new(&source.journal);
    for round in 0..6u64 {
        source.write(700);
        // At a moment of its own each time.
        let kill = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(15 + 23 * round));
            site.kill();
        });
        let sent = loop {
            match send(&mut feed, &mut sink, &mut acked) {
                Err(SinkError::Away(_)) => break false,
                Err(other) => panic!("{other:?}"),
                Ok(()) if kill.is_finished() => break true,
                Ok(()) => drop(source.write(50)),
            }
        };
        kills += u32::from(!sent);
        kill.join().unwrap();
        site = Site::start(PROGRAM, &state, Some(&addr));
    }
    assert!(kills >= 3, "it was killed {kills} times while something was sent");
    send(&mut feed, &mut sink, &mut acked).unwrap();
    let local = dir.path().join("local");
    layout::check_state(&local, true).unwrap();
    let mut near = replica(&layout::journal_dir(&local, "shop").unwrap());
    let mut other = Feed::new(&source.journal);
    send(&mut other, &mut near, &mut Ack::default()).unwrap();
    let mine: Inventory = near.open(&other.hello()).unwrap();
    assert_eq!(sink.open(&feed.hello()).unwrap().watermark, mine.watermark);
    assert_eq!(latest(&site), latest(&source.cli()));
    site.ok(&["verify", "shop"]);
}

#[test]
fn what_is_damaged_on_its_way_leaves_the_sites_journal_as_it_was() {
    let mut source = Source::new();
    let dir = TempDir::with_prefix("site-").unwrap();
    let site = Site::start(PROGRAM, dir.path().join("s"), None);
    source.write(600);
    let mut sink = source.come_to(&site);
    let mut feed = Feed::new(&source.journal);
    send(&mut feed, &mut sink, &mut Ack::default()).unwrap();
    let before = filled(site.state());
    let held = sink.open(&feed.hello()).unwrap();
    let last = held.files.last().copied().unwrap();
    let afterimage_journal::wire::Extent::Open(at) = last.extent else {
        panic!("{last:?} is not open")
    };
    let unit = last.name.numbers().0;
    let hostile = [
        Op::Bytes { unit, at, bytes: vec![0xa5; 8192] },
        Op::Bytes { unit, at: at - 512, bytes: vec![1; 512] },
        Op::Bytes { unit: 1, at: 4096, bytes: vec![1; 4096] },
        Op::Seal { unit, end: at, index_crc: 1 },
        Op::PutEnd { name: last.name, index_crc: 1 },
        Op::Release(held.files.iter().map(|f| f.name).collect()),
    ];
    for op in hostile {
        sink.open(&feed.hello()).unwrap();
        let shown = format!("{op:?}").chars().take(60).collect::<String>();
        let _ = sink.apply(op);
        let _ = sink.apply(Op::Sync { token: 99, watermark: 1, wall_ns: 1 });
        // Whether it was refused or did nothing: what was there is there.
        while sink.ack(Duration::from_secs(2)).is_ok_and(|a| a.is_some()) {}
        assert!(before == filled(site.state()), "{shown}");
    }
    send(&mut feed, &mut sink, &mut Ack::default()).unwrap();
    source.write(100);
    send(&mut feed, &mut sink, &mut Ack::default()).unwrap();
    site.ok(&["verify", "shop"]);
}

#[test]
fn a_site_keeps_its_own_window_while_more_is_sent() {
    let mut source = Source::new();
    let dir = TempDir::with_prefix("site-").unwrap();
    let site = Site::start(PROGRAM, dir.path().join("s"), None);
    site.ok(&["site", "set", "shop", "--window", "1s"]);
    let mut sink = source.come_to(&site);
    let mut feed = Feed::new(&source.journal);
    for _ in 0..4 {
        source.write(500);
        send(&mut feed, &mut sink, &mut Ack::default()).unwrap();
        std::thread::sleep(Duration::from_millis(700));
    }
    let merged = poll(LIMIT, || {
        source.write(10);
        send(&mut feed, &mut sink, &mut Ack::default()).unwrap();
        files(site.state()).keys().any(|n| n.starts_with("merged-")).then_some(())
    });
    assert!(merged.is_some(), "nothing was merged: {:?}", site.json(&["status"]));
    assert!(!files(&source.state()).keys().any(|n| n.starts_with("merged-")));
    source.write(10);
    send(&mut feed, &mut sink, &mut Ack::default()).unwrap();
    assert_eq!(latest(&site), latest(&source.cli()));
    let shown = site.ok(&["site", "set", "shop", "--window", "2h", "--limit", "200MiB"]);
    assert!(shown.contains("2h") && shown.contains("200"), "{shown}");
    let followed = poll(LIMIT, || {
        let status = site.json(&["status", "shop"]);
        (status["window_s"] == 7200 && status["limit_bytes"] == 200 << 20).then_some(())
    });
    assert!(followed.is_some(), "{}", site.json(&["status"]));
}

#[test]
fn a_new_site_is_seeded_from_one_that_stands_and_gets_only_the_news_from_the_agent() {
    let mut source = Source::new();
    let dir = TempDir::with_prefix("site-").unwrap();
    let old = Site::start(PROGRAM, dir.path().join("old"), None);
    let mut positions = vec![source.write(700), source.write(500)];
    let mut sink = source.come_to(&old);
    let mut feed = Feed::new(&source.journal);
    send(&mut feed, &mut sink, &mut Ack::default()).unwrap();
    // Under the old site's daemon, while the source goes on.
    let new = Site::start(PROGRAM, dir.path().join("new"), None);
    let from = old.state().display().to_string();
    let seeded = new.json(&["site", "seed", "shop", "--from", &from]);
    assert_eq!(seeded["epoch"], feed.hello().epoch, "{seeded}");
    let seeded_bytes = seeded["bytes"].as_u64().unwrap();
    assert!(seeded_bytes > 1200 * 4096, "{seeded}");
    for seq in &positions {
        let at = format!("seq:{seq}");
        assert!(images(&new, &at).unwrap() == images(&source.cli(), &at).unwrap(), "{at}");
    }
    // Again: there is nothing more to bring.
    let again = new.json(&["site", "seed", "shop", "--from", &from]);
    assert!(again["bytes"].as_u64().unwrap() < seeded_bytes / 4, "{again}");

    positions.push(source.write(100));
    let mut counted = Counted(source.come_to(&new), 0);
    send(&mut Feed::new(&source.journal), &mut counted, &mut Ack::default()).unwrap();
    assert!(counted.1 < 2 << 20, "{} bytes came over the network", counted.1);
    send(&mut feed, &mut sink, &mut Ack::default()).unwrap();
    for seq in &positions {
        let at = format!("seq:{seq}");
        let expected = images(&source.cli(), &at).unwrap();
        assert!(images(&new, &at).unwrap() == expected, "{at} at the new site");
        assert!(images(&old, &at).unwrap() == expected, "{at} at the old site");
    }
    new.ok(&["verify", "shop"]);

    let new_state = new.state().display().to_string();
    let seed = |group: &str, from: &str| new.run(&["site", "seed", group, "--from", from]);
    refused(&seed("shop", &from), 4, &["in use by another process"]);
    refused(&seed("nobody", &from), 2, &["nobody"]);
    refused(&seed("web", &from), 2, &["guest of group shop"]);
    refused(&seed("shop", &new_state), 2, &["this site itself"]);
    refused(&seed("shop", "/nonexistent"), 2, &["/nonexistent"]);
}

/// Counts the bytes of records and files that pass.
struct Counted<S>(S, usize);

impl<S: Sink> Sink for Counted<S> {
    fn open(&mut self, hello: &Hello) -> Result<Inventory, SinkError> {
        self.0.open(hello)
    }

    fn apply(&mut self, op: Op) -> Result<(), SinkError> {
        if let Op::Bytes { bytes, .. } | Op::Put { bytes, .. } = &op {
            self.1 += bytes.len();
        }
        self.0.apply(op)
    }

    fn ack(&mut self, wait: Duration) -> Result<Option<Ack>, SinkError> {
        self.0.ack(wait)
    }

    fn mirrors(&self) -> bool {
        self.0.mirrors()
    }
}

#[test]
fn commands_say_what_is_wrong_and_what_to_do() {
    let dir = TempDir::with_prefix("site-").unwrap();
    let state = dir.path().join("s");
    let cli = Cli::new(PROGRAM, &state);
    refused(&cli.run(&["site", "list"]), 2, &["is no site yet", "site serve"]);
    refused(&cli.run(&["site", "revoke", "x"]), 2, &["is no site yet"]);
    refused(&cli.run(&["site", "serve", "--listen", "nonsense"]), 2, &["ADDR:PORT"]);
    refused(&cli.run(&["site", "enroll", "--group", "../x"]), 2, &["can't be a name"]);
    refused(&cli.run(&["site", "enroll", "--group", "x", "--valid", "31d"]), 2, &["30 days"]);
    // Before the daemon's first start, too.
    let line = cli.ok(&["site", "enroll", "--group", "shop"]);
    assert_eq!(line.lines().count(), 1, "{line}");
    let site = Site::start(PROGRAM, &state, None);
    refused(&cli.run(&["site", "serve", "--listen", "127.0.0.1:0"]), 4, &["in use"]);
    let other = Cli::new(PROGRAM, dir.path().join("other"));
    refused(
        &other.run(&["site", "serve", "--listen", &site.addr]),
        4,
        &["another process listens"],
    );
    let source = Source::new();
    drop(source.come_to(&site));
    let listed = site.json(&["site", "list"]);
    let states: Vec<_> = listed.as_array().unwrap().iter().map(|r| r["state"].clone()).collect();
    assert_eq!(states, ["valid", "open", "used"], "{listed}");
    assert!(site.ok(&["site", "list"]).contains("certificate"));
    assert!(site.ok(&["site", "rotate"]).contains("valid until"));
    refused(&site.run(&["site", "revoke", "nobody"]), 2, &["site list"]);
    let serial = listed[0]["id"].as_str().unwrap();
    assert!(site.ok(&["site", "revoke", &serial[..12]]).contains("1 certificate"));
    refused(&site.run(&["site", "set", "shop"]), 2, &["--window"]);
    refused(&site.run(&["status", "--watch"]), 2, &["no live view"]);
    assert!(site.stop().success());
}
