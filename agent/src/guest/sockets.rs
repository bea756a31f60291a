//! The sockets that QEMU connects to: where they lie, and who may reach them.

use super::task::Context;
use afterimage_nbd::client::Client;
use afterimage_qmp::qemu::Process;
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long our own server may take to answer the probe before QEMU is told to connect.
const PROBE_LIMIT: Duration = Duration::from_millis(500);
/// Longest path of a unix socket (`sun_path`, less its end).
const SOCKET_PATH_BYTES_MAX: usize = 107;

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

/// The directory of a guest's sockets, reachable for QEMU's user.
pub(super) fn run_dir(context: &Context, process: Option<&Process>) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let run = context.state.join("run");
    let dir = run.join(&context.settings.name);
    afterimage_journal::layout::make_dir(&dir)?;
    if let Some(uid) = uid_of(process).filter(|uid| *uid != rustix::process::getuid().as_raw()) {
        // Others may pass through, not look.
        for path in [context.state.as_path(), run.as_path()] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o711))
                .with_context(|| format!("open {} to QEMU's user {uid}", path.display()))?;
        }
        give_to(&dir, process)?;
    }
    Ok(dir)
}

fn uid_of(process: Option<&Process>) -> Option<u32> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(format!("/proc/{}", process?.pid)).ok().map(|m| m.uid())
}

/// Makes QEMU's user the owner of a path, where that is another than ours.
pub(crate) fn give_to(path: &Path, process: Option<&Process>) -> Result<()> {
    if let Some(uid) = uid_of(process).filter(|uid| *uid != rustix::process::getuid().as_raw()) {
        std::os::unix::fs::chown(path, Some(uid), None)
            .with_context(|| format!("give {} to QEMU's user {uid}", path.display()))?;
    }
    Ok(())
}
