//! After an outage: the cheapest way that is safe, told from what the journal holds.

use super::evidence::{
    RAW, SOME_WRITES, causes_since, copied_bytes_since, copies_since, entries, history, identical,
    point_monitor_at, prefix_of, scene_of, scribble, wait_session_behind,
};
use super::{DISK_BYTES, PROGRAM, STATE_LIMIT, Scene};
use crate::kit::{Agent, BOOT_LIMIT, Disk, Format, Vm, VmBuilder, image, poll};
use afterimage_journal::format::record::FLAG_COPIED;
use afterimage_journal::meta::CopyCause;
use serde_json::json;
use std::path::PathBuf;
use tempfile::TempDir;

const FULL_BYTES: u64 = 192 << 20;
/// Where nobody writes but the test.
const ASIDE: u64 = 48 << 20;

/// Ends all block jobs, as libvirt or a person might. One that is paused can only be ended by force, and
/// QEMU 10.0 corrupts its heap when that happens under guest writes (`docs/decisions/0015`): so the guest
/// stands still meanwhile.
fn cancel_jobs(vm: &mut Vm) {
    let jobs = vm.qmp().execute("query-block-jobs", json!({}));
    let jobs = jobs.as_array().unwrap();
    let stopped = jobs.iter().any(|job| job["paused"] == true);
    if stopped {
        vm.qmp().execute("stop", json!({}));
    }
    for job in jobs {
        let force = job["paused"] == true;
        let arguments = json!({"device": job["device"], "force": force});
        let event = if force { "BLOCK_JOB_CANCELLED" } else { "BLOCK_JOB_COMPLETED" };
        let ended = vm.qmp().try_execute("block-job-cancel", arguments);
        let ended = ended.and_then(|_| vm.qmp().wait_event(event, STATE_LIMIT));
        ended.unwrap_or_else(|e| panic!("cancel {job}: {e}\n{}", vm.last_words()));
    }
    if stopped {
        vm.qmp().execute("cont", json!({}));
    }
}

#[test]
fn while_qemu_lives_nothing_but_changes_is_copied() {
    let mut scene = Scene::new();
    scene.vm.ask("writer start", "writer started");
    scene.protected();
    std::thread::sleep(SOME_WRITES);
    let idle = scene.vm.ask_last("writer pause", "writer paused");

    // An idle guest's mirror doesn't notice that the agent was killed.
    let head = history(&scene.agent).head;
    scene.agent.kill_worker();
    wait_session_behind(&scene.agent, head);
    assert!(copies_since(&history(&scene.agent), head).is_empty());
    assert_eq!(prefix_of(&scene.restore("latest")), idle);

    // Its mirror is gone, the agent away, and the guest writes on: the map knows.
    let head = history(&scene.agent).head;
    let state = scene.agent.state().to_owned();
    scene.vm.ask("writer start", "writer started");
    scene.agent.kill();
    let paused = poll(STATE_LIMIT, || {
        let jobs = scene.vm.qmp().execute("query-block-jobs", json!({}));
        jobs.as_array().unwrap().iter().all(|job| job["paused"] == true).then_some(())
    });
    assert!(paused.is_some(), "the mirrors did not notice that the agent is gone");
    cancel_jobs(&mut scene.vm);
    std::thread::sleep(SOME_WRITES);
    scene.agent = Agent::start(PROGRAM, state);
    wait_session_behind(&scene.agent, head);
    expect_map_pulled(&scene, head);
    let gap = history(&scene.agent).gaps.last().unwrap().clone();
    assert!(gap.reason.contains("ended from outside while the agent"), "{gap:?}");
    prefix_of(&scene.restore(&format!("seq:{}", gap.from)));
    prefix_of(&scene.restore(&format!("seq:{}", gap.to.unwrap())));

    // Let go of by a person, taken up again.
    scene.agent.ok(&["detach", "vm"]);
    let head = history(&scene.agent).head;
    std::thread::sleep(SOME_WRITES);
    scene.agent.ok(&["attach", "vm"]);
    wait_session_behind(&scene.agent, head);
    expect_map_pulled(&scene, head);

    let last = scene.vm.ask_last("writer pause", "writer paused");
    let latest = scene.restore("latest");
    assert_eq!(prefix_of(&latest), last);
    assert_eq!(scene.vm.stats("writer").errors, 0);
    scene.vm.quit();
    identical(&scene.images, &RAW, &latest);
}

fn expect_map_pulled(scene: &Scene, head: u64) {
    let history = history(&scene.agent);
    assert_eq!(causes_since(&history, head), [CopyCause::Bitmap]);
    let copied = copied_bytes_since(&history, head);
    assert!(copied > 0 && copied <= 2 * 4096 * 1024, "{copied} bytes were copied");
}

#[test]
fn a_mirror_that_is_cancelled_from_outside_is_a_gap_and_is_made_again() {
    let mut scene = Scene::new();
    scene.vm.ask("writer start", "writer started");
    scene.protected();
    std::thread::sleep(2 * SOME_WRITES);
    let head = history(&scene.agent).head;
    cancel_jobs(&mut scene.vm);
    wait_session_behind(&scene.agent, head);
    let journal = history(&scene.agent);
    assert_eq!(causes_since(&journal, head), [CopyCause::Bitmap]);
    let gap = journal.gaps.last().unwrap();
    assert!(gap.reason.contains("ended from outside"), "{gap:?}");
    let status = scene.agent.json(&["status", "vm"]);
    assert!(status["gaps"].to_string().contains("ended from outside"), "{status}");
    // Up to the last look at it, the mirror was proved to be there.
    for seq in [gap.from, gap.to.unwrap()] {
        prefix_of(&scene.restore(&format!("seq:{seq}")));
    }
    let inside = scene.dir.path().join("inside");
    let refused = scene.agent.restore("vm", &format!("seq:{}", gap.from + 1), &inside, &[]);
    assert_eq!(refused.unwrap_err().code, 3);
    let last = scene.vm.ask_last("writer pause", "writer paused");
    let latest = scene.restore("latest");
    assert_eq!(prefix_of(&latest), last);
    scene.vm.quit();
    identical(&scene.images, &RAW, &latest);
}

/// A guest whose monitor stays under one name through all its QEMUs, and its agent.
struct Reborn {
    dir: TempDir,
    builder: VmBuilder,
    vm: Option<Vm>,
    agent: Agent,
    images: Vec<PathBuf>,
    monitor: PathBuf,
}

impl Reborn {
    fn protected(disk: fn(PathBuf) -> Disk) -> Self {
        let Scene { dir, builder, vm, agent, images } = scene_of(&[disk, disk], |b| b);
        let monitor = dir.path().join("monitor");
        point_monitor_at(&monitor, &vm.agent_qmp());
        let name = monitor.display().to_string();
        agent.ok(&["protect", "vm", "--qmp", &name, "--checkpoint-every", "1s"]);
        agent.wait_state("vm", "protected", STATE_LIMIT);
        Self { dir, builder, vm: Some(vm), agent, images, monitor }
    }

    fn vm(&mut self) -> &mut Vm {
        self.vm.as_mut().unwrap()
    }

    /// Lets the guest write for a while.
    fn write(&mut self) -> u64 {
        self.vm().ask("writer start", "writer started");
        std::thread::sleep(SOME_WRITES);
        self.vm().ask_last("writer pause", "writer paused")
    }

    /// The guest ends; the journal's end once the agent knows of it.
    fn end(&mut self, how: fn(Vm)) -> u64 {
        how(self.vm.take().unwrap());
        self.agent.wait_state("vm", "detached", STATE_LIMIT);
        history(&self.agent).head
    }

    /// Starts the guest anew with `-S`.
    fn start_stopped(&mut self) {
        let vm = self.builder.clone().stopped().boot();
        point_monitor_at(&self.monitor, &vm.agent_qmp());
        self.vm = Some(vm);
    }

    /// Lets a guest run that was started with `-S`.
    fn run(&mut self) {
        self.vm().qmp().execute("cont", json!({}));
        self.vm().wait_line("ready ", BOOT_LIMIT);
    }

    /// Starts the guest anew; it writes before the agent can reach it.
    fn start_and_write(&mut self) {
        self.vm = Some(self.builder.boot());
        self.write();
        let qmp = self.vm().agent_qmp();
        point_monitor_at(&self.monitor, &qmp);
    }

    /// Waits until it is protected anew, and says which copies that took.
    fn causes_behind(&self, head: u64) -> Vec<CopyCause> {
        wait_session_behind(&self.agent, head);
        causes_since(&history(&self.agent), head)
    }

    /// Restores the newest point and compares it with the disks of the guest, which ends.
    fn identical(mut self, formats: [Format; 2]) {
        let latest = super::restore(&self.agent, "latest", self.dir.path());
        self.vm.take().unwrap().quit();
        identical(&self.images, &formats, &latest);
    }
}

#[test]
fn a_guest_started_again_is_compared_unless_its_images_are_known_to_be_untouched() {
    let mut guest = Reborn::protected(Disk::raw);
    let written = guest.write();

    // Shut down and started with -S: attached before its first write, nothing to look for.
    let head = guest.end(Vm::quit);
    guest.start_stopped();
    assert_eq!(guest.causes_behind(head), []);
    guest.run();
    assert!(guest.write() > written);

    // The same, but somebody wrote to an image in between.
    let head = guest.end(Vm::quit);
    scribble(&guest.images[1], ASIDE);
    guest.start_stopped();
    assert_eq!(guest.causes_behind(head), [CopyCause::Compare]);
    assert_eq!(copied_bytes_since(&history(&guest.agent), head), 4096);
    guest.run();
    guest.write();

    // QEMU killed, and its guest running before the agent comes.
    let head = guest.end(Vm::kill);
    scribble(&guest.images[0], ASIDE + 4096);
    guest.start_and_write();
    assert_eq!(guest.causes_behind(head), [CopyCause::Compare]);
    let copied = copied_bytes_since(&history(&guest.agent), head);
    assert!((4096..DISK_BYTES / 4).contains(&copied), "{copied} bytes were copied");
    guest.write();
    guest.identical(RAW);
}

#[test]
fn what_a_guest_wrote_between_the_end_of_its_mirrors_and_its_own_is_not_taken_for_captured() {
    between_the_ends(Reborn::protected(Disk::raw));
}

#[test]
fn guest_that_ended_and_began_anew_in_one_qemu_is_not_taken_for_ended() {
    let mut guest = Reborn::protected(Disk::raw);
    guest.write();
    let actions = json!({ "shutdown": "pause", "reboot": "reset" });
    guest.vm().qmp().execute("set-action", actions);
    guest.vm().send("poweroff");
    guest.vm().qmp().wait_event("SHUTDOWN", STATE_LIMIT).unwrap();
    guest.vm().qmp().execute("system_reset", json!({}));
    guest.run();
    between_the_ends(guest);
}

/// The guest writes past mirrors that were ended, and ends itself before they are made again.
fn between_the_ends(mut guest: Reborn) {
    let captured = guest.write();
    cancel_jobs(guest.vm());
    guest.vm().ask("writer start", "writer started");
    while guest.vm().stats("writer").last == captured {}
    guest.vm.take().unwrap().quit();
    guest.agent.wait_state("vm", "detached", STATE_LIMIT);
    let head = history(&guest.agent).head;
    guest.start_stopped();
    wait_session_behind(&guest.agent, head);
    guest.identical(RAW);
}

#[test]
fn the_map_in_a_qcow2_image_survives_an_orderly_end_of_qemu_and_no_other() {
    let mut guest = Reborn::protected(Disk::qcow2);
    guest.write();
    let head = guest.end(Vm::quit);
    guest.start_and_write();
    assert_eq!(guest.causes_behind(head), [CopyCause::Bitmap]);
    let copied = copied_bytes_since(&history(&guest.agent), head);
    assert!((1..=2 * 4096 * 1024).contains(&copied), "{copied} bytes were copied");
    guest.write();

    let head = guest.end(Vm::kill);
    guest.start_and_write();
    assert_eq!(guest.causes_behind(head), [CopyCause::Compare]);
    guest.identical([Format::Qcow2, Format::Qcow2]);
}

/// A disk with a block of data in each MiB.
fn full(path: PathBuf) -> Disk {
    image::raw(&path, FULL_BYTES);
    (4..FULL_BYTES >> 20).for_each(|mib| scribble(&path, mib << 20));
    Disk::raw(path)
}

#[test]
fn an_initial_sync_goes_on_where_it_was_when_the_agent_was_killed() {
    const RECORDED: u64 = 64 << 20;
    let mut scene = scene_of(&[full], |b| b);
    let qmp = scene.vm.agent_qmp().display().to_string();
    scene.agent.ok(&["protect", "vm", "--qmp", &qmp, "--rate", "40M"]);
    scene.vm.ask("writer start", "writer started");
    scene.agent.wait_status("vm", STATE_LIMIT, |s| {
        s["disks"][0]["synced_bytes"].as_u64().unwrap() >= RECORDED
    });
    let head = history(&scene.agent).head;
    scene.agent.kill_worker();
    wait_session_behind(&scene.agent, head);
    let journal = history(&scene.agent);
    assert_eq!(causes_since(&journal, head), [CopyCause::Initial]);
    let all = entries(&journal);
    let again = all.iter().map(|e| &e.record);
    let again = again.filter(|r| r.seq > head && r.flags & FLAG_COPIED != 0);
    let lowest = again.map(|r| r.addr).min().unwrap();
    assert!(lowest >= RECORDED, "copied again from {lowest} on");
    let last = scene.vm.ask_last("writer pause", "writer paused");
    let latest = scene.restore("latest");
    assert_eq!(prefix_of(&latest), last);
    scene.vm.quit();
    identical(&scene.images, &[Format::Raw], &latest);
}
