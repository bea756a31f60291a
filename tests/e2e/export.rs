//! A guest boots from a moment over NBD, straight from the journal, while the original goes on.

use super::evidence::{SOME_WRITES, prefix_of, scene_of};
use crate::kit::{Disk, Export, Vm, VmBuilder, value};
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How long some hundred writes of an emulated guest may take.
const WRITES_LIMIT: Duration = Duration::from_secs(60);

/// A guest on two exported disks.
fn boot_from(socket: &Path) -> Vm {
    let mut builder = VmBuilder::new("writer");
    for disk in ["disk0", "disk1"] {
        let server = format!("server.type=unix,server.path={}", socket.display());
        let node = format!("driver=nbd,node-name=copy-{disk},{server},export={disk},discard=unmap");
        let device = format!("virtio-blk-pci,drive=copy-{disk}");
        builder = builder.arg("-blockdev").arg(&node).arg("-device").arg(&device);
    }
    builder.boot()
}

fn last_of(line: &str) -> u64 {
    value(line, "last").unwrap().parse().unwrap()
}

/// Both exported disks as raw images.
#[track_caller]
fn copied(export: &Export, dir: &Path, name: &str) -> Vec<PathBuf> {
    let copy = |disk: &str| {
        let to = dir.join(format!("{name}-{disk}"));
        let done = Command::new("nbdcopy").arg(export.uri(disk)).arg(&to).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        to
    };
    ["disk0", "disk1"].map(copy).to_vec()
}

#[test]
fn a_guest_boots_from_a_moment_and_writes_while_the_original_is_captured_and_the_agent_dies() {
    let disks: [fn(PathBuf) -> Disk; 2] =
        [|path| Disk::raw(path).blockdev(), |path| Disk::raw(path).blockdev()];
    let mut scene = scene_of(&disks, |b| b);
    let dir = scene.dir.path().to_owned();
    let nodes = scene.vm.nodes();
    scene.vm.ask("writer start", "writer started");
    scene.protected();
    std::thread::sleep(SOME_WRITES);
    scene.agent.ok(&["mark", "vm", "--tag", "middle"]);
    let restored = scene.agent.restore("vm", "tag:middle", &dir.join("out"), &nodes).unwrap();
    let middle = prefix_of(&restored);
    assert!(middle > 0);

    let (socket, scratch) = (dir.join("w.sock"), dir.to_str().unwrap());
    let more = ["--writable", "--scratch", scratch];
    let written = Export::start(&scene.agent, "vm", "tag:middle", &socket, &more);
    let point = Export::start(&scene.agent, "vm", "tag:middle", &dir.join("p.sock"), &[]);
    let mut copy = boot_from(&socket);
    assert_eq!(last_of(copy.ready()), middle, "the guest finds what was there at that moment");
    copy.ask(&format!("writer start until={}", middle + 300), "writer started");
    copy.wait_line("writer done", WRITES_LIMIT);
    // The original was captured all the while; then nobody is there any more.
    scene.agent.ok(&["mark", "vm", "--tag", "later"]);
    let later = scene.agent.restore("vm", "tag:later", &dir.join("later"), &nodes).unwrap();
    assert!(prefix_of(&later) > middle);
    scene.agent.kill();
    copy.ask(&format!("writer start until={}", middle + 600), "writer started");
    copy.wait_line("writer done", WRITES_LIMIT);
    assert_eq!(copy.stats("writer").errors, 0);
    copy.quit();

    assert_eq!(prefix_of(&copied(&written, &dir, "w")), middle + 600);
    for (restored, point) in restored.iter().zip(copied(&point, &dir, "p")) {
        assert!(std::fs::read(restored).unwrap() == std::fs::read(point).unwrap());
    }
    assert_eq!(point.end(Signal::TERM).code, 0);
    assert_eq!(written.end(Signal::TERM).code, 0);
}
