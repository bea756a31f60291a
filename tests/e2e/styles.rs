//! Every way in which QEMU can be given a disk.

use super::evidence::{SOME_WRITES, identical, ours_in, prefix_of, scene_of};
use super::{STATE_LIMIT, Scene};
use crate::kit::{Disk, Format, image};
use std::path::{Path, PathBuf};

/// Protects under load; then a checkpoint in the middle is a prefix, and the newest point is the
/// stopped guest's disks, as raw images and as qcow2.
fn protect_and_compare(mut scene: Scene, formats: &[Format]) {
    let nodes = scene.vm.nodes();
    assert_eq!(nodes.len(), formats.len());
    scene.vm.ask("writer start", "writer started");
    scene.protected();
    std::thread::sleep(SOME_WRITES);
    scene.agent.ok(&["mark", "vm", "--tag", "middle"]);
    std::thread::sleep(SOME_WRITES);
    let last = scene.vm.ask_last("writer pause", "writer paused");

    let restored = |at: &str| {
        let to = scene.dir.path().join(at.replace(':', "-"));
        scene.agent.restore("vm", at, &to, &nodes).unwrap()
    };
    let middle = prefix_of(&restored("tag:middle"));
    assert!(middle > 0 && middle < last, "{middle} of {last}");
    let latest = restored("latest");
    assert_eq!(prefix_of(&latest), last);
    let to = scene.dir.path().join("qcow2");
    let words = ["restore", "vm", "--at", "latest", "--format", "qcow2", "--to"];
    let report = scene.agent.json(&[&words[..], &[to.to_str().unwrap()]].concat());
    scene.vm.quit();
    identical(&scene.images, formats, &latest);
    for (node, raw) in nodes.iter().zip(&latest) {
        let disks = report["disks"].as_array().unwrap();
        let disk = disks.iter().find(|d| d["node"] == node.as_str()).unwrap();
        let path = Path::new(disk["path"].as_str().unwrap());
        image::compare((path, "qcow2"), (raw, "raw")).unwrap();
    }
}

#[test]
fn raw_disks_by_blockdev_and_by_drive_with_and_without_iothread() {
    let disks: [fn(PathBuf) -> Disk; 2] =
        [|path| Disk::raw(path).blockdev(), |path| Disk::raw(path).iothread().writeback()];
    protect_and_compare(scene_of(&disks, |b| b), &[Format::Raw, Format::Raw]);
}

#[test]
fn qcow2_disks_by_drive_and_by_blockdev_with_and_without_iothread() {
    let disks: [fn(PathBuf) -> Disk; 2] =
        [|path| Disk::qcow2(path).writeback(), |path| Disk::qcow2(path).blockdev().iothread()];
    protect_and_compare(scene_of(&disks, |b| b), &[Format::Qcow2, Format::Qcow2]);
}

#[test]
fn one_disk_of_each_format_in_one_guest_with_three() {
    let disks: [fn(PathBuf) -> Disk; 3] = [
        |path| Disk::raw(path).writeback(),
        |path| Disk::qcow2(path).blockdev(),
        |path| Disk::raw(path).blockdev().iothread().writeback(),
    ];
    protect_and_compare(scene_of(&disks, |b| b), &[Format::Raw, Format::Qcow2, Format::Raw]);
}

#[test]
fn disks_are_chosen_at_protect_and_at_restore_and_a_wrong_one_leaves_nothing_behind() {
    let mut scene = scene_of(&[Disk::raw, |path| Disk::raw(path).blockdev()], |b| b);
    let qmp = scene.vm.agent_qmp().display().to_string();
    let protect = |disk: &str| {
        scene.agent.run(&["protect", "vm", "--qmp", &qmp, "--disk", "disk1", "--disk", disk])
    };
    let refused = protect("nosuch");
    assert_eq!(refused.code, 2, "{refused:?}");
    for word in ["nosuch", "disk0", "disk1", "bytes"] {
        assert!(refused.stderr.contains(word), "{word}: {refused:?}");
    }
    assert_eq!(ours_in(scene.vm.qmp()), [""; 0]);
    let left = |dir: &str| {
        std::fs::read_dir(scene.agent.state().join(dir)).map_or(0, |entries| entries.count())
    };
    assert_eq!((left("pool"), left("guests"), left("run")), (0, 0, 0));
    assert_eq!(scene.agent.json(&["status"]).as_array().unwrap().len(), 0);

    scene.vm.ask("writer start", "writer started");
    scene.protect(&["--disk", "disk1"]);
    let status = scene.agent.wait_state("vm", "protected", STATE_LIMIT);
    assert_eq!(status["disks"].as_array().unwrap().len(), 1, "{status}");
    assert_eq!(status["disks"][0]["node"], "disk1");
    scene.vm.ask_last("writer pause", "writer paused");
    let latest = scene.restore("latest");
    assert_eq!(latest.len(), 1);

    scene.agent.ok(&["unprotect", "vm"]);
    scene.protect(&["--disk", "virtio0", "--disk", "disk1"]);
    scene.agent.wait_state("vm", "protected", STATE_LIMIT);
    assert_eq!(scene.restore("latest").len(), 2);
    let to = scene.dir.path().join("one");
    let to = to.to_str().unwrap();
    let words = ["restore", "vm", "--at", "latest", "--to", to, "--disk"];
    let report = scene.agent.json(&[&words[..], &["disk1"]].concat());
    assert_eq!(report["disks"].as_array().unwrap().len(), 1, "{report}");
    let other = scene.agent.run(&[&words[..], &["nosuch"]].concat());
    assert_eq!(other.code, 2, "{other:?}");
    assert!(other.stderr.contains("disk1"), "{other:?}");
    let one = PathBuf::from(report["disks"][0]["path"].as_str().unwrap());
    scene.vm.quit();
    identical(&scene.images[1..], &[Format::Raw], &[one]);
    identical(&scene.images[1..], &[Format::Raw], &latest);
}
