//! A journal that is being written, and how it is sent to a sink: as an agent does it.

use crate::cli::shop;
use crate::kit::{Cli, Site};
use afterimage_journal::feed::Feed;
use afterimage_journal::keeper::{Home, Keeper, Setup};
use afterimage_journal::merge::Unpaced;
use afterimage_journal::meta::{Copy, CopyCause, CopyEvent, Meta, SessionEvent};
use afterimage_journal::storage::RealStorage;
use afterimage_journal::window::Limits;
use afterimage_journal::wire::{Ack, Op, Sink, SinkError};
use afterimage_journal::{Journal, Options, Seq, layout};
use afterimage_link::{SiteUrl, TlsSink, TlsTarget, redeem};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use uuid::Uuid;

/// How long it may take to send everything.
pub const LIMIT: Duration = Duration::from_secs(60);
const PROGRAM: &str = env!("CARGO_BIN_EXE_afterimage");

/// A journal that is being written, and where agents keep what they need for sites.
pub struct Source {
    dir: TempDir,
    /// The journal.
    pub journal: Journal,
    /// Blocks that were written.
    written: u64,
}

fn options() -> Options {
    // No guest waits for it, and the machine may have much to do.
    Options { unit_bytes: 1 << 20, unit_wait: LIMIT, ..Options::default() }
}

impl Source {
    /// One with two disks in a session, as `shop` has them.
    pub fn new() -> Self {
        let dir = TempDir::with_prefix("src-").unwrap();
        let state = dir.path().join("state");
        layout::check_state(&state, true).unwrap();
        let group = Uuid::new_v4();
        let journal_dir = layout::journal_dir(&state, "shop").unwrap();
        let journal = Journal::create(&journal_dir, group, "shop", options()).unwrap();
        journal.set_config(&shop::config(group)).unwrap();
        for volume in [1, 2] {
            for event in [CopyEvent::Start, CopyEvent::End] {
                let (id, cause) = (volume.into(), CopyCause::Initial);
                let copy = Copy { id, volume, event, cause, upto: shop::DISK_BYTES, whole: true };
                journal.append_meta(&Meta::Copy(copy)).unwrap();
            }
        }
        shop::session(&journal, 1, SessionEvent::Open);
        Self { dir, journal, written: 0 }
    }

    /// A copy of its files as they are now, opened: what comes of a cloned or restored machine.
    pub fn cloned(&self) -> Self {
        let dir = TempDir::with_prefix("src-").unwrap();
        // Not one whose temporary files come and go meanwhile.
        let begin = Instant::now();
        while !copied(&self.state(), &dir.path().join("state")) {
            assert!(begin.elapsed() < LIMIT, "it can't be copied");
        }
        let journal_dir = layout::journal_dir(&dir.path().join("state"), "shop").unwrap();
        let journal = Journal::open(&journal_dir, options()).unwrap().0;
        shop::session(&journal, 2, SessionEvent::Open);
        Self { dir, journal, written: self.written }
    }

    /// Writes so many blocks, each with a byte of its own; a checkpoint behind them.
    pub fn write(&mut self, blocks: u64) -> Seq {
        for _ in 0..blocks {
            self.written += 1;
            let block = self.written % (shop::DISK_BYTES / shop::WRITE_BYTES as u64);
            shop::write(&self.journal, 1, block, self.written as u8);
        }
        let mark = shop::mark(&self.journal, self.written, None);
        self.journal.sync().unwrap();
        // What is durable may leave the journal once the flusher's run has ended, a moment later.
        let (mut final_now, begin) = (self.journal.finality(), Instant::now());
        while final_now.watermark < mark {
            assert!(begin.elapsed() < LIMIT, "it does not get final: {final_now:?}, {mark}");
            final_now = self.journal.wait_final(&final_now, LIMIT);
        }
        mark
    }

    /// Merges what is older than a window.
    pub fn keep(&self, window: Duration) {
        let storage = RealStorage::shared();
        let mut keeper = Keeper::open(Setup {
            ground: Arc::new(Home { storage: Arc::clone(&storage) }),
            storage,
            dir: layout::journal_dir(&self.state(), "shop").unwrap(),
            clock: options().clock,
            pace: Arc::new(Unpaced),
            key: None,
            limits: Limits { guaranteed_ns: 0, ..Limits::new(window.as_nanos() as u64, None) },
        })
        .unwrap();
        while keeper.step().unwrap() {}
    }

    /// Its state directory.
    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Commands over it.
    pub fn cli(&self) -> Cli {
        Cli::new(PROGRAM, self.state())
    }

    /// Redeems an invitation of a site: a sink that leads there.
    pub fn come_to(&self, site: &Site) -> TlsSink {
        let url: SiteUrl = format!("tls://{}#{}", site.addr, site.invite("shop")).parse().unwrap();
        let credentials = self.dir.path().join(format!("credentials-{}", site.addr));
        redeem(&url.addr, &url.invitation.unwrap(), &credentials).unwrap();
        TlsSink::new(TlsTarget { addr: url.addr, credentials })
    }
}

/// Copies a directory; `false`: something was gone meanwhile.
fn copied(from: &Path, to: &Path) -> bool {
    let _ = std::fs::remove_dir_all(to);
    let status = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status();
    status.unwrap().success()
}

/// Sends all that a journal has, until the sink acknowledged all of it.
pub fn send(feed: &mut Feed, sink: &mut dyn Sink, acked: &mut Ack) -> Result<(), SinkError> {
    let inventory = sink.open(&feed.hello())?;
    // What was acknowledged counts once the files before it are there, too: sent to the end before.
    let complete = acked.watermark;
    assert!(inventory.watermark >= complete, "{} < {complete}", inventory.watermark);
    let mut watermark = complete;
    let begun = feed.start(&inventory, sink.mirrors());
    begun.map_err(|e| SinkError::Refused(e.to_string()))?;
    let (mut token, mut told, begin) = (0, 0, Instant::now());
    let mut uncounted = BTreeSet::new();
    loop {
        let backlog = feed.backlog();
        assert!(begin.elapsed() < LIMIT, "not sent in time: {backlog:?}, {uncounted:?}");
        let op = match feed.fresh().unwrap() {
            Some(op) => Some(op),
            None => feed.background().unwrap(),
        };
        if let Some(op) = op {
            match &op {
                Op::Sync { token: asked, .. } => token = *asked,
                Op::PutEnd { name, .. } => drop(uncounted.insert(*name)),
                _ => {}
            }
            sink.apply(op)?;
        } else if feed.backlog().fresh_bytes > 0 {
            // The source seals a unit before it goes on.
            let _ = feed.wait(Duration::from_millis(5));
        } else if token == told && feed.backlog().background_files == 0 && uncounted.is_empty() {
            acked.watermark = watermark;
            return Ok(());
        }
        let wait = if token == told { Duration::ZERO } else { Duration::from_millis(5) };
        if let Some(ack) = sink.ack(wait)? {
            feed.acked(&ack);
            uncounted.retain(|name| !ack.whole.contains(name));
            told = ack.token;
            watermark = watermark.max(ack.watermark);
        }
    }
}

/// The same, again and again while the sink is away, as an agent does.
#[track_caller]
pub fn send_until_there(feed: &mut Feed, sink: &mut dyn Sink, acked: &mut Ack) {
    let begin = Instant::now();
    loop {
        match send(feed, sink, acked) {
            Ok(()) => return,
            Err(SinkError::Away(why)) => assert!(begin.elapsed() < LIMIT, "still away: {why}"),
            Err(other) => panic!("{other:?}"),
        }
    }
}

/// The first disk and the second, restored at a moment; what went wrong where it can't be.
pub fn images(cli: &Cli, at: &str) -> Result<Vec<Vec<u8>>, String> {
    let dir = TempDir::with_prefix("img-").unwrap();
    let to = dir.path().join("to").display().to_string();
    let said = cli.run(&["restore", "web", "--at", at, "--to", &to, "--json"]);
    if said.code != 0 {
        return Err(format!("{said:?}"));
    }
    let report = said.json();
    let disks = report["disks"].as_array().unwrap();
    Ok(disks.iter().map(|d| std::fs::read(d["path"].as_str().unwrap()).unwrap()).collect())
}
