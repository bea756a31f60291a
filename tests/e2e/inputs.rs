//! What people and machines do wrong: each has a clear message, and costs nothing else.

use super::evidence::{
    RAW, SOME_WRITES, entries, history, identical, prefix_of, wait_session_behind,
};
use super::{PROGRAM, STATE_LIMIT, Scene};
use crate::kit::{Agent, Cli, Disk, Outcome, SmallFs, Vm, VmBuilder, image};
use afterimage_journal::History;
use afterimage_journal::format::record::HEADER_BYTES;
use afterimage_journal::history::CheckpointAt;
use serde_json::{Value, json};
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The code, words that are said, and none of those that only a programmer reads.
#[track_caller]
fn refused(outcome: &Outcome, code: i32, words: &[&str]) {
    assert_eq!(outcome.code, code, "{outcome:?}");
    for word in words {
        assert!(outcome.stderr.contains(word), "{word}: {outcome:?}");
    }
    for word in ["panicked", "Error {", "Os {", "Some("] {
        assert!(!outcome.stderr.contains(word), "{word}: {outcome:?}");
    }
}

/// Listens and says something to everybody who comes.
fn says(path: &Path, greeting: &'static [u8]) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        let mut peers = Vec::new();
        for mut peer in listener.incoming().map_while(Result::ok) {
            let _ = peer.write_all(greeting);
            peers.push(peer);
        }
    });
}

#[test]
fn a_monitor_that_is_none_is_named_and_leaves_nothing_behind() {
    let dir = TempDir::with_prefix("ai-").unwrap();
    let agent = Agent::start(PROGRAM, dir.path().join("state"));
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("file"), "no socket").unwrap();
    says(&path("http"), b"HTTP/1.1 400 Bad Request\r\n\r\n");
    says(&path("json"), b"{\"hello\": \"world\"}\r\n");
    says(&path("mute"), b"");
    drop(UnixListener::bind(path("dead")).unwrap());
    let cases = [("missing", 4), ("file", 2), ("dead", 4), ("mute", 4), ("http", 2), ("json", 2)];
    for (name, code) in cases {
        let begin = Instant::now();
        let socket = path(name).display().to_string();
        let outcome = agent.run(&["protect", "vm", "--qmp", &socket]);
        refused(&outcome, code, &[&socket]);
        assert!(begin.elapsed() < Duration::from_secs(20), "{name}: {:?}", begin.elapsed());
        for left in ["pool", "guests", "run"] {
            let entries = std::fs::read_dir(agent.state().join(left));
            assert_eq!(entries.map_or(0, |e| e.count()), 0, "{name} left something in {left}");
        }
        assert_eq!(agent.json(&["status"]), json!([]));
    }
}

/// A writer with one disk, and an agent whose state lies on a small file system, in small units.
fn on_small(fs: &SmallFs) -> (TempDir, Vm, Agent, PathBuf) {
    let dir = TempDir::with_prefix("ai-").unwrap();
    let program = dir.path().join("afterimage");
    let units = "[ \"$1\" = agent ] && set -- \"$@\" --unit-size 1MiB";
    std::fs::write(&program, format!("#!/bin/sh\n{units}\nexec {PROGRAM} \"$@\"\n")).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = dir.path().join("a");
    image::raw(&path, super::DISK_BYTES);
    let vm = VmBuilder::new("writer").disk(Disk::raw(&path)).boot();
    let agent = Agent::start(program, fs.path().join("state"));
    (dir, vm, agent, path)
}

#[test]
fn a_full_state_directory_ends_capture_in_a_gap_and_never_hurts_the_guest() {
    let Some(fs) = SmallFs::new(192 << 20) else { return };
    let (dir, mut vm, agent, image) = on_small(&fs);
    let qmp = vm.agent_qmp().display().to_string();

    // Full from the beginning: said at once, and nothing stays.
    let filler = fs.fill(512 << 10);
    let outcome = agent.run(&["protect", "vm", "--qmp", &qmp]);
    refused(&outcome, 1, &["space"]);
    assert_eq!(agent.json(&["status"]), json!([]));
    std::fs::remove_file(filler).unwrap();

    vm.ask("writer start", "writer started");
    agent.ok(&["protect", "vm", "--qmp", &qmp, "--checkpoint-every", "1s"]);
    agent.wait_state("vm", "protected", STATE_LIMIT);
    std::thread::sleep(SOME_WRITES);
    let filler = fs.fill(1 << 20);
    let says = |s: &Value, word: &str| s["reason"].as_str().is_some_and(|r| r.contains(word));
    agent.wait_status("vm", STATE_LIMIT, |s| s["state"] == "gap" && says(s, "space"));
    std::thread::sleep(SOME_WRITES);
    assert_eq!(vm.stats("writer").errors, 0);
    let to = dir.path().join("while-full");
    let images = agent.restore("vm", "latest", &to, &[]);
    let full = history(&agent);
    images.unwrap();
    std::fs::remove_file(filler).unwrap();
    wait_session_behind(&agent, full.head);
    let journal = history(&agent);
    let gap = journal.gaps.last().unwrap();
    // A slow machine may wait in vain for a unit before it knows that there is no room for one.
    assert!(["space", "too slow"].iter().any(|word| gap.reason.contains(word)), "{gap:?}");

    let filler = fs.fill(512 << 10);
    agent.wait_status("vm", STATE_LIMIT, |s| s["state"] == "gap");
    // An agent that starts while there is no room shows why, and doesn't give the guest up.
    agent.kill_worker();
    let status = agent.wait_status("vm", STATE_LIMIT, |s| {
        s["agent_restarts"].as_u64().unwrap() >= 1 && says(s, "journal") && says(s, "space")
    });
    assert_eq!(status["state"], "gap", "{status}");
    let head = history(&agent).head;
    std::fs::remove_file(filler).unwrap();
    wait_session_behind(&agent, head);
    let last = vm.ask_last("writer pause", "writer paused");
    let stats = vm.stats("writer");
    assert_eq!(stats.errors, 0);
    // `make bench` measures stalls; here one only has to end by itself.
    assert!(stats.worst_us < 10_000_000, "{stats:?}");
    let latest = super::restore(&agent, "latest", dir.path());
    assert_eq!(prefix_of(&latest), last);
    prefix_of(&super::restore(&agent, &format!("seq:{}", gap.from), dir.path()));
    vm.quit();
    identical(&[image], &RAW[..1], &latest);
    agent.stop();
}

#[test]
fn a_read_only_state_directory_can_be_restored_from_and_not_captured_to() {
    let Some(fs) = SmallFs::new(192 << 20) else { return };
    let (dir, mut vm, agent, image) = on_small(&fs);
    let qmp = vm.agent_qmp().display().to_string();
    vm.ask("writer start", "writer started");
    agent.ok(&["protect", "vm", "--qmp", &qmp]);
    agent.wait_state("vm", "protected", STATE_LIMIT);
    vm.ask_last("writer pause", "writer paused");
    vm.quit();
    agent.wait_state("vm", "detached", STATE_LIMIT);
    let state = agent.state().to_owned();
    agent.stop();
    fs.read_only(true);
    let cli = Cli::new(PROGRAM, &state);
    refused(&cli.run(&["agent"]), 2, &["Read-only", state.to_str().unwrap()]);
    cli.ok(&["verify", "vm"]);
    cli.ok(&["checkpoints", "vm"]);
    cli.ok(&["status", "vm"]);
    let latest = super::restore(&cli, "latest", dir.path());
    identical(&[image], &RAW[..1], &latest);
}

/// A journal of a guest that has ended: with a gap, and a second session behind it.
struct Past {
    scene: TempDir,
    cli: Cli,
    images: Vec<PathBuf>,
}

fn past() -> Past {
    let mut scene = Scene::new();
    scene.vm.ask("writer start", "writer started");
    scene.protected();
    for tag in ["sound", "rotten"] {
        std::thread::sleep(SOME_WRITES);
        scene.agent.ok(&["mark", "vm", "--tag", tag]);
    }
    let head = history(&scene.agent).head;
    scene.agent.ok(&["detach", "vm"]);
    std::thread::sleep(2 * SOME_WRITES);
    scene.agent.ok(&["attach", "vm"]);
    wait_session_behind(&scene.agent, head);
    std::thread::sleep(SOME_WRITES);
    scene.vm.ask_last("writer pause", "writer paused");
    let Scene { dir, vm, agent, images, .. } = scene;
    vm.quit();
    agent.wait_state("vm", "detached", STATE_LIMIT);
    let cli = Cli::new(PROGRAM, agent.state());
    agent.stop();
    Past { scene: dir, cli, images }
}

fn copy_of_the_pool(from: &Path, to: &Path) -> Cli {
    let copied = std::process::Command::new("cp")
        .args(["-r", "--sparse=always"])
        .args([from.join("pool"), to.to_owned()])
        .status();
    assert!(copied.unwrap().success());
    Cli::new(PROGRAM, to)
}

#[test]
fn the_pool_alone_restores_and_moments_that_are_none_and_rot_are_refused_by_name() {
    let past = past();
    let dir = past.scene.path();
    let journal = history(&past.cli);
    let gap = journal.gaps.iter().find(|g| g.to.is_some()).unwrap().clone();

    // The pool alone, elsewhere, with no agent: the same bytes at every kind of point.
    std::fs::create_dir(dir.join("elsewhere")).unwrap();
    let copy = copy_of_the_pool(past.cli.state(), &dir.join("elsewhere"));
    std::fs::rename(past.cli.state(), dir.join("away")).unwrap();
    let away = Cli::new(PROGRAM, dir.join("away"));
    copy.ok(&["verify", "vm"]);
    for at in ["latest", "tag:sound", "tag:rotten", "#1", &format!("seq:{}", gap.from)] {
        let (one, other) = (super::restore(&copy, at, dir), super::restore(&away, at, dir));
        prefix_of(&one);
        identical(&one, &RAW, &other);
    }
    identical(&past.images, &RAW, &super::restore(&copy, "latest", dir));
    let verified = copy.ok(&["verify", "vm", "--at", "tag:sound"]);
    assert!(verified.contains("agree"), "{verified}");

    moments_that_are_none(&copy, &journal);
    rot(&copy, &away, dir);
    newer(&copy);
}

/// What a newer program wrote is left alone: by restores, and by an agent, which says so.
fn newer(cli: &Cli) {
    let path = cli.state().join("pool/vm/journal.json");
    let mut identity: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    identity["format"] = json!(999);
    std::fs::write(&path, identity.to_string()).unwrap();
    for command in [&["verify", "vm"][..], &["checkpoints", "vm"], &["status", "vm"]] {
        refused(&cli.run(command), 1, &["999", "newer"]);
    }
    std::fs::write(cli.state().join("format"), "999\n").unwrap();
    refused(&cli.run(&["agent"]), 2, &["999", "newer"]);
}

fn moments_that_are_none(cli: &Cli, journal: &History) {
    let gap = journal.gaps.iter().find(|g| g.to.is_some()).unwrap();
    let (first, last) = journal.window().unwrap();
    let time = |ns: u64| jiff::Timestamp::from_nanosecond(i128::from(ns)).unwrap().to_string();
    let point = |seq: u64| format!("seq:{seq}");
    let middle = u64::midpoint(gap.from_ns, gap.to_ns.unwrap());
    let around = [point(gap.from), point(gap.to.unwrap())];
    let cases = [
        ("2099-01-01T00:00:00Z".to_owned(), vec!["future".to_owned(), point(last.seq)]),
        (time(first.wall_ns - 3_600_000_000_000), vec![point(first.seq)]),
        (format!("seq:{}", first.seq - 1), vec![point(first.seq)]),
        (format!("seq:{}", journal.head + 1000), vec![point(last.seq)]),
        (time(middle), around.to_vec()),
        (format!("seq:{}", gap.from + 1), around.to_vec()),
    ];
    for (at, words) in cases {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let command = ["restore", "vm", "--at", &at, "--to", "/nonexistent/x"];
        refused(&cli.run(&command), 3, &words);
        refused(&cli.run(&["verify", "vm", "--at", &at]), 3, &words);
    }
}

/// One flipped byte in the payload of a write between two checkpoints.
fn rot(cli: &Cli, intact: &Cli, dir: &Path) {
    let journal = history(cli);
    let tagged = |tag: &str| {
        let named = |c: &&CheckpointAt| c.checkpoint.tag.as_deref() == Some(tag);
        journal.checkpoints.iter().find(named).unwrap().seq
    };
    let (sound, rotten) = (tagged("sound"), tagged("rotten"));
    // The last write before a checkpoint: nothing newer hides it there.
    let all = entries(&journal);
    let before = all.iter().rev().find(|e| {
        let record = &e.record;
        record.kind.is_data() && record.payload_bytes >= 4096 && record.seq < rotten
    });
    let entry = before.unwrap();
    assert!(entry.record.seq > sound, "nothing was written between two checkpoints");
    let unit = &journal.units[entry.unit as usize];
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&unit.path).unwrap();
    let at = entry.at + HEADER_BYTES + 1000;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();

    let seq = entry.record.seq.to_string();
    let unit_name = unit.path.file_name().unwrap().to_str().unwrap();
    refused(&cli.run(&["verify", "vm"]), 3, &[unit_name, &seq]);
    let to = dir.join("rotten");
    let outcome = cli.restore("vm", "tag:rotten", &to, &[]).unwrap_err();
    refused(&outcome, 3, &[unit_name, &seq]);
    assert!(!to.exists() || std::fs::read_dir(&to).unwrap().next().is_none(), "{to:?}");
    refused(&cli.run(&["verify", "vm", "--at", "tag:rotten"]), 3, &[unit_name]);
    for at in ["tag:sound", "latest"] {
        let (one, other) = (super::restore(cli, at, dir), super::restore(intact, at, dir));
        identical(&one, &RAW, &other);
    }
}
