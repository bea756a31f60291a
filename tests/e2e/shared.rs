//! A disk that another guest may write to: what that one writes passes no mirror.

use super::{DISK_BYTES, STATE_LIMIT, Scene};
use crate::kit::{Agent, Disk, image};

#[test]
fn shared_disk_is_refused_unless_a_person_takes_it() {
    let other = tempfile::TempDir::with_prefix("ai-").unwrap();
    let path = other.path().join("witness");
    image::raw(&path, DISK_BYTES);
    let drive = format!("if=none,id=witness,file={},format=raw,cache=none", path.display());
    let device = "virtio-blk-pci,id=shared,drive=witness,share-rw=on";
    let mut scene =
        Scene::with(Disk::raw, |b| b.arg("-drive").arg(&drive).arg("-device").arg(device));
    let qmp = scene.vm.agent_qmp().display().to_string();
    let refused = scene.agent.run(&["protect", "vm", "--qmp", &qmp]);
    assert_ne!(refused.code, 0, "{refused:?}");
    assert!(refused.stderr.contains("disk witness is shared"), "{refused:?}");
    assert!(refused.stderr.contains("--shared-disk witness"), "{refused:?}");
    assert!(!scene.agent.state().join("pool/vm/journal.json").exists());

    // Its other disks alone need no word; one that is not there can't be taken.
    scene.protect(&["--disk", "disk0"]);
    let status = scene.agent.wait_state("vm", "protected", STATE_LIMIT);
    assert!(status["warnings"].is_null(), "{status}");
    scene.agent.ok(&["unprotect", "vm", "--purge"]);
    assert_ne!(scene.agent.run(&["protect", "vm", "--qmp", &qmp, "--shared-disk", "no"]).code, 0);

    scene.protect(&["--shared-disk", "witness"]);
    let status = scene.agent.wait_state("vm", "protected", STATE_LIMIT);
    assert_eq!(status["disks"].as_array().unwrap().len(), 3);
    assert!(status["warnings"][0].as_str().unwrap().contains("disk witness is shared"), "{status}");
    assert!(scene.agent.ok(&["status"]).contains("WARNING: disk witness is shared"));

    // Whoever takes that back is heard at the next attach.
    assert_eq!(scene.agent.run(&["set", "vm", "--no-shared-disk", "disk0"]).code, 2);
    scene.agent.ok(&["set", "vm", "--no-shared-disk", "witness"]);
    let state = scene.agent.state().to_owned();
    let agent = std::mem::replace(
        &mut scene.agent,
        Agent::start(super::PROGRAM, other.path().join("none")),
    );
    agent.stop();
    scene.agent = Agent::start(super::PROGRAM, &state);
    scene.agent.wait_status("vm", STATE_LIMIT, |s| {
        s["state"] == "gap" && s["reason"].to_string().contains("witness is shared")
    });
    scene.agent.ok(&["set", "vm", "--shared-disk", "witness"]);
    scene.agent.wait_state("vm", "protected", STATE_LIMIT);
}
