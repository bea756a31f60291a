//! The two guests: ours behind its agent, and QEMU's own.

use crate::kit::{Agent, Disk, Vm, VmBuilder, image};
use crate::{bench_dir, kit};
use anyhow::{Context, Result, anyhow, bail};
use serde_json::json;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

pub const NAME: &str = "vm";
const PROGRAM: &str = env!("CARGO_BIN_EXE_afterimage");
const DISK_BYTES: u64 = 256 << 20;
/// How long anything may take that reads all of the memory.
pub const LIMIT: Duration = Duration::from_secs(300);
/// Pages that are changed a second, and operations on the disk.
const WRITING: (&str, &str) = ("rate=2000", "load start threads=2 rate=200 discard=0");

/// What the guest does meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Idle,
    Writing,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Idle { "idle" } else { "writing" })
    }
}

/// What one checkpoint did to its guest.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    pub pause_ms: f64,
    pub gap_ms: f64,
    pub total_ms: f64,
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pause_ms, gap_ms, total_ms } = self;
        write!(f, "pause {pause_ms:.1}, gap {gap_ms:.1}, in {total_ms:.0} ms")
    }
}

/// A guest and its load.
pub struct Guest {
    pub vm: Vm,
    mib: u32,
    pub disk: PathBuf,
    pub dir: TempDir,
}

impl Guest {
    pub fn builder(disk: &Path, mib: u32) -> VmBuilder {
        VmBuilder::new("pulse,load").memory_mib(mib).disk(Disk::raw(disk).writeback())
    }

    fn boot(mib: u32) -> Result<Self> {
        let dir = TempDir::with_prefix_in("checkpoint-", bench_dir())?;
        let disk = dir.path().join("disk");
        image::raw(&disk, DISK_BYTES);
        let vm = Self::builder(&disk, mib).boot();
        let mut guest = Self { vm, mib, disk, dir };
        guest.load(State::Idle);
        Ok(guest)
    }

    fn load(&mut self, state: State) {
        let mib = self.mib / 2;
        let rate = if state == State::Idle { "rate=0" } else { WRITING.0 };
        // Touching all of the memory takes an emulated guest a while.
        self.vm.send(&format!("pulse start mib={mib} {rate}"));
        self.vm.wait_line("pulse started", LIMIT);
        match state {
            State::Idle => self.vm.ask("load pause", "load paused"),
            State::Writing => self.vm.ask(WRITING.1, "load started"),
        };
    }

    fn begin(&mut self) {
        self.vm.qmp().drop_events();
        self.vm.ask("pulse reset", "pulse reset");
    }

    /// What happened since [`Self::begin`].
    fn round(&mut self) -> Result<Round> {
        let gap_ms = self.vm.stats("pulse").worst_us as f64 / 1000.0;
        let total = self.vm.qmp().execute("query-migrate", json!({}))["total-time"].clone();
        let total_ms = total.as_f64().context("query-migrate has a total time")?;
        Ok(Round { pause_ms: self.pause_ms()?, gap_ms, total_ms })
    }

    fn pause_ms(&mut self) -> Result<f64> {
        let mut at = |name: &str| -> Result<f64> {
            let event =
                self.vm.qmp().wait_event(name, LIMIT).map_err(|e| anyhow!("{name}: {e}"))?;
            let part = |key: &str| event["timestamp"][key].as_f64();
            let (s, us) = part("seconds").zip(part("microseconds")).context("a time stamp")?;
            Ok(s * 1000.0 + us / 1000.0)
        };
        let (stop, resume) = (at("STOP")?, at("RESUME")?);
        Ok(resume - stop)
    }
}

/// The guest behind our agent.
pub struct Protected {
    pub guest: Guest,
    pub agent: Agent,
}

impl Protected {
    pub fn start(mib: u32) -> Result<Self> {
        let mut guest = Guest::boot(mib)?;
        let agent = Agent::start_with(&[], PROGRAM, guest.dir.path().join("state"));
        let qmp = guest.vm.agent_qmp().display().to_string();
        agent.ok(&["protect", NAME, "--qmp", &qmp]);
        agent.wait_state(NAME, "protected", LIMIT);
        guest.vm.qmp().drop_events();
        Ok(Self { guest, agent })
    }

    pub fn load(&mut self, state: State) {
        self.guest.load(state);
    }

    /// A checkpoint with memory.
    pub fn checkpoint(&mut self, tag: &str) -> Result<Round> {
        self.guest.begin();
        self.agent.ok(&["mark", NAME, "--tag", tag, "--memory"]);
        self.guest.round()
    }
}

/// The guest that nobody protects.
pub struct Peer {
    pub guest: Guest,
}

impl Peer {
    pub fn start(mib: u32) -> Result<Self> {
        Ok(Self { guest: Guest::boot(mib)? })
    }

    pub fn load(&mut self, state: State) {
        self.guest.load(state);
    }

    /// QEMU's background snapshot, which nobody keeps.
    pub fn snapshot(&mut self) -> Result<Round> {
        self.guest.begin();
        self.capability(true);
        self.migrate("exec:cat >/dev/null")?;
        self.capability(false);
        self.guest.round()
    }

    /// The guest stands still while all of its memory is sent to nowhere.
    pub fn stop_and_migrate(&mut self) -> Result<Round> {
        self.guest.begin();
        let unlimited = json!({"max-bandwidth": 0});
        self.guest.vm.qmp().execute("migrate-set-parameters", unlimited);
        self.guest.vm.qmp().execute("stop", json!({}));
        self.migrate("exec:cat >/dev/null")?;
        self.guest.vm.qmp().execute("cont", json!({}));
        self.guest.round()
    }

    fn capability(&mut self, on: bool) {
        let capability = json!({"capability": "background-snapshot", "state": on});
        let capabilities = json!({"capabilities": [capability]});
        self.guest.vm.qmp().execute("migrate-set-capabilities", capabilities);
    }

    /// Migrates, and waits for its end.
    pub fn migrate(&mut self, uri: &str) -> Result<()> {
        let qmp = self.guest.vm.qmp();
        // QEMU refuses one that begins before the last is cleared away, and never gets over it.
        let cleared = kit::poll(LIMIT, || {
            let list = qmp.execute("query-yank", json!({}));
            let mut all = list.as_array().into_iter().flatten();
            all.all(|i| i["type"] != "migration").then_some(())
        });
        cleared.context("QEMU does not clear a migration away")?;
        qmp.execute("migrate", json!({"uri": uri}));
        let ended = kit::poll(LIMIT, || {
            let status = qmp.execute("query-migrate", json!({}))["status"].clone();
            match status.as_str() {
                Some("completed") => Some(Ok(())),
                Some("failed" | "cancelled") => Some(Err(status)),
                _ => None,
            }
        });
        match ended {
            Some(Ok(())) => Ok(()),
            Some(Err(status)) => bail!("the migration to {uri} is {status}"),
            None => bail!("the migration to {uri} does not end"),
        }
    }
}
