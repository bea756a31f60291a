//! The guest's disks in its group's configuration: one volume a disk, for ever.

use super::task::Context;
use afterimage_journal::meta::{Volume, VolumeKind};
use afterimage_qmp::qemu::Disk;
use anyhow::Result;

/// A disk as a volume of the guest's group; its number and identity are the group's.
pub(super) fn volume_of(context: &Context, disk: &Disk) -> Volume {
    Volume {
        id: 0,
        kind: VolumeKind::Disk,
        uuid: uuid::Uuid::nil(),
        guest: context.settings.name.clone(),
        disk: disk.identity.to_string(),
        node: disk.node.clone(),
        bytes: disk.bytes,
        format: disk.driver.clone(),
        source: disk.file.clone(),
        active: true,
    }
}

/// Disks that are no longer there, or no longer wanted, leave the group. Of its memory nothing does.
pub(super) fn forget_others(context: &Context, ids: &[u16]) -> Result<()> {
    context.group.update_config(|config| {
        let of_guest = |v: &&mut Volume| v.kind.is_disk() && v.guest == context.settings.name;
        for volume in config.volumes.iter_mut().filter(of_guest) {
            volume.active = ids.contains(&volume.id);
        }
    })?;
    Ok(())
}
