//! Real QEMU guests. The builder is kept apart from the running VM, so that a VM can be started
//! again on the same images with the same command line.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{BOOT_LIMIT, Disk, GuestPort, Qmp, REPLY_LIMIT, poll, tail, value};

/// Who executes the guest's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// QEMU itself; works everywhere.
    Tcg,
    /// The kernel, where ordinary guests boot with it.
    Kvm,
}

/// What a guest is made of.
#[derive(Clone, Debug)]
pub struct VmBuilder {
    roles: String,
    disks: Vec<Disk>,
    memory_mib: u32,
    accel: Accel,
    guest_agent: bool,
    stopped: bool,
    incoming: Option<String>,
    append: String,
    arguments: Vec<String>,
}

impl VmBuilder {
    /// A guest that plays `roles` (`writer`, `load`, `demo`, or several with commas), 256 MiB of
    /// memory, one CPU, emulated.
    pub fn new(roles: &str) -> Self {
        Self {
            roles: roles.into(),
            disks: Vec::new(),
            memory_mib: 256,
            accel: Accel::Tcg,
            guest_agent: false,
            stopped: false,
            incoming: None,
            append: String::new(),
            arguments: Vec::new(),
        }
    }

    /// Adds a disk; the first is the guest's `vda`.
    pub fn disk(mut self, disk: Disk) -> Self {
        self.disks.push(disk);
        self
    }

    /// Sets the memory's size.
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// Sets who executes the guest's code.
    pub fn accel(mut self, accel: Accel) -> Self {
        self.accel = accel;
        self
    }

    /// Runs the QEMU guest agent in the guest, behind [`Vm::guest_agent_socket`].
    pub fn guest_agent(mut self) -> Self {
        self.guest_agent = true;
        self
    }

    /// Starts QEMU with `-S`: the guest waits for QMP `cont`, and [`VmBuilder::boot`] does not wait
    /// for the guest.
    pub fn stopped(mut self) -> Self {
        self.stopped = true;
        self
    }

    /// Starts QEMU with `-incoming unix:PATH`: the guest arrives by migration, and
    /// [`VmBuilder::boot`] does not wait for it.
    pub fn incoming(mut self, path: impl Into<PathBuf>) -> Self {
        self.incoming = Some(format!("unix:{}", path.into().display()));
        self
    }

    /// As [`VmBuilder::incoming`], from a file.
    pub fn incoming_file(mut self, path: &Path) -> Self {
        self.incoming = Some(format!("file:{}", path.display()));
        self
    }

    /// Adds to the kernel's command line, for example `ai.load=vdc`.
    pub fn append(mut self, words: &str) -> Self {
        self.append.push(' ');
        self.append.push_str(words);
        self
    }

    /// Adds an argument for QEMU.
    pub fn arg(mut self, argument: &str) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Starts QEMU and waits until the guest says that it is ready (unless [`VmBuilder::stopped`]).
    #[track_caller]
    pub fn boot(&self) -> Vm {
        // The kernel may still hold an image's lock for a QEMU that was killed a moment ago.
        let started = poll(REPLY_LIMIT, || match self.try_boot() {
            Err(said) if said.contains("\"write\" lock") => None,
            started => Some(started),
        });
        match started {
            Some(Ok(vm)) => vm,
            Some(Err(said)) => panic!("{said}"),
            None => panic!("another QEMU holds an image of this one's"),
        }
    }

    fn try_boot(&self) -> Result<Vm, String> {
        let dir = TempDir::with_prefix("vm-").expect("a temporary directory for the VM");
        let mut command = self.command(dir.path());
        let log = File::create(dir.path().join("qemu.log")).expect("QEMU's log");
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("QEMU's log"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("start qemu-system-x86_64: {e} (tests/guest/install.sh)"));
        let mut child = Reaped(child);
        let connected = poll(REPLY_LIMIT, || {
            if let Ok(Some(status)) = child.0.try_wait() {
                let said = tail(&dir.path().join("qemu.log"), 10);
                return Some(Err(format!("QEMU ended at once ({status}): {said}")));
            }
            let port = UnixStream::connect(dir.path().join("port.sock")).ok()?;
            let qmp = Qmp::connect(&dir.path().join("qmp-test.sock")).ok()?;
            Some(Ok((GuestPort::new(port), qmp)))
        });
        let late = || {
            let said = tail(&dir.path().join("qemu.log"), 10);
            format!("QEMU's sockets did not appear: {said}")
        };
        let (port, qmp) = connected.unwrap_or_else(|| Err(late()))?;
        let mut vm = Vm { child, dir, port, qmp, ready: String::new(), boot: Duration::ZERO };
        if !self.stopped && self.incoming.is_none() {
            let begin = Instant::now();
            vm.ready = vm.wait_line("ready ", BOOT_LIMIT);
            vm.boot = begin.elapsed();
        }
        Ok(vm)
    }

    fn command(&self, dir: &Path) -> Command {
        let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guest");
        assert!(
            guest.join("initrd").exists(),
            "there is no guest to boot: run tests/guest/install.sh and tests/guest/build.sh"
        );
        let socket = |name: &str| format!("path={}/{name},server=on,wait=off", dir.display());
        let (accel, cpu) = match self.accel {
            Accel::Tcg => ("tcg,thread=multi", "max"),
            Accel::Kvm => ("kvm", "host"),
        };
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
        command.args(["-machine", "q35", "-accel", accel, "-cpu", cpu]);
        command.args(["-m", &self.memory_mib.to_string()]);
        command.arg("-kernel").arg(guest.join("vmlinuz"));
        command.arg("-initrd").arg(guest.join("initrd"));
        let (roles, more) = (&self.roles, &self.append);
        // Under TCG a loaded machine can be too late for the kernel's check of its timer.
        let append = format!("console=ttyS0 quiet no_timer_check panic=-1 ai.role={roles}{more}");
        command.args(["-append", &append]);
        command.args(["-serial", &format!("file:{}/console.log", dir.display())]);
        for name in ["qmp-test", "qmp-agent"] {
            let chardev = format!("socket,id={name},{}", socket(&format!("{name}.sock")));
            command.args(["-chardev", &chardev, "-mon", &format!("chardev={name},mode=control")]);
        }
        command.args(["-device", "virtio-serial-pci"]);
        let mut ports = vec![("port", "ai.port")];
        if self.guest_agent {
            ports.push(("qga", "org.qemu.guest_agent.0"));
        }
        for (id, name) in ports {
            let chardev = format!("socket,id={id},{}", socket(&format!("{id}.sock")));
            let device = format!("virtserialport,chardev={id},name={name}");
            command.args(["-chardev", &chardev, "-device", &device]);
        }
        for (index, disk) in self.disks.iter().enumerate() {
            command.args(disk.arguments(index));
        }
        if self.stopped {
            command.arg("-S");
        }
        if let Some(uri) = &self.incoming {
            command.args(["-incoming", uri]);
        }
        command.args(&self.arguments);
        command
    }
}

/// A child that is killed and waited for when it is dropped.
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a role reports of the operations that it finished since its last `reset`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stats {
    /// The last acknowledged number (`writer`, `demo`).
    pub last: u64,
    /// Operations that failed.
    pub errors: u64,
    /// Operations that were measured.
    pub count: u64,
    /// The median, within an eighth.
    pub p50_us: u64,
    /// 99 of 100 took no longer, within an eighth.
    pub p99_us: u64,
    /// The longest, exactly.
    pub worst_us: u64,
}

/// A running guest. Dropping it kills QEMU.
pub struct Vm {
    child: Reaped,
    dir: TempDir,
    port: GuestPort,
    qmp: Qmp,
    ready: String,
    boot: Duration,
}

impl Vm {
    /// QEMU's process.
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// The QMP socket that is left to the agent.
    pub fn agent_qmp(&self) -> PathBuf {
        self.dir.path().join("qmp-agent.sock")
    }

    /// The socket of the QEMU guest agent, which listens with [`VmBuilder::guest_agent`] only.
    pub fn guest_agent_socket(&self) -> PathBuf {
        self.dir.path().join("qga.sock")
    }

    /// The test's own QMP connection.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// The line with which the guest said that it is ready.
    pub fn ready(&self) -> &str {
        &self.ready
    }

    /// How long it took from QEMU's start to the ready line.
    pub fn boot_time(&self) -> Duration {
        self.boot
    }

    /// The names of the nodes behind the guest's disks, in their order.
    pub fn nodes(&mut self) -> Vec<String> {
        let blocks = self.qmp.execute("query-block", json!({}));
        let mut nodes: Vec<(String, String)> = blocks
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|block| {
                let node = block["inserted"]["node-name"].as_str()?.to_owned();
                Some((block["qdev"].as_str().unwrap_or_default().to_owned(), node))
            })
            .collect();
        nodes.sort();
        nodes.into_iter().map(|(_, node)| node).collect()
    }

    /// Sends the guest one line.
    #[track_caller]
    pub fn send(&mut self, line: &str) {
        if let Err(e) = self.port.send(line) {
            panic!("send {line:?} to the guest: {e}\n{}", self.last_words());
        }
    }

    /// Waits for a line of the guest that contains `pattern`. An error that the guest reports
    /// meanwhile is a panic, as is the limit.
    #[track_caller]
    pub fn wait_line(&mut self, pattern: &str, limit: Duration) -> String {
        match self.port.wait_line(pattern, limit) {
            Ok(line) => line,
            Err(e) => panic!("{e}\n{}", self.last_words()),
        }
    }

    /// Sends a line and waits for one that contains `pattern`.
    #[track_caller]
    pub fn ask(&mut self, line: &str, pattern: &str) -> String {
        self.send(line);
        self.wait_line(pattern, REPLY_LIMIT)
    }

    /// As [`Vm::ask`], for the number that the answer carries as `last=`:
    /// `ask_last("writer pause", "writer paused")`.
    #[track_caller]
    pub fn ask_last(&mut self, line: &str, pattern: &str) -> u64 {
        let answer = self.ask(line, pattern);
        number(&answer, "last")
    }

    /// The figures of a role since its last `reset`.
    #[track_caller]
    pub fn stats(&mut self, role: &str) -> Stats {
        let line = self.ask(&format!("{role} stats"), &format!("{role} stats "));
        Stats {
            last: number(&line, "last"),
            errors: number(&line, "errors"),
            count: number(&line, "count"),
            p50_us: number(&line, "p50_us"),
            p99_us: number(&line, "p99_us"),
            worst_us: number(&line, "worst_us"),
        }
    }

    /// One command to the QEMU guest agent: what it returned, or its error.
    pub fn guest_agent(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        use std::io::{BufRead, BufReader, Write};
        let mut socket =
            UnixStream::connect(self.guest_agent_socket()).map_err(|e| format!("connect: {e}"))?;
        socket.set_read_timeout(Some(REPLY_LIMIT)).map_err(|e| e.to_string())?;
        // Whatever an earlier client left half said is closed by 0xff; the answer to the sync opens
        // ours.
        let sync = json!({"execute": "guest-sync-delimited", "arguments": {"id": 4711}});
        let request = json!({"execute": command, "arguments": arguments});
        let mut bytes = vec![0xff];
        bytes.extend_from_slice(format!("{sync}\n{request}\n").as_bytes());
        socket.write_all(&bytes).map_err(|e| format!("send: {e}"))?;
        let mut reader = BufReader::new(socket);
        reader.read_until(0xff, &mut Vec::new()).map_err(|e| format!("sync: {e}"))?;
        let mut answer = String::new();
        reader.read_line(&mut answer).map_err(|e| format!("sync: {e}"))?;
        answer.clear();
        reader.read_line(&mut answer).map_err(|e| format!("read: {e}"))?;
        let message: Value =
            serde_json::from_str(&answer).map_err(|e| format!("{answer:?}: {e}"))?;
        match message.get("return") {
            Some(value) => Ok(value.clone()),
            None => Err(message["error"].to_string()),
        }
    }

    /// Lets the guest power itself off and waits for QEMU's end.
    #[track_caller]
    pub fn power_off(mut self) {
        self.send("poweroff");
        self.wait_end();
    }

    /// Ends QEMU by QMP `quit`: its images are closed, the guest is not asked.
    #[track_caller]
    pub fn quit(mut self) {
        // QEMU may be gone before its answer is.
        let _ = self.qmp.try_execute("quit", json!({}));
        self.wait_end();
    }

    /// Ends QEMU with SIGKILL.
    pub fn kill(self) {
        drop(self);
    }

    #[track_caller]
    fn wait_end(&mut self) {
        let ended = poll(REPLY_LIMIT, || self.child.0.try_wait().ok().flatten());
        assert!(ended.is_some(), "QEMU did not end\n{}", self.last_words());
    }

    /// What console, QEMU and port said last, for a message.
    pub fn last_words(&self) -> String {
        let port = self.port.seen();
        format!(
            "--- console\n{}\n--- QEMU\n{}\n--- port\n{}",
            tail(&self.dir.path().join("console.log"), 15),
            tail(&self.dir.path().join("qemu.log"), 10),
            port[port.len().saturating_sub(10)..].join("\n")
        )
    }
}

fn number(line: &str, key: &str) -> u64 {
    value(line, key).and_then(|text| text.parse().ok()).unwrap_or(0)
}
