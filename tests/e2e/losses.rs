//! Journals that lost records which had been answered, while QEMU lives on: power cut off its file system,
//! copies put back. The mirror jobs in QEMU believe those records sent; the restored disks must have them.

use super::evidence::expect_level;
use super::{DISK_BYTES, PROGRAM, STATE_LIMIT};
use crate::kit::{Agent, Disk, SmallFs, Vm, VmBuilder, image};
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

/// Longer than a journal takes to make records durable by itself.
const LATE: Duration = Duration::from_millis(1500);
const FS_BYTES: u64 = 384 << 20;
/// As large as a hundred cuts need; its file has holes.
const LONG_FS_BYTES: u64 = 8 << 30;

/// How the agent ends.
#[derive(Clone, Copy, Debug)]
enum End {
    Kill,
    Term,
    LateTerm,
}

/// A guest with two disks and an agent whose state lies on a file system of its own.
struct Bed {
    fs: SmallFs,
    vm: Vm,
    images: Vec<PathBuf>,
    dir: TempDir,
}

impl Bed {
    fn new(fs_bytes: u64) -> Option<Self> {
        let fs = SmallFs::new(fs_bytes)?;
        let dir = TempDir::with_prefix("ai-").unwrap();
        let program = dir.path().join("afterimage");
        let units = "[ \"$1\" = agent ] && set -- \"$@\" --unit-size 1MiB";
        std::fs::write(&program, format!("#!/bin/sh\n{units}\nexec {PROGRAM} \"$@\"\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let images = vec![dir.path().join("a"), dir.path().join("b")];
        let mut builder = VmBuilder::new("writer");
        for path in &images {
            image::raw(path, DISK_BYTES);
            builder = builder.disk(Disk::raw(path));
        }
        Some(Self { fs, vm: builder.boot(), images, dir })
    }

    fn state(&self) -> PathBuf {
        self.fs.path().join("state")
    }

    fn agent(&self) -> Agent {
        let log = self.dir.path().join("agent.log");
        let file = File::options().create(true).append(true).open(&log).unwrap();
        Agent::start_logging_to(self.dir.path().join("afterimage"), self.state(), file, log)
    }

    fn protected(&self) -> Agent {
        let agent = self.agent();
        let qmp = self.vm.agent_qmp().display().to_string();
        agent.ok(&["protect", "vm", "--qmp", &qmp, "--checkpoint-every", "1s"]);
        agent.wait_state("vm", "protected", STATE_LIMIT);
        agent
    }

    /// Cuts power under the writing guest's journal, ends the agent and starts it again.
    fn cut(&mut self, agent: Agent, end: End) -> Agent {
        self.fs.power_cut();
        match end {
            End::Kill => agent.kill(),
            End::Term => agent.stop(),
            End::LateTerm => {
                std::thread::sleep(LATE);
                agent.stop();
            }
        }
        self.fs.power_on();
        let agent = self.agent();
        agent.wait_state("vm", "protected", STATE_LIMIT);
        agent
    }

    /// See [`expect_level`].
    #[track_caller]
    fn expect_level(&mut self, agent: &Agent, case: &str) {
        expect_level(&mut self.vm, agent, &self.images, self.dir.path(), case);
    }

    /// Lets the guest write a number of records.
    fn write_some(&mut self, count: u64) {
        let first = self.vm.stats("writer").last;
        while self.vm.stats("writer").last < first + count {
            std::thread::yield_now();
        }
    }
}

fn run(program: &str, arguments: &[&str]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    // A file of a running journal may go away while it is copied.
    assert!(status.code().is_some(), "{program} {arguments:?}: {status}");
}

fn copy(from: &Path, to: &Path) {
    run("cp", &["-a", &format!("{}/.", from.display()), to.to_str().unwrap()]);
}

#[test]
fn power_cut_of_the_journal_under_a_live_guest_loses_no_write() {
    let Some(mut bed) = Bed::new(FS_BYTES) else { return };
    bed.vm.ask("writer start", "writer started");
    let mut agent = bed.protected();
    for end in [End::Kill, End::LateTerm] {
        bed.write_some(200);
        agent = bed.cut(agent, end);
        let status = agent.json(&["status", "vm"]);
        assert!(status["gaps"].to_string().contains("records were lost"), "{end:?}: {status}");
        bed.expect_level(&agent, &format!("{end:?}"));
    }
}

#[test]
#[ignore = "long: a hundred power cuts"]
fn hundred_cuts_of_the_journal_under_a_live_guest_lose_no_write() {
    let Some(mut bed) = Bed::new(LONG_FS_BYTES) else { return };
    bed.vm.ask("writer start", "writer started");
    let mut agent = bed.protected();
    for round in 0..100 {
        let end = [End::Kill, End::Term, End::LateTerm][round % 3];
        bed.write_some(20 + 37 * (round as u64 % 7));
        agent = bed.cut(agent, end);
        bed.expect_level(&agent, &format!("round {round}, {end:?}"));
    }
}

/// How a copy of the state directory is made, and put back.
#[derive(Clone, Copy, Debug)]
struct PutBack {
    /// Made while the agent runs.
    is_live: bool,
    /// Over the files that are there.
    is_in_place: bool,
    end: End,
}

fn put_back(bed: &mut Bed, agent: Agent, how: PutBack) -> Agent {
    let backup = TempDir::with_prefix_in("backup-", bed.dir.path()).unwrap();
    bed.write_some(50);
    let agent = if how.is_live {
        copy(&bed.state(), backup.path());
        agent
    } else {
        agent.stop();
        copy(&bed.state(), backup.path());
        let agent = bed.agent();
        agent.wait_state("vm", "protected", STATE_LIMIT);
        agent
    };
    bed.write_some(200);
    match how.end {
        End::Kill => agent.kill(),
        End::Term | End::LateTerm => agent.stop(),
    }
    if !how.is_in_place {
        std::fs::remove_dir_all(bed.state()).unwrap();
        std::fs::create_dir(bed.state()).unwrap();
    }
    copy(backup.path(), &bed.state());
    let agent = bed.agent();
    agent.wait_state("vm", "protected", STATE_LIMIT);
    agent
}

#[test]
fn older_state_directory_put_back_under_a_live_guest_loses_no_write() {
    let Some(mut bed) = Bed::new(FS_BYTES) else { return };
    bed.vm.ask("writer start", "writer started");
    let mut agent = bed.protected();
    let cases = [
        PutBack { is_live: false, is_in_place: false, end: End::Kill },
        PutBack { is_live: true, is_in_place: false, end: End::Kill },
        PutBack { is_live: true, is_in_place: true, end: End::Kill },
        PutBack { is_live: true, is_in_place: true, end: End::Term },
    ];
    for how in cases {
        agent = put_back(&mut bed, agent, how);
        bed.expect_level(&agent, &format!("{how:?}"));
    }
}
