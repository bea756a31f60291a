//! QEMU, the agent's worker and its guard die or hang at every step of a checkpoint with memory: what
//! is listed afterwards is whole, and goes on.

use super::copy::{Counted, Warm};
use super::evidence::scene_with_roles;
use super::memory::{as_before, no_intents};
use super::{PROGRAM, STATE_LIMIT, Scene};
use crate::kit::{Agent, Cli, Disk, poll};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::BTreeMap;
use std::time::Duration;

/// What happens in the middle of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blow {
    QemuKilled,
    WorkerKilled,
    WorkerStopped,
    GuardKilled,
}

#[test]
fn qemu_dies_at_each_step_and_what_is_listed_is_whole() {
    run(&[Blow::QemuKilled], 3, 3);
}

#[test]
fn the_agent_dies_or_hangs_at_each_step_and_what_is_listed_is_whole() {
    run(&[Blow::WorkerStopped, Blow::GuardKilled], 3, 3);
}

#[test]
#[ignore = "long: every blow at eight steps, each listed checkpoint restored (`make test-long`)"]
fn every_blow_at_eight_steps_leaves_only_whole_checkpoints() {
    use Blow::{GuardKilled, QemuKilled, WorkerKilled, WorkerStopped};
    run(&[WorkerKilled, WorkerStopped, GuardKilled, QemuKilled], 8, usize::MAX);
}

#[track_caller]
fn kill(pid: u32) {
    let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).unwrap();
    kill_process(raw, Signal::KILL).unwrap();
    ended(pid);
}

#[track_caller]
fn ended(pid: u32) {
    let gone = poll(STATE_LIMIT, || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        stat.map_or(true, |stat| stat.contains(") Z ")).then_some(())
    });
    assert!(gone.is_some(), "process {pid} goes on");
}

/// The run so far.
struct Story {
    scene: Scene,
    /// Which boot of the guest each checkpoint that was made is of, by its tag.
    made: BTreeMap<String, Counted>,
}

fn run(blows: &[Blow], steps: u32, restores_max: usize) {
    let disks: [fn(std::path::PathBuf) -> Disk; 2] = [Disk::raw, Disk::raw];
    let mut scene = scene_with_roles("counter", &disks, |builder| builder.memory_mib(160));
    count(&mut scene);
    scene.protect(&[]);
    scene.agent.wait_state("vm", "protected", STATE_LIMIT);
    let mut story = Story { scene, made: BTreeMap::new() };
    story.mark("first");
    let took_ms = story.scene.agent.json(&["status", "vm"])["memory"]["last"]["took_ms"].clone();
    let took = Duration::from_millis(took_ms.as_u64().unwrap());
    for &blow in blows {
        for step in 0..steps {
            // The command itself takes some milliseconds to get there.
            let after = took * step / steps + Duration::from_millis(20);
            story.strike(blow, step, after);
        }
    }
    story.end(restores_max);
}

fn count(scene: &mut Scene) {
    scene.vm.ask("counter start tmpfs=4194304", "counter started");
    // The kernel makes up the name of its boot when it is first asked for it.
    Counted::of(&mut scene.vm);
}

impl Story {
    /// A checkpoint that must come about.
    fn mark(&mut self, tag: &str) {
        let made = self.scene.agent.run(&["mark", "vm", "--tag", tag, "--memory"]);
        assert_eq!(made.code, 0, "{made:?}");
        let counted = Counted::of(&mut self.scene.vm);
        self.made.insert(tag.to_owned(), counted);
    }

    /// One that is cut short, and one that is not.
    fn strike(&mut self, blow: Blow, step: u32, after: Duration) {
        let tag = format!("{blow:?}-{step}");
        let was = Counted::of(&mut self.scene.vm);
        let cli = Cli::clone(&self.scene.agent);
        let marking = {
            let tag = tag.clone();
            std::thread::spawn(move || cli.run(&["mark", "vm", "--tag", &tag, "--memory"]))
        };
        std::thread::sleep(after);
        let state = self.scene.agent.json(&["status", "vm"])["memory"]["state"].clone();
        self.deal(blow);
        let said = marking.join().unwrap();
        println!("{tag} after {after:?} ({state}): {}{}", said.stdout, said.stderr);
        self.scene.agent.wait_state("vm", "protected", STATE_LIMIT);
        as_before(self.scene.vm.qmp());
        no_intents(&self.scene.agent);
        let listed = self.listed();
        if said.code == 0 {
            assert!(listed.contains(&tag), "{tag} was made: {listed:?}");
        }
        if listed.contains(&tag) {
            self.made.insert(tag.clone(), was);
        }
        self.mark(&format!("{tag}-next"));
        let listed = self.listed();
        assert!(self.made.keys().all(|tag| listed.contains(tag)), "{:?} {listed:?}", self.made);
    }

    fn deal(&mut self, blow: Blow) {
        let scene = &mut self.scene;
        match blow {
            Blow::WorkerKilled => {
                let old = scene.agent.kill_worker();
                scene.agent.wait_other_worker(old, STATE_LIMIT);
            }
            Blow::WorkerStopped => {
                let old = scene.agent.stop_worker();
                scene.agent.wait_other_worker(old, STATE_LIMIT);
            }
            Blow::GuardKilled => {
                let worker = scene.agent.worker_pid().expect("a worker");
                kill(scene.agent.guard_pid());
                ended(worker);
                let state = scene.agent.state().to_owned();
                scene.agent = Agent::start(PROGRAM, state);
            }
            Blow::QemuKilled => {
                // Its images are locked until it is dead.
                kill(scene.vm.pid());
                scene.vm = scene.builder.boot();
                count(scene);
                let qmp = scene.vm.agent_qmp().display().to_string();
                scene.agent.ok(&["unprotect", "vm"]);
                scene.agent.ok(&["protect", "vm", "--qmp", &qmp, "--checkpoint-every", "1s"]);
            }
        }
    }

    /// The tags of checkpoints, each of which has memory.
    fn listed(&self) -> Vec<String> {
        let list = self.scene.agent.json(&["checkpoints", "vm"]);
        let tagged = list.as_array().unwrap().iter().filter(|c| c["tag"].is_string());
        let tag = |c: &serde_json::Value| {
            assert_eq!(c["memory"], true, "half a checkpoint: {c}");
            c["tag"].as_str().unwrap().to_owned()
        };
        tagged.map(tag).collect()
    }

    /// Every one that is listed goes on, the last ones first.
    fn end(self, restores_max: usize) {
        let listed = self.listed();
        let cli = Cli::clone(&self.scene.agent);
        let Scene { vm, agent, dir, .. } = self.scene;
        vm.kill();
        agent.stop();
        for tag in listed.iter().rev().take(restores_max) {
            println!("restoring {tag}");
            let warm = Warm::restore(&cli, "vm", &format!("tag:{tag}"));
            warm.start("vm").goes_on(&self.made[tag], 0);
        }
        drop(dir);
    }
}
