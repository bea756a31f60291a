//! The agent killed, hung and restarted under a writing guest.

use super::evidence::entries;
use super::{PROGRAM, STATE_LIMIT, Scene};
use crate::kit::{Agent, image, prefix};
use afterimage_journal::History;
use afterimage_journal::format::record::FLAG_COPIED;
use afterimage_journal::meta::CopyCause;
use std::path::Path;
use std::time::Duration;

const PROTECTED: &str = "protected";

fn prefix_of(images: &[std::path::PathBuf]) -> u64 {
    let paths: Vec<&Path> = images.iter().map(std::path::PathBuf::as_path).collect();
    prefix::last(&paths).unwrap()
}

fn history(scene: &Scene) -> History {
    History::load(&scene.agent.state().join("pool/vm")).unwrap()
}

/// Waits until a protected guest got a new checkpoint after its gap.
fn wait_protected_anew(scene: &Scene, epoch_before: u64) {
    scene.agent.wait_status("vm", STATE_LIMIT, |s| {
        s["state"] == PROTECTED && s["epoch"].as_u64().unwrap() > epoch_before
    });
}

fn epoch(scene: &Scene) -> u64 {
    scene.agent.json(&["status", "vm"])["epoch"].as_u64().unwrap()
}

#[test]
fn every_checkpoint_is_a_prefix_and_gaps_are_refused_though_the_agent_dies_and_hangs() {
    let mut scene = Scene::new();
    scene.vm.ask("writer start", "writer started");
    scene.protected();
    for round in 0..6 {
        std::thread::sleep(Duration::from_millis(1500));
        let before = epoch(&scene);
        match round % 3 {
            0 => drop(scene.agent.kill_worker()),
            1 => drop(scene.agent.stop_worker()),
            _ => {
                let state = scene.agent.state().to_owned();
                scene.agent.signal_worker(rustix::process::Signal::TERM);
                // The guard takes the end of its worker for the end of the agent.
                scene.agent = restarted(&scene, &state);
            }
        }
        wait_protected_anew(&scene, before);
    }
    std::thread::sleep(Duration::from_millis(1500));
    let acknowledged = scene.vm.ask_last("writer pause", "writer paused");
    let stats = scene.vm.stats("writer");
    assert_eq!(stats.errors, 0, "{stats:?}");
    // `make bench` measures stalls; here one only has to end by itself.
    assert!(stats.worst_us < 10_000_000, "{stats:?}");

    let history = history(&scene);
    assert!(history.damage.is_empty(), "{:?}", history.damage);
    assert_eq!(history.gaps.len(), 6, "{:?}", history.gaps);
    for gap in &history.gaps {
        let inside = format!("seq:{}", gap.from + 1);
        let words = ["restore", "vm", "--at", &inside, "--to", "/nonexistent/x"];
        let refused = scene.agent.run(&words);
        assert_eq!(refused.code, 3, "{refused:?}");
        for near in [gap.from, gap.to.unwrap()] {
            assert!(refused.stderr.contains(&format!("seq:{near}")), "{near}: {refused:?}");
        }
    }
    let fulls = history.copies.values().filter(|c| c.cause != CopyCause::Bitmap).count();
    assert_eq!(fulls, 2, "one first copy a disk, no other: {:?}", history.copies);

    let list = scene.agent.json(&["checkpoints", "vm"]);
    let mut before = 0;
    for checkpoint in list.as_array().unwrap() {
        let last = prefix_of(&scene.restore(&format!("#{}", checkpoint["id"])));
        assert!(last >= before && last <= acknowledged, "{before} {last} {acknowledged}");
        before = last;
    }
    for gap in &history.gaps {
        prefix_of(&scene.restore(&format!("seq:{}", gap.from)));
        prefix_of(&scene.restore(&format!("seq:{}", gap.to.unwrap())));
    }
    let latest = scene.restore("latest");
    assert_eq!(prefix_of(&latest), acknowledged);
    scene.vm.quit();
    for (source, copy) in scene.images.iter().zip(&latest) {
        image::compare((source, "raw"), (copy, "raw")).unwrap();
    }
}

fn restarted(scene: &Scene, state: &Path) -> Agent {
    let guard = scene.agent.guard_pid();
    let ended = crate::kit::poll(Duration::from_secs(20), || {
        let stat = std::fs::read_to_string(format!("/proc/{guard}/stat")).unwrap_or_default();
        (stat.is_empty() || stat.contains(") Z ")).then_some(())
    });
    assert!(ended.is_some(), "the guard goes on: {}", scene.agent.last_words());
    Agent::start(PROGRAM, state)
}

#[test]
fn a_killed_agent_costs_what_changed_and_no_full_copy() {
    let mut scene = Scene::new();
    scene.protected();
    scene.vm.ask("writer start", "writer started");
    std::thread::sleep(Duration::from_secs(2));
    let before = epoch(&scene);
    let first = history(&scene);
    scene.agent.kill_worker();
    wait_protected_anew(&scene, before);
    scene.vm.ask_last("writer pause", "writer paused");
    let now = history(&scene);
    let copied: u64 = entries(&now)
        .iter()
        .filter(|e| e.record.seq > first.head && e.record.flags & FLAG_COPIED != 0)
        .map(|e| u64::from(e.record.payload_bytes))
        .sum();
    assert_eq!(copied, 0, "the mirror sends what it noted; nothing is pulled");
    let gap = now.gaps.first().unwrap();
    let resent: u64 = entries(&now)
        .iter()
        .filter(|e| e.record.seq > gap.from && e.record.seq < gap.to.unwrap())
        .map(|e| u64::from(e.record.payload_bytes))
        .sum();
    // What a quick guest writes from the last confirmed moment on, in two or three seconds; both disks
    // whole would be four times that.
    assert!(resent < super::DISK_BYTES / 2, "{resent} bytes were sent for a gap of a moment");
}
