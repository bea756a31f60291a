//! Letting go of busy guests: QEMU survives it, however often and with however many disks.

use super::evidence::{history, identical, ours_in, wait_session_behind};
use super::{DISK_BYTES, PROGRAM, STATE_LIMIT};
use crate::kit::{Agent, Disk, Format, Vm, VmBuilder, image, poll};
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;
use tempfile::TempDir;

/// QEMU's table of writes in flight has a bit for 4 KiB. Writes to the first blocks clear bits in its first
/// bytes, where the allocator keeps its own pointers once the table is freed: what is freed too early shows.
const FIRST_BLOCKS: u64 = 1 << 20;
/// Writing threads for each disk.
const WRITERS: usize = 4;

/// A loaded guest with some disks, protected.
struct Loaded {
    vm: Vm,
    agent: Agent,
    images: Vec<PathBuf>,
    dir: TempDir,
    random: u64,
    /// Checkpoints with memory that were made.
    memory_marks: u32,
}

impl Loaded {
    /// `span_bytes`: how much of each disk is written.
    fn new(disks: usize, span_bytes: u64) -> Self {
        let dir = TempDir::with_prefix("ai-").unwrap();
        let images: Vec<_> = (0..disks).map(|i| dir.path().join(format!("disk{i}"))).collect();
        let mut builder = VmBuilder::new("load");
        for path in &images {
            image::raw(path, DISK_BYTES);
            builder = builder.disk(Disk::raw(path.clone()));
        }
        let mut vm = builder.boot();
        let threads = WRITERS * disks;
        vm.ask(&format!("load start threads={threads} span={span_bytes}"), "load started");
        let agent = Agent::start(PROGRAM, dir.path().join("state"));
        let seed = std::env::var("AFTERIMAGE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
        let loaded = Self { vm, agent, images, dir, random: seed, memory_marks: 0 };
        let qmp = loaded.vm.agent_qmp().display().to_string();
        let limit = ["--window", "30s", "--limit", "6G", "--checkpoint-every", "1s"];
        loaded.agent.ok(&[&["protect", "vm", "--qmp", &qmp][..], &limit].concat());
        loaded.protected();
        loaded
    }

    fn protected(&self) {
        self.agent.wait_state("vm", "protected", STATE_LIMIT);
    }

    fn pause(&mut self, ms_max: u64) {
        // xorshift: a pause is any, and the same for a seed.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        std::thread::sleep(Duration::from_millis(self.random % ms_max));
    }

    /// Lets go of it and takes hold of it again, `rounds` times.
    fn rounds(&mut self, rounds: u32, pause_ms_max: u64, memory_every: u32) {
        for round in 1..=rounds {
            self.pause(pause_ms_max);
            // Midway in the resync, or behind it.
            if !round.is_multiple_of(3) {
                self.protected();
                let tag = format!("r{round}");
                self.agent.ok(&["mark", "vm", "--tag", &tag]);
                if memory_every > 0 && round.is_multiple_of(memory_every) {
                    let tag = format!("m{round}");
                    // A journal near its limit, or a machine that is too busy, may refuse one.
                    let made = self.agent.run(&["mark", "vm", "--tag", &tag, "--memory"]);
                    self.memory_marks += u32::from(made.code == 0);
                }
            }
            let outcome = self.agent.run(&["detach", "vm"]);
            let pid = self.vm.pid();
            assert_eq!(outcome.code, 0, "round {round}, QEMU {pid}: {outcome:?}");
            let left = ours_in(self.vm.qmp());
            assert!(left.iter().all(|n| n.contains("-map-")), "round {round}: {left:?}");
            self.pause(pause_ms_max);
            self.agent.ok(&["attach", "vm"]);
        }
    }

    /// The guest saw no error, and the newest point is what it wrote.
    fn judge(mut self) {
        self.protected();
        let stats = self.vm.stats("load");
        assert!(stats.errors == 0 && stats.count > 0, "{stats:?}");
        self.vm.ask("load pause", "load paused");
        self.agent.ok(&["mark", "vm", "--tag", "end"]);
        let latest = super::restore(&self.agent, "tag:end", self.dir.path());
        self.vm.quit();
        identical(&self.images, &vec![Format::Raw; self.images.len()], &latest);
    }
}

#[test]
fn busy_guest_survives_detach_and_attach() {
    let mut loaded = Loaded::new(2, FIRST_BLOCKS);
    loaded.rounds(6, 100, 0);
    loaded.judge();
}

/// A thousand rounds in all, an even share for each number of disks.
fn share_of_a_thousand_rounds(disks: usize) {
    let span_bytes = if disks.is_multiple_of(2) { FIRST_BLOCKS } else { DISK_BYTES };
    let mut loaded = Loaded::new(disks, span_bytes);
    loaded.rounds(250, 500, 25);
    assert!(loaded.memory_marks > 0, "no checkpoint with memory was made");
    loaded.judge();
}

#[test]
#[ignore = "long: 250 rounds"]
fn a_thousand_detaches_under_load_with_one_disk() {
    share_of_a_thousand_rounds(1);
}

#[test]
#[ignore = "long: 250 rounds"]
fn a_thousand_detaches_under_load_with_two_disks() {
    share_of_a_thousand_rounds(2);
}

#[test]
#[ignore = "long: 250 rounds"]
fn a_thousand_detaches_under_load_with_three_disks() {
    share_of_a_thousand_rounds(3);
}

#[test]
#[ignore = "long: 250 rounds"]
fn a_thousand_detaches_under_load_with_four_disks() {
    share_of_a_thousand_rounds(4);
}

/// Somebody else's job on one disk keeps the guest in a gap, with our paused mirror on the other: detach
/// has to take that out all the same, from under the load, and the next attach copies what it lost.
#[test]
fn detach_in_a_gap_leaves_no_mirror_in_qemu() {
    let mut loaded = Loaded::new(2, DISK_BYTES);
    let name = |qmp: &mut crate::kit::Qmp| {
        let jobs = qmp.execute("query-block-jobs", json!({}));
        jobs[0]["device"].as_str().unwrap().to_owned()
    };
    let job = name(loaded.vm.qmp());
    let blocks = loaded.vm.qmp().execute("query-block", json!({}));
    let filter = job.replace("-job", "-filter");
    let disk = blocks.as_array().unwrap().iter();
    let disk = disk.clone().find(|b| b["inserted"]["node-name"] == filter.as_str());
    let device = disk.unwrap()["device"].as_str().unwrap().to_owned();
    let backup = loaded.dir.path().join("theirs");
    let qmp = loaded.vm.qmp();
    qmp.execute("block-job-cancel", json!({ "device": job }));
    // The moment ours has gone, before the agent comes back to the disk.
    let theirs = poll(STATE_LIMIT, || {
        let wish = json!({
            "job-id": "theirs", "device": device, "target": backup, "sync": "full", "speed": 1 << 16,
        });
        qmp.try_execute("drive-mirror", wish).ok()
    });
    assert!(theirs.is_some(), "the other job did not get the disk");
    loaded.agent.wait_status("vm", STATE_LIMIT, |s| {
        s["state"] == "gap" && s["reason"].as_str().unwrap_or_default().contains("root block node")
    });
    let left = ours_in(loaded.vm.qmp());
    assert!(left.iter().any(|n| n.ends_with("-job")), "no mirror was left: no test: {left:?}");
    loaded.agent.ok(&["detach", "vm"]);
    let left = ours_in(loaded.vm.qmp());
    assert!(left.iter().all(|n| n.contains("-map-")), "{left:?}");
    // Theirs is slow: it is not ready, and cancelling it then would be by force.
    loaded.vm.ask("load pause", "load paused");
    loaded.vm.qmp().execute("block-job-cancel", json!({ "device": "theirs" }));
    let gone = poll(STATE_LIMIT, || {
        let jobs = loaded.vm.qmp().execute("query-block-jobs", json!({}));
        jobs.as_array().unwrap().is_empty().then_some(())
    });
    assert!(gone.is_some(), "the other job does not end");
    loaded.vm.ask(&format!("load start span={DISK_BYTES}"), "load started");
    let head = history(&loaded.agent).head;
    loaded.agent.ok(&["attach", "vm"]);
    wait_session_behind(&loaded.agent, head);
    loaded.judge();
}
