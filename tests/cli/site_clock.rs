//! A site on a host whose clocks have nothing in common with the sender's: what it keeps is up to its own.

use crate::conform::source::{LIMIT, Source, send};
use crate::kit::{Cli, Site, poll};
use afterimage_journal::feed::Feed;
use afterimage_journal::wire::Ack;
use std::time::Duration;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_afterimage");

fn points(cli: &Cli) -> usize {
    let said = cli.run(&["checkpoints", "shop", "--json"]);
    if said.code == 0 { said.json().as_array().unwrap().len() } else { 0 }
}

/// The site has been up for ten days, in another boot; its window is a day.
#[test]
fn a_site_up_for_longer_than_its_window_keeps_what_came_a_moment_ago() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not run: it needs root for a time namespace");
        return;
    }
    let dir = TempDir::with_prefix("clock-").unwrap();
    let site = Site::start_elsewhere(PROGRAM, dir.path().join("s"), 10 * 86_400);
    let mut source = Source::new();
    let mut sink = source.come_to(&site);
    let (mut feed, mut acked) = (Feed::new(&source.journal), Ack::default());
    let mut ship = |source: &mut Source, rounds: usize| {
        for _ in 0..rounds {
            source.write(300);
            send(&mut feed, &mut sink, &mut acked).unwrap();
        }
    };
    ship(&mut source, 7);
    let all = points(&source.cli());
    assert!(all >= 7, "{all} checkpoints");
    // Its keeper looks each second, and at each unit that is sealed.
    for _ in 0..6 {
        std::thread::sleep(Duration::from_millis(500));
        assert_eq!(points(&site), all, "checkpoints are given up on a sender's word");
    }
    // By its own clock they age.
    site.ok(&["site", "set", "shop", "--window", "2s"]);
    let fewer = poll(LIMIT, || {
        ship(&mut source, 1);
        (points(&site) < points(&source.cli())).then_some(())
    });
    fewer.expect("the site's window never moves");
}
