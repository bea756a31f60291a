//! The volumes of a group's guests: which number a disk has, or a part of a guest's memory.
//!
//! What always holds: a number is never given to another volume, since the journal tells their records apart
//! by nothing else.

use super::Group;
use afterimage_journal::meta::{Guest, Volume};
use afterimage_journal::{Error, Result, VolumeId};
use uuid::Uuid;

impl Group {
    /// The volume of a guest's disk, or of a part of its memory: the one it had, or a new one.
    ///
    /// # Errors
    /// The journal stopped; or there are no numbers left.
    pub fn volume_of(&self, guest: &Guest, wanted: &Volume) -> Result<Volume> {
        let mut found = None;
        self.update_config(|config| {
            // A block of RAM may have a disk's name.
            let is_it = |v: &Volume| {
                v.kind == wanted.kind && v.guest == wanted.guest && v.disk == wanted.disk
            };
            let known = config.volumes.iter_mut().find(|v| is_it(v));
            let volume = match known {
                Some(known) => {
                    *known = Volume { id: known.id, uuid: known.uuid, ..wanted.clone() };
                    known.clone()
                }
                None => {
                    let Some(id) = next_volume(&config.volumes) else { return };
                    let volume = Volume { id, uuid: Uuid::new_v4(), ..wanted.clone() };
                    config.volumes.push(volume.clone());
                    volume
                }
            };
            match config.guests.iter_mut().find(|g| g.name == guest.name) {
                Some(known) => *known = guest.clone(),
                None => config.guests.push(guest.clone()),
            }
            found = Some(volume);
        })?;
        found.ok_or_else(|| {
            Error::Invalid(format!(
                "group {} has had {} disks and parts of guests' memory, and a journal can tell no more \
                 apart: protect {} in another group",
                self.name,
                VolumeId::MAX,
                guest.name
            ))
        })
    }
}

/// The number of the next new volume; `None`: all were given out.
fn next_volume(volumes: &[Volume]) -> Option<VolumeId> {
    volumes.iter().map(|v| v.id).max().unwrap_or(0).checked_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use afterimage_journal::meta::VolumeKind;

    fn volume(id: VolumeId) -> Volume {
        Volume {
            id,
            kind: VolumeKind::Disk,
            uuid: Uuid::nil(),
            guest: "vm".into(),
            disk: format!("vd{id}"),
            node: format!("d{id}"),
            bytes: 1 << 20,
            format: "raw".into(),
            source: String::new(),
            active: true,
        }
    }

    #[test]
    fn no_number_is_given_out_twice_when_all_are_in_use() {
        assert_eq!(next_volume(&[]), Some(1));
        assert_eq!(next_volume(&[volume(1), volume(65_534)]), Some(VolumeId::MAX));
        assert_eq!(next_volume(&[volume(VolumeId::MAX), volume(1)]), None);
    }
}
