//! Text from elsewhere on the operator's terminal, in JSON and in the log: names in a journal, what a
//! monitor says.

use super::shop;
use crate::kit::{Agent, Cli};
use afterimage_journal::meta::{Meta, Session, SessionEvent};
use afterimage_journal::{Journal, Options, layout};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use tempfile::TempDir;
use uuid::Uuid;

/// What clears a screen, forges a line, sets a title, turns text around, and is C1.
const HOSTILE: &str =
    "x\u{1b}[2J\u{1b}]0;t\u{7}\nafterimage: all is well\r\u{202e}y\u{9b}31m\u{2028}z";

/// Fails if anything but our own line ends is no plain text.
#[track_caller]
fn is_clean(what: &str, text: &str) {
    let bad: Vec<char> =
        text.chars().filter(|c| *c != '\n' && afterimage_journal::text::is_unsafe(*c)).collect();
    assert!(bad.is_empty(), "{what}: {bad:?} in {text:?}");
    let forged = text.lines().find(|line| line.starts_with("afterimage: all is well"));
    assert_eq!(forged, None, "{what}: {text:?}");
}

#[test]
fn hostile_names_in_a_journal_reach_no_terminal_as_they_are() {
    let dir = TempDir::with_prefix("hostile-").unwrap();
    let state = dir.path().join("state");
    layout::check_state(&state, true).unwrap();
    let group = Uuid::new_v4();
    let path = layout::journal_dir(&state, "shop").unwrap();
    let journal = Journal::create(&path, group, "shop", Options::default()).unwrap();
    let mut config = shop::config(group);
    config.guests[0].name = format!("web{HOSTILE}");
    config.guests[0].command_line =
        vec!["qemu-system-x86_64".into(), "-name".into(), HOSTILE.into()];
    for volume in &mut config.volumes {
        volume.guest = config.guests[0].name.clone();
        volume.node += HOSTILE;
        volume.disk += HOSTILE;
    }
    journal.set_config(&config).unwrap();
    let session = |id, event| {
        let session = Session {
            id,
            guest: config.guests[0].name.clone(),
            event,
            reason: format!("because{HOSTILE}"),
            upto: None,
            full: true,
            images: vec![],
            maps: vec![],
        };
        journal.append_meta(&Meta::Session(session)).unwrap();
    };
    session(1, SessionEvent::Open);
    shop::write(&journal, 1, 0, b'A');
    shop::mark(&journal, 1, Some(&format!("tag{HOSTILE}")));
    session(1, SessionEvent::Close);
    session(2, SessionEvent::Open);
    shop::write(&journal, 2, 1, b'B');
    journal.close().unwrap();
    let cli = Cli::new(env!("CARGO_BIN_EXE_afterimage"), &state);
    let out = dir.path().join("out").display().to_string();
    let socket = dir.path().join("s").display().to_string();
    let tag = format!("tag:{HOSTILE}");
    let commands: [&[&str]; 12] = [
        &["checkpoints", "shop"],
        &["checkpoints", "shop", "--json"],
        &["status"],
        &["status", "shop"],
        &["status", "--json"],
        &["restore", "shop", "--at", "latest", "--to", &out],
        &["restore", "shop", "--at", "seq:999999", "--to", &out],
        &["restore", "nobody", "--at", "latest", "--to", &out],
        &["restore", "shop", "--at", &tag, "--to", &out],
        &["export", "shop", "--at", "latest", "--disk", HOSTILE, "--socket", &socket],
        &["verify", "shop", "--at", "#1"],
        &["doctor"],
    ];
    for command in commands {
        let outcome = cli.run(command);
        is_clean(&format!("{command:?}"), &outcome.stdout);
        is_clean(&format!("{command:?}"), &outcome.stderr);
        let said = outcome.stdout + &outcome.stderr;
        assert!(!said.is_empty(), "{command:?}");
    }
    let mut files = std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path());
    let script = files.find(|p| p.extension().is_some_and(|e| e == "sh")).unwrap();
    let text = std::fs::read_to_string(script).unwrap();
    let comments: String = text.lines().filter(|l| l.starts_with('#')).collect();
    is_clean("comments of the script", &comments);
}

#[test]
fn what_a_hostile_monitor_says_reaches_neither_terminal_nor_log_as_it_is() {
    let dir = TempDir::with_prefix("hostile-").unwrap();
    let monitor = dir.path().join("qmp");
    let listener = UnixListener::bind(&monitor).unwrap();
    let error =
        serde_json::json!({"error": {"class": "GenericError", "desc": HOSTILE}}).to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let error = error.clone();
            std::thread::spawn(move || {
                let mut writer = stream.try_clone().unwrap();
                let greeting = r#"{"QMP":{"version":{"qemu":{"major":9,"minor":0,"micro":0},"package":""},"capabilities":[]}}"#;
                let _ = writeln!(writer, "{greeting}");
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    let id = serde_json::from_str::<serde_json::Value>(&line)
                        .ok()
                        .map(|v| v["id"].clone());
                    let mut reply: serde_json::Value = serde_json::from_str(&error).unwrap();
                    reply["id"] = id.unwrap_or_default();
                    if writeln!(writer, "{reply}").is_err() {
                        return;
                    }
                }
            });
        }
    });
    let agent = Agent::start(env!("CARGO_BIN_EXE_afterimage"), dir.path().join("state"));
    let path = monitor.display().to_string();
    let refused = agent.run(&["protect", "web", "--qmp", &path]);
    is_clean("protect", &refused.stdout);
    is_clean("protect", &refused.stderr);
    for command in [&["status", "web"][..], &["status", "--json"], &["doctor"]] {
        let outcome = agent.run(command);
        is_clean(&format!("{command:?}"), &(outcome.stdout + &outcome.stderr));
    }
    let log = agent.last_words();
    is_clean("log", &log);
    let said = refused.stdout + &refused.stderr + &log;
    assert!(said.contains("\\u{1b}[2J"), "the monitor's words are shown somewhere: {said}");
    agent.stop();
}
