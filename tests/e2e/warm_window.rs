//! Checkpoints with memory grow old, are thinned, and find no room: what is listed goes on, and
//! capture never stops for it.

use super::copy::{Counted, Warm};
use super::evidence::history;
use super::{PROGRAM, STATE_LIMIT, Scene};
use crate::kit::{Agent, Disk, VmBuilder, image, poll};
use serde_json::Value;
use std::time::Duration;
use tempfile::TempDir;

/// A guest that counts on two disks, with a file in memory that doesn't compress, and an agent whose
/// units are small.
fn scene(tmpfs_mib: u64, protect: &[&str]) -> Scene {
    let dir = TempDir::with_prefix("ai-").unwrap();
    let mut builder = VmBuilder::new("counter").memory_mib(160);
    let mut images = Vec::new();
    for name in ["a", "b"] {
        let path = dir.path().join(name);
        image::raw(&path, 1 << 20);
        builder = builder.disk(Disk::raw(path.clone()));
        images.push(path);
    }
    let mut vm = builder.boot();
    let bytes = tmpfs_mib << 20;
    vm.ask(&format!("counter start rate=100 tmpfs={bytes}"), "counter started");
    let options = ["--stall-limit", "5s", "--unit-size", "4MiB"];
    let agent = Agent::start_with(&options, PROGRAM, dir.path().join("state"));
    let scene = Scene { builder, vm, agent, images, dir };
    scene.protect(protect);
    scene.agent.wait_state("vm", "protected", STATE_LIMIT);
    scene
}

fn mark(scene: &Scene, tag: &str) {
    let made = scene.agent.run(&["mark", "vm", "--tag", tag, "--memory"]);
    assert_eq!(made.code, 0, "{made:?}");
}

fn with_memory(scene: &Scene) -> Vec<Value> {
    let list = scene.agent.json(&["checkpoints", "vm"]);
    list.as_array().unwrap().iter().filter(|c| c["memory"] == true).cloned().collect()
}

fn goes_on(scene: &Scene, checkpoint: &Value, was: &Counted) {
    let warm = Warm::restore(&scene.agent, "vm", &format!("#{}", checkpoint["id"]));
    warm.start("vm").goes_on(was, 0);
}

#[test]
fn memory_ages_out_of_the_window_and_what_stays_goes_on() {
    let mut scene = scene(8, &["--window", "10s"]);
    let was = Counted::of(&mut scene.vm);
    let mut tags = Vec::new();
    let aged = poll(STATE_LIMIT, || {
        let tag = format!("m{}", tags.len());
        mark(&scene, &tag);
        tags.push(tag);
        std::thread::sleep(Duration::from_millis(500));
        let listed = with_memory(&scene);
        // More than one round of them.
        (tags.len() > 6 && listed.iter().all(|c| c["tag"] != "m0" && c["tag"] != "m1"))
            .then_some(())
    });
    assert!(aged.is_some(), "the first ones are listed still: {:?}", with_memory(&scene));
    let listed = with_memory(&scene);
    assert_eq!(listed.last().unwrap()["tag"].as_str(), tags.last().map(String::as_str));
    let journal = history(&scene.agent);
    assert!(journal.damage.is_empty() && journal.gaps.is_empty(), "{:?}", journal.gaps);
    println!("{} made, {} listed, edge {}", tags.len(), listed.len(), journal.edge);
    scene.agent.stop();
    scene.agent = Agent::start(PROGRAM, scene.dir.path().join("state"));
    goes_on(&scene, listed.last().unwrap(), &was);
    let at = "tag:m0";
    let refused =
        scene.agent.run(&["restore", "vm", "--at", at, "--to", "/nonexistent/x", "--warm"]);
    assert_ne!(refused.code, 0, "{refused:?}");
}

#[test]
fn thinned_checkpoints_keep_their_memory() {
    let mut scene = scene(8, &["--keep", "4s,2s:10m"]);
    let was = Counted::of(&mut scene.vm);
    for round in 0..3 {
        mark(&scene, &format!("m{round}"));
        std::thread::sleep(Duration::from_secs(1));
    }
    let behind = poll(STATE_LIMIT, || {
        let edge = history(&scene.agent).edge;
        let old = with_memory(&scene).into_iter();
        let old: Vec<_> = old.filter(|c| c["seq"].as_u64().unwrap() < edge).collect();
        (old.len() == 3).then_some(old)
    });
    let old = behind.unwrap_or_else(|| panic!("{}", scene.agent.json(&["checkpoints", "vm"])));
    scene.vm.kill();
    for checkpoint in [&old[0], &old[2]] {
        let warm = Warm::restore(&scene.agent, "vm", &format!("#{}", checkpoint["id"]));
        warm.start("vm").goes_on(&was, 0);
    }
    let sound = scene.agent.json(&["verify", "vm"]);
    assert_eq!(sound["damage"].as_array().map_or(0, Vec::len), 0, "{sound}");
}

#[test]
fn memory_that_finds_no_room_is_refused_with_a_reason_and_capture_goes_on() {
    let mut scene = scene(48, &["--window", "1h", "--limit", "76MiB"]);
    let before = Counted::of(&mut scene.vm);
    let session = history(&scene.agent).sessions.last().map(|s| s.id);
    let refused = |scene: &Scene, tag: &str| {
        let made = scene.agent.run(&["mark", "vm", "--tag", tag, "--memory"]);
        assert_eq!(made.code, 1, "{made:?}");
        let status = scene.agent.json(&["status", "vm"]);
        println!("{made:?} {status}");
        let error = status["memory"]["error"].as_str().unwrap().to_owned();
        // Known before the guest is asked, or found as pages are stored.
        let why = ["captured writes have room", "there for the guests' writes"];
        let said = why.iter().any(|why| error.contains(why)) && error.contains("limit");
        assert!(said, "{error}");
        assert_eq!(status["state"], "protected", "{status}");
    };
    refused(&scene, "big");
    // Where there is no room from the beginning, the guest is not even asked.
    refused(&scene, "again");
    // More than what memory would have left, had it filled all but the last unit.
    std::thread::sleep(Duration::from_secs(8));
    assert!(with_memory(&scene).is_empty());
    assert_eq!(scene.agent.json(&["status", "vm"])["state"], "protected");
    assert_eq!(history(&scene.agent).sessions.last().map(|s| s.id), session, "a gap");
    assert!(Counted::of(&mut scene.vm).ram > before.ram);
    // With room, the next one works.
    scene.agent.ok(&["set", "vm", "--limit", "2GiB"]);
    let made = poll(STATE_LIMIT, || {
        let made = scene.agent.run(&["mark", "vm", "--tag", "fits", "--memory"]);
        (made.code == 0).then_some(())
    });
    assert!(made.is_some(), "{}", scene.agent.json(&["status", "vm"]));
    let listed = with_memory(&scene);
    assert_eq!(listed.len(), 1, "{listed:?}");
    goes_on(&scene, &listed[0], &before);
}
