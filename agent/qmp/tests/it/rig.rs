//! Real QEMU, real NBD servers, in a temporary folder; ended by their pids when dropped.

use std::{
    fs,
    os::unix::{fs::FileExt, net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use afterimage_qmp::{
    Events, Qemu, QemuEvent,
    qemu::{Attachment, JobState, MirrorSpec, Names},
};
use serde_json::json;
use tempfile::TempDir;

use crate::guest;

/// The size of each disk.
pub const DISK_BYTES: u64 = 16 << 20;
/// For anything that should take milliseconds.
pub const SOON: Duration = Duration::from_secs(20);

/// A child process that dies with its owner.
pub struct Process(Child);

impl Process {
    pub fn start(command: &mut Command) -> Process {
        Process::start_on(command, Stdio::null())
    }

    pub fn start_on(command: &mut Command, stdin: Stdio) -> Process {
        let child = command.stdin(stdin).spawn();
        Process(child.unwrap_or_else(|e| panic!("{command:?}: {e}; is it installed?")))
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Waits for an end that comes by itself.
    pub fn ended(&mut self) {
        let deadline = Instant::now() + SOON;
        while self.0.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "the process goes on");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How a disk is given to QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    pub blockdev: bool,
    pub qcow2: bool,
    pub iothread: bool,
}

pub const DRIVE_RAW: Style = Style { blockdev: false, qcow2: false, iothread: false };
pub const DRIVE_QCOW2: Style = Style { qcow2: true, ..DRIVE_RAW };
pub const BLOCKDEV_RAW: Style = Style { blockdev: true, ..DRIVE_RAW };
pub const BLOCKDEV_QCOW2: Style = Style { blockdev: true, ..DRIVE_QCOW2 };

/// Every way, with and without iothread.
pub fn all_styles() -> Vec<Style> {
    let four = [DRIVE_RAW, DRIVE_QCOW2, BLOCKDEV_RAW, BLOCKDEV_QCOW2];
    four.iter().flat_map(|&s| [s, Style { iothread: true, ..s }]).collect()
}

impl Style {
    fn format(self) -> &'static str {
        if self.qcow2 { "qcow2" } else { "raw" }
    }

    fn arguments(self, index: usize, image: &Path) -> Vec<String> {
        let (format, file) = (self.format(), image.display());
        let mut words = if self.blockdev {
            let what = format!("driver={format},node-name=node{index}");
            let from = format!("file.driver=file,file.filename={file}");
            vec!["-blockdev".to_owned(), format!("{what},{from}")]
        } else {
            let drive = format!("id=drive{index},if=none,format={format},file={file}");
            vec!["-drive".to_owned(), drive]
        };
        let drive = if self.blockdev { format!("node{index}") } else { format!("drive{index}") };
        let boot = if index == 0 { ",bootindex=1" } else { "" };
        let thread = if self.iothread { ",iothread=io0" } else { "" };
        words.push("-device".to_owned());
        words.push(format!("virtio-blk-pci,id=disk{index},drive={drive}{boot}{thread}"));
        words
    }
}

/// A running QEMU with its disks.
pub struct Vm {
    pub process: Process,
    pub qemu: Qemu,
    pub styles: Vec<Style>,
    folder: TempDir,
}

impl Vm {
    /// A guest that has not started (`-S`), with a boot sector on its first disk.
    pub async fn prelaunch(styles: &[Style]) -> Vm {
        Vm::with(styles, &[]).await
    }

    pub async fn with(styles: &[Style], more: &[&str]) -> Vm {
        let folder = tempfile::tempdir().unwrap();
        for (index, style) in styles.iter().enumerate() {
            let image = folder.path().join(format!("disk{index}"));
            let raw = folder.path().join("raw");
            let file = fs::File::create(&raw).unwrap();
            file.set_len(DISK_BYTES).unwrap();
            if index == 0 {
                let disks = u8::try_from(styles.len()).unwrap();
                file.write_all_at(&guest::boot_sector(disks), 0).unwrap();
            }
            convert(&raw, "raw", &image, style.format());
        }
        Vm::on(folder, styles, more).await
    }

    async fn on(folder: TempDir, styles: &[Style], more: &[&str]) -> Vm {
        let dir = folder.path();
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-accel", "tcg", "-m", "32", "-nodefaults", "-display", "none", "-S"]);
        command.args(["-object", "iothread,id=io0"]);
        for name in ["qmp", "qmp2", "qmp3"] {
            let at = format!("unix:{},server=on,wait=off", dir.join(name).display());
            command.args(["-qmp", &at]);
        }
        for (index, style) in styles.iter().enumerate() {
            command.args(style.arguments(index, &dir.join(format!("disk{index}"))));
        }
        command.args(more).stdout(Stdio::null());
        let process = Process::start(&mut command);
        wait_for_socket(&dir.join("qmp3"));
        let qemu = Qemu::connect(dir.join("qmp")).await.unwrap();
        Vm { process, qemu, styles: styles.to_vec(), folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Ends QEMU in order, so that its images are whole.
    pub async fn quit(&mut self) {
        let _ = self.qemu.monitor().execute("quit", json!(null)).await;
        self.process.ended();
    }

    /// The same machine, started again.
    pub async fn boot_again(mut self) -> Vm {
        self.quit().await;
        let Vm { folder, styles, .. } = self;
        Vm::on(folder, &styles, &[]).await
    }

    /// A disk's own node.
    pub async fn node(&self, index: usize) -> String {
        self.qemu.find_disk(&format!("disk{index}")).await.unwrap().node
    }

    /// The whole content of a disk. Only after [`Vm::quit`].
    pub fn content(&self, index: usize) -> Vec<u8> {
        let (image, raw) = (self.path(&format!("disk{index}")), self.path("content"));
        convert(&image, self.styles[index].format(), &raw, "raw");
        fs::read(raw).unwrap()
    }

    /// A command of the human monitor.
    pub async fn human(&self, line: &str) -> String {
        let line = json!({ "command-line": line });
        let said = self.qemu.monitor().execute("human-monitor-command", line).await.unwrap();
        said.as_str().unwrap().to_owned()
    }

    /// A write through the disk's device, and so through what jobs have put above its node.
    pub async fn write(&self, index: usize, what: &str) -> String {
        let device = format!("/machine/peripheral/disk{index}/virtio-backend");
        self.human(&format!("qemu-io -d {device} \"{what}\"")).await
    }

    /// Rounds that the guest saw acknowledged by all its disks.
    pub async fn acknowledged(&self) -> u32 {
        self.word(guest::ACKNOWLEDGED_ADDRESS).await
    }

    /// A word of the guest's memory.
    pub async fn word(&self, address: u32) -> u32 {
        let said = self.human(&format!("xp /1wx {address}")).await;
        let word = said.split("0x").nth(1).unwrap_or_else(|| panic!("{said:?}")).trim();
        u32::from_str_radix(word, 16).unwrap()
    }

    /// Waits until the guest has done `more` rounds from now on. Fails when it stands still.
    pub async fn rounds(&self, more: u32) {
        let wanted = self.acknowledged().await + more;
        let (mut last, mut moved) = (0, Instant::now());
        loop {
            let now = self.acknowledged().await;
            assert_ne!(now, guest::FAILED, "the guest saw an I/O error");
            if now >= wanted {
                return;
            }
            if now != last {
                (last, moved) = (now, Instant::now());
            }
            assert!(moved.elapsed() < SOON, "the guest stands at {now}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Starts the guest and waits until its boot sector writes.
    pub async fn boot(&self) {
        self.qemu.cont().await.unwrap();
        self.rounds(1).await;
    }
}

fn convert(from: &Path, from_format: &str, to: &Path, to_format: &str) {
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-f", from_format, "-O", to_format]).args([from, to]);
    assert!(command.status().unwrap().success(), "{command:?}");
}

pub fn wait_for_socket(path: &Path) {
    let deadline = Instant::now() + SOON;
    while UnixStream::connect(path).is_err() {
        assert!(Instant::now() < deadline, "nobody listens on {}", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A listening socket that outlives the servers behind it.
pub struct HeldListener {
    listener: std::os::unix::net::UnixListener,
    socket: PathBuf,
    file: PathBuf,
}

impl HeldListener {
    pub fn bind(vm: &Vm, name: &str) -> HeldListener {
        let (socket, file) = (vm.path(&format!("{name}.sock")), vm.path(&format!("{name}.raw")));
        fs::File::create(&file).unwrap().set_len(DISK_BYTES).unwrap();
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        HeldListener { listener, socket, file }
    }

    /// A server that takes the socket over, in the way that systemd passes them on.
    pub fn serve(&self) -> Target {
        let script = "exec 3<&0; LISTEN_FDS=1 LISTEN_PID=$$ exec nbdkit -f file \"$0\"";
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(&self.file);
        let listener = std::os::fd::OwnedFd::from(self.listener.try_clone().unwrap());
        let process = Process::start_on(&mut command, listener.into());
        let (socket, file) = (self.socket.clone(), self.file.clone());
        Target { process, socket, file, options: vec![] }
    }
}

/// An NBD server over a file, which keeps what it got when the server is killed.
pub struct Target {
    pub process: Process,
    pub socket: PathBuf,
    pub file: PathBuf,
    options: Vec<String>,
}

impl Target {
    pub fn start(vm: &Vm, name: &str) -> Target {
        Target::with(vm, name, DISK_BYTES, &[])
    }

    /// With options that come before the plugin and after it, split at `--`.
    pub fn with(vm: &Vm, name: &str, bytes: u64, options: &[&str]) -> Target {
        let (socket, file) = (vm.path(&format!("{name}.sock")), vm.path(&format!("{name}.raw")));
        fs::File::create(&file).unwrap().set_len(bytes).unwrap();
        let options: Vec<String> = options.iter().map(|&o| o.to_owned()).collect();
        let process = Target::launch(&socket, &file, &options);
        Target { process, socket, file, options }
    }

    fn launch(socket: &Path, file: &Path, options: &[String]) -> Process {
        let mut parts = options.split(|o| o == "--");
        let mut command = Command::new("nbdkit");
        command.arg("-f").arg("-U").arg(socket).args(parts.next().unwrap_or_default());
        command.arg("file").arg(file).args(parts.next().unwrap_or_default());
        let process = Process::start(&mut command);
        wait_for_socket(socket);
        process
    }

    pub fn kill(&mut self) {
        self.process.kill();
        fs::remove_file(&self.socket).unwrap();
    }

    pub fn start_again_with(&mut self, options: &[&str]) {
        self.options = options.iter().map(|&o| o.to_owned()).collect();
        self.start_again();
    }

    pub fn start_again(&mut self) {
        self.process = Target::launch(&self.socket, &self.file, &self.options);
    }

    pub fn content(&self) -> Vec<u8> {
        fs::read(&self.file).unwrap()
    }
}

/// How long what an agent left may take to go.
pub const LEFT_LIMIT: Duration = Duration::from_secs(10);

pub fn names(index: usize) -> Names {
    Names::new(&format!("d{index}")).unwrap()
}

pub async fn spec(vm: &Vm, index: usize, target: &Target) -> MirrorSpec {
    MirrorSpec {
        node: vm.node(index).await,
        socket: target.socket.clone(),
        export: String::new(),
        names: names(index),
    }
}

pub async fn attach(vm: &Vm, index: usize, target: &Target) -> Attachment {
    vm.qemu.attach(&spec(vm, index, target).await).await.unwrap()
}

/// A drain and a second look.
pub async fn level_after_drain(vm: &Vm, job: &str) -> JobState {
    vm.qemu.drain().await.unwrap();
    let state = vm.qemu.job(job).await.unwrap().unwrap();
    assert!(state.is_level(), "{state:?}");
    state
}

/// The blocks that the guest writes, out of a disk's content.
pub fn guest_area(content: &[u8]) -> &[u8] {
    let from = guest::FIRST_BYTE as usize;
    &content[from..from + (guest::BLOCKS * guest::BLOCK_BYTES) as usize]
}

/// The next event that `wanted` says yes to.
pub async fn event(events: &mut Events, wanted: impl Fn(&QemuEvent) -> bool) -> QemuEvent {
    let find = async {
        loop {
            let event = events.next_meaning().await;
            if wanted(&event) {
                return event;
            }
            assert!(!matches!(event, QemuEvent::Eof { .. }), "the monitor ended first");
        }
    };
    tokio::time::timeout(SOON, find).await.expect("the event did not come")
}
