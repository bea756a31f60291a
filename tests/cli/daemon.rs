//! Commands beside a running agent that has no guest: sockets that are no monitor, names that
//! nobody has, the live view, a journal that is left.

use super::shop::Shop;
use crate::kit::{Agent, Cli, Outcome, REPLY_LIMIT, poll};
use std::fs::{File, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_afterimage");

#[track_caller]
fn refused(outcome: &Outcome, code: i32, words: &[&str]) {
    assert_eq!(outcome.code, code, "{outcome:?}");
    for word in words {
        assert!(outcome.stderr.contains(word), "{word}: {outcome:?}");
    }
}

#[test]
fn a_socket_that_is_no_monitor_is_named_for_what_it_is() {
    let dir = TempDir::with_prefix("ai-").unwrap();
    let agent = Agent::start(PROGRAM, dir.path().join("s"));
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let left = dir.path().join("left");
    drop(UnixListener::bind(&left).unwrap());
    let silent = dir.path().join("silent");
    let _silent = UnixListener::bind(&silent).unwrap();
    let protect = |path: &std::path::Path| {
        agent.run(&["protect", "vm", "--qmp", &path.display().to_string()])
    };
    refused(&protect(&dir.path().join("none")), 4, &["no socket", "none"]);
    refused(&protect(&file), 2, &["not a socket"]);
    refused(&protect(&left), 4, &["nobody listens"]);
    refused(&protect(&silent), 4, &["said nothing"]);
    // Nothing is left of what failed.
    assert_eq!(agent.json(&["status"]).as_array().unwrap().len(), 0);
    for words in [
        &["status", "vm"][..],
        &["detach", "vm"],
        &["attach", "vm"],
        &["unprotect", "vm"],
        &["mark", "vm", "--tag", "t"],
        &["set", "vm", "--window", "1h"],
    ] {
        refused(&agent.run(words), 2, &["\"vm\"", "nothing is protected"]);
    }
    agent.stop();
}

#[test]
fn a_second_agent_on_the_same_state_ends_and_the_first_goes_on() {
    let dir = TempDir::with_prefix("ai-").unwrap();
    let agent = Agent::start(PROGRAM, dir.path().join("s"));
    let second = agent.run(&["agent"]);
    assert_ne!(second.code, 0, "{second:?}");
    assert!(agent.run(&["status"]).code == 0);
    agent.stop();
}

/// All that the agent says goes nowhere: to a full disk, and to a pipe that nobody reads.
#[test]
fn an_agent_that_cant_write_its_log_serves_all_the_same() {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let full_pipe = File::from(writer);
    rustix::io::ioctl_fionbio(&full_pipe, true).unwrap();
    while (&full_pipe).write(&[b'x'; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&full_pipe, false).unwrap();
    let full_disk = File::options().write(true).open("/dev/full").unwrap();
    for log in [full_disk, full_pipe] {
        let dir = TempDir::with_prefix("ai-").unwrap();
        let program = dir.path().join("afterimage");
        let script = format!("#!/bin/sh\nAFTERIMAGE_LOG=trace exec {PROGRAM} \"$@\"\n");
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        let state = dir.path().join("s");
        let agent = Agent::start_logging_to(program, &state, log, dir.path().join("none"));
        let cli = Cli::new(PROGRAM, &state);
        for _ in 0..20 {
            assert_eq!(cli.json(&["status"]).as_array().unwrap().len(), 0);
            let qmp = dir.path().join("qmp").display().to_string();
            refused(&cli.run(&["protect", "vm", "--qmp", &qmp]), 4, &["no socket"]);
        }
        let worker = agent.kill_worker();
        agent.wait_other_worker(worker, REPLY_LIMIT);
        assert_eq!(cli.json(&["status"]).as_array().unwrap().len(), 0);
        agent.stop();
        // What a command can't say, its code still says.
        let full_disk = File::options().write(true).open("/dev/full").unwrap();
        let mut command = Command::new(PROGRAM);
        command.args(["status", "vm", "--state"]).arg(&state);
        let ended = command.stdout(Stdio::null()).stderr(full_disk).status().unwrap();
        assert_eq!(ended.code(), Some(2));
    }
    drop(reader);
}

#[test]
fn a_journal_that_is_left_is_shown_and_purged_with_and_without_an_agent() {
    for with_agent in [true, false] {
        let shop = Shop::new();
        let agent = with_agent.then(|| Agent::start(PROGRAM, shop.cli.state()));
        assert_eq!(shop.cli.json(&["status", "web"])["guest"], "web");
        refused(&shop.cli.run(&["unprotect", "web"]), if with_agent { 2 } else { 4 }, &[]);
        assert_eq!(shop.cli.json(&["checkpoints", "web"]).as_array().unwrap().len(), 3);
        let purged = shop.cli.run(&["unprotect", "web", "--purge"]);
        assert_eq!(purged.code, 0, "{purged:?}");
        assert_eq!(std::fs::read_dir(shop.cli.state().join("pool")).unwrap().count(), 0);
        refused(&shop.cli.run(&["checkpoints", "web"]), 2, &["nothing is protected"]);
        if let Some(agent) = agent {
            agent.stop();
        }
    }
}

#[test]
fn a_journal_that_is_still_protected_is_not_purged_behind_the_agents_back() {
    let shop = Shop::new();
    let guests = shop.cli.state().join("guests");
    std::fs::create_dir_all(&guests).unwrap();
    let settings = r#"{"name":"db","group":"shop","qmp":"/nonexistent/qmp.sock",
        "window_s":3600,"checkpoint_every_ms":5000}"#;
    std::fs::write(guests.join("db.json"), settings).unwrap();
    refused(&shop.cli.run(&["unprotect", "web", "--purge"]), 4, &["no agent"]);
    assert_eq!(shop.cli.json(&["checkpoints", "web"]).as_array().unwrap().len(), 3);
}

#[test]
fn the_live_view_writes_plain_lines_where_there_is_no_terminal() {
    let shop = Shop::new();
    let mut child = Command::new(PROGRAM)
        .args(["status", "--watch", "--state"])
        .arg(shop.cli.state())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let seen: Vec<String> = (&mut lines).take(2).map(Result::unwrap).collect();
    // Its reader goes: it must end by itself.
    drop(lines);
    let ended = poll(REPLY_LIMIT, || child.try_wait().unwrap());
    if ended.is_none() {
        child.kill().unwrap();
    }
    assert!(ended.is_some(), "it went on without a reader");
    for line in seen {
        assert!(line.contains(" web gap rpo "), "{line}");
        assert!(!line.contains('\x1b'), "{line}");
    }
}
