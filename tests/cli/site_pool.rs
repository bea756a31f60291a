//! A site's pool: changed and drained under its daemon while an agent sends, without the daemon, and when it
//! is killed meanwhile.

use super::pool::{member, units};
use super::site::{filled, latest, refused};
use crate::conform::source::{LIMIT, Source, send};
use crate::kit::{Cli, Site, poll};
use afterimage_journal::feed::Feed;
use afterimage_journal::wire::{Ack, SinkError};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_afterimage");

/// A site with a member beside its home, which takes a single unit: the rest goes to the member.
fn site_with_member(dir: &Path) -> (Site, PathBuf) {
    let site = Site::start(PROGRAM, dir.join("s"), None);
    let member = dir.join("b");
    std::fs::create_dir(&member).unwrap();
    site.ok(&["pool", "add", member.to_str().unwrap()]);
    limit_home(&site, "1MiB");
    (site, member)
}

fn limit_home(site: &Site, limit: &str) {
    let home = site.state().join("pool");
    site.ok(&["pool", "add", home.to_str().unwrap(), "--limit", limit]);
}

#[test]
fn a_sites_pool_grows_and_is_drained_under_its_daemon_while_an_agent_sends() {
    let mut source = Source::new();
    let dir = TempDir::with_prefix("site-").unwrap();
    let (site, b) = site_with_member(dir.path());
    let b_text = b.to_str().unwrap();
    refused(&site.run(&["pool", "add", b_text]), 2, &["member of the pool already"]);
    refused(&site.run(&["pool", "remove", "/nowhere"]), 2, &["no member of the pool"]);
    let mut sink = source.come_to(&site);
    let mut feed = Feed::new(&source.journal);
    let mut acked = Ack::default();
    source.write(600);
    send(&mut feed, &mut sink, &mut acked).unwrap();
    assert!(units(&b.join("shop")).len() >= 3);
    assert!(units(&site.state().join("pool/shop")).len() <= 1);
    let list = || site.json(&["pool", "list"]);
    assert_eq!(member(&list(), &b)["state"], "active");
    let said = site.ok(&["pool", "remove", b_text]);
    assert!(said.contains("is being drained"), "{said}");
    // There is no room elsewhere: it says so, and takes what comes for as long as it can.
    let waits = poll(LIMIT, || {
        let why = member(&list(), &b)["reason"].as_str().map(str::to_owned)?;
        why.contains("no room").then_some(())
    });
    assert!(waits.is_some(), "{}", site.last_words());
    assert!(site.ok(&["status"]).contains("no room"));
    limit_home(&site, "none");
    let drained = poll(LIMIT, || {
        source.write(30);
        send(&mut feed, &mut sink, &mut acked).unwrap();
        member(&list(), &b).is_null().then_some(())
    });
    assert!(drained.is_some(), "{}: {}", list(), site.last_words());
    assert_eq!(std::fs::read_dir(&b).unwrap().count(), 0);
    source.write(30);
    send(&mut feed, &mut sink, &mut acked).unwrap();
    // No link was broken for it.
    let words = site.last_words();
    let broken = |l: &&str| l.contains("a link ended") && !l.contains("the agent ended the link");
    assert_eq!(words.lines().find(broken), None);
    assert_eq!(latest(&site), latest(&source.cli()));
    site.ok(&["verify", "shop"]);
}

#[test]
fn a_sites_pool_is_drained_without_its_daemon_and_its_agent_goes_on_where_it_was() {
    let mut source = Source::new();
    let dir = TempDir::with_prefix("site-").unwrap();
    let (site, b) = site_with_member(dir.path());
    let (state, addr) = (site.state().to_owned(), site.addr.clone());
    let mut sink = source.come_to(&site);
    let mut feed = Feed::new(&source.journal);
    let mut acked = Ack::default();
    source.write(600);
    send(&mut feed, &mut sink, &mut acked).unwrap();
    limit_home(&site, "none");
    site.kill();
    let expected = filled(&source.state());
    let cli = Cli::new(PROGRAM, &state);
    let said = cli.ok(&["pool", "remove", b.to_str().unwrap()]);
    assert!(said.contains("is no member any more"), "{said}");
    assert_eq!(std::fs::read_dir(&b).unwrap().count(), 0);
    // Nothing was added to the journal, nor closed in it.
    for (name, bytes) in filled(&state) {
        assert!(expected[&name].starts_with(&bytes), "{name}");
    }
    let site = Site::start(PROGRAM, &state, Some(&addr));
    source.write(100);
    send(&mut feed, &mut sink, &mut acked).unwrap();
    assert_eq!(latest(&site), latest(&source.cli()));
}

#[test]
fn a_site_that_is_killed_while_it_drains_goes_on_with_that_and_loses_nothing() {
    let mut source = Source::new();
    let dir = TempDir::with_prefix("site-").unwrap();
    let (mut site, b) = site_with_member(dir.path());
    let state = site.state().to_owned();
    let addr = site.addr.clone();
    let mut sink = source.come_to(&site);
    let mut feed = Feed::new(&source.journal);
    let mut acked = Ack::default();
    let mut kills = 0;
    for round in 0..4u64 {
        source.write(1500);
        send(&mut feed, &mut sink, &mut acked).unwrap();
        assert!(units(&b.join("shop")).len() >= 5);
        limit_home(&site, "none");
        site.ok(&["pool", "remove", b.to_str().unwrap()]);
        std::thread::sleep(Duration::from_millis(3 + 29 * round));
        site.kill();
        kills += u32::from(!units(&b.join("shop")).is_empty());
        site = Site::start(PROGRAM, &state, Some(&addr));
        // What was under way when it was killed comes again.
        let drained = poll(LIMIT, || {
            source.write(10);
            match send(&mut feed, &mut sink, &mut acked) {
                Ok(()) | Err(SinkError::Away(_)) => {}
                Err(other) => panic!("{other:?}"),
            }
            member(&site.json(&["pool", "list"]), &b).is_null().then_some(())
        });
        assert!(drained.is_some(), "{}", site.last_words());
        assert_eq!(std::fs::read_dir(&b).unwrap().count(), 0);
        site.ok(&["pool", "add", b.to_str().unwrap()]);
        limit_home(&site, "1MiB");
    }
    assert!(kills >= 2, "it was killed {kills} times before it was done");
    source.write(10);
    send(&mut feed, &mut sink, &mut acked).unwrap();
    assert_eq!(latest(&site), latest(&source.cli()));
    site.ok(&["verify", "shop"]);
}
