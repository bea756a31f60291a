//! A real guest that counts on two disks and in memory; a journal made by hand of QEMU's own stream;
//! copies that go on, by the command line alone.

use super::PROGRAM;
use super::copy::{Copy, Counted};
use crate::kit::{Cli, Disk, Export, REPLY_LIMIT, Vm, VmBuilder, image, poll};
use afterimage_journal::format::record::Kind;
use afterimage_journal::log::Draft;
use afterimage_journal::meta::{
    Checkpoint, CheckpointKind, Config, Guest, GuestMemory, Memory, Meta, RamBlock, Session,
    SessionEvent, Volume, VolumeKind,
};
use afterimage_journal::{History, Journal, Options, layout};
use afterimage_migration::{Block, Limits, PAGE_BYTES, Parts, Reader, Sink};
use rustix::process::Signal;
use serde_json::json;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;
use uuid::Uuid;

const DISK_BYTES: u64 = 1 << 20;
const STATE_VOLUME: u16 = 10;
const RECORD_BYTES: usize = 64 << 10;

/// Every page of a stream, as bytes.
#[derive(Default)]
struct Pages(Vec<Vec<u8>>);

impl Sink for Pages {
    type Error = Infallible;

    fn blocks(&mut self, blocks: &[Block]) -> Result<(), Infallible> {
        self.0 = blocks.iter().map(|b| vec![0; b.bytes as usize]).collect();
        Ok(())
    }

    fn page(&mut self, block: usize, offset: u64, data: &[u8]) -> Result<(), Infallible> {
        self.0[block][offset as usize..][..PAGE_BYTES].copy_from_slice(data);
        Ok(())
    }

    fn zero(&mut self, block: usize, offset: u64) -> Result<(), Infallible> {
        self.page(block, offset, &[0; PAGE_BYTES])
    }
}

/// Has QEMU write its stream, and reads that.
fn migrated(vm: &mut Vm, to: &Path) -> (Parts, Vec<Vec<u8>>) {
    vm.qmp().execute("migrate", json!({ "uri": format!("exec:cat > {}", to.display()) }));
    let done = poll(REPLY_LIMIT, || {
        let said = vm.qmp().execute("query-migrate", json!({}));
        (said["status"] == "completed").then_some(())
    });
    done.expect("QEMU writes its stream");
    let (mut reader, mut pages) = (Reader::new(Limits::default()), Pages::default());
    for piece in std::fs::read(to).unwrap().chunks(1 << 20) {
        reader.feed(piece, &mut pages).unwrap();
    }
    (reader.finish().unwrap(), pages.0)
}

fn volume(id: u16, kind: VolumeKind, name: &str, bytes: u64, source: &Path) -> Volume {
    Volume {
        id,
        kind,
        uuid: Uuid::new_v4(),
        guest: "web".into(),
        disk: name.into(),
        node: name.into(),
        bytes,
        format: "raw".into(),
        source: source.display().to_string(),
        active: true,
    }
}

/// A process's arguments.
fn command_line(vm: &Vm) -> Vec<String> {
    let line = std::fs::read_to_string(format!("/proc/{}/cmdline", vm.pid())).unwrap();
    line.split_terminator('\0').map(str::to_owned).collect()
}

/// Writes a journal whose checkpoint #1 is a guest with these images and memory.
fn journal(
    state: &Path,
    images: &[PathBuf],
    command_line: Vec<String>,
    (parts, ram): &(Parts, Vec<Vec<u8>>),
) {
    let guest =
        Guest { name: "web".into(), command_line, libvirt_xml: None, qemu_version: "8.2.0".into() };
    let mut volumes: Vec<Volume> = Vec::new();
    for (i, image) in images.iter().enumerate() {
        let id = i as u16 + 1;
        volumes.push(volume(id, VolumeKind::Disk, &format!("d{i}"), DISK_BYTES, image));
    }
    let nowhere = Path::new("");
    volumes.push(volume(STATE_VOLUME, VolumeKind::DeviceState, "device-state", 64 << 20, nowhere));
    let mut blocks = Vec::new();
    for (i, block) in parts.blocks.iter().enumerate() {
        let id = STATE_VOLUME + 1 + i as u16;
        volumes.push(volume(id, VolumeKind::Ram, &block.id, block.bytes, nowhere));
        blocks.push(RamBlock { volume: id, id: block.id.clone(), bytes: block.bytes });
    }
    layout::check_state(state, true).unwrap();
    let (dir, group) = (layout::journal_dir(state, "web").unwrap(), Uuid::new_v4());
    let journal = Journal::create(&dir, group, "web", Options::default()).unwrap();
    let config = Config { group, name: "web".into(), guests: vec![guest], volumes };
    journal.set_config(&config).unwrap();
    let session = Session {
        id: 1,
        guest: "web".into(),
        event: SessionEvent::Open,
        reason: String::new(),
        upto: None,
        full: true,
        images: vec![],
        maps: vec![],
    };
    let mut instant = journal.append_meta(&Meta::Session(session)).unwrap();
    for (i, image) in images.iter().enumerate() {
        for (n, bytes) in std::fs::read(image).unwrap().chunks(RECORD_BYTES).enumerate() {
            let mut draft = Draft::of(Kind::Write);
            (draft.volume, draft.len) = (i as u16 + 1, bytes.len() as u32);
            (draft.addr, draft.scope) = ((n * RECORD_BYTES) as u64, 1);
            instant = journal.append(&draft, bytes).unwrap();
        }
    }
    let wall_ns = History::load(&dir).unwrap().point(instant).wall_ns;
    let memory = |volume: u16, bytes: &[u8]| {
        for (n, bytes) in bytes.chunks(RECORD_BYTES).enumerate() {
            if bytes.iter().any(|b| *b != 0) {
                journal.append_memory(volume, (n * RECORD_BYTES) as u64, bytes).unwrap();
            }
        }
    };
    for (i, bytes) in ram.iter().enumerate() {
        memory(STATE_VOLUME + 1 + i as u16, bytes);
    }
    memory(STATE_VOLUME, &[&parts.head[..], &parts.tail].concat());
    let guests = vec![GuestMemory {
        guest: "web".into(),
        blocks,
        state: STATE_VOLUME,
        head_bytes: parts.head.len() as u64,
        tail_bytes: parts.tail.len() as u64,
        pause_us: 1,
    }];
    let memory = Some(Memory { instant, wall_ns, guests });
    let mark = Checkpoint { id: 1, kind: CheckpointKind::Crash, tag: None, memory };
    journal.append_meta(&Meta::Mark(mark)).unwrap();
    // Behind it the disks are another guest's.
    let mut draft = Draft::of(Kind::Write);
    (draft.volume, draft.len, draft.scope) = (1, 4096, 1);
    journal.append(&draft, &[0xff; 4096]).unwrap();
    journal.close().unwrap();
}

/// The same guest, by a journal whose author would like to run a program of his own.
fn runs_nothing_that_a_hostile_journal_names(
    dir: &Path,
    images: &[PathBuf],
    line: &[String],
    taken: &(Parts, Vec<Vec<u8>>),
) {
    let hostile = dir.join("hostile");
    std::fs::create_dir(&hostile).unwrap();
    let ran = hostile.join("ran");
    for name in ["x", "qemu-system-x86_64", "ifup"] {
        let program = hostile.join(name);
        std::fs::write(&program, format!("#!/bin/sh\ntouch {}\n", ran.display())).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, mode).unwrap();
    }
    let with = |program: &str, more: &[&str], to: &str| {
        let state = hostile.join(format!("{to}.state"));
        let mut line = line.to_vec();
        line[0] = hostile.join(program).display().to_string();
        line.extend(more.iter().map(|m| m.replace("HOSTILE", &hostile.display().to_string())));
        journal(&state, images, line, taken);
        Cli::new(PROGRAM, state)
    };
    let restore = |cli: &Cli, to: &str, more: &[&str]| {
        let to = hostile.join(to).display().to_string();
        let words = ["restore", "web", "--at", "#1", "--warm", "--to", &to];
        cli.run(&[&words[..], more].concat())
    };
    let cli = with("x", &[], "no-qemu");
    let refused = restore(&cli, "no-qemu", &[]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(
        refused.stderr.contains("hostile/x") && refused.stderr.contains("--qemu"),
        "{refused:?}"
    );
    let named = restore(&cli, "named", &["--qemu", "/usr/bin/qemu-system-x86_64"]);
    assert_eq!(named.code, 0, "{named:?}");
    // One of the right name at the wrong place, with what a script must not do.
    let more = [
        "-netdev",
        "tap,id=evil,script=HOSTILE/ifup",
        "-plugin",
        "HOSTILE/x",
        "-fw_cfg",
        "name=opt/x,file=/etc/shadow",
    ];
    let cli = with("qemu-system-x86_64", &more, "elsewhere");
    let restored = restore(&cli, "elsewhere", &[]);
    assert_eq!(restored.code, 0, "{restored:?}");
    assert!(restored.stderr.contains("/etc/shadow"), "{restored:?}");
    let script = hostile.join("elsewhere/web.start.sh");
    let run = Command::new(&script).current_dir(&hostile).output().unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.code() == Some(1) && said.contains("/etc/shadow"), "{said}");
    let text = std::fs::read_to_string(&script).unwrap();
    let code: Vec<&str> = text.lines().filter(|l| !l.starts_with('#')).collect();
    assert!(!code.join("\n").contains("hostile/x"), "{text}");
    assert!(!code.join("\n").contains("ifup"), "{text}");
    assert!(!code.join("\n").contains("hostile/qemu"), "{text}");
    assert!(!ran.exists(), "a program of the journal's was run");
}

#[test]
fn a_guest_goes_on_from_its_checkpoint_restored_and_exported() {
    let dir = TempDir::with_prefix("warm-").unwrap();
    let images = [dir.path().join("a.raw"), dir.path().join("b.raw")];
    let builder = images.iter().fold(VmBuilder::new("counter"), |builder, path| {
        image::raw(path, DISK_BYTES);
        builder.disk(Disk::raw(path))
    });
    let mut vm = builder.boot();
    vm.ask("counter start tmpfs=33554432", "counter started");
    std::thread::sleep(Duration::from_millis(500));
    let was = Counted::of(&mut vm);
    vm.qmp().execute("stop", json!({}));
    let state = dir.path().join("state");
    let taken = migrated(&mut vm, &dir.path().join("stream"));
    let line = command_line(&vm);
    journal(&state, &images, line.clone(), &taken);
    vm.kill();
    runs_nothing_that_a_hostile_journal_names(dir.path(), &images, &line, &taken);

    let cli = Cli::new(PROGRAM, &state);
    let listed = cli.json(&["checkpoints", "web"]);
    assert_eq!((&listed[0]["id"], &listed[0]["memory"]), (&json!(1), &json!(true)));
    let checked = cli.json(&["verify", "web", "--at", "#1"]);
    assert!(checked["memory"].as_array().unwrap().len() > 2, "{checked}");
    let cold = dir.path().join("cold").display().to_string();
    let said = cli.ok(&["restore", "web", "--at", "#1", "--to", &cold]);
    assert!(said.contains("memory of that instant is there too (#1): --warm"), "{said}");

    let to = dir.path().join("out");
    let to_text = to.display().to_string();
    let report = cli.json(&["restore", "web", "--at", "latest", "--to", &to_text, "--warm"]);
    assert_eq!(report["memory"], json!(to.join("web.memory")));
    assert_eq!(report["memories"][0]["guest"], "web");
    let mut copy = Copy::start(&to.join("web.start.sh"), &to.join("web.port.sock"));
    copy.goes_on(&was, was.ram);
    drop(copy);

    let socket = dir.path().join("nbd");
    let scratch = dir.path().display().to_string();
    let more = ["--warm", "--writable", "--scratch", &scratch];
    let export = Export::start(&cli, "web", "#1", &socket, &more);
    let script = PathBuf::from(export.report["memories"][0]["script"].as_str().unwrap());
    let mut copy = Copy::start(&script, &dir.path().join("web.port.sock"));
    copy.goes_on(&was, was.ram);
    drop(copy);
    let memory = export.report["memories"][0]["socket"].as_str().unwrap().to_owned();
    let again = Command::new(PROGRAM).args(["fetch-memory", &memory]).output().unwrap();
    let said = String::from_utf8_lossy(&again.stderr);
    assert!(again.status.code() == Some(1) && said.contains("written to since"), "{said}");
    assert_eq!(export.end(Signal::TERM).code, 0);
    assert!(!script.exists() && !Path::new(&memory).exists());
}
