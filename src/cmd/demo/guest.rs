//! The demo's guest: QEMU's process, and the line protocol with the program that runs in it
//! (`tests/guest/program`).

use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::rows::{Checked, Moment, Rows, number, value};

/// QEMU's name for the disk with the database.
pub const DATABASE_NODE: &str = "database";
/// The guest's memory.
pub const MEMORY_MIB: u64 = 256;
/// The file that the guest makes in tmpfs.
pub const TMPFS_BYTES: u64 = 16 << 20;
const BOOT_LIMIT: Duration = Duration::from_secs(90);
/// A guest on a KVM that works is up within two seconds; on one that does not, never.
const KVM_PROBE_LIMIT: Duration = Duration::from_secs(6);
const REPLY_LIMIT: Duration = Duration::from_secs(30);

/// Who executes the guest's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// The kernel.
    Kvm,
    /// QEMU itself.
    Tcg,
}

/// The kernel and the initial file system that every guest of the demo boots.
pub struct GuestFiles {
    kernel: PathBuf,
    initrd: PathBuf,
}

impl GuestFiles {
    /// Looks for them in `dir`.
    pub fn find(dir: &Path) -> Result<Self> {
        // A copy uses them too, and runs from another directory: a relative path is no file of the host's.
        let dir = std::path::absolute(dir)?;
        let files = Self { kernel: dir.join("vmlinuz"), initrd: dir.join("initrd") };
        for file in [&files.kernel, &files.initrd] {
            if !file.exists() {
                bail!(
                    "there is no test guest ({}): in a clone of the repository run `make demo`, or \
                     tests/guest/install.sh demo, then tests/guest/build.sh; or give --guest",
                    file.display()
                );
            }
        }
        Ok(files)
    }
}

/// Makes a raw image with an empty ext4 file system.
pub fn make_disk(path: &Path, bytes: u64) -> Result<()> {
    let file = File::create(path).with_context(|| format!("make {}", path.display()))?;
    file.set_len(bytes).with_context(|| format!("size {}", path.display()))?;
    let mut search = std::env::var("PATH").unwrap_or_default();
    search.push_str(":/usr/sbin:/sbin");
    let output = Command::new("mke2fs")
        .env("PATH", search)
        .args(["-q", "-F", "-t", "ext4", "-E", "nodiscard,lazy_itable_init=0"])
        .arg(path)
        .output()
        .context("run mke2fs (Debian package e2fsprogs)")?;
    if !output.status.success() {
        bail!("mke2fs {}: {}", path.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Makes a raw image of zeroes.
pub fn make_blank(path: &Path, bytes: u64) -> Result<()> {
    let file = File::create(path).with_context(|| format!("make {}", path.display()))?;
    file.set_len(bytes).with_context(|| format!("size {}", path.display()))
}

/// Whether an ordinary guest really boots with KVM here: `/dev/kvm` may be there and guests hang.
pub fn probe_kvm(files: &GuestFiles, dir: &Path) -> Result<Accel> {
    if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok(Accel::Tcg);
    }
    let log = dir.join("kvm-probe.log");
    let booted = Guest::start(files, Accel::Kvm, &[], &log).and_then(|mut guest| {
        guest.wait_line("ready ", KVM_PROBE_LIMIT)?;
        guest.power_off()
    });
    Ok(if booted.is_ok() { Accel::Kvm } else { Accel::Tcg })
}

/// What the guest measured of its commits since the last time it was asked.
pub struct Figures {
    /// The last row committed.
    pub last: u64,
    /// The longest that a commit took.
    pub worst_us: u64,
    /// Rows a second.
    pub per_second: u64,
}

/// What the guest has in its memory.
#[derive(Debug)]
pub struct Counted {
    /// The number that goes up, on disk first.
    pub ram: u64,
    /// A checksum of the file in tmpfs.
    pub tmpfs: String,
    /// Which boot of its kernel this is.
    pub boot: String,
}

impl Counted {
    fn parse(line: &str) -> Result<Self> {
        let word = |key: &str| {
            value(line, key).map(str::to_owned).with_context(|| format!("no {key}: {line}"))
        };
        Ok(Self { ram: number(line, "ram")?, tmpfs: word("tmpfs")?, boot: word("boot")? })
    }
}

/// A running guest. Dropping it kills QEMU and removes its sockets.
pub struct Guest {
    child: Child,
    /// The directory of its sockets, where that is ours.
    sockets: PathBuf,
    log: PathBuf,
    rows: Rows,
    lines: Receiver<String>,
    boot_time: Duration,
    figures_since: Instant,
}

impl Guest {
    /// Starts QEMU on the disk with the database, and the one to count on where there is one; waits
    /// until the guest is up.
    pub fn boot(files: &GuestFiles, accel: Accel, disks: &[&Path], log: &Path) -> Result<Self> {
        let begin = Instant::now();
        let mut guest = Self::start(files, accel, disks, log)?;
        guest.wait_line("ready ", BOOT_LIMIT)?;
        guest.boot_time = begin.elapsed();
        Ok(guest)
    }

    fn start(files: &GuestFiles, accel: Accel, disks: &[&Path], log: &Path) -> Result<Self> {
        let sockets = socket_directory()?;
        match qemu(files, accel, disks, &sockets, log) {
            Ok(child) => Self::connect(child, sockets.join("port.sock"), sockets, log),
            Err(e) => {
                let _ = std::fs::remove_dir_all(&sockets);
                Err(e)
            }
        }
    }

    /// Runs the script of a warm restore, and waits until the guest answers: it does as soon as its
    /// memory is there.
    pub fn resume(script: &Path, port: PathBuf, log: &Path) -> Result<(Self, Counted)> {
        let begin = Instant::now();
        let output = File::create(log).with_context(|| format!("make {}", log.display()))?;
        let child = Command::new(script)
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("QEMU's log")?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("start {}", script.display()))?;
        let mut guest = Self::connect(child, port, PathBuf::new(), log)?;
        let counted = guest.counted()?;
        guest.boot_time = begin.elapsed();
        Ok((guest, counted))
    }

    fn connect(mut child: Child, port: PathBuf, sockets: PathBuf, log: &Path) -> Result<Self> {
        let opened = wait_for(REPLY_LIMIT, || {
            if let Some(status) = child.try_wait()? {
                bail!("QEMU ended at once ({status}); see {}", log.display());
            }
            Ok(UnixStream::connect(&port).ok())
        });
        let opened = opened.and_then(|port| {
            let port = port.context("QEMU made no socket for the guest's port")?;
            Rows::new(port).context("talk to the guest")
        });
        let (boot_time, figures_since, log) = (Duration::ZERO, Instant::now(), log.to_owned());
        match opened {
            Ok((rows, lines)) => {
                Ok(Self { child, sockets, log, rows, lines, boot_time, figures_since })
            }
            Err(e) => {
                let _ = child.kill();
                let _ = child.wait();
                let _ = std::fs::remove_dir_all(&sockets);
                Err(e)
            }
        }
    }

    /// From QEMU's start until the guest was up, or until it answered where it was resumed.
    pub fn boot_time(&self) -> Duration {
        self.boot_time
    }

    /// QEMU's monitor.
    pub fn qmp_socket(&self) -> PathBuf {
        self.sockets.join("qmp.sock")
    }

    /// Rows are committed from now on, until [`Guest::destroy`].
    pub fn start_rows(&mut self) -> Result<()> {
        let line = self.ask("demo start", "demo started ")?;
        self.rows.begin(number(&line, "last")?).context("grant the guest its first row")?;
        self.figures_since = Instant::now();
        Ok(())
    }

    /// The guest makes its file in tmpfs, and counts from now on.
    pub fn start_counter(&mut self) -> Result<()> {
        self.ask(&format!("counter start rate=50 tmpfs={TMPFS_BYTES}"), "counter started ")?;
        Ok(())
    }

    /// What the guest has in its memory.
    pub fn counted(&mut self) -> Result<Counted> {
        Counted::parse(&self.ask("counter stats", "counter stats ")?)
    }

    /// Now, and which rows a copy of now must hold.
    pub fn moment(&self) -> Moment {
        self.rows.moment()
    }

    /// What the guest measured since the last call; measuring begins anew.
    pub fn take_figures(&mut self) -> Result<Figures> {
        let line = self.ask("demo stats", "demo stats ")?;
        self.ask("demo reset", "demo reset")?;
        let seconds = self.figures_since.elapsed().as_secs_f64();
        self.figures_since = Instant::now();
        Ok(Figures {
            last: number(&line, "last")?,
            worst_us: number(&line, "worst_us")?,
            per_second: (number(&line, "count")? as f64 / seconds) as u64,
        })
    }

    /// Ends the rows and destroys the database; gives what was done, in words.
    pub fn destroy(&mut self) -> Result<String> {
        self.rows.end();
        let line = self.ask("demo destroy", "demo destroyed ")?;
        Ok(format!(
            "{} files ({} KiB) are lost",
            number(&line, "files")?,
            number(&line, "bytes")? / 1024
        ))
    }

    /// Lets the guest judge its database.
    pub fn check(&mut self) -> Result<Checked> {
        Checked::parse(&self.ask("demo check", "demo checked ")?)
    }

    /// Lets the guest shut down, and waits for QEMU's end.
    pub fn power_off(mut self) -> Result<()> {
        self.rows.send("poweroff").context("tell the guest to shut down")?;
        let ended = wait_for(REPLY_LIMIT, || Ok(self.child.try_wait()?))?;
        ended
            .with_context(|| format!("the guest did not shut down; see {}", self.log.display()))?;
        Ok(())
    }

    fn ask(&mut self, command: &str, answer: &str) -> Result<String> {
        self.rows.send(command).with_context(|| format!("send {command:?} to the guest"))?;
        self.wait_line(answer, REPLY_LIMIT)
    }

    fn wait_line(&mut self, pattern: &str, limit: Duration) -> Result<String> {
        let end = Instant::now() + limit;
        loop {
            match self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) if line.starts_with(pattern) => return Ok(line),
                Ok(line) if line.contains(" error ") || line.starts_with("fatal") => {
                    bail!("the guest reports {line:?}; see {}", self.log.display())
                }
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => {
                    bail!(
                        "the guest did not say {pattern:?} within {limit:?}; see {}",
                        self.log.display()
                    )
                }
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("the guest ended; see {}", self.log.display())
                }
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.sockets);
    }
}

/// A directory of our own with a short path, for sockets.
fn socket_directory() -> Result<PathBuf> {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("afterimage-demo-{}-{number}", std::process::id());
    let path = std::env::temp_dir().join(name);
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(&path)
        .with_context(|| format!("make {}", path.display()))?;
    Ok(path)
}

fn qemu(
    files: &GuestFiles,
    accel: Accel,
    disks: &[&Path],
    sockets: &Path,
    log: &Path,
) -> Result<Child> {
    let (accel, cpu) = match accel {
        Accel::Kvm => ("kvm", "host"),
        Accel::Tcg => ("tcg,thread=multi", "max"),
    };
    let role = match disks {
        [] => "none",
        [_] => "demo",
        _ => "demo,counter ai.demo=vda ai.counter=vdb",
    };
    let output = File::create(log).with_context(|| format!("make {}", log.display()))?;
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
    command.args(["-machine", "q35", "-accel", accel, "-cpu", cpu, "-m"]);
    command.arg(MEMORY_MIB.to_string());
    command.arg("-kernel").arg(&files.kernel).arg("-initrd").arg(&files.initrd);
    command
        .args(["-append", &format!("console=ttyS0 quiet no_timer_check panic=-1 ai.role={role}")]);
    command.args(["-serial", "stdio"]);
    let socket = |name: &str| format!("{}/{name}.sock,server=on,wait=off", sockets.display());
    command.args(["-qmp", &format!("unix:{}", socket("qmp"))]);
    command.args(["-chardev", &format!("socket,id=port,path={}", socket("port"))]);
    command.args(["-device", "virtio-serial-pci"]);
    command.args(["-device", "virtserialport,chardev=port,name=ai.port"]);
    for (index, (disk, node)) in disks.iter().zip([DATABASE_NODE, "counter"]).enumerate() {
        let path = disk.to_str().with_context(|| format!("{} is not UTF-8", disk.display()))?;
        let path = path.replace(',', ",,");
        let drive = format!("if=none,id=disk{index},node-name={node},file={path}");
        command.args(["-drive", &format!("{drive},format=raw,discard=unmap")]);
        command.args(["-device", &format!("virtio-blk-pci,id=virtio{index},drive=disk{index}")]);
    }
    command
        .stdin(Stdio::null())
        .stdout(output.try_clone().context("QEMU's log")?)
        .stderr(output)
        .spawn()
        .context("start qemu-system-x86_64 (Debian package qemu-system-x86)")
}

/// Asks `probe` every 20 ms until it gives something; `None` once `limit` has passed.
pub fn wait_for<T>(
    limit: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<Option<T>> {
    let begin = Instant::now();
    loop {
        if let Some(found) = probe()? {
            return Ok(Some(found));
        }
        if begin.elapsed() >= limit {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
