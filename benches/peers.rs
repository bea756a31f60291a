//! Other programs that serve NBD, and what all started programs have in common.

use crate::kit;
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long a program may take to listen, or to end.
const LIMIT: Duration = Duration::from_secs(20);

/// A program that listens on a socket. Dropping it ends it.
pub struct Running {
    child: Child,
}

impl Running {
    /// Starts it, with its output in `log`, and waits until `socket` accepts.
    pub fn start(mut command: Command, log: &Path, socket: &Path) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let output = File::create(log).with_context(|| format!("create {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = command
            .spawn()
            .with_context(|| format!("start {name} (tests/guest/install.sh installs it)"))?;
        let mut running = Self { child };
        let listens = kit::poll(LIMIT, || match running.child.try_wait() {
            Ok(None) => UnixStream::connect(socket).ok().map(|_| true),
            _ => Some(false),
        });
        if listens != Some(true) {
            let said = std::fs::read_to_string(log).unwrap_or_default();
            bail!("{name} does not listen on {}: {said}", socket.display());
        }
        Ok(running)
    }

    /// SIGTERM, and its end. An error when it had ended before.
    pub fn terminate(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("a server ended before its time: {status}");
        }
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("the pid of a child")?, Signal::TERM)?;
        kit::poll(LIMIT, || self.child.try_wait().ok().flatten())
            .map(drop)
            .context("a server does not end on SIGTERM")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) && self.terminate().is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// `nbdkit` serving memory: takes writes as fast as any program does, and forgets them.
pub fn nbdkit_memory(dir: &Path, socket: &Path, bytes: u64) -> Result<Running> {
    let mut command = Command::new("nbdkit");
    command.args(["--foreground", "--exit-with-parent", "--unix"]).arg(socket);
    command.args(["memory", &bytes.to_string()]);
    Running::start(command, &dir.join("nbdkit-memory.log"), socket)
}

/// `nbdkit` serving a file.
pub fn nbdkit_file(dir: &Path, socket: &Path, file: &Path) -> Result<Running> {
    let mut command = Command::new("nbdkit");
    command.args(["--foreground", "--exit-with-parent", "--unix"]).arg(socket);
    command.arg("file").arg(file);
    Running::start(command, &dir.join("nbdkit-file.log"), socket)
}

/// `qemu-nbd` serving a raw file through the page cache.
pub fn qemu_nbd(dir: &Path, socket: &Path, file: &Path, aio: &str) -> Result<Running> {
    let mut command = Command::new("qemu-nbd");
    command.args(["--persistent", "--shared=0", "--format=raw", "--cache=writeback"]);
    command.arg(format!("--aio={aio}")).arg("--socket").arg(socket).arg(file);
    Running::start(command, &dir.join(format!("qemu-nbd-{aio}.log")), socket)
}

/// Makes a file of `bytes` whose blocks are all written and on the disk: no server pays for
/// allocating them.
pub fn written_file(path: &Path, bytes: u64) -> Result<()> {
    let piece = vec![0x5a; 1 << 20];
    let mut file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    for _ in 0..bytes.div_ceil(piece.len() as u64) {
        file.write_all(&piece).with_context(|| format!("fill {}", path.display()))?;
    }
    file.sync_all().with_context(|| format!("sync {}", path.display()))
}
