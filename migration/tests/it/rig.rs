//! A real QEMU, driven by QMP, whose boot sector counts and dirties half a megabyte for ever.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// For anything that should take milliseconds.
const SOON: Duration = Duration::from_secs(30);
/// The guest's memory at its start, in bytes.
pub const RAM_BYTES: u64 = 48 << 20;
/// Where the guest says that it runs, and where it counts.
const SIGN_ADDRESS: u32 = 0x7e00;
const COUNT_ADDRESS: u32 = 0x8000;
const SIGN: u32 = 0x5254_4641;

/// The guest: it counts at 8000 and writes the count into each page of 1000:0 to 8fff:f.
fn boot_sector() -> [u8; 512] {
    #[rustfmt::skip]
    let code = [
        0x31, 0xc0, 0x8e, 0xd8,                         // ds = 0
        0x66, 0xc7, 0x06, 0x00, 0x7e, 0x41, 0x46, 0x54, 0x52, // sign
        0x66, 0xc7, 0x06, 0x00, 0x80, 0, 0, 0, 0,       // count = 0
        // round:
        0x66, 0xff, 0x06, 0x00, 0x80,                   // inc count
        0x66, 0xa1, 0x00, 0x80,                         // mov eax, count
        0xbb, 0x00, 0x10,                               // mov bx, 1000
        // page:
        0x8e, 0xc3,                                     // mov es, bx
        0x26, 0x66, 0xa3, 0x00, 0x00,                   // mov es:[0], eax
        0x81, 0xc3, 0x00, 0x01,                         // add bx, 100
        0x81, 0xfb, 0x00, 0x90,                         // cmp bx, 9000
        0x72, 0xef,                                     // jb page
        0xeb, 0xe1,                                     // jmp round
    ];
    let mut sector = [0; 512];
    sector[..code.len()].copy_from_slice(&code);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

/// A running QEMU.
pub struct Vm {
    child: Child,
    qmp: BufReader<UnixStream>,
    dir: TempDir,
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Vm {
    /// A guest that runs.
    pub fn boot(machine: &str, more: &[&str]) -> Vm {
        let mut vm = Vm::start(machine, more);
        let begun = Instant::now();
        while vm.word(SIGN_ADDRESS) != SIGN || vm.count() == 0 {
            assert!(begun.elapsed() < SOON, "the guest does not run");
            std::thread::sleep(Duration::from_millis(10));
        }
        vm
    }

    /// A machine that waits for a stream, which it is given.
    pub fn load(machine: &str, more: &[&str], stream: &[u8]) -> Vm {
        let mut words = vec!["-incoming", "defer"];
        words.extend(more);
        let mut vm = Vm::start(machine, &words);
        let path = vm.path("in");
        vm.ask("migrate-incoming", json!({ "uri": format!("unix:{}", path.display()) }));
        // QEMU may refuse it before its end; query-migrate says how it went.
        let _ = UnixStream::connect(&path).unwrap().write_all(stream);
        let begun = Instant::now();
        loop {
            match vm.ask("query-migrate", json!({}))["status"].as_str().unwrap_or("none") {
                "completed" => return vm,
                "failed" => panic!("QEMU refused the stream"),
                _ => assert!(begun.elapsed() < SOON, "QEMU loads for ever"),
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn start(machine: &str, more: &[&str]) -> Vm {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("disk");
        fs::write(&disk, boot_sector()).unwrap();
        fs::OpenOptions::new().write(true).open(&disk).unwrap().set_len(1 << 20).unwrap();
        let socket = dir.path().join("qmp");
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-accel", "tcg", "-M", machine, "-nodefaults", "-display", "none"]);
        let file = format!("file.driver=file,file.filename={}", disk.display());
        let node = format!("driver=raw,node-name=boot,read-only=on,{file}");
        command.args(["-blockdev", &node, "-device", "virtio-blk-pci,drive=boot,bootindex=1"]);
        command.args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())]);
        if !more.contains(&"-m") {
            command.args(["-m", "48,slots=4,maxmem=1G"]);
        }
        let child = command.args(more).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let child = child.unwrap_or_else(|e| panic!("{command:?}: {e}; is it installed?"));
        let qmp = BufReader::new(connect(&socket));
        let mut vm = Vm { child, qmp, dir };
        let mut greeting = String::new();
        vm.qmp.read_line(&mut greeting).unwrap();
        vm.ask("qmp_capabilities", json!({}));
        vm
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A command's answer, which has to be one.
    pub fn ask(&mut self, command: &str, arguments: Value) -> Value {
        let line = json!({ "execute": command, "arguments": arguments }).to_string() + "\n";
        self.qmp.get_mut().write_all(line.as_bytes()).unwrap();
        loop {
            let mut line = String::new();
            assert_ne!(self.qmp.read_line(&mut line).unwrap(), 0, "QEMU ended at {command}");
            let mut said: Value = serde_json::from_str(&line).unwrap();
            assert!(said.get("error").is_none(), "{command}: {said}");
            if said.get("return").is_some() {
                return said["return"].take();
            }
        }
    }

    fn word(&mut self, address: u32) -> u32 {
        let line = format!("xp /1wx {address}");
        let said = self.ask("human-monitor-command", json!({ "command-line": line }));
        let word = said.as_str().unwrap().split("0x").nth(1).unwrap().trim().to_owned();
        u32::from_str_radix(&word, 16).unwrap()
    }

    /// Rounds of the guest.
    pub fn count(&mut self) -> u32 {
        self.word(COUNT_ADDRESS)
    }

    pub fn status(&mut self) -> String {
        self.ask("query-status", json!({}))["status"].as_str().unwrap().to_owned()
    }

    pub fn stop(&mut self) {
        self.ask("stop", json!({}));
    }

    /// Lets the guest go on, and sees it do so.
    pub fn runs_on(&mut self) {
        let before = self.count();
        self.ask("cont", json!({}));
        assert_eq!(self.status(), "running");
        let begun = Instant::now();
        while self.count() == before {
            assert!(begun.elapsed() < SOON, "the guest stands still at {before}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Memory by QEMU's own word.
    pub fn memory(&mut self, address: u64, bytes: u64) -> Vec<u8> {
        let path = self.path("saved");
        let what = json!({ "val": address, "size": bytes, "filename": path.to_str().unwrap() });
        self.ask("pmemsave", what);
        fs::read(path).unwrap()
    }

    pub fn set(&mut self, capabilities: &[&str]) {
        let on = |name: &&str| json!({ "capability": name, "state": true });
        let all: Vec<Value> = capabilities.iter().map(on).collect();
        self.ask("migrate-set-capabilities", json!({ "capabilities": all }));
    }

    /// Begins a migration; the listener takes its connections.
    pub fn migrate(&mut self) -> UnixListener {
        let path = self.path("out");
        let listener = UnixListener::bind(&path).unwrap();
        self.ask("migrate", json!({ "uri": format!("unix:{}", path.display()) }));
        listener
    }

    /// A whole migration's bytes.
    pub fn stream(&mut self) -> Vec<u8> {
        let (mut connection, mut stream) = (self.migrate().accept().unwrap().0, Vec::new());
        connection.read_to_end(&mut stream).unwrap();
        let status = self.ask("query-migrate", json!({}))["status"].take();
        assert_eq!(status, "completed");
        stream
    }

    /// Plugs a pc-dimm of 32 MiB into the running guest, with memory of zeroes or of `file`.
    pub fn plug(&mut self, name: &str, file: Option<&Path>) {
        let mut backend = json!({ "id": name, "size": 32 << 20, "qom-type": "memory-backend-ram" });
        if let Some(file) = file {
            backend["qom-type"] = json!("memory-backend-file");
            backend["mem-path"] = json!(file.to_str().unwrap());
        }
        self.ask("object-add", backend);
        let device = json!({ "driver": "pc-dimm", "id": format!("dimm-{name}"), "memdev": name });
        self.ask("device_add", device);
    }

    /// Where the dimms are, by their backend's name.
    pub fn dimms(&mut self) -> Vec<(String, u64, u64)> {
        let all = self.ask("query-memory-devices", json!({}));
        let one = |device: &Value| {
            let data = &device["data"];
            let name = data["memdev"].as_str().unwrap().rsplit('/').next().unwrap();
            (name.to_owned(), data["addr"].as_u64().unwrap(), data["size"].as_u64().unwrap())
        };
        all.as_array().unwrap().iter().map(one).collect()
    }
}

fn connect(path: &Path) -> UnixStream {
    let begun = Instant::now();
    loop {
        if let Ok(stream) = UnixStream::connect(path) {
            stream.set_read_timeout(Some(SOON)).unwrap();
            return stream;
        }
        assert!(begun.elapsed() < SOON, "nobody listens on {}", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}
