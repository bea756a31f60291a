//! Disks that come, go, are replaced, or are written to past their mirror: a gap from the last look
//! that proved them.

use super::evidence::{RAW, history, identical, prefix_of, scene_of, wait_session_behind};
use super::{DISK_BYTES, STATE_LIMIT, Scene};
use crate::kit::{Disk, image, poll};
use serde_json::{Value, json};

/// The device's id of the disk that is plugged in.
const PLUGGED: &str = "plugged";

fn qmp(scene: &mut Scene, command: &str, arguments: Value) {
    scene.vm.qmp().execute(command, arguments);
}

fn add_node(scene: &mut Scene, node: &str) {
    let path = scene.dir.path().join(node);
    image::raw(&path, DISK_BYTES);
    let file = json!({ "driver": "file", "filename": path });
    qmp(scene, "blockdev-add", json!({ "driver": "raw", "node-name": node, "file": file }));
}

fn plug(scene: &mut Scene, node: &str) {
    let device = json!({ "driver": "virtio-blk-pci", "id": PLUGGED, "drive": node, "bus": "rp" });
    // The port may still be busy with the device before.
    let added = poll(STATE_LIMIT, || scene.vm.qmp().try_execute("device_add", device.clone()).ok());
    assert!(added.is_some(), "the disk can't be plugged in");
}

fn unplug(scene: &mut Scene) {
    scene.vm.qmp().drop_events();
    qmp(scene, "device_del", json!({ "id": PLUGGED }));
    let gone = poll(STATE_LIMIT, || {
        let event = scene.vm.qmp().wait_event("DEVICE_DELETED", STATE_LIMIT).ok()?;
        (event["data"]["device"] == PLUGGED).then_some(())
    });
    assert!(gone.is_some(), "the guest keeps the disk");
}

/// The gap that begins at or before `head`, and why.
fn gap_from_before(scene: &Scene, head: u64, why: &str) {
    scene.agent.wait_status("vm", STATE_LIMIT, |s| s["gaps"].to_string().contains(why));
    let journal = history(&scene.agent);
    let gap = journal.gaps.iter().rfind(|g| g.reason.contains(why)).unwrap();
    assert!(gap.from <= head, "{} points behind the change count: {gap:?}", gap.from - head);
}

/// The guest's first disk is the writer's; another one comes, goes, and comes as another disk.
#[test]
fn disk_that_comes_or_goes_opens_a_gap_at_the_last_look() {
    let mut scene =
        scene_of(&[|path| Disk::raw(path)], |b| b.arg("-device").arg("pcie-root-port,id=rp"));
    scene.vm.ask("writer start rate=200", "writer started");
    scene.protected();
    add_node(&mut scene, "first");
    plug(&mut scene, "first");
    // A look may come until the disk does.
    let head = history(&scene.agent).head;
    gap_from_before(&scene, head, "was added");
    wait_session_behind(&scene.agent, head);
    assert_eq!(scene.agent.json(&["status", "vm"])["disks"].as_array().unwrap().len(), 2);

    // Its node is free as soon as the guest has let go of it.
    let head = history(&scene.agent).head;
    unplug(&mut scene);
    let freed = poll(STATE_LIMIT, || {
        scene.vm.qmp().try_execute("blockdev-del", json!({ "node-name": "first" })).ok()
    });
    assert!(freed.is_some(), "our mirror holds the node");
    gap_from_before(&scene, history(&scene.agent).head, "was taken");
    wait_session_behind(&scene.agent, head);

    // Named disks are looked at as well: absent, and another one under the same name.
    scene.agent.ok(&["unprotect", "vm"]);
    add_node(&mut scene, "second");
    plug(&mut scene, "second");
    scene.protect(&["--disk", "virtio0", "--disk", PLUGGED]);
    scene.agent.wait_state("vm", "protected", STATE_LIMIT);
    let head = history(&scene.agent).head;
    unplug(&mut scene);
    add_node(&mut scene, "third");
    let line = json!({ "command-line": "qemu-io third \"write -P 9 1M 1M\"" });
    plug(&mut scene, "third");
    qmp(&mut scene, "human-monitor-command", line);
    wait_session_behind(&scene.agent, head);
    let last = scene.vm.ask_last("writer pause", "writer paused");
    scene.agent.ok(&["mark", "vm", "--tag", "end"]);
    // In the order of their nodes' names: the writer's has one that QEMU made up.
    let restored = scene.restore("tag:end");
    assert_eq!(prefix_of(&restored[1..]), last);
    let images = [scene.dir.path().join("third"), scene.images[0].clone()];
    scene.vm.quit();
    identical(&images, &RAW, &restored);
}

/// A backup program's recipe: a filter on the disk's node, and the device moved onto it, past ours.
#[test]
fn filter_above_ours_opens_a_gap_at_the_last_look() {
    let blockdev: fn(_) -> _ = |path| Disk::raw(path).blockdev();
    let mut scene = scene_of(&[blockdev, blockdev], |b| b);
    scene.vm.ask("writer start rate=200", "writer started");
    scene.protected();
    let backend = "/machine/peripheral/virtio0/virtio-backend";
    let move_to = |node: &str| json!({ "path": backend, "property": "drive", "value": node });
    let target = json!({ "driver": "null-co", "node-name": "nowhere", "size": DISK_BYTES });
    qmp(&mut scene, "blockdev-add", target);
    let filter = json!({
        "driver": "copy-before-write", "node-name": "cbw", "file": "disk0", "target": "nowhere",
    });
    qmp(&mut scene, "blockdev-add", filter);
    qmp(&mut scene, "qom-set", move_to("cbw"));
    let head = history(&scene.agent).head;
    gap_from_before(&scene, head, "past the mirror");
    // Once it is gone, what was missed is copied.
    qmp(&mut scene, "qom-set", move_to("disk0"));
    let freed = poll(STATE_LIMIT, || {
        scene.vm.qmp().try_execute("blockdev-del", json!({ "node-name": "cbw" })).ok()
    });
    assert!(freed.is_some(), "the filter stays");
    let head = history(&scene.agent).head;
    wait_session_behind(&scene.agent, head);
    let last = scene.vm.ask_last("writer pause", "writer paused");
    scene.agent.ok(&["mark", "vm", "--tag", "end"]);
    let restored = scene.restore("tag:end");
    assert_eq!(prefix_of(&restored), last);
    scene.vm.quit();
    identical(&scene.images, &RAW, &restored);
}
