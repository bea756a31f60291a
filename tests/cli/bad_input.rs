//! Wrong names, paths and words: the exit code that scripts rely on, and a text that helps.

use super::shop::Shop;
use crate::kit::{Cli, Outcome};
use tempfile::TempDir;

fn cli(state: &std::path::Path) -> Cli {
    Cli::new(env!("CARGO_BIN_EXE_afterimage"), state)
}

/// The exit code, words on standard error, and nothing that only a programmer reads.
#[track_caller]
fn refused(outcome: &Outcome, code: i32, words: &[&str]) {
    assert_eq!(outcome.code, code, "{outcome:?}");
    assert!(outcome.stdout.is_empty(), "{outcome:?}");
    for word in words {
        assert!(outcome.stderr.contains(word), "{word}: {outcome:?}");
    }
    for word in ["panicked", "Error {", "Os {", "Some("] {
        assert!(!outcome.stderr.contains(word), "{word}: {outcome:?}");
    }
}

/// The commands that need only a state directory.
fn offline_commands() -> Vec<Vec<&'static str>> {
    vec![
        vec!["status", "web"],
        vec!["checkpoints", "web"],
        vec!["verify", "web"],
        vec!["restore", "web", "--at", "latest", "--to", "/nonexistent/out"],
        vec!["pool", "list"],
    ]
}

#[test]
fn a_state_directory_that_is_missing_or_is_none_is_named() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let other = dir.path().join("other");
    std::fs::create_dir_all(other.join("photos")).unwrap();
    for command in offline_commands() {
        refused(&cli(&dir.path().join("missing")).run(&command), 2, &["missing", "--state"]);
        refused(&cli(&file).run(&command), 2, &["file"]);
        refused(&cli(&other).run(&command), 2, &["other", "not a state directory"]);
    }
}

#[test]
fn a_newer_version_is_refused_and_left_alone() {
    let shop = Shop::new();
    let format = shop.cli.state().join("format");
    std::fs::write(&format, "999\n").unwrap();
    let mut commands = offline_commands();
    commands.push(vec!["agent"]);
    for command in commands {
        let outcome = shop.cli.run(&command);
        assert_ne!(outcome.code, 0, "{command:?}");
        for word in ["999", "newer"] {
            assert!(outcome.stderr.contains(word), "{command:?}: {outcome:?}");
        }
    }
    assert_eq!(std::fs::read_to_string(&format).unwrap(), "999\n");
}

#[test]
fn an_unknown_name_or_disk_lists_those_there_are() {
    let shop = Shop::new();
    for command in [
        vec!["status", "wbe"],
        vec!["checkpoints", "wbe"],
        vec!["verify", "wbe"],
        vec!["restore", "wbe", "--at", "latest", "--to", "/nonexistent/out"],
    ] {
        refused(&shop.cli.run(&command), 2, &["wbe", "web", "shop"]);
    }
    let to = shop.path("out").display().to_string();
    let command = ["restore", "web", "--at", "latest", "--to", &to, "--disk", "dat"];
    refused(&shop.cli.run(&command), 2, &["dat", "data", "system"]);
}

#[test]
fn words_that_mean_nothing_are_wrong_usage() {
    let shop = Shop::new();
    let cases: [&[&str]; 14] = [
        &["restore", "web", "--at", "yesterday", "--to", "/nonexistent/out"],
        &["restore", "web", "--at", "", "--to", "/nonexistent/out"],
        &["restore", "web", "--to", "/nonexistent/out"],
        &["restore", "web", "--at", "latest"],
        &["restore", "web", "--at", "latest", "--to", "/nonexistent/out", "--format", "vmdk"],
        &["verify", "web", "--at", "seq:x"],
        &["checkpoints", "web", "--since", "5m"],
        &["protect", "vm"],
        &["protect", "vm", "--qmp", "/x", "--libvirt", "y"],
        &["protect", "../vm", "--qmp", "/x"],
        &["protect", "vm", "--qmp", "/x", "--window", "0s"],
        &["protect", "vm", "--qmp", "/x", "--rate", "fast"],
        &["set", "vm"],
        &["mark", "vm", "--tag", " "],
    ];
    for case in cases {
        refused(&shop.cli.run(case), 2, &[]);
    }
    let outcome = shop.cli.run(&["checkpoints", "web", "--since", "5m"]);
    refused(&outcome, 2, &["'5m ago'"]);
}

#[test]
fn what_needs_an_agent_says_how_to_start_one() {
    let shop = Shop::new();
    let cases: [&[&str]; 6] = [
        &["protect", "vm", "--qmp", "/x"],
        &["unprotect", "web"],
        &["detach", "web"],
        &["attach", "web"],
        &["mark", "web", "--tag", "t"],
        &["set", "web", "--window", "1h"],
    ];
    for case in cases {
        refused(&shop.cli.run(case), 4, &["no agent", "afterimage agent --state"]);
    }
    let nothing = TempDir::new().unwrap();
    refused(&cli(nothing.path()).run(&["status"]), 4, &["no agent"]);
    // A socket that an agent left behind when it was killed.
    let socket = shop.cli.state().join("api.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    refused(&shop.cli.run(&["detach", "web"]), 4, &["nobody listens"]);
}

#[test]
fn an_agent_that_hangs_is_not_waited_for_for_ever() {
    let shop = Shop::new();
    let socket = shop.cli.state().join("api.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    // Fills the queue of connections that nobody accepts.
    let mut waiting = Vec::new();
    rustix::net::listen(&listener, 0).unwrap();
    while let Ok(stream) = connect_at_once(&socket) {
        waiting.push(stream);
    }
    refused(&shop.cli.run(&["detach", "web"]), 4, &["hangs"]);
}

fn connect_at_once(path: &std::path::Path) -> rustix::io::Result<std::os::fd::OwnedFd> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let address = SocketAddrUnix::new(path)?;
    let kind = (AddressFamily::UNIX, SocketType::STREAM, SocketFlags::NONBLOCK);
    let fd = rustix::net::socket_with(kind.0, kind.1, kind.2, None)?;
    rustix::net::connect(&fd, &address)?;
    Ok(fd)
}

#[test]
fn a_flipped_byte_refuses_the_points_that_need_it_and_no_others() {
    let shop = Shop::new();
    let unit = shop.unit();
    let mut bytes = std::fs::read(&unit).unwrap();
    let at = bytes.windows(64).position(|w| w == [b'B'; 64]).unwrap();
    bytes[at + 1000] ^= 1;
    std::fs::write(&unit, bytes).unwrap();
    let words = ["unit-0000000001", "damaged"];
    refused(&shop.restore("latest", "out1"), 3, &words);
    refused(&shop.restore("#2", "out2"), 3, &words);
    assert!(!shop.path("out2").join("data.raw").exists());
    let sound = shop.restore("#1", "out3");
    assert_eq!(sound.code, 0, "{sound:?}");
    let found = shop.cli.run(&["verify", "web"]);
    assert_eq!(found.code, 3, "{found:?}");
    assert!(found.stderr.contains("unit-0000000001"), "{found:?}");
    let found = shop.cli.run(&["verify", "web", "--json"]);
    assert_eq!(found.code, 3);
    assert_eq!(found.json()["damage"].as_array().unwrap().len(), 1, "{found:?}");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    use std::process::{Command, Stdio};
    let shop = Shop::new();
    let mut child = Command::new(env!("CARGO_BIN_EXE_afterimage"))
        .args(["checkpoints", "web", "--state"])
        .arg(shop.cli.state())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}
