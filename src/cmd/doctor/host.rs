//! The machine: kernel, programs, limits of processes.

use super::Finding;
use afterimage_qmp::qemu::VERSION_MIN;
use rustix::process::{Resource, getrlimit};
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a program may take to tell its version.
const VERSION_LIMIT: Duration = Duration::from_secs(5);
/// Files that the agent may need open at once: units, sockets, images.
const FILES_MIN: u64 = 1024;
/// No unit of a journal is larger.
const FILE_BYTES_MIN: u64 = 1 << 30;

pub(super) fn check() -> Vec<Finding> {
    let mut findings = vec![kernel(), qemu(), qemu_img()];
    findings.extend(limits());
    findings
}

fn kernel() -> Finding {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let mut numbers = release.split(['.', '-']).map_while(|n| n.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) >= (5, 4) => {
            Finding::ok("kernel", format!("Linux {release}"))
        }
        (Some(_), Some(_)) => Finding::warn(
            "kernel",
            format!("Linux {release} is older than what this was tried on"),
            "use Linux 5.4 or later",
        ),
        _ => Finding::warn(
            "kernel",
            "its version can't be read from /proc",
            "mount /proc: the agent needs it too",
        ),
    }
}

/// The name of QEMU's program for guests of this machine's kind.
pub(super) fn qemu_program() -> String {
    format!("qemu-system-{}", std::env::consts::ARCH)
}

fn qemu() -> Finding {
    let program = qemu_program();
    let Some(line) = version_line(&program) else {
        return Finding::warn(
            "qemu",
            format!("{program} is not in the PATH, or tells no version"),
            "guests may run from elsewhere (libvirt, a container); restored copies need one",
        );
    };
    let numbers = line.split("version ").nth(1).unwrap_or_default();
    let mut numbers = numbers.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse().ok());
    let (major, minor): (u64, u64) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if (major, minor) >= (VERSION_MIN.major, VERSION_MIN.minor) {
        return Finding::ok("qemu", line);
    }
    Finding::warn(
        "qemu",
        format!("{line}: guests on it can't be protected"),
        format!("use QEMU {}.{} or later", VERSION_MIN.major, VERSION_MIN.minor),
    )
}

fn qemu_img() -> Finding {
    match version_line("qemu-img") {
        Some(line) => Finding::ok("qemu-img", line),
        None => Finding::warn(
            "qemu-img",
            "qemu-img is not in the PATH",
            "not needed to protect or restore; install qemu-utils to inspect restored images",
        ),
    }
}

/// The first line that `PROGRAM --version` prints, within a time limit.
fn version_line(program: &str) -> Option<String> {
    let mut child = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let begin = Instant::now();
    while child.try_wait().ok()?.is_none() {
        if begin.elapsed() > VERSION_LIMIT {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    // What a version needs fits into the pipe.
    let mut text = String::new();
    child.stdout.take()?.take(4096).read_to_string(&mut text).ok()?;
    text.lines().next().map(str::to_owned)
}

fn limits() -> Vec<Finding> {
    let files = getrlimit(Resource::Nofile);
    let files = match files.current {
        Some(count) if count < FILES_MIN => Finding::warn(
            "open files",
            format!("a process may have {count} files open; {FILES_MIN} are wanted"),
            "raise it: `ulimit -n 65536`, or LimitNOFILE= in the agent's systemd unit",
        ),
        Some(count) => Finding::ok("open files", format!("{count} for a process")),
        None => Finding::ok("open files", "no limit"),
    };
    let size = getrlimit(Resource::Fsize);
    let size = match size.current {
        Some(bytes) if bytes < FILE_BYTES_MIN => Finding::fail(
            "file size",
            format!("a process may write files of {bytes} bytes at most"),
            "raise it: `ulimit -f unlimited`; units and restored images are larger",
        ),
        Some(bytes) => Finding::warn(
            "file size",
            format!("a process may write files of {bytes} bytes at most"),
            "larger disks can't be restored under it: `ulimit -f unlimited`",
        ),
        None => Finding::ok("file size", "no limit"),
    };
    let mut all = vec![files, size];
    all.extend(io_limit());
    all
}

/// A limit on this control group's device I/O, which would slow the journal down.
fn io_limit() -> Option<Finding> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|l| l.strip_prefix("0::"))?;
    let path = std::path::Path::new("/sys/fs/cgroup").join(own.trim_start_matches('/'));
    let limits = std::fs::read_to_string(path.join("io.max")).ok()?;
    Some(match limits.lines().next() {
        None => Finding::ok("io limits", "none in this control group"),
        Some(first) => Finding::warn(
            "io limits",
            format!("{} limits device I/O: {first}", path.join("io.max").display()),
            "a journal that can't keep up ends in a gap: lift it for the agent",
        ),
    })
}
