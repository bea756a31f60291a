//! Real guests, protected by the real agent; restored disks judged by what the guest wrote.

mod attaches;
mod copy;
mod detach;
mod devices;
mod encrypted;
mod evidence;
mod export;
mod freezing;
mod gone;
mod identity;
mod images;
mod inputs;
mod libvirt;
mod lifecycle;
mod losses;
mod memory;
mod other_user;
mod owed;
mod protect;
mod quiesce;
mod resync;
mod rounds;
mod shared;
mod sites;
mod sites_forks;
mod sites_links;
mod spread;
mod styles;
mod thinned;
mod warm;
mod warm_group;
mod warm_killed;
mod warm_random;
mod warm_window;
mod window;

use crate::kit::{Agent, Disk, Vm, VmBuilder, image};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;

/// How long a state may take to be reached on a loaded machine.
pub const STATE_LIMIT: Duration = Duration::from_secs(60);
/// Size of the test disks.
pub const DISK_BYTES: u64 = 64 << 20;

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_afterimage");

/// A guest with two disks that its writer fills in turn, and an agent beside it.
pub struct Scene {
    /// How the guest is made, to start it again.
    pub builder: VmBuilder,
    /// The guest.
    pub vm: Vm,
    /// The agent.
    pub agent: Agent,
    /// The guest's images.
    pub images: Vec<PathBuf>,
    /// Everything lies in it, the agent's log as well: it goes last.
    pub dir: TempDir,
}

impl Scene {
    /// Boots a writer with two raw disks and starts an agent.
    pub fn new() -> Self {
        Self::with(Disk::raw, |builder| builder)
    }

    /// Boots a writer with two disks of a make, and whatever else it is to have.
    pub fn with(disk: impl Fn(PathBuf) -> Disk, more: impl FnOnce(VmBuilder) -> VmBuilder) -> Self {
        let dir = TempDir::with_prefix("ai-").unwrap();
        let mut builder = VmBuilder::new("writer");
        let mut images = Vec::new();
        for name in ["a", "b"] {
            let path = dir.path().join(name);
            let disk = disk(path.clone());
            match disk.format {
                crate::kit::Format::Raw => image::raw(&path, DISK_BYTES),
                crate::kit::Format::Qcow2 => image::qcow2(&path, DISK_BYTES),
            }
            builder = builder.disk(disk);
            images.push(path);
        }
        let builder = more(builder);
        let vm = builder.boot();
        let agent = Agent::start(PROGRAM, dir.path().join("state"));
        Self { dir, builder, vm, agent, images }
    }

    /// Protects the guest under the name `vm`.
    pub fn protect(&self, more: &[&str]) {
        let qmp = self.vm.agent_qmp().display().to_string();
        let mut words = vec!["protect", "vm", "--qmp", &qmp, "--checkpoint-every", "1s"];
        words.extend(more);
        self.agent.ok(&words);
    }

    /// Protects it and waits until it is protected.
    pub fn protected(&self) {
        self.protect(&[]);
        self.agent.wait_state("vm", "protected", STATE_LIMIT);
    }

    /// Restores a moment into a fresh directory; gives the raw images in the guest's order.
    pub fn restore(&self, at: &str) -> Vec<PathBuf> {
        restore(&self.agent, at, self.dir.path())
    }
}

/// As [`Scene::restore`].
pub fn restore(cli: &crate::kit::Cli, at: &str, dir: &Path) -> Vec<PathBuf> {
    let to = TempDir::with_prefix_in("restored-", dir).unwrap().keep();
    let report = cli.json(&["restore", "vm", "--at", at, "--to", &to.display().to_string()]);
    let mut disks: Vec<(String, PathBuf)> = report["disks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|d| {
            let text = |key: &str| d[key].as_str().unwrap().to_owned();
            (text("node"), PathBuf::from(text("path")))
        })
        .collect();
    // Names that QEMU makes up (`#block123`) count upwards in the order of the disks.
    disks.sort_by_key(|(node, _)| (node.len(), node.clone()));
    disks.into_iter().map(|(_, path)| path).collect()
}
