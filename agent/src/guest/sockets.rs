//! The sockets that QEMU connects to: where they lie, and who may reach them.
//!
//! ```text
//! STATE/run/GUEST/           ours; 0711 if QEMU runs as another user, who may pass through
//!   NAME.sock, memory.sock   made by us, then given to that user
//!   qemu/                    that user's: what QEMU makes itself
//!     pull.sock
//! ```
//!
//! What always holds: a directory that we make or remove anything in is ours; what is given away is what
//! was opened, never what a name leads to; nothing of ours is stored where QEMU's user may write.

use super::task::Context;
use afterimage_nbd::client::Client;
use afterimage_planted as planted;
use afterimage_qmp::qemu::Process;
use anyhow::{Context as _, Result, bail};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid, fchmod, fchown, fstat};
use rustix::process::{getegid, geteuid};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The directory, in a guest's, that QEMU's user may write to.
pub(super) const PULL_DIR: &str = "qemu";
/// How long our own server may take to answer the probe before QEMU is told to connect.
const PROBE_LIMIT: Duration = Duration::from_millis(500);
/// Longest path of a unix socket (`sun_path`, less its end).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The name of the socket that a mirror's job writes to.
pub(super) fn socket_name(job: &str) -> String {
    format!("{job}.sock")
}

/// Refuses a path that no socket can have.
pub(crate) fn check_path(socket: &Path) -> Result<()> {
    if socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        bail!(
            "{} is too long for a socket ({SOCKET_PATH_BYTES_MAX} bytes at most): \
             use a state directory with a shorter path",
            socket.display()
        );
    }
    Ok(())
}

/// Proves that our own server answers: QEMU's connect to one that hangs would stop the guest.
pub(super) async fn probe(socket: &Path) -> Result<()> {
    let path = socket.to_owned();
    tokio::task::spawn_blocking(move || Client::list(&path, PROBE_LIMIT))
        .await?
        .with_context(|| format!("our own server on {} does not answer", socket.display()))?;
    Ok(())
}

/// The directory of a guest's sockets: ours, and QEMU's user may pass through it. In it is one more, of
/// QEMU's user, for the one socket that QEMU makes itself ([`PULL_DIR`]).
pub(super) fn run_dir(context: &Context, process: Option<&Process>) -> Result<PathBuf> {
    prepare_run_dir(&context.state, &context.settings.name, other_owner(process)?)
}

/// Where it lies, whether it is there or not.
pub(super) fn run_path(state: &Path, name: &str) -> PathBuf {
    state.join("run").join(name)
}

fn prepare_run_dir(state: &Path, name: &str, qemu: Option<(u32, u32)>) -> Result<PathBuf> {
    let run = state.join("run");
    let dir = run_path(state, name);
    afterimage_journal::layout::make_dir(&dir)?;
    let opened = open_dir(&dir)?;
    if fstat(&opened)?.st_uid != geteuid().as_raw() && !planted::is("run-dir-is-qemus") {
        take_back(&dir, &opened)?;
    }
    let pull = dir.join(PULL_DIR);
    afterimage_journal::layout::make_dir(&pull)?;
    let pull_opened = open_dir(&pull)?;
    if let Some((uid, gid)) = qemu {
        // Others may pass through, not look.
        for path in [state, run.as_path()] {
            fchmod(open_dir(path)?, Mode::from_raw_mode(0o711))
                .with_context(|| format!("open {} to QEMU's user {uid}", path.display()))?;
        }
        fchmod(&opened, Mode::from_raw_mode(0o711))
            .with_context(|| format!("open {} to QEMU's user {uid}", dir.display()))?;
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        fchown(&pull_opened, Some(uid), Some(gid))
            .with_context(|| format!("give {} to QEMU's user", pull.display()))?;
        if planted::is("run-dir-is-qemus") {
            fchown(&opened, Some(uid), None)?;
        }
    } else if fstat(&pull_opened)?.st_uid != geteuid().as_raw() {
        fchown(&pull_opened, Some(geteuid()), Some(getegid()))
            .with_context(|| format!("take {} back", pull.display()))?;
    }
    fchmod(&pull_opened, Mode::from_raw_mode(0o700))?;
    Ok(dir)
}

/// Removes the directory of a guest's sockets, once nothing of ours is left in its QEMU.
pub(crate) fn remove_run_dir(state: &Path, name: &str) {
    let dir = run_path(state, name);
    match std::fs::remove_dir_all(&dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(dir = %dir.display(), %error, "left behind");
        }
        _ => {}
    }
}

/// Opens a directory that is no symlink.
fn open_dir(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .with_context(|| format!("open the directory {}", path.display()))
}

/// Makes a directory ours that an older version gave to QEMU's user, and empties it: what lies in it may
/// be that user's, and name anything. Our servers make their sockets anew.
fn take_back(dir: &Path, opened: &OwnedFd) -> Result<()> {
    let failed = || format!("take {} back from QEMU's user", dir.display());
    fchown(opened, Some(geteuid()), Some(getegid())).with_context(failed)?;
    fchmod(opened, Mode::from_raw_mode(0o700)).with_context(failed)?;
    for entry in std::fs::read_dir(dir).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        let removed = match entry.file_type().with_context(failed)?.is_dir() {
            // Follows no symlink.
            true => std::fs::remove_dir_all(entry.path()),
            false if entry.file_name() == super::attach::PROCESS_FILE && is_ours(&entry.path()) => {
                Ok(())
            }
            false => std::fs::remove_file(entry.path()),
        };
        removed.with_context(failed)?;
    }
    Ok(())
}

/// Whether a plain file of ours lies there, under no other name.
fn is_ours(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::symlink_metadata(path)
        .is_ok_and(|m| m.is_file() && m.uid() == geteuid().as_raw() && m.nlink() == 1)
}

/// The user and group of QEMU, where that is another user than ours.
fn other_owner(process: Option<&Process>) -> Result<Option<(u32, u32)>> {
    let Some(process) = process else { return Ok(None) };
    let owner = process.owner()?;
    Ok(Some(owner).filter(|(uid, _)| *uid != geteuid().as_raw()))
}

/// Makes QEMU's user the owner of a socket, where that is another than ours. What is no socket, a symlink
/// above all, is refused.
pub(crate) fn give_to(path: &Path, process: Option<&Process>) -> Result<()> {
    match other_owner(process)? {
        Some((uid, _)) => give(path, uid),
        None => Ok(()),
    }
}

fn give(path: &Path, uid: u32) -> Result<()> {
    if planted::is("sockets-are-given-by-name") {
        return Ok(std::os::unix::fs::chown(path, Some(uid), None)?);
    }
    let failed = || format!("give {} to QEMU's user {uid}", path.display());
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let socket = rustix::fs::open(path, flags, Mode::empty()).with_context(failed)?;
    if FileType::from_raw_mode(fstat(&socket).with_context(failed)?.st_mode) != FileType::Socket {
        bail!("{}: it is no socket: something else was put in its place", failed());
    }
    let uid = Uid::from_raw(uid);
    rustix::fs::chownat(&socket, "", Some(uid), None, AtFlags::EMPTY_PATH).with_context(failed)
}

#[cfg(test)]
#[path = "sockets_tests.rs"]
mod tests;
