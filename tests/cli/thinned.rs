//! History before the window: what was kept restores, what wasn't is refused with its neighbours; `--keep`
//! is taken, checked, kept, and shown.

use super::shop::{SECOND_NS, Shop, Told, WRITE_BYTES, config, head_of, mark, session, write};
use crate::kit::{Agent, Cli};
use afterimage_journal::keeper::{Home, Keeper, Setup};
use afterimage_journal::merge::Unpaced;
use afterimage_journal::meta::SessionEvent;
use afterimage_journal::storage::RealStorage;
use afterimage_journal::window::Limits;
use afterimage_journal::{Journal, Options, Seq, layout};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;
use uuid::Uuid;

const PROGRAM: &str = env!("CARGO_BIN_EXE_afterimage");
/// Bursts of writes, each with a checkpoint behind it, and the time between them.
const BURSTS: u64 = 60;
const PAUSE_S: u64 = 30;
const BURST_BLOCKS: u64 = 64;
/// The one with a tag: not the first of its two minutes.
const TAGGED: u64 = 14;

struct Thinned {
    dir: TempDir,
    cli: Cli,
    /// The position of each burst's checkpoint.
    marks: Vec<Seq>,
    begin_ns: u64,
}

/// Half an hour, thinned to one checkpoint each two minutes but for the last five.
fn thinned() -> Thinned {
    let dir = TempDir::with_prefix("thinned-").unwrap();
    let state = dir.path().join("state");
    layout::check_state(&state, true).unwrap();
    let begin = SystemTime::now() - Duration::from_secs(3600);
    // A whole number of two minutes: slots of the wall clock are known.
    let begin_ns = begin.duration_since(UNIX_EPOCH).unwrap().as_secs() / 120 * 120 * SECOND_NS;
    let journal_dir = layout::journal_dir(&state, "shop").unwrap();
    let clock = Arc::new(Told(AtomicU64::new(begin_ns)));
    let options = Options {
        unit_wait: Duration::from_secs(60),
        unit_bytes: 1 << 20,
        sync_interval: Duration::from_secs(3600),
        clock: clock.clone(),
        ..Options::default()
    };
    let journal = Journal::create(&journal_dir, Uuid::new_v4(), "shop", options).unwrap();
    let group = layout::read_identity(&journal_dir).unwrap().group;
    journal.set_config(&config(group)).unwrap();
    session(&journal, 1, SessionEvent::Open);
    let mut marks = Vec::new();
    for burst in 0..BURSTS {
        clock.0.store(begin_ns + (burst * PAUSE_S + 1) * SECOND_NS, Ordering::SeqCst);
        for block in 0..BURST_BLOCKS {
            write(&journal, 1, block, burst as u8 + 1);
        }
        marks.push(mark(&journal, burst + 1, (burst == TAGGED).then_some("release")));
    }
    journal.close().unwrap();
    keep(&journal_dir, &clock);
    let cli = Cli::new(PROGRAM, &state);
    Thinned { dir, cli, marks, begin_ns }
}

fn keep(dir: &Path, clock: &Arc<Told>) {
    let storage = RealStorage::shared();
    let limits = Limits::thinned("5m,2m:1h".parse().unwrap(), None);
    let setup = Setup {
        ground: Arc::new(Home { storage: Arc::clone(&storage) }),
        storage,
        dir: dir.to_owned(),
        clock: Arc::clone(clock) as _,
        pace: Arc::new(Unpaced),
        key: None,
        limits,
    };
    let mut keeper = Keeper::open(setup).unwrap();
    while keeper.step().unwrap() {}
    assert!(keeper.occupancy().merged_bytes > 0, "{:?}", keeper.occupancy());
}

impl Thinned {
    fn restore(&self, at: &str, to: &str) -> crate::kit::Outcome {
        let to = self.dir.path().join(to).display().to_string();
        self.cli.run(&["restore", "web", "--at", at, "--to", &to, "--json"])
    }

    fn time(&self, seconds: u64) -> String {
        let ns = i128::from(self.begin_ns + seconds * SECOND_NS);
        jiff::Timestamp::from_nanosecond(ns).unwrap().to_string()
    }
}

#[test]
fn one_checkpoint_a_slot_restores_and_what_lies_between_is_refused_with_its_neighbours() {
    let thinned = thinned();
    let listed: Vec<u64> = (thinned.cli.json(&["checkpoints", "web"]).as_array())
        .unwrap()
        .iter()
        .map(|c| c["id"].as_u64().unwrap() - 1)
        .collect();
    // Four bursts make a slot: the first of each stays, and what has a tag.
    let expected = |burst: &u64| burst.is_multiple_of(4) || *burst == TAGGED;
    let old: Vec<u64> = (0..40).filter(expected).collect();
    assert_eq!(listed[..old.len()], old, "{listed:?}");
    assert!(listed.len() < 40 && listed.last() == Some(&(BURSTS - 1)), "{listed:?}");
    for (i, burst) in [0, 4, TAGGED, 36].into_iter().enumerate() {
        let seq = thinned.marks[burst as usize];
        for (j, at) in
            [format!("#{}", burst + 1), format!("seq:{seq}"), thinned.time(burst * PAUSE_S + 1)]
                .iter()
                .enumerate()
        {
            let done = thinned.restore(at, &format!("out{i}-{j}"));
            assert_eq!(done.code, 0, "{at}: {done:?}");
            let head = head_of(&done.json(), "system");
            assert!(head[..WRITE_BYTES].iter().all(|b| *b == burst as u8 + 1), "{at}: {}", head[0]);
        }
        assert_eq!(thinned.cli.run(&["verify", "web", "--at", &format!("seq:{seq}")]).code, 0);
    }
    assert_eq!(thinned.restore("tag:release", "tagged").code, 0);
    // Burst 5 lies between the kept 4 and 8.
    let near = [thinned.marks[4], thinned.marks[8]].map(|seq| format!("seq:{seq}"));
    let gone = thinned.marks[5];
    for at in [format!("seq:{gone}"), thinned.time(5 * PAUSE_S + 1), thinned.time(5 * PAUSE_S + 9)]
    {
        for words in [
            &["restore", "web", "--at", &at, "--to", "/nonexistent/x"][..],
            &["export", "web", "--at", &at, "--socket", "/nonexistent/x"],
            &["verify", "web", "--at", &at],
        ] {
            let refused = thinned.cli.run(words);
            assert_eq!(refused.code, 3, "{words:?}: {refused:?}");
            for seq in &near {
                assert!(refused.stderr.contains(seq), "{seq}: {refused:?}");
            }
        }
    }
    assert_eq!(thinned.restore("#6", "none").code, 3);
    let sound = thinned.cli.json(&["verify", "web"]);
    assert_eq!(sound["damage"].as_array().map_or(0, Vec::len), 0, "{sound}");
}

#[test]
fn status_says_since_when_every_moment_is_there_and_how_far_back_single_ones_are() {
    let thinned = thinned();
    let status = thinned.cli.json(&["status", "web"]);
    let time = |value: &Value| value.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let (every, single) = (time(&status["window"]["from"]), time(&status["thinned"]["from"]));
    assert_eq!(single.to_string(), thinned.time(1));
    assert!(every > single, "{status}");
    assert!(status["thinned"]["checkpoints"].as_u64().unwrap() >= 10, "{status}");
    assert_eq!(status["gaps"].as_array().unwrap().len(), 0, "thinned history is no gap: {status}");
    let text = thinned.cli.run(&["status", "web"]).stdout;
    assert!(text.contains("single checkpoints, back to"), "{text}");
    // All that is derived is lost.
    let pool = thinned.cli.state().join("pool/shop");
    for entry in std::fs::read_dir(&pool).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        if name == "catalogue" || name.starts_with("map-") {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    let at = format!("seq:{}", thinned.marks[TAGGED as usize]);
    assert_eq!(thinned.restore(&at, "rebuilt").code, 0);
}

#[test]
fn keep_is_checked_kept_and_shown_and_asks_for_no_resync() {
    let shop = Shop::new();
    let guests = shop.cli.state().join("guests");
    std::fs::create_dir_all(&guests).unwrap();
    let file: PathBuf = guests.join("db.json");
    let settings = r#"{"name":"db","group":"shop","qmp":"/nonexistent/qmp.sock",
        "window_s":3600,"checkpoint_every_ms":5000}"#;
    std::fs::write(&file, settings).unwrap();
    let agent = Agent::start(PROGRAM, shop.cli.state());
    let status = || agent.json(&["status", "db"]);
    assert_eq!((&status()["keep"], &status()["window_s"]), (&Value::Null, &Value::from(3600)));
    agent.ok(&["set", "db", "--keep", "2h,1m:7d,1h:30d"]);
    let shown = |keep: &str, window_s: u64| {
        let status = status();
        assert_eq!(status["keep"], *keep, "{status}");
        assert_eq!(status["window_s"], window_s, "{status}");
        let saved: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        assert_eq!((&saved["keep"], &saved["window_s"]), (&status["keep"], &status["window_s"]));
    };
    shown("2h,1m:7d,1h:30d", 7200);
    // A window alone leaves the steps that reach further.
    agent.ok(&["set", "db", "--window", "8d"]);
    shown("8d,1h:30d", 8 * 86_400);
    agent.ok(&["set", "db", "--keep", "24h,1m:7d", "--window", "24h"]);
    shown("1d,1m:7d", 86_400);
    for (words, why) in [
        (&["--keep", "24h,1m:7d", "--window", "12h"][..], "another window"),
        (&["--keep", "24h,1m:12h"], "for longer"),
        (&["--keep", "1m:7d"], "begin with"),
        (&["--keep", "24h,1s:30d"], "checkpoints"),
    ] {
        let refused = agent.run(&[&["set", "db"], words].concat());
        assert_eq!(refused.code, 2, "{words:?}: {refused:?}");
        assert!(refused.stderr.contains(why), "{why}: {refused:?}");
    }
    shown("1d,1m:7d", 86_400);
    agent.ok(&["set", "db", "--keep", "24h"]);
    assert_eq!(status()["keep"], Value::Null);
    agent.stop();
}
