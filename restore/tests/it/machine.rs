//! A real QEMU with a guest that counts: a boot sector that writes numbered blocks to its disk and
//! keeps the numbers in its memory.

use crate::ram::Ram;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

#[path = "../../../agent/qmp/tests/it/guest.rs"]
#[allow(dead_code)]
mod guest;

pub const DISK_BYTES: usize = 16 << 20;
const SOON: Duration = Duration::from_secs(60);

/// A QEMU that dies with its owner.
pub struct Machine {
    child: Child,
    socket: UnixStream,
    lines: BufReader<UnixStream>,
}

/// Makes the guest's disk.
pub fn make_disk(path: &Path) {
    let file = std::fs::File::create(path).unwrap();
    file.set_len(DISK_BYTES as u64).unwrap();
    file.write_all_at(&guest::boot_sector(1), 0).unwrap();
}

impl Machine {
    /// Starts a program that is a QEMU in the end, with a monitor in `dir` for us.
    pub fn start(command: &mut Command, dir: &Path, monitor: &str) -> Self {
        let path = dir.join(monitor);
        command.args(["-qmp", &format!("unix:{},server=on,wait=off", path.display())]);
        let child = command.stdin(Stdio::null()).spawn().unwrap();
        let deadline = Instant::now() + SOON;
        let socket = loop {
            match UnixStream::connect(&path) {
                Ok(socket) => break socket,
                Err(e) => assert!(Instant::now() < deadline, "{command:?}: {e}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        socket.set_read_timeout(Some(SOON)).unwrap();
        let lines = BufReader::new(socket.try_clone().unwrap());
        let mut machine = Self { child, socket, lines };
        machine.line();
        machine.execute("qmp_capabilities", json!({}));
        machine
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line:?}: {e}; QEMU ended?"))
    }

    pub fn execute(&mut self, command: &str, arguments: Value) -> Value {
        let line = json!({ "execute": command, "arguments": arguments }).to_string() + "\n";
        self.socket.write_all(line.as_bytes()).unwrap();
        loop {
            let said = self.line();
            assert!(said.get("error").is_none(), "{command}: {said}");
            if let Some(value) = said.get("return") {
                return value.clone();
            }
        }
    }

    /// What QEMU's own status says.
    pub fn status(&mut self) -> String {
        self.execute("query-status", json!({}))["status"].as_str().unwrap().to_owned()
    }

    /// Waits for a status.
    pub fn until(&mut self, wanted: &str) {
        let deadline = Instant::now() + SOON;
        while self.status() != wanted {
            assert!(Instant::now() < deadline, "it is {}", self.status());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A word of the guest's memory.
    pub fn word(&mut self, address: u32) -> u32 {
        let line = json!({ "command-line": format!("xp /1wx {address}") });
        let said = self.execute("human-monitor-command", line);
        let said = said.as_str().unwrap();
        let word = said.split("0x").nth(1).unwrap_or_else(|| panic!("{said:?}")).trim();
        u32::from_str_radix(word, 16).unwrap()
    }

    /// Rounds that the guest saw done.
    pub fn rounds(&mut self) -> u32 {
        let rounds = self.word(guest::ACKNOWLEDGED_ADDRESS);
        assert_ne!(rounds, guest::FAILED, "the guest saw an I/O error");
        rounds
    }

    /// Waits until the guest has done `more` rounds from now on.
    pub fn run(&mut self, more: u32) {
        let wanted = self.rounds() + more;
        let deadline = Instant::now() + SOON;
        while self.rounds() < wanted {
            assert!(Instant::now() < deadline, "the guest stands at {}", self.rounds());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Migrates to a file, and reads that.
    pub fn migrate(&mut self, to: &Path) -> Ram {
        let uri = format!("exec:cat > '{}'", to.display());
        self.execute("migrate", json!({ "uri": uri }));
        let deadline = Instant::now() + SOON;
        loop {
            let said = self.execute("query-migrate", json!({}));
            match said["status"].as_str() {
                Some("completed") => return Ram::parse(&std::fs::read(to).unwrap(), false),
                Some("failed") => panic!("{said}"),
                _ => assert!(Instant::now() < deadline, "{said}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends QEMU in order, so that its image is whole.
    pub fn quit(mut self) {
        self.execute("quit", json!({}));
        self.child.wait().unwrap();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Fails unless a disk holds every round up to the newest that the guest saw done.
pub fn check_disk(image: &Path, rounds: u32) {
    let content = std::fs::read(image).unwrap();
    let first = rounds.saturating_sub(guest::BLOCKS as u32 - 2).max(1);
    for round in first..=rounds {
        let place = u64::from(round) % guest::BLOCKS * guest::BLOCK_BYTES + guest::FIRST_BYTE;
        let found = u32::from_le_bytes(content[place as usize..][..4].try_into().unwrap());
        assert_eq!(found, round, "the block of round {round} of {rounds}");
    }
}

/// The arguments of a guest whose disk is `image`, with all kinds of surroundings.
pub fn arguments(image: &Path, dir: &Path) -> Vec<String> {
    let at = |name: &str| dir.join(name).display().to_string();
    let args = [
        "qemu-system-x86_64",
        "-name",
        "web",
        "-machine",
        "q35,accel=tcg",
        "-m",
        "64",
        "-numa",
        "node,memdev=low",
        "-object",
        "memory-backend-ram,id=low,size=64M",
        "-nodefaults",
        "-display",
        "none",
        "-S",
        "-drive",
        &format!("id=d0,if=none,format=raw,file={}", image.display()),
        "-device",
        "virtio-blk-pci,id=disk0,drive=d0,bootindex=1",
        "-device",
        "virtio-serial-pci",
        "-chardev",
        &format!("socket,id=ga,path={},server=on,wait=off", at("original-ga.sock")),
        "-device",
        "virtserialport,chardev=ga,name=org.qemu.guest_agent.0",
        "-serial",
        &format!("unix:{},server=on,wait=off", at("original-serial.sock")),
        "-vnc",
        &format!("unix:{}", at("original-vnc.sock")),
        "-vga",
        "std",
        "-netdev",
        "user,id=n0",
        "-device",
        "virtio-net-pci,netdev=n0",
        "-rtc",
        "base=utc",
    ];
    args.iter().map(|a| (*a).to_owned()).collect()
}

/// Path of the first image below a directory.
pub fn image(dir: &Path) -> PathBuf {
    dir.join("web-d0.raw")
}
