//! The journal's directory goes away under a guest that writes: removed, replaced, mounted over. And what
//! an agent left in QEMU whose state is lost.

use super::evidence::{expect_level, ours_in};
use super::{PROGRAM, STATE_LIMIT, Scene};
use crate::kit::{Agent, Disk, poll};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The journal of the guest.
fn journal(scene: &Scene) -> PathBuf {
    scene.agent.state().join("pool/vm")
}

fn level(scene: &mut Scene, case: &str) {
    let Scene { vm, agent, images, dir, .. } = scene;
    expect_level(vm, agent, images, dir.path(), case);
}

/// A gap with its reason, which everybody hears of who asks.
#[track_caller]
fn expect_gap(scene: &Scene, why: &str) {
    let agent = &scene.agent;
    agent.wait_status("vm", STATE_LIMIT, |s| {
        s["state"] == "gap" && format!("{} {}", s["reason"], s["gaps"]).contains(why)
    });
    let marked = agent.run(&["mark", "vm", "--tag", "lost"]);
    assert_ne!(marked.code, 0, "{marked:?}");
    let found = agent.run(&["doctor"]);
    assert_eq!(found.code, 1, "{found:?}");
    assert!(
        found.stdout.contains("journal vm") && found.stdout.contains("is not there"),
        "{found:?}"
    );
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name());
    entries.map(|name| name.into_string().unwrap()).collect()
}

/// A file system over a directory, as long as it lives.
struct Over(PathBuf);

impl Over {
    /// `None` where this machine does not let us mount.
    fn new(dir: &Path) -> Option<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=1m", "afterimage"]).arg(dir);
        mount.status().unwrap().success().then(|| Self(dir.to_owned()))
    }
}

impl Drop for Over {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Ends the agent in some way, and starts it again.
fn restart(scene: &mut Scene, end: impl FnOnce(Agent)) {
    let state = scene.agent.state().to_owned();
    let none = Agent::start(PROGRAM, scene.dir.path().join("none"));
    end(std::mem::replace(&mut scene.agent, none));
    scene.agent = Agent::start(PROGRAM, state);
}

#[test]
fn journal_that_goes_away_is_a_gap_and_blocks_no_later_protection() {
    let second = tempfile::TempDir::with_prefix("ai-").unwrap();
    let monitor = second.path().join("qmp");
    let more = format!("unix:{},server=on,wait=off", monitor.display());
    let mut scene = Scene::with(Disk::raw, |b| b.arg("-qmp").arg(&more));
    scene.vm.ask("writer start", "writer started");
    scene.protected();

    // With the units ahead made: what is made at the very instant may land in the new place.
    let is_prepared = |s: &serde_json::Value| s["journal"]["units"].as_u64() >= Some(3);
    scene.agent.wait_status("vm", STATE_LIMIT, is_prepared);

    // Replaced, and put back.
    let (dir, aside) = (journal(&scene), scene.dir.path().join("aside"));
    std::fs::rename(&dir, &aside).unwrap();
    std::fs::create_dir(&dir).unwrap();
    expect_gap(&scene, "another one now");
    assert_eq!(names_in(&dir), [""; 0], "made in its place");
    std::fs::remove_dir(&dir).unwrap();
    std::fs::rename(&aside, &dir).unwrap();
    scene.agent.wait_state("vm", "protected", STATE_LIMIT);
    level(&mut scene, "replaced");

    // Mounted over.
    if let Some(over) = Over::new(&dir) {
        expect_gap(&scene, "mounted over it");
        assert_eq!(names_in(&dir), [""; 0], "made in its place");
        drop(over);
        scene.agent.wait_state("vm", "protected", STATE_LIMIT);
        level(&mut scene, "mounted over");
    }

    // Removed for good. It is protected anew, with what is left in QEMU in the way.
    let removed = poll(STATE_LIMIT, || std::fs::remove_dir_all(&dir).ok());
    assert!(removed.is_some(), "{:?}", names_in(&dir));
    expect_gap(&scene, "removed");
    restart(&mut scene, Agent::stop);
    expect_gap(&scene, "not there any more");
    assert!(!dir.exists(), "a new journal was made in silence");
    scene.agent.ok(&["unprotect", "vm", "--purge"]);
    scene.protected();
    level(&mut scene, "protected again");

    // An agent that lives is not robbed of its mirrors.
    let other = Agent::start(PROGRAM, second.path().join("state"));
    let monitor = monitor.display().to_string();
    let refused = other.run(&["protect", "vm", "--qmp", &monitor]);
    assert_ne!(refused.code, 0, "{refused:?}");
    assert!(refused.stderr.contains("another agent"), "{refused:?}");
    other.stop();
    let status = scene.agent.json(&["status", "vm"]);
    assert_eq!(
        (&status["state"], status["gaps"].as_array().unwrap().len()),
        (&"protected".into(), 0)
    );

    // The whole state is lost under an agent that was killed.
    let before = ours_in(scene.vm.qmp());
    restart(&mut scene, |agent| {
        let state = agent.state().to_owned();
        agent.kill();
        std::fs::remove_dir_all(state).unwrap();
    });
    scene.protected();
    level(&mut scene, "state lost");
    let left: Vec<_> = ours_in(scene.vm.qmp()).into_iter().filter(|n| before.contains(n)).collect();
    assert!(left.is_empty(), "{left:?}");
}
