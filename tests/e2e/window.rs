//! A window that slides under a writing guest, in a pool with a hard limit whose members come and go,
//! while the agent is killed again and again.

use super::evidence::{RAW, history, identical, prefix_of};
use super::{PROGRAM, STATE_LIMIT, Scene};
use crate::kit::{Agent, Disk, VmBuilder, image, poll};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// What is asked of a run.
struct Trial {
    lasts: Duration,
    window: Duration,
    kill_every: Duration,
    unit: &'static str,
    limit: u64,
    /// Most blocks that the guest writes a second: so many that the window takes some three fifths of the
    /// limit. A guest that writes more than fits is for the keeper's own tests: its history is cut, then
    /// capture stops.
    rate: u64,
    points: usize,
}

#[test]
fn window_slides_under_its_limit_while_members_come_and_go_and_the_agent_dies() {
    run(&Trial {
        lasts: Duration::from_secs(45),
        window: Duration::from_secs(10),
        kill_every: Duration::from_secs(9),
        unit: "1MiB",
        limit: 160 << 20,
        rate: 2000,
        points: 6,
    });
}

#[test]
#[ignore = "takes ten minutes: `make test-long`"]
fn ten_minutes_of_a_two_minute_window_under_its_limit() {
    run(&Trial {
        lasts: Duration::from_secs(600),
        window: Duration::from_secs(120),
        kill_every: Duration::from_secs(30),
        unit: "4MiB",
        limit: 2 << 30,
        rate: 2500,
        points: 20,
    });
}

/// A scene whose agent makes units of a chosen size.
pub fn scene(unit: &str) -> Scene {
    let dir = TempDir::with_prefix("ai-").unwrap();
    let mut builder = VmBuilder::new("writer");
    let mut images = Vec::new();
    for name in ["a", "b"] {
        let path = dir.path().join(name);
        image::raw(&path, super::DISK_BYTES);
        builder = builder.disk(Disk::raw(path.clone()));
        images.push(path);
    }
    let vm = builder.boot();
    let state = dir.path().join("state");
    let options = ["--stall-limit", "5s", "--unit-size", unit];
    let agent = Agent::start_with(&options, PROGRAM, state);
    Scene { builder, vm, agent, images, dir }
}

/// Bytes on disk of all that the group has, on every member, and of which files.
fn used_bytes(dirs: &[PathBuf]) -> (u64, Vec<String>) {
    let files = dirs.iter().flat_map(|dir| std::fs::read_dir(dir).into_iter().flatten().flatten());
    let files = files.filter_map(|f| Some((f.path(), f.metadata().ok().filter(|m| m.is_file())?)));
    let sizes: Vec<_> = files.map(|(path, m)| (m.blocks() * 512, path)).collect();
    let named = sizes.iter().map(|(bytes, path)| format!("{bytes} {}", path.display())).collect();
    (sizes.iter().map(|(bytes, _)| bytes).sum(), named)
}

fn run(trial: &Trial) {
    let mut scene = scene(trial.unit);
    let (limit, window) = (trial.limit.to_string(), format!("{}s", trial.window.as_secs()));
    scene.protect(&["--window", &window, "--limit", &limit]);
    scene.agent.wait_state("vm", "protected", STATE_LIMIT);
    scene.vm.ask(&format!("writer start rate={}", trial.rate), "writer started");

    let members: Vec<PathBuf> = ["m1", "m2"].iter().map(|m| scene.dir.path().join(m)).collect();
    let mut dirs: Vec<PathBuf> = members.iter().map(|m| m.join("vm")).collect();
    dirs.push(scene.agent.state().join("pool/vm"));
    let mut is_member = [false; 2];
    let (begun, mut killed, mut kills) = (Instant::now(), Instant::now(), 0);
    let mut turn = 0;
    let mut worst = (0, Vec::new());
    while begun.elapsed() < trial.lasts {
        std::thread::sleep(Duration::from_millis(500));
        worst = worst.max(used_bytes(&dirs));
        if killed.elapsed() < trial.kill_every {
            continue;
        }
        killed = Instant::now();
        change_members(&scene.agent, &members, &mut is_member, turn);
        turn += 1;
        scene.agent.kill_worker();
        kills += 1;
    }
    scene.agent.wait_state("vm", "protected", STATE_LIMIT);
    let acknowledged = scene.vm.ask_last("writer pause", "writer paused");
    let stats = scene.vm.stats("writer");
    assert_eq!(stats.errors, 0, "{stats:?}");
    assert!(worst.0 <= trial.limit, "{limit} bytes allowed, used: {worst:#?}");
    eprintln!("{} of {limit} bytes used, {kills} kills, {stats:?}", worst.0);

    judge(&scene, trial, kills, acknowledged);
    let latest = scene.restore("latest");
    assert_eq!(prefix_of(&latest), acknowledged);
    scene.vm.quit();
    identical(&scene.images, &RAW, &latest);
}

/// Adds a member, or begins to drain one, in turn.
fn change_members(agent: &Agent, members: &[PathBuf], is_member: &mut [bool; 2], turn: usize) {
    let which = turn / 2 % 2;
    let dir = members[which].display().to_string();
    if is_member[which] {
        // It may still be draining when the agent is killed: then it goes on.
        let begun = agent.run(&["pool", "remove", &dir]);
        assert_eq!(begun.code, 0, "{begun:?}");
        is_member[which] = false;
    } else {
        std::fs::create_dir_all(&members[which]).unwrap();
        let gone = poll(STATE_LIMIT, || {
            (agent.run(&["pool", "add", &dir, "--limit", "1g"]).code == 0).then_some(())
        });
        assert!(gone.is_some(), "{dir} is not taken: {:?}", agent.run(&["pool", "list"]));
        is_member[which] = true;
    }
}

/// The window was held and no longer than it must; what is listed restores; what is missing is said.
fn judge(scene: &Scene, trial: &Trial, kills: usize, acknowledged: u64) {
    // What is listed now must still be there when its turn comes, on however slow a machine: the window
    // slides no further. (A step of the keeper may be under way.)
    let first = || history(&scene.agent).window().expect("a window").0.seq;
    scene.agent.ok(&["set", "vm", "--window", "1h"]);
    let mut before = first();
    let still = poll(STATE_LIMIT, || {
        std::thread::sleep(Duration::from_secs(2));
        let now = first();
        (std::mem::replace(&mut before, now) == now).then_some(())
    });
    still.expect("the window stands still");
    let journal = history(&scene.agent);
    assert!(journal.damage.is_empty(), "{:?}", journal.damage);
    assert!(journal.gaps.len() <= kills, "{kills} kills, {:?}", journal.gaps);
    assert!(journal.gaps.iter().all(|g| !g.reason.is_empty()), "{:?}", journal.gaps);
    let (first, last) = journal.window().expect("a window");
    let held = Duration::from_nanos(last.wall_ns - first.wall_ns);
    eprintln!("window of {held:?}, gaps {:?}", journal.gaps);
    assert!(held >= trial.window.mul_f64(0.9), "{held:?} of {:?}", trial.window);
    assert!(held < trial.lasts, "nothing was merged: {held:?}");
    for gap in &journal.gaps {
        let inside = format!("seq:{}", gap.from + 1);
        let to = Path::new("/nonexistent/x").display().to_string();
        let refused = scene.agent.run(&["restore", "vm", "--at", &inside, "--to", &to]);
        assert_eq!(refused.code, 3, "{refused:?}");
    }
    let list = scene.agent.json(&["checkpoints", "vm"]);
    let list = list.as_array().unwrap();
    assert!(list.len() >= trial.points, "{} checkpoints", list.len());
    let step = (list.len() / trial.points).max(1);
    let mut before = 0;
    for checkpoint in list.iter().step_by(step) {
        let images = scene.restore(&format!("#{}", checkpoint["id"]));
        let last = prefix_of(&images);
        assert!(last >= before && last <= acknowledged, "{before} {last} {acknowledged}");
        before = last;
        images.iter().for_each(|i| std::fs::remove_file(i).unwrap());
    }
    // The window's old edge, where merging works, above all.
    assert!(prefix_of(&scene.restore(&format!("seq:{}", first.seq))) <= acknowledged);
    let sound = scene.agent.json(&["verify", "vm"]);
    assert_eq!(sound["damage"].as_array().map_or(0, Vec::len), 0, "{sound}");
}
