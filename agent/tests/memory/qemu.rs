//! A real QEMU's background snapshots, beside what its own monitor says is in the guest's memory.

use crate::kit::{Bed, HANG, content, head};
use afterimage_agent::memory::{
    Block, Event, Intake, Options, PAGE_BYTES, Source, SpoolAt, Table, Taken,
};
use afterimage_journal::History;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

const RAM_BYTES: usize = 64 << 20;
/// Behind the hole in which a PC has its display and its ROMs: from here on, guest addresses are
/// those of the block.
const HIGH: usize = 1 << 20;

/// QEMU without disks: its firmware looks for one, and waits.
struct Guest {
    child: Child,
    monitor: BufReader<UnixStream>,
}

impl Guest {
    fn start(dir: &Path) -> Self {
        let socket = dir.join("qmp");
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none"]);
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", socket.display()));
        let child = command.stdin(Stdio::null()).spawn().expect("qemu-system-x86_64 is installed");
        let deadline = Instant::now() + HANG;
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(e) => assert!(Instant::now() < deadline, "QEMU does not listen: {e}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        stream.set_read_timeout(Some(HANG)).unwrap();
        let mut guest = Self { child, monitor: BufReader::new(stream) };
        guest.line();
        guest.run("qmp_capabilities", json!({}));
        let on =
            json!({ "capabilities": [{ "capability": "background-snapshot", "state": true }] });
        guest.run("migrate-set-capabilities", on);
        guest
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.monitor.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }

    fn run(&mut self, command: &str, arguments: Value) -> Value {
        let line = json!({ "execute": command, "arguments": arguments }).to_string();
        self.monitor.get_mut().write_all(line.as_bytes()).unwrap();
        loop {
            let said = self.line();
            assert!(said.get("error").is_none(), "{command}: {said}");
            if let Some(answer) = said.get("return") {
                return answer.clone();
            }
        }
    }

    /// What lies behind the hole, by the monitor.
    fn high_memory(&mut self, dir: &Path) -> Vec<u8> {
        let file = dir.join("pmem");
        let size = RAM_BYTES - HIGH;
        self.run("pmemsave", json!({ "val": HIGH, "size": size, "filename": file }));
        std::fs::read(file).unwrap()
    }

    /// Stops, looks, and takes a snapshot of which the guest goes on at the first page.
    fn snapshot(&mut self, dir: &Path, options: Options) -> (Vec<u8>, Taken, Table) {
        let path = dir.join("stream");
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let (tell, hear) = channel();
        let tell = std::sync::Mutex::new(tell);
        let intake = Intake::start(Source::Listener(listener), options, move |event| {
            tell.lock().unwrap().send(event).unwrap();
        });
        let intake = intake.unwrap();
        self.run("stop", json!({}));
        let memory = self.high_memory(dir);
        self.run("migrate", json!({ "uri": format!("unix:{}", path.display()) }));
        assert_eq!(hear.recv_timeout(HANG).unwrap(), Event::FirstPage);
        self.run("cont", json!({}));
        assert_eq!(hear.recv_timeout(HANG).unwrap(), Event::Ended);
        let (taken, table) = intake.wait();
        (memory, taken.unwrap(), table.unwrap())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_journal_holds_the_memory_that_qemu_had_and_then_only_what_changed() {
    let dir = tempfile::tempdir().unwrap();
    let mut guest = Guest::start(dir.path());
    std::thread::sleep(Duration::from_secs(2));
    // The blocks are known once a stream has come.
    let mut nothing = Bed::new(&[Block { id: "none".into(), bytes: 4096 }]);
    let options = Options {
        spool: SpoolAt { dir: dir.path().join("spool"), spool_bytes_max: None },
        ..nothing.options()
    };
    let (_, taken, _) = guest.snapshot(dir.path(), options);
    let mut bed = Bed::new(&taken.blocks);
    let ram = bed.ram.iter().find(|b| b.id == "pc.ram").cloned().expect("QEMU's RAM");
    assert_eq!(ram.bytes, RAM_BYTES as u64);
    let mut before: Option<Vec<u8>> = None;
    for round in 0..3 {
        let options = bed.options();
        let (memory, taken, table) = guest.snapshot(dir.path(), options);
        bed.table = Some(table);
        let from = bed.journal.head();
        bed.store(&taken).unwrap();
        let seq = bed.journal.head();
        let history = History::load(&bed.path()).unwrap();
        let found = content(&history, ram.volume, seq, RAM_BYTES);
        assert!(found[HIGH..] == memory, "round {round}: another memory");
        let state = content(&history, crate::kit::STATE, seq, taken.head.len());
        assert!(state == taken.head && state.starts_with(&head()[..8]), "round {round}: the head");
        let records = bed.records(from);
        let stored = records.iter().filter(|e| e.record.volume == ram.volume);
        let stored = stored.filter(|e| e.record.addr >= HIGH as u64).map(|e| e.record.len as usize);
        let stored = stored.sum::<usize>() / PAGE_BYTES;
        let empty = vec![0; memory.len()];
        let old = before.as_ref().unwrap_or(&empty);
        let pages = old.chunks(PAGE_BYTES).zip(memory.chunks(PAGE_BYTES));
        let changed = pages.filter(|(a, b)| a != b).count();
        assert_eq!(stored, changed, "round {round}: pages behind the hole");
        before = Some(memory);
    }
}
