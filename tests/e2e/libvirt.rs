//! A guest whose monitor belongs to libvirt, reached by a `virsh` that stands in front of a real
//! QEMU.

use super::evidence::{
    RAW, SOME_WRITES, causes_since, history, identical, ours_in, point_monitor_at, prefix_of,
    wait_session_behind,
};
use super::{PROGRAM, STATE_LIMIT, Scene};
use crate::kit::{Agent, Disk, VmBuilder, image};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tempfile::TempDir;

const PERMISSIONS: u32 = 0o755;

fn executable(path: &Path, text: &str) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(PERMISSIONS)).unwrap();
}

/// A domain `web`, and the program with its `virsh` first in PATH.
fn domain() -> Scene {
    let dir = TempDir::with_prefix("ai-").unwrap();
    let bin = dir.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    executable(&bin.join("virsh"), include_str!("virsh.py"));
    let program = dir.path().join("afterimage");
    let text = format!("#!/bin/sh\nPATH={}:$PATH exec {PROGRAM} \"$@\"\n", bin.display());
    executable(&program, &text);
    let mut builder = VmBuilder::new("writer").guest_agent();
    let mut images = Vec::new();
    let mut xml = String::from("<domain type='qemu'>\n  <name>web</name>\n  <devices>\n");
    for name in ["a", "b"] {
        let path = dir.path().join(name);
        image::raw(&path, super::DISK_BYTES);
        builder = builder.disk(Disk::raw(&path).blockdev());
        let source = path.display();
        xml += &format!("    <disk type='file'>\n      <source file='{source}'/>\n    </disk>\n");
        images.push(path);
    }
    std::fs::write(bin.join("web.xml"), xml + "  </devices>\n</domain>\n").unwrap();
    let events =
        format!("socket,id=events,path={},server=on,wait=off", bin.join("EVENTS").display());
    let more = ["-chardev", &events, "-mon", "chardev=events,mode=control"];
    let builder = more.into_iter().fold(builder, VmBuilder::arg);
    let vm = builder.boot();
    point_monitor_at(&bin.join("QMP"), &vm.agent_qmp());
    point_monitor_at(&bin.join("QGA"), &vm.guest_agent_socket());
    let agent = Agent::start(&program, dir.path().join("state"));
    Scene { dir, builder, vm, agent, images }
}

#[test]
fn a_libvirt_domain_is_protected_resynced_and_its_definition_comes_with_the_copy() {
    let mut scene = domain();
    let missing = scene.agent.run(&["protect", "vm", "--libvirt", "nosuch"]);
    assert_eq!(missing.code, 4, "{missing:?}");
    assert!(missing.stderr.contains("nosuch"), "{missing:?}");

    scene.vm.ask("writer start", "writer started");
    scene.agent.ok(&["protect", "vm", "--libvirt", "web", "--checkpoint-every", "1s"]);
    scene.agent.wait_state("vm", "protected", STATE_LIMIT);
    std::thread::sleep(SOME_WRITES);
    let head = history(&scene.agent).head;
    scene.agent.kill_worker();
    wait_session_behind(&scene.agent, head);
    let journal = history(&scene.agent);
    assert!(causes_since(&journal, head).is_empty(), "{:?}", journal.copies);
    let gap = journal.gaps.last().unwrap();
    prefix_of(&scene.restore(&format!("seq:{}", gap.from)));
    prefix_of(&scene.restore(&format!("seq:{}", gap.to.unwrap())));
    // Its guest agent is reached through libvirt, with nothing said about it.
    scene.agent.ok(&["mark", "vm", "--tag", "quiet", "--quiesce"]);
    prefix_of(&scene.restore("tag:quiet"));

    let last = scene.vm.ask_last("writer pause", "writer paused");
    let latest = scene.restore("latest");
    assert_eq!(prefix_of(&latest), last);
    let xml = std::fs::read_to_string(latest[0].with_file_name("vm.xml")).unwrap();
    for (restored, original) in latest.iter().zip(&scene.images) {
        assert!(xml.contains(&format!("'{}'", restored.display())), "{xml}");
        assert!(!xml.contains(&format!("'{}'", original.display())), "{xml}");
    }
    assert!(xml.contains("<name>web</name>"), "{xml}");

    scene.agent.ok(&["unprotect", "vm"]);
    assert_eq!(ours_in(scene.vm.qmp()), [""; 0]);
    assert_eq!(scene.vm.stats("writer").errors, 0);
    scene.vm.quit();
    identical(&scene.images, &RAW, &latest);
}
