//! A real guest under a failing agent: the worst write that 8 writers in it saw.
//!
//! Each round has two halves of the same length: one in which the agent's worker is killed or
//! stopped and all is brought level again, one in which it is left alone. The second is the peer:
//! an emulated guest on a busy machine has hiccups of its own. The disks lie in memory, so that a
//! guest's flush does not wait for the disk that the journal is on.

use crate::kit::{Agent, Disk, Vm, VmBuilder, image};
use crate::report::{Report, median};
use crate::{Scale, bench_dir};
use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_afterimage");
const DISK_BYTES: u64 = 64 << 20;
/// As the agent is started without options.
const STALL_LIMIT_MS: u64 = 1000;
/// Eight writers, with pauses: an emulated processor that is never idle measures its own queue.
const LOAD: &str = "load start threads=8 rate=400 discard=0";
/// How long an attach may take to be level on a loaded machine.
const LEVEL_LIMIT: Duration = Duration::from_secs(60);
/// Faults before the agent is restarted: its guard takes more for a crash loop, and waits longer
/// each time before the next worker.
const FAULTS_PER_AGENT: usize = 4;
/// Before and after the fault.
const MARGIN: Duration = Duration::from_millis(200);

struct Scene {
    vm: Vm,
    /// Always there but while it is restarted.
    agent: Option<Agent>,
    _disks: TempDir,
    state: TempDir,
}

impl Scene {
    fn start() -> Result<Self> {
        let disks = if Path::new("/dev/shm").is_dir() {
            TempDir::with_prefix_in("bench-", "/dev/shm")
        } else {
            TempDir::with_prefix("bench-")
        }
        .context("a directory for the guest's disks")?;
        let state = TempDir::with_prefix_in("agent-", bench_dir())?;
        let mut builder = VmBuilder::new("load");
        for name in ["a", "b"] {
            let path = disks.path().join(name);
            image::raw(&path, DISK_BYTES);
            builder = builder.disk(Disk::raw(path).writeback());
        }
        let mut vm = builder.boot();
        let agent = start_agent(&state);
        let qmp = vm.agent_qmp().display().to_string();
        agent.ok(&["protect", "vm", "--qmp", &qmp]);
        agent.wait_state("vm", "protected", LEVEL_LIMIT);
        vm.ask(LOAD, "load started");
        Ok(Self { vm, agent: Some(agent), _disks: disks, state })
    }

    fn agent(&self) -> Result<&Agent> {
        self.agent.as_ref().context("the agent runs")
    }

    fn restart_agent(&mut self) {
        if let Some(agent) = self.agent.take() {
            agent.stop();
        }
        let agent = start_agent(&self.state);
        agent.wait_state("vm", "protected", LEVEL_LIMIT);
        self.agent = Some(agent);
    }

    fn epoch(&self) -> Result<u64> {
        self.agent()?.json(&["status", "vm"])["epoch"].as_u64().context("status has an epoch")
    }

    /// The worst write of the fault's half and that of the quiet half, in milliseconds, and the
    /// I/O errors that the guest saw.
    fn round(&mut self, signal: Signal) -> Result<(f64, f64, u64)> {
        let before = self.epoch()?;
        self.vm.ask("load reset", "load reset");
        let begun = Instant::now();
        std::thread::sleep(MARGIN);
        self.agent()?.signal_worker(signal);
        self.agent()?.wait_status("vm", LEVEL_LIMIT, |status| {
            status["state"] == "protected" && status["epoch"].as_u64() > Some(before)
        });
        std::thread::sleep(MARGIN);
        let disturbed = self.vm.stats("load");
        self.vm.ask("load reset", "load reset");
        std::thread::sleep(begun.elapsed());
        let quiet = self.vm.stats("load");
        ensure!(disturbed.count > 0 && quiet.count > 0, "the guest wrote nothing");
        let ms = |us: u64| us as f64 / 1000.0;
        Ok((ms(disturbed.worst_us), ms(quiet.worst_us), quiet.errors))
    }
}

fn start_agent(state: &TempDir) -> Agent {
    Agent::start_with(&[], PROGRAM, state.path().join("state"))
}

/// Measures both faults.
pub fn measure(scale: &Scale, report: &mut Report) -> Result<()> {
    let mut scene = Scene::start()?;
    let faults = [("SIGKILL", Signal::KILL, 50), ("SIGSTOP", Signal::STOP, STALL_LIMIT_MS + 100)];
    let rounds = scale.guest_rounds;
    let mut errors = 0;
    for (name, signal, aim_ms) in faults {
        let mut worst = Vec::new();
        for round in 0..rounds {
            if round % FAULTS_PER_AGENT == 0 {
                scene.restart_agent();
            }
            let (disturbed, quiet, errors_now) = scene.round(signal)?;
            eprintln!("{name} {}/{rounds}: {disturbed:.1} ms, quiet {quiet:.1} ms", round + 1);
            worst.push((disturbed, quiet));
            errors = errors_now;
        }
        let peer = "the same guest, protected, agent left alone for as long";
        let most = |of: fn(&(f64, f64)) -> f64| worst.iter().map(of).fold(0.0, f64::max);
        let middle = |of: fn(&(f64, f64)) -> f64| median(worst.iter().map(of));
        let title = format!("guest, worker {name} {rounds} times");
        let name = format!("{title}: worst write (aim <= {aim_ms} ms)");
        report.add(name, (most(|w| w.0), most(|w| w.1)), peer, "ms");
        let name = format!("{title}: median of each round's worst write");
        report.add(name, (middle(|w| w.0), middle(|w| w.1)), peer, "ms");
    }
    let name = format!("guest, {} faults: I/O errors that it saw (aim 0)", 2 * rounds);
    report.add(name, (errors as f64, 0.0), "none", "errors");
    Ok(())
}
