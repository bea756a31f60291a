//! Which disks of a guest are captured, and whether each can be.
//!
//! What always holds: a disk that others may write to is taken only if a person named it, since what they
//! write passes no mirror of ours; a mirror to the guest's own sockets that its journal does not know is
//! taken out of QEMU, and every other one is left alone.

use super::disks::volume_of;
use super::owned::{Owned, held};
use super::removal;
use super::task::Context;
use afterimage_journal::meta::Volume;
use afterimage_planted as planted;
use afterimage_qmp::Qemu;
use afterimage_qmp::qemu::{Disk, Disks, OURS, Process};
use anyhow::{Context as _, Result, bail};

/// The disks that are to be captured.
///
/// # Errors
/// There are none, or one of them can't be captured.
pub(super) async fn chosen(context: &Context, qemu: &Qemu) -> Result<Vec<Disk>> {
    let settings = &context.settings;
    let all = qemu.disks().await?;
    let mut chosen = Vec::new();
    for selector in &settings.disks {
        let disk = all.find(selector)?.clone();
        if disk.read_only {
            bail!("disk {selector} is read-only: there is nothing to protect");
        }
        chosen.push(disk);
    }
    if settings.disks.is_empty() {
        chosen = all.disks.iter().filter(|d| !d.read_only).cloned().collect();
    }
    if chosen.is_empty() {
        let skipped: Vec<_> =
            all.skipped.iter().map(|s| format!("{} ({})", s.name, s.reason)).collect();
        bail!("the guest has no disk that can be protected; left out: {}", skipped.join(", "));
    }
    let config = context.group.config();
    let is_known = config.disks().any(|v| v.guest == settings.name);
    refuse_shared(&all, &chosen, &settings.shared_disks, is_known)?;
    Ok(chosen)
}

/// Refuses disks that others may write to, but for those that a person named.
/// Later than at the first attach one that was named may have been unplugged.
fn refuse_shared(all: &Disks, chosen: &[Disk], allowed: &[String], is_known: bool) -> Result<()> {
    let mut known = Vec::new();
    for selector in allowed {
        match all.find(selector) {
            Ok(disk) => known.push(&disk.identity),
            Err(error) if is_known => {
                tracing::warn!(%error, "a disk named by --shared-disk is not there");
            }
            Err(error) => return Err(error.into()),
        }
    }
    let refused = |d: &&Disk| d.shared && !known.contains(&&d.identity);
    let refused = chosen.iter().find(refused).filter(|_| !planted::is("shared-disks-are-taken"));
    let Some(disk) = refused else { return Ok(()) };
    let name = disk.name();
    bail!(
        "disk {name} is shared (share-rw=on, in libvirt <shareable/>): what another guest writes to it \
         would be missing from every recovery point; protect the guest's other disks with --disk, or, \
         if nobody else writes to {name}, take it with --shared-disk {name}"
    )
}

/// The disks, once no mirror is on them that an agent left there whose state was lost.
///
/// # Errors
/// Another agent, or another guest of this one, mirrors a disk; QEMU refused.
pub(super) async fn freed(
    context: &Context,
    qemu: &Qemu,
    process: Option<&Process>,
    disks: Vec<Disk>,
) -> Result<Vec<Disk>> {
    let strange = strange_jobs(context, &disks);
    if strange.is_empty() || planted::is("own-mirrors-are-somebody-elses") {
        return Ok(disks);
    }
    let owned = Owned::by_journal_and_sockets(context, qemu).await?;
    if let Some((node, job)) = strange.iter().find(|(_, job)| !owned.has(job)) {
        bail!(held(job, node));
    }
    let prefixes: Vec<_> = strange.iter().filter_map(|(_, job)| job.strip_suffix("job")).collect();
    let wanted = |name: &str| !prefixes.iter().any(|prefix| name.starts_with(prefix));
    removal::remove(qemu, context, process, wanted)
        .await
        .context("take out a mirror that a lost state directory left in QEMU")?;
    chosen(context, qemu).await
}

/// Jobs by names of ours that are not of the disk's own volume, with the disk's node.
fn strange_jobs(context: &Context, disks: &[Disk]) -> Vec<(String, String)> {
    let config = context.group.config();
    let own = |disk: &Disk| {
        let wanted = volume_of(context, disk);
        let is_it = |v: &&Volume| v.guest == wanted.guest && v.disk == wanted.disk;
        Some(removal::names_of(config.disks().find(is_it)?).ok()?.job())
    };
    let strange = |disk: &Disk| {
        let job = disk.job.clone().filter(|job| job.starts_with(OURS))?;
        (own(disk).as_ref() != Some(&job)).then(|| (disk.node.clone(), job))
    };
    disks.iter().filter_map(strange).collect()
}
