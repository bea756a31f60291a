//! Taking mirrors of ours out of a QEMU when their servers are gone.
//!
//! What always holds: a mirror ends in order, never by force, since that can kill QEMU
//! (`docs/decisions/0015-mirrors-end-in-order.md`); so each gets a server that takes its writes and
//! forgets them. Before that begins it is on record that the mirror can't be believed any more: its disk
//! owes the blocks of QEMU's map, or that map is gone, and then the disk is compared. The server's socket
//! is made in our own directory under our own name: QEMU, which may be hostile, only says whether its
//! mirror connects there.

use super::maps::is_map;
use super::sockets::{give_to, run_dir, socket_name};
use super::task::Context;
use crate::capture::DiscardServer;
use crate::group::Group;
use afterimage_journal::meta::{CopyCause, Volume};
use afterimage_planted as planted;
use afterimage_qmp::Qemu;
use afterimage_qmp::qemu::{LeftMirror, Names, Process, RESUME_LIMIT};
use anyhow::{Context as _, Result, bail};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long mirrors that nobody served may take to end: QEMU tries to connect every 16 s at the latest.
const END_LIMIT: Duration = RESUME_LIMIT;
/// How long [`remove`] may take in all.
pub(super) const REMOVE_LIMIT: Duration = Duration::from_secs(45);

/// The names in QEMU of a volume's mirror and maps.
pub(super) fn names_of(volume: &Volume) -> Result<Names> {
    let token = volume.uuid.simple().to_string();
    Ok(Names::new(token.get(..12).unwrap_or(&token))?)
}

/// Removes all of ours from a QEMU whose mirrors nobody serves, but for what `wanted` names.
///
/// # Errors
/// What was left there, by name, and why.
pub(super) async fn remove(
    qemu: &Qemu,
    context: &Context,
    process: Option<&Process>,
    wanted: impl Fn(&str) -> bool + Send + Sync,
) -> Result<()> {
    let mirrors = qemu.left_mirrors(|name| wanted(name)).await?;
    let group = &context.group;
    let config = group.config();
    // Where nothing is to be served, nothing is made.
    let dir = match mirrors.is_empty() {
        true => PathBuf::new(),
        false => run_dir(context, process)?,
    };
    let mut served = Vec::new();
    let mut left = Vec::new();
    for mirror in &mirrors {
        let is_it = |v: &&Volume| names_of(v).is_ok_and(|n| n.job() == mirror.attachment.job);
        let disowned = match config.disks().find(is_it) {
            Some(volume) => disown(qemu, group, volume).await,
            // No journal that we know would believe it.
            None => Ok(()),
        };
        let begun = disowned.and_then(|()| serve(mirror, &dir, process));
        match begun {
            Ok(server) => served.push(server),
            Err(error) => left.push((mirror.attachment.job.clone(), format!("{error:#}"))),
        }
    }
    let stays = |name: &str| {
        let of_left = |m: &&LeftMirror| left.iter().any(|(job, _)| *job == m.attachment.job);
        let mut left = mirrors.iter().filter(of_left).map(|m| &m.attachment);
        left.any(|a| a.job == name || a.target == name)
    };
    let removed = qemu.remove_leftovers(END_LIMIT, |name| wanted(name) || stays(name)).await;
    // Each waits for its connections.
    let _ = tokio::task::spawn_blocking(move || drop(served)).await;
    left.extend(removed?.failed.into_iter().map(|(name, error)| (name, error.to_string())));
    match left.first() {
        None => Ok(()),
        Some((name, why)) => bail!("{name}: {why}"),
    }
}

/// Sees to it that what a disk's mirror acknowledges from here on is never believed.
pub(super) async fn disown(qemu: &Qemu, group: &Arc<Group>, volume: &Volume) -> Result<()> {
    let Err(error) = owe(group, volume).await else { return Ok(()) };
    let names = names_of(volume)?;
    tracing::warn!(job = names.job(), %error, "the disk will be compared at the next attach");
    for disk in &qemu.disks().await?.disks {
        for bitmap in disk.bitmaps.iter().filter(|b| is_map(&names, &b.name)) {
            qemu.remove_bitmap(&disk.node, &bitmap.name).await?;
        }
    }
    Ok(())
}

/// Notes that a disk owes the blocks of QEMU's map.
async fn owe(group: &Arc<Group>, volume: &Volume) -> Result<()> {
    let (group, id) = (Arc::clone(group), volume.id);
    // A record may wait for a unit.
    let noted = tokio::task::spawn_blocking(move || {
        group.ensure_open()?;
        group.owe(id, CopyCause::Bitmap)
    });
    Ok(tokio::time::timeout(super::marks::SYNC_LIMIT, noted).await???)
}

fn serve(mirror: &LeftMirror, dir: &Path, process: Option<&Process>) -> Result<DiscardServer> {
    let socket = socket_of(mirror, dir)?;
    let server = DiscardServer::start(&socket, mirror.bytes)?;
    give_to(&socket, process)?;
    Ok(server)
}

/// The socket of a mirror among those of the guest. What QEMU tells only has to agree:
/// `…/run/GUEST/NAME.sock`, however the state directory is spelled.
fn socket_of(mirror: &LeftMirror, dir: &Path) -> Result<PathBuf> {
    let told = mirror.socket.as_ref().context("QEMU does not tell its socket")?;
    if planted::is("sockets-are-made-where-qemu-says") {
        afterimage_journal::layout::make_dir(told.parent().unwrap_or(dir))?;
        return Ok(told.clone());
    }
    let ours = dir.join(socket_name(&mirror.attachment.job));
    let tail =
        |path: &Path| -> Vec<OsString> { path.iter().rev().take(3).map(OsStr::to_owned).collect() };
    if tail(told) != tail(&ours) {
        bail!(
            "it writes to {}, and its socket here is {}: run the agent with the state directory that \
             the guest was protected from, or stop the guest by QMP, cancel the job, and let it go on",
            told.display(),
            ours.display()
        );
    }
    Ok(ours)
}

#[cfg(test)]
mod tests {
    use super::*;
    use afterimage_qmp::qemu::Attachment;

    fn left(socket: Option<PathBuf>) -> LeftMirror {
        let names = Names::new("0123456789ab").unwrap();
        let attachment = Attachment::of("", &names);
        LeftMirror { attachment, token: "0123456789ab".into(), socket, bytes: 4096 }
    }

    #[test]
    fn mirror_is_served_among_the_guests_sockets_and_nowhere_else() {
        let state = tempfile::tempdir().unwrap();
        let dir = state.path().join("run/vm");
        std::fs::create_dir_all(&dir).unwrap();
        let job = left(None).attachment.job;
        let name = socket_name(&job);
        let elsewhere = state.path().join("elsewhere");
        let told = [
            elsewhere.join(&name),
            elsewhere.join("run/vm").join("other.sock"),
            state.path().join("run/vm2").join(&name),
            dir.join("..").join(&name),
            PathBuf::from(&name),
            PathBuf::from("/"),
        ];
        for path in told {
            let refused = serve(&left(Some(path.clone())), &dir, None).err();
            let refused = refused.unwrap_or_else(|| panic!("{} is served", path.display()));
            assert!(refused.to_string().contains("it writes to"), "{refused}");
        }
        assert!(serve(&left(None), &dir, None).is_err());
        assert!(!elsewhere.exists() && !state.path().join("run/vm2").exists());
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 0);
        // The same directory by another spelling: the socket is where we look for it.
        let spelled = Path::new("/proc/self/cwd/state/run/vm").join(&name);
        for path in [dir.join(&name), spelled] {
            let _server = serve(&left(Some(path)), &dir, None).unwrap();
            assert!(dir.join(&name).exists());
        }
    }
}
