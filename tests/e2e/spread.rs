//! A journal over three members of a pool whose worker is killed again and again: every mark that was
//! answered restores, and holds what the guest had written by then.

use super::{DISK_BYTES, PROGRAM, STATE_LIMIT, Scene};
use crate::kit::{Agent, Disk, Vm, VmBuilder, image, prefix};
use afterimage_journal::meta::CopyCause;
use afterimage_journal::pool::FileName;
use afterimage_journal::{History, storage};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const KILLS: usize = 5;
const KILLS_LONG: usize = 200;
/// What each member may take: not quite the same, so that each has its turn.
const LIMITS: [&str; 3] = ["2000m", "1996m", "1990m"];

const OPTIONS: [&str; 4] = ["--stall-limit", "5s", "--unit-size", "1MiB"];

/// A guest with two disks, and an agent with small units on three members.
fn spread() -> (Scene, Vec<PathBuf>) {
    let dir = TempDir::with_prefix("ai-").unwrap();
    let mut builder = VmBuilder::new("writer");
    let images: Vec<PathBuf> = ["a", "b"].iter().map(|name| dir.path().join(name)).collect();
    for path in &images {
        image::raw(path, DISK_BYTES);
        builder = builder.disk(Disk::raw(path.clone()));
    }
    let vm: Vm = builder.boot();
    let state = dir.path().join("state");
    let agent = Agent::start_with(&OPTIONS, PROGRAM, &state);
    let members: Vec<PathBuf> =
        vec![state.join("pool"), dir.path().join("m1"), dir.path().join("m2")];
    for (member, limit) in members.iter().zip(LIMITS) {
        std::fs::create_dir_all(member).unwrap();
        agent.ok(&["pool", "add", &member.display().to_string(), "--limit", limit]);
    }
    (Scene { dir, builder, vm, agent, images }, members)
}

fn units_on(member: &Path) -> usize {
    let names = std::fs::read_dir(member.join("vm")).into_iter().flatten().flatten();
    names.filter(|e| e.file_name().to_str().and_then(FileName::parse).is_some()).count()
}

fn last_of(scene: &Scene, at: &str) -> u64 {
    let restored = scene.restore(at);
    let paths: Vec<&Path> = restored.iter().map(PathBuf::as_path).collect();
    let last = prefix::last(&paths).unwrap_or_else(|e| panic!("{at}: {e}"));
    restored.first().and_then(|p| p.parent()).map(std::fs::remove_dir_all);
    last
}

/// A member is away for a run of the agent and comes back: what was marked meanwhile is right.
fn away_and_back(mut scene: Scene, member: &Path) {
    let state = scene.agent.state().to_owned();
    let away = member.with_extension("away");
    scene.agent.stop();
    std::fs::rename(member, &away).unwrap();
    scene.agent = Agent::start_with(&OPTIONS, PROGRAM, &state);
    scene.agent.wait_state("vm", "protected", STATE_LIMIT);
    let history = History::load(&state.join("pool/vm")).unwrap();
    let whole = history.copies.values().filter(|c| c.whole && c.cause == CopyCause::Compare);
    assert_eq!(whole.count(), 2, "{:?}", history.copies);
    scene.vm.ask("writer start", "writer started");
    scene.agent.ok(&["mark", "vm", "--tag", "between"]);
    let written = scene.vm.ask_last("writer pause", "writer paused");
    scene.agent.ok(&["mark", "vm", "--tag", "away"]);
    assert_eq!(last_of(&scene, "tag:away"), written);
    scene.agent.stop();
    std::fs::rename(&away, member).unwrap();
    scene.agent = Agent::start_with(&OPTIONS, PROGRAM, &state);
    scene.agent.wait_state("vm", "protected", STATE_LIMIT);
    assert_eq!(last_of(&scene, "tag:away"), written, "with the member back");
    assert!(last_of(&scene, "tag:between") <= written);
    assert!(last_of(&scene, "tag:k0") <= written, "what it had is there again");
    let latest = scene.restore("latest");
    scene.vm.quit();
    for (source, copy) in scene.images.iter().zip(&latest) {
        image::compare((source, "raw"), (copy, "raw")).unwrap();
    }
}

fn kill_again_and_again(kills: usize) {
    let (mut scene, members) = spread();
    scene.protected();
    scene.vm.ask("writer start", "writer started");
    let mut marks: Vec<(String, u64)> = Vec::new();
    for round in 0..kills {
        let epoch = scene.agent.json(&["status", "vm"])["epoch"].as_u64().unwrap();
        // What the guest had been told to be written before the mark is in it.
        let known = scene.vm.stats("writer").last;
        let tag = format!("k{round}");
        scene.agent.ok(&["mark", "vm", "--tag", &tag]);
        scene.agent.kill_worker();
        marks.push((tag, known));
        scene.agent.wait_status("vm", STATE_LIMIT, |s| {
            s["state"] == "protected" && s["epoch"].as_u64().unwrap() > epoch
        });
        let (tag, known) = &marks[round];
        assert!(last_of(&scene, &format!("tag:{tag}")) >= *known, "{tag}");
    }
    let acknowledged = scene.vm.ask_last("writer pause", "writer paused");
    let stats = scene.vm.stats("writer");
    assert_eq!(stats.errors, 0, "{stats:?}");
    let mut before = 0;
    for (tag, known) in &marks {
        let last = last_of(&scene, &format!("tag:{tag}"));
        assert!(last >= before && last >= *known && last <= acknowledged, "{tag}: {last}");
        before = last;
    }
    assert_eq!(last_of(&scene, "latest"), acknowledged);
    let history = History::load(&members[0].join("vm")).unwrap();
    assert!(history.damage.is_empty(), "{:?}", history.damage);
    let places = afterimage_journal::pool::Places::of(
        &storage::RealStorage::shared(),
        &members[0].join("vm"),
    );
    let strays = places.unwrap().listing().unwrap().strays;
    assert!(strays.is_empty(), "{strays:?}");
    let units: Vec<usize> = members.iter().map(|m| units_on(m)).collect();
    assert!(units.iter().all(|n| *n > 0), "{units:?}");
    away_and_back(scene, &members[2]);
}

#[test]
fn marks_survive_kills_of_the_worker_over_three_members() {
    kill_again_and_again(KILLS);
}

#[test]
#[ignore = "long: 200 kills"]
fn marks_survive_two_hundred_kills_of_the_worker_over_three_members() {
    kill_again_and_again(KILLS_LONG);
}
