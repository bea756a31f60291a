//! A copy of a guest that goes on from a checkpoint with memory, and what its counter says
//! (`tests/guest/program/src/counter.rs`).

use crate::kit::{Cli, GuestPort, REPLY_LIMIT, Vm, poll, value};
use serde_json::Value;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

const SLOT_BYTES: u64 = 4096;
const SLOTS: u64 = 64;
/// Numbers that a copy must get to behind those that it was restored with: each time it looks at
/// its disks first, at every slot.
const ROUNDS: u64 = 3;

/// What a guest's counter says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The number in memory.
    pub ram: u64,
    /// The number on each disk.
    pub disks: Vec<u64>,
    /// A hash of a file in memory.
    pub tmpfs: String,
    /// Which boot of the kernel this is.
    pub boot: String,
}

impl Counted {
    /// From the guest's line.
    #[track_caller]
    pub fn parse(line: &str) -> Self {
        let word = |key| value(line, key).unwrap_or_else(|| panic!("no {key}: {line}")).to_owned();
        let disks = word("disk").split(',').map(|d| d.parse().unwrap()).collect();
        let (ram, tmpfs) = (word("ram").parse().unwrap(), word("tmpfs"));
        Self { ram, disks, tmpfs, boot: word("boot") }
    }

    /// As the original says it now.
    #[track_caller]
    pub fn of(vm: &mut Vm) -> Self {
        Self::parse(&vm.ask("counter stats", "counter stats ram="))
    }
}

/// A copy that was started by its script; killed when dropped.
pub struct Copy {
    child: Child,
    port: GuestPort,
    log: PathBuf,
}

impl Copy {
    /// Runs a script; the guest's port is the socket that the script puts behind it.
    #[track_caller]
    pub fn start(script: &Path, port: &Path) -> Self {
        let mut command = Command::new(script);
        let log = port.with_extension("words");
        let words = std::fs::File::create(&log).unwrap();
        command.stdin(Stdio::null()).stdout(words.try_clone().unwrap()).stderr(words);
        let mut child = command.spawn().unwrap();
        let socket = poll(REPLY_LIMIT, || UnixStream::connect(port).ok());
        let Some(socket) = socket else {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{}", std::fs::read_to_string(log).unwrap());
        };
        let mut copy = Self { child, port: GuestPort::new(socket), log };
        // The original may have been in the middle of a line, or of an answer: that one is older than
        // the instant, and comes first. The guest obeys one line after the other.
        copy.ask("\nhello", "ready ");
        copy
    }

    /// Sends a line and waits for one that contains `pattern`.
    #[track_caller]
    pub fn ask(&mut self, line: &str, pattern: &str) -> String {
        // Until the stream is loaded there is nobody who listens.
        self.port.send(line).unwrap();
        match self.port.wait_line(pattern, REPLY_LIMIT) {
            Ok(line) => line,
            Err(e) => panic!("{e}: {}", std::fs::read_to_string(&self.log).unwrap()),
        }
    }

    /// What its counter says.
    #[track_caller]
    pub fn counted(&mut self) -> Counted {
        Counted::parse(&self.ask("counter stats", "counter stats ram="))
    }

    /// It is the guest that said `was`: it never booted, its memory is as it was, and it counts on
    /// from `from` on disks that are of the same instant.
    #[track_caller]
    pub fn goes_on(&mut self, was: &Counted, from: u64) {
        let first = self.counted();
        let later = poll(REPLY_LIMIT, || {
            let now = self.counted();
            (now.ram >= first.ram + ROUNDS).then_some(now)
        });
        let later = later.unwrap_or_else(|| panic!("it does not count on from {first:?}"));
        assert!(first.ram >= from, "{first:?} is before {from}");
        for now in [&first, &later] {
            assert_eq!((&now.boot, &now.tmpfs), (&was.boot, &was.tmpfs), "{now:?}");
            assert!(now.disks.iter().all(|disk| *disk >= now.ram), "{now:?}");
        }
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `restore --warm` made.
pub struct Warm {
    /// The directory, for as long as the copy is needed.
    pub to: TempDir,
    /// What it said.
    pub report: Value,
}

impl Warm {
    /// Restores a guest or group with its memory.
    #[track_caller]
    pub fn restore(cli: &Cli, name: &str, at: &str) -> Self {
        let to = TempDir::with_prefix("warm-").unwrap();
        let path = to.path().join("copy").display().to_string();
        let report = cli.json(&["restore", name, "--at", at, "--to", &path, "--warm"]);
        Self { to, report }
    }

    /// The images, in the order in which QEMU made up the names of their nodes.
    pub fn images(&self) -> Vec<PathBuf> {
        let disks = self.report["disks"].as_array().unwrap().iter();
        let text = |d: &Value, key: &str| d[key].as_str().unwrap().to_owned();
        let mut disks: Vec<_> = disks.map(|d| (text(d, "node"), text(d, "path"))).collect();
        disks.sort_by_key(|(node, _)| (node.len(), node.clone()));
        disks.into_iter().map(|(_, path)| path.into()).collect()
    }

    /// Runs the script of a guest.
    #[track_caller]
    pub fn start(&self, guest: &str) -> Copy {
        let to = self.to.path().join("copy");
        let script = to.join(format!("{guest}.start.sh"));
        Copy::start(&script, &to.join(format!("{guest}.port.sock")))
    }
}

/// The counter's last number on a raw image that no guest has open.
#[track_caller]
pub fn number_on(image: &Path) -> u64 {
    let file = std::fs::File::open(image).unwrap();
    let number = |slot: u64| {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, slot * SLOT_BYTES).unwrap();
        u64::from_le_bytes(bytes)
    };
    (0..SLOTS).map(number).max().unwrap()
}
