//! Images that changed while nobody looked: below the disk's own one, and at its end.
//!
//! The guests wait with `-S`: what is told apart is told of images, not of what runs.

use super::evidence::{
    causes_since, copied_bytes_since, history, point_monitor_at, scribble, wait_session_behind,
};
use super::{DISK_BYTES, PROGRAM, STATE_LIMIT};
use crate::kit::{Agent, Disk, Vm, VmBuilder, image};
use afterimage_journal::meta::CopyCause;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

fn qemu_img(words: &[&str], paths: &[&Path]) {
    let mut command = Command::new("qemu-img");
    let output = command.args(words).args(paths).output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// A guest under one monitor through all its QEMUs.
struct Waiting {
    dir: TempDir,
    builder: VmBuilder,
    agent: Agent,
    images: Vec<(PathBuf, &'static str)>,
    monitor: PathBuf,
    vm: Option<Vm>,
}

impl Waiting {
    fn protected(dir: TempDir, disks: Vec<Disk>) -> Self {
        let images = disks.iter().map(|d| (d.path.clone(), d.format.name())).collect();
        let builder = disks.into_iter().fold(VmBuilder::new("writer").stopped(), VmBuilder::disk);
        let agent = Agent::start(PROGRAM, dir.path().join("state"));
        let monitor = dir.path().join("monitor");
        let mut this = Self { dir, builder, agent, images, monitor, vm: None };
        this.start();
        let name = this.monitor.display().to_string();
        this.agent.ok(&["protect", "vm", "--qmp", &name]);
        this.agent.wait_state("vm", "protected", STATE_LIMIT);
        this
    }

    fn start(&mut self) {
        let vm = self.builder.boot();
        point_monitor_at(&self.monitor, &vm.agent_qmp());
        self.vm = Some(vm);
    }

    /// Ends QEMU in order, does something, and starts it again; the copies that it took.
    fn restart_after(&mut self, what: impl FnOnce(&Self)) -> Vec<CopyCause> {
        self.vm.take().unwrap().quit();
        self.agent.wait_state("vm", "detached", STATE_LIMIT);
        what(self);
        let head = history(&self.agent).head;
        self.start();
        self.causes_behind(head)
    }

    /// Detaches, does something in QEMU, and attaches again; the copies that it took.
    fn attach_after(&mut self, what: impl FnOnce(&mut Vm)) -> Vec<CopyCause> {
        self.agent.ok(&["detach", "vm"]);
        what(self.vm.as_mut().unwrap());
        let head = history(&self.agent).head;
        self.agent.ok(&["attach", "vm"]);
        self.causes_behind(head)
    }

    fn causes_behind(&self, head: u64) -> Vec<CopyCause> {
        wait_session_behind(&self.agent, head);
        causes_since(&history(&self.agent), head)
    }

    /// Ends QEMU, and compares what is restored with the images.
    fn ends_identical(mut self) {
        let restored = super::restore(&self.agent, "latest", self.dir.path());
        self.vm.take().unwrap().quit();
        for ((path, format), copy) in self.images.iter().zip(&restored) {
            image::compare((path, format), (copy, "raw")).unwrap();
        }
    }
}

#[test]
fn changed_backing_image_is_compared_whatever_the_map_above_it_says() {
    let dir = TempDir::with_prefix("ai-").unwrap();
    let path = |name: &str| dir.path().join(name);
    let (base, middle, top) = (path("base"), path("middle"), path("top"));
    image::raw(&base, DISK_BYTES);
    scribble(&base, 1 << 20);
    let over = |below: &Path, format: &str, above: &Path| {
        let below = below.display().to_string();
        qemu_img(&["create", "-q", "-f", "qcow2", "-F", format, "-b", &below], &[above]);
    };
    over(&base, "raw", &middle);
    over(&middle, "qcow2", &top);
    let mut guest = Waiting::protected(dir, vec![Disk::qcow2(top)]);

    // Nobody changed anything: the map in the top layer is believed, and has nothing.
    let head = history(&guest.agent).head;
    assert!(!guest.restart_after(|_| {}).contains(&CopyCause::Compare));
    assert_eq!(copied_bytes_since(&history(&guest.agent), head), 0);
    // While QEMU lives it is believed as well.
    assert!(!guest.attach_after(|_| {}).contains(&CopyCause::Compare));

    let head = history(&guest.agent).head;
    assert_eq!(guest.restart_after(|_| scribble(&base, 2 << 20)), [CopyCause::Compare]);
    assert_eq!(copied_bytes_since(&history(&guest.agent), head), 4096);

    // Another base with the same contents and size in the same place is another one, too.
    let copied = guest.dir.path().join("copied");
    let swapped = guest.restart_after(|_| {
        std::fs::copy(&base, &copied).unwrap();
        std::fs::rename(&copied, &base).unwrap();
    });
    assert_eq!(swapped, [CopyCause::Compare]);
    guest.ends_identical();
}

#[test]
fn disk_that_was_shrunk_and_grown_back_is_compared() {
    let dir = TempDir::with_prefix("ai-").unwrap();
    let (raw, qcow2) = (dir.path().join("raw"), dir.path().join("qcow2"));
    let (end, half) = (DISK_BYTES - 4096, DISK_BYTES / 2);
    image::raw(&raw, DISK_BYTES);
    scribble(&raw, end);
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2"], &[&raw, &qcow2]);
    let mut guest = Waiting::protected(dir, vec![Disk::raw(raw), Disk::qcow2(qcow2.clone())]);

    // Detached and attached, the maps are believed.
    assert!(!guest.attach_after(|_| {}).contains(&CopyCause::Compare));
    // QEMU lives, and a person resizes.
    let resized = guest.attach_after(|vm| {
        for node in vm.nodes() {
            for bytes in [DISK_BYTES - 512, half, DISK_BYTES] {
                vm.qmp().execute("block_resize", json!({ "node-name": node, "size": bytes }));
            }
        }
    });
    assert_eq!(resized, [CopyCause::Compare]);
    // It is attached under a mark again.
    assert!(!guest.attach_after(|_| {}).contains(&CopyCause::Compare));

    // While it is off, the map is in the image, and cut and grown with it.
    let (agent, vm) = (&guest.agent, guest.vm.as_mut().unwrap());
    let block = vm.qmp().execute("query-block", json!({}));
    let is_qcow2 = |b: &&serde_json::Value| b["inserted"]["file"] == json!(qcow2);
    let qdev = block.as_array().unwrap().iter().find(is_qcow2).unwrap()["qdev"].clone();
    let line = format!("qemu-io -d {} \"write -q -P 5 {end} 4096\"", qdev.as_str().unwrap());
    let head = history(agent).head;
    vm.qmp().execute("human-monitor-command", json!({ "command-line": line }));
    assert!(history(agent).head > head, "the write was not captured");
    let causes = guest.restart_after(|_| {
        for bytes in [half, DISK_BYTES] {
            let bytes = bytes.to_string();
            qemu_img(&["resize", "-q", "--shrink", "-f", "qcow2"], &[&qcow2, Path::new(&bytes)]);
        }
    });
    assert!(causes.contains(&CopyCause::Compare), "{causes:?}");
    guest.ends_identical();
}
