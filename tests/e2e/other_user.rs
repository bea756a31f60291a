//! A QEMU that runs as another user than the agent, and a process of that user that wants to be root.

use super::evidence::prefix_of;
use super::{STATE_LIMIT, Scene};
use crate::kit::Disk;
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

const USER: u32 = 65_534;

/// Puts symlinks to a file of root's in the place of everything that root makes for QEMU's user, as quickly
/// as it can.
struct Hostile(Child);

impl Hostile {
    fn start(victim: &Path, places: &[PathBuf]) -> Self {
        let program = "my $to = shift; while (1) { for (@ARGV) { unlink $_; symlink $to, $_ } }";
        let id = USER.to_string();
        let child = Command::new("setpriv")
            .args(["--reuid", &id, "--regid", &id, "--clear-groups", "perl", "-e", program])
            .arg(victim)
            .args(places)
            .spawn()
            .expect("setpriv and perl");
        Self(child)
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn qemu_of_another_user_is_protected_and_that_user_gets_nothing_of_roots() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not run: only root can start a QEMU of another user");
        return;
    }
    let user = format!("user={USER}:{USER}");
    let mut scene = Scene::with(Disk::raw, |builder| builder.arg("-run-with").arg(&user));
    std::fs::set_permissions(scene.dir.path(), Permissions::from_mode(0o711)).unwrap();
    // QEMU opens them again when the guest runs on.
    for image in &scene.images {
        std::os::unix::fs::chown(image, Some(USER), Some(USER)).unwrap();
    }
    let victim = scene.dir.path().join("victim");
    std::fs::write(&victim, "precious").unwrap();
    std::fs::set_permissions(&victim, Permissions::from_mode(0o600)).unwrap();
    scene.vm.ask("writer start", "writer started");
    scene.protected();

    let run = scene.agent.state().join("run/vm");
    let mut places: Vec<PathBuf> = std::fs::read_dir(&run)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| !p.is_dir())
        .collect();
    places.push(run.join("memory.sock"));
    places.push(run.join("qemu-process"));
    let hostile = Hostile::start(&victim, &places);
    // QEMU of another user may not track the writes to its memory: it stands still.
    scene.agent.ok(&["set", "vm", "--memory-mode", "stop"]);
    for round in 0..3 {
        let tag = format!("m{round}");
        scene.agent.ok(&["mark", "vm", "--tag", &tag, "--memory"]);
        scene.agent.ok(&["detach", "vm"]);
        scene.agent.ok(&["attach", "vm"]);
        scene.agent.wait_state("vm", "protected", STATE_LIMIT);
    }
    drop(hostile);
    let found = std::fs::metadata(&victim).unwrap();
    assert_eq!((found.uid(), found.mode() & 0o777), (0, 0o600), "root's file was given away");
    assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious", "root's file was written to");
    for entry in std::fs::read_dir(&run).unwrap().map(Result::unwrap) {
        assert!(!entry.file_type().unwrap().is_symlink(), "{:?}", entry.path());
    }
    assert_eq!(std::fs::metadata(&run).unwrap().uid(), 0);
    let last = scene.vm.ask_last("writer pause", "writer paused");
    scene.agent.ok(&["mark", "vm", "--tag", "last"]);
    assert_eq!(prefix_of(&scene.restore("tag:last")), last);
    assert_eq!(scene.vm.stats("writer").errors, 0);
}
