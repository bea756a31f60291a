//! File systems that are full or can't be written; what `doctor` says of a machine.

use super::shop::Shop;
use crate::kit::{Cli, SmallFs};
use tempfile::TempDir;

fn cli(state: &std::path::Path) -> Cli {
    Cli::new(env!("CARGO_BIN_EXE_afterimage"), state)
}

#[test]
fn a_restore_to_a_full_disk_says_so_and_leaves_nothing() {
    let Some(fs) = SmallFs::new(8 << 20) else { return };
    let filler = fs.fill(4096);
    let shop = Shop::new();
    let to = fs.path().join("out");
    let shown = to.display().to_string();
    let outcome = shop.cli.run(&["restore", "web", "--at", "latest", "--to", &shown]);
    assert_eq!(outcome.code, 1, "{outcome:?}");
    assert!(outcome.stderr.contains("free space"), "{outcome:?}");
    let left: Vec<_> = std::fs::read_dir(&to).into_iter().flatten().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
    std::fs::remove_file(filler).unwrap();
}

#[test]
fn a_journal_that_cannot_be_written_is_restored_all_the_same() {
    let Some(fs) = SmallFs::new(16 << 20) else { return };
    let shop = Shop::new();
    let state = fs.path().join("state");
    let mut copy = std::process::Command::new("cp");
    assert!(copy.arg("-r").arg(shop.cli.state()).arg(&state).status().unwrap().success());
    fs.read_only(true);
    let cli = cli(&state);
    let to = shop.path("out").display().to_string();
    let outcome = cli.run(&["restore", "web", "--at", "latest", "--to", &to]);
    let agent = cli.run(&["agent"]);
    let doctor = cli.run(&["doctor", "--json"]);
    let target = fs.path().join("out").display().to_string();
    let refused = shop.cli.run(&["restore", "web", "--at", "latest", "--to", &target]);
    fs.read_only(false);
    assert_eq!(outcome.code, 0, "{outcome:?}");
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("directory you can write to"), "{refused:?}");
    assert_ne!(agent.code, 0, "{agent:?}");
    assert!(agent.stderr.contains("Read-only"), "{agent:?}");
    assert_eq!(doctor.code, 1, "{doctor:?}");
    assert_eq!(finding(&doctor.json(), "state")["level"], "fail", "{doctor:?}");
}

fn finding<'a>(report: &'a serde_json::Value, check: &str) -> &'a serde_json::Value {
    let found = report.as_array().unwrap().iter().find(|f| f["check"] == check);
    found.unwrap_or_else(|| panic!("no check {check}: {report}"))
}

#[test]
fn doctor_names_each_thing_with_what_to_do() {
    let dir = TempDir::new().unwrap();
    let fresh = cli(&dir.path().join("fresh")).run(&["doctor", "--json"]);
    assert_eq!(fresh.code, 0, "{fresh:?}");
    let report = fresh.json();
    for check in
        ["kernel", "qemu", "qemu-img", "kvm", "state", "disk space", "file system", "agent"]
    {
        let found = finding(&report, check);
        let todo = found["todo"].as_str();
        assert_eq!(todo.is_none(), found["level"] == "ok", "{found}");
    }
    assert_eq!(finding(&report, "agent")["level"], "warn");
    let shop = Shop::new();
    let guests = shop.cli.state().join("guests");
    std::fs::create_dir_all(&guests).unwrap();
    let settings = r#"{"name":"web","group":"shop","qmp":"/nonexistent/qmp.sock",
        "window_s":3600,"checkpoint_every_ms":5000}"#;
    std::fs::write(guests.join("web.json"), settings).unwrap();
    let sick = shop.cli.run(&["doctor", "--json"]);
    assert_eq!(sick.code, 1, "{sick:?}");
    let report = sick.json();
    assert_eq!(finding(&report, "agent")["level"], "fail");
    let guest = finding(&report, "guest web");
    assert_eq!(guest["level"], "fail");
    assert!(guest["what"].as_str().unwrap().contains("/nonexistent/qmp.sock"), "{guest}");
    assert_eq!(finding(&report, "journal shop")["level"], "ok");
    assert_eq!(finding(&report, "trim")["level"], "warn");
    let text = shop.cli.run(&["doctor"]);
    assert!(text.stdout.contains("FAIL") && text.stdout.contains("-> start it"), "{text:?}");
}
