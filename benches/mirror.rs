//! Hot attach: what our capture costs a mirrored disk beside a target that only forgets.
//!
//! Two storage daemons stand for two VMs, each with QEMU's own mirror as the agent sets it up.
//! Their disk is `null-co`: it takes no time, so that nothing hides what the target costs.

use crate::capture::OurServer;
use crate::fio::{Figures, LOADS, Load};
use crate::kit::Qmp;
use crate::peers::{Running, nbdkit_memory};
use crate::report::Report;
use crate::{Scale, VOLUME_BYTES};
use anyhow::{Context, Result, bail};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

/// The node of the disk, and the name of its export.
const DISK: &str = "disk";

/// A storage daemon with a mirrored disk.
struct MirroredDisk {
    _process: Running,
    qmp: Qmp,
    socket: PathBuf,
}

impl MirroredDisk {
    fn start(dir: &Path, name: &str, target: &Path) -> Result<Self> {
        let path_of = |what: &str| dir.join(format!("{name}.{what}"));
        let (monitor, socket) = (path_of("qmp"), path_of("nbd"));
        let mut command = Command::new("qemu-storage-daemon");
        let chardev = format!("socket,id=qmp,server=on,wait=off,path={}", monitor.display());
        command.args(["--chardev", &chardev, "--monitor", "chardev=qmp"]);
        let disk = format!("driver=null-co,node-name={DISK},size={VOLUME_BYTES},read-zeroes=on");
        command.args(["--blockdev", &disk]);
        let process = Running::start(command, &path_of("log"), &monitor)?;
        let mut qmp = Qmp::connect(&monitor).context("connect to the storage daemon")?;
        let mut run = |command, arguments| {
            qmp.try_execute(command, arguments).map_err(|e| anyhow::anyhow!("{command}: {e}"))
        };
        let address = json!({"type": "unix", "data": {"path": socket}});
        run("nbd-server-start", json!({"addr": address}))?;
        let export = json!({"type": "nbd", "id": "e", "node-name": DISK, "name": DISK,
            "writable": true});
        run("block-export-add", export)?;
        let server = json!({"type": "unix", "path": target});
        let node = json!({"driver": "nbd", "node-name": "target", "server": server, "export": "",
            "open-timeout": 1, "reconnect-delay": 0});
        run("blockdev-add", node)?;
        let mirror = json!({"job-id": "mirror", "device": DISK, "target": "target", "sync": "none",
            "copy-mode": "write-blocking", "on-target-error": "stop", "granularity": 4096,
            "filter-node-name": "filter"});
        run("blockdev-mirror", mirror)?;
        let mut disk = Self { _process: process, qmp, socket };
        let level = crate::kit::poll(Duration::from_secs(10), || disk.check().ok());
        level.context("the mirror is not level").and(Ok(disk))
    }

    /// An error unless every write goes to the target before it is answered.
    fn check(&mut self) -> Result<()> {
        let jobs = self.qmp.try_execute("query-block-jobs", json!({}));
        let jobs = jobs.map_err(anyhow::Error::msg)?;
        let job = &jobs[0];
        let level = job["ready"] == true
            && job["paused"] == false
            && job["io-status"] == "ok"
            && job["actively-synced"] == true;
        if !level {
            bail!("the mirror fell back: {jobs}");
        }
        Ok(())
    }
}

/// Measures all loads.
pub fn measure(scale: &Scale, report: &mut Report) -> Result<()> {
    for load in LOADS {
        let (ours, peer) = rounds(scale, load).context(load.name)?;
        load.add_rows(
            report,
            "hot attach",
            (&ours, &peer),
            "mirror into nbdkit memory",
            (" (aim >= 0.95)", " (aim <= 1.1)"),
        );
    }
    Ok(())
}

fn rounds(scale: &Scale, load: Load) -> Result<(Vec<Figures>, Vec<Figures>)> {
    let dir = TempDir::with_prefix("mirror-")?;
    let dir = dir.path();
    let (our_socket, peer_socket) = (dir.join("ours"), dir.join("memory"));
    let ours = OurServer::start(&our_socket, VOLUME_BYTES)?;
    let _peer = nbdkit_memory(dir, &peer_socket, VOLUME_BYTES)?;
    let mut disks =
        [MirroredDisk::start(dir, "a", &our_socket)?, MirroredDisk::start(dir, "b", &peer_socket)?];
    // Both are warm: memory has its pages, the journal its units.
    for disk in &disks {
        LOADS[2].run(&disk.socket, DISK, scale.run_ms)?;
    }
    let mut figures = [Vec::new(), Vec::new()];
    for round in 0..scale.rounds {
        // A B, B A, A B ..: what drifts over time meets both.
        for turn in 0..2 {
            let side = (round + turn) % 2;
            figures[side].push(load.run(&disks[side].socket, DISK, scale.run_ms)?);
        }
    }
    for disk in &mut disks {
        disk.check()?;
    }
    drop(disks);
    ours.end()?;
    let [ours, peer] = figures;
    Ok((ours, peer))
}
