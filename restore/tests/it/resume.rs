//! Real QEMUs: one writes its stream, a journal is made of it, a copy goes on from what is restored.

use crate::bed::{Bed, GUEST};
use crate::machine::{DISK_BYTES, Machine, arguments, check_disk, image, make_disk};
use crate::ram::Ram;
use afterimage_restore::{
    ExportOptions, Format, RestoreOptions, ThisHost, WarmExport, When, export_warm, plan_warm,
    restore, restore_warm,
};
use serde_json::json;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// A journal of a guest that runs, with one disk.
struct Captured {
    bed: Bed,
    machine: Machine,
    dir: tempfile::TempDir,
}

impl Captured {
    fn new(seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("original.img");
        make_disk(&disk);
        let args = arguments(&disk, dir.path());
        let mut command = Command::new(&args[0]);
        command.args(&args[1..]);
        let mut machine = Machine::start(&mut command, dir.path(), "qmp");
        let mut bed = Bed::new(seed, &[DISK_BYTES]);
        bed.config.guests[0].command_line = args;
        bed.config.guests[0].qemu_version = "8.2.0".into();
        bed.config.volumes[0].source = disk.display().to_string();
        bed.journal().set_config(&bed.config).unwrap();
        bed.open_session();
        machine.execute("cont", json!({}));
        machine.run(300);
        Self { bed, machine, dir }
    }

    /// Journals what the disk holds beyond what is known of it; the guest stands still.
    fn capture(&mut self) -> u64 {
        let content = std::fs::read(self.dir.path().join("original.img")).unwrap();
        let mut last = self.bed.open().history.head;
        for at in (0..DISK_BYTES).step_by(4096) {
            if content[at..at + 4096] != self.bed.disks[0][at..at + 4096] {
                last = self.bed.write_at(0, at, &content[at..at + 4096]);
            }
        }
        last
    }

    /// A checkpoint with the guest stopped; gives its rounds.
    fn checkpoint(&mut self, id: u64, before: Option<&Ram>) -> (Ram, u32) {
        self.machine.execute("stop", json!({}));
        let rounds = self.machine.rounds();
        let instant = self.capture();
        let ram = self.machine.migrate(&self.dir.path().join(format!("stream{id}")));
        if before.is_none() {
            ram.configure(&mut self.bed);
        }
        ram.checkpoint(&self.bed, before, id, instant);
        self.machine.execute("cont", json!({}));
        (ram, rounds)
    }

    fn restore(&self, when: &When, to: &Path, format: Format) {
        let recovery = self.bed.open();
        let options = RestoreOptions { to: to.to_owned(), disks: vec![], format };
        let point = recovery.resolve_warm(when).unwrap();
        let plan = plan_warm(&recovery, &point, &options, &ThisHost).unwrap();
        let report = restore_warm(&recovery, &plan, &mut |_| {}).unwrap();
        assert_eq!(report.memory.as_deref(), Some(&*to.join("web.memory")));
        assert_eq!(report.memories.len(), 1);
        assert_eq!(report.memories[0].guest, GUEST);
    }

    fn start(&self, dir: &Path, monitor: &str, args: &[&str]) -> Machine {
        Machine::start(Command::new(dir.join("web.start.sh")).args(args), dir, monitor)
    }
}

/// Runs a script that must end with an error; what it says.
fn refused(dir: &Path) -> String {
    let mut command = Command::new(dir.join("web.start.sh"));
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    for _ in 0..1000 {
        if let Some(status) = child.try_wait().unwrap() {
            let said = child.wait_with_output().unwrap().stderr;
            let said = String::from_utf8_lossy(&said).into_owned();
            assert_eq!(status.code(), Some(1), "{said}");
            return said;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    panic!("it was started");
}

#[test]
fn a_copy_goes_on_from_its_instant_while_the_original_runs() {
    let mut captured = Captured::new(1);
    let (first, rounds) = captured.checkpoint(1, None);
    captured.machine.run(50);
    let (_, later) = captured.checkpoint(2, Some(&first));
    captured.machine.run(50);
    assert!(later > rounds);
    let out = tempfile::tempdir().unwrap();
    for (id, format, rounds) in [(1, Format::Raw, rounds), (2, Format::Qcow2, later)] {
        let dir = out.path().join(format!("{id}"));
        captured.restore(&When::Checkpoint(id), &dir, format);
        // It waits where it is asked to, at exactly the instant.
        let mut copy = captured.start(&dir, "q1", &["-S"]);
        copy.until("paused");
        assert_eq!(copy.rounds(), rounds);
        drop(copy);
        // And runs by itself.
        let mut copy = captured.start(&dir, "q2", &[]);
        copy.until("running");
        copy.run(300);
        copy.execute("stop", json!({}));
        let done = copy.rounds();
        assert!(done >= rounds + 300);
        copy.quit();
        if format == Format::Raw {
            check_disk(&image(&dir), done);
        }
        // Its memory is of another moment than its disk now.
        let said = refused(&dir);
        assert!(said.contains("not resumed") && said.contains("web.start.sh cold"), "{said}");
        let mut cold = captured.start(&dir, "q3", &["cold"]);
        cold.until("running");
        cold.run(1);
        assert!(cold.rounds() < rounds);
    }
    captured.machine.run(10);
}

#[test]
fn a_copy_of_a_background_snapshot_runs_on() {
    let mut captured = Captured::new(2);
    let on = json!({ "capabilities": [{ "capability": "background-snapshot", "state": true }] });
    captured.machine.execute("migrate-set-capabilities", on);
    let instant = captured.capture();
    let before = captured.machine.rounds();
    let ram = captured.machine.migrate(&captured.dir.path().join("stream"));
    ram.configure(&mut captured.bed);
    ram.checkpoint(&captured.bed, None, 1, instant);
    let out = tempfile::tempdir().unwrap();
    captured.restore(&When::Latest, out.path(), Format::Raw);
    let mut copy = captured.start(out.path(), "qmp", &[]);
    copy.until("running");
    let resumed = copy.rounds();
    assert!(resumed >= before, "{resumed} after {before}");
    copy.run(50);
}

#[test]
fn a_stream_differs_from_qemus_own_in_nothing_but_the_run_state() {
    let mut captured = Captured::new(3);
    let (ram, _) = captured.checkpoint(1, None);
    let out = tempfile::tempdir().unwrap();
    captured.restore(&When::Latest, out.path(), Format::Raw);
    let restored = Ram::read(&out.path().join("web.memory"));
    assert_eq!(restored.parts.head, ram.parts.head);
    assert_eq!(restored.parts.blocks, ram.parts.blocks);
    assert!(restored.bytes == ram.bytes);
    let (old, new) = (&ram.parts.tail, &restored.parts.tail);
    let differ: Vec<usize> = (0..old.len()).filter(|&i| old[i] != new[i]).collect();
    assert_eq!(old.len(), new.len());
    assert!((1..=9).contains(&differ.len()), "{differ:?}");
    // Without memory the same point is restored as ever.
    let recovery = captured.bed.open();
    let point = recovery.resolve_warm(&When::Latest).unwrap().point;
    let to = out.path().join("cold");
    let options = RestoreOptions { to: to.clone(), disks: vec![], format: Format::Raw };
    let report = restore(&recovery, point, &options, &mut |_| {}).unwrap();
    assert_eq!((report.disks.len(), report.memory), (1, None));
    let script = std::fs::read_to_string(to.join("web.start.sh")).unwrap();
    assert!(!script.contains("incoming"), "{script}");
}

#[test]
fn a_copy_runs_on_an_export_before_its_memory_is_there() {
    runs_on_an_export(4, false);
}

#[test]
fn a_copy_runs_on_an_export_with_nothing_copied_first() {
    runs_on_an_export(5, true);
}

fn runs_on_an_export(seed: u64, preload: bool) {
    let mut captured = Captured::new(seed);
    let (ram, rounds) = captured.checkpoint(1, None);
    let dir = tempfile::tempdir().unwrap();
    let recovery = captured.bed.open();
    let point = recovery.resolve_warm(&When::Latest).unwrap();
    let options = ExportOptions {
        socket: dir.path().join("nbd"),
        disks: vec![],
        writable: true,
        scratch: Some(dir.path().to_owned()),
    };
    // What the program's own `fetch-memory` does.
    let fetch = "import os,socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\n\
                 os.dup2(s.fileno(), 3)\nos.set_inheritable(3, True)\n\
                 os.execvp(sys.argv[3], sys.argv[3:])";
    let fetch = ["python3", "-c", fetch].map(str::to_owned).to_vec();
    let warm = WarmExport { socket: None, fetch, preload };
    let exporting = export_warm(recovery, &point, &options, &warm, &ThisHost).unwrap();
    let [memory] = &exporting.report.memories[..] else { panic!("{:?}", exporting.report) };
    let read = || {
        let mut stream = Vec::new();
        let mut socket = UnixStream::connect(&memory.socket).unwrap();
        socket.read_to_end(&mut stream).unwrap();
        stream
    };
    // Several readers at a time, each a whole stream.
    let streams: Vec<_> = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..6).map(|_| scope.spawn(read)).collect();
        readers.into_iter().map(|r| r.join().unwrap()).collect()
    });
    for stream in &streams {
        assert!(Ram::parse(stream, true).bytes == ram.bytes);
    }
    let script = memory.script.clone().unwrap();
    let mut copy = Machine::start(&mut Command::new(&script), dir.path(), "qmp");
    copy.until("running");
    assert!(copy.rounds() >= rounds);
    copy.run(300);
    copy.execute("stop", json!({}));
    copy.quit();
    // Its disks are of another moment now.
    assert_eq!(read().len(), 0);
    let mut cold = Command::new(&script);
    let mut cold = Machine::start(cold.arg("cold"), dir.path(), "qmp2");
    cold.run(1);
    assert!(cold.rounds() < rounds);
    drop(cold);
    let socket = memory.socket.clone();
    // A reader that takes nothing holds up no end.
    let idle = UnixStream::connect(&socket).unwrap();
    exporting.end();
    drop(idle);
    assert!(!socket.exists() && !script.exists());
}
