//! A group's memory in its journal: the volumes that hold it, and the one record that commits a
//! checkpoint of it.
//!
//! What always holds: a volume of memory is in the configuration before any record is about it, with
//! the size that the guest's block had last; a checkpoint is committed only while every guest is in
//! the session that it was in at the instant (I-4, I-6).

use super::{Group, Marked};
use afterimage_journal::meta::{Checkpoint, CheckpointKind, Memory, Meta, Volume, VolumeKind};
use afterimage_journal::{Error, Result, VolumeId};
use uuid::Uuid;

/// Name of the volume that holds a guest's device state.
const DEVICE_STATE: &str = "device-state";

/// A part of a guest's memory that needs a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryPart {
    /// What it is.
    pub kind: VolumeKind,
    /// QEMU's name of the block; not used for the device state.
    pub id: String,
    /// Its size in bytes.
    pub bytes: u64,
}

/// Its volume, and what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryVolume {
    /// The volume.
    pub volume: VolumeId,
    /// It had another size before: nothing is known of what it holds.
    pub resized: bool,
}

impl MemoryPart {
    fn name(&self) -> &str {
        if self.kind == VolumeKind::DeviceState { DEVICE_STATE } else { &self.id }
    }

    fn is_in(&self, volume: &Volume) -> bool {
        volume.kind == self.kind && volume.disk == self.name()
    }

    fn volume(&self, guest: &str, id: VolumeId) -> Volume {
        let format = if self.kind == VolumeKind::Ram { "ram" } else { DEVICE_STATE };
        Volume {
            id,
            kind: self.kind,
            uuid: Uuid::new_v4(),
            guest: guest.to_owned(),
            disk: self.name().to_owned(),
            node: self.name().to_owned(),
            bytes: self.bytes,
            format: format.to_owned(),
            source: String::new(),
            active: true,
        }
    }
}

impl Group {
    /// A guest's volumes of memory, those of blocks that it has no more too.
    #[must_use]
    pub fn memory_volumes(&self, guest: &str) -> Vec<Volume> {
        self.config().memory_volumes().filter(|v| v.guest == guest).cloned().collect()
    }

    /// The volumes of all parts of a guest's memory, in their order: those it had, with the size that
    /// the part has now, or new ones. Blocks that it has no more leave the group.
    ///
    /// # Errors
    /// The journal stopped; or there are no numbers left.
    pub fn volumes_of_memory(
        &self,
        guest: &str,
        parts: &[MemoryPart],
    ) -> Result<Vec<MemoryVolume>> {
        let mut found = Vec::new();
        let mut is_full = false;
        self.update_config(|config| {
            for volume in config.volumes.iter_mut() {
                if volume.guest == guest && !volume.kind.is_disk() {
                    volume.active = parts.iter().any(|part| part.is_in(volume));
                }
            }
            for part in parts {
                let mut of_guest = config.volumes.iter_mut().filter(|v| v.guest == guest);
                if let Some(known) = of_guest.find(|v| part.is_in(v)) {
                    let resized = known.bytes != part.bytes;
                    known.bytes = part.bytes;
                    found.push(MemoryVolume { volume: known.id, resized });
                    continue;
                }
                let last = config.volumes.iter().map(|v| v.id).max().unwrap_or(0);
                let Some(id) = last.checked_add(1) else {
                    is_full = true;
                    return;
                };
                config.volumes.push(part.volume(guest, id));
                found.push(MemoryVolume { volume: id, resized: false });
            }
        })?;
        match is_full {
            true => Err(Error::Invalid("the journal has no numbers left for volumes".into())),
            false => Ok(found),
        }
    }

    /// Commits a checkpoint with memory: everything that it names is in the journal. `sessions` are those
    /// of its guests at the instant. Not durable yet when this returns.
    ///
    /// # Errors
    /// A guest is in another session now, or in none; or the journal stopped.
    pub fn mark_memory(
        &self,
        kind: CheckpointKind,
        tag: Option<String>,
        memory: Memory,
        sessions: &[(String, u32)],
    ) -> Result<Marked> {
        let journal = self.journal()?;
        let mut state = self.lock();
        let is_same = |(guest, id): &&(String, u32)| {
            state.sessions.get(guest).is_some_and(|open| open.id == *id)
        };
        if let Some((guest, _)) = sessions.iter().find(|s| !is_same(s)) {
            return Err(Error::Invalid(format!(
                "{guest} was let go of, or lost a mirror, while its memory was taken"
            )));
        }
        let (id, seq, wall_ns) = (state.next_checkpoint, memory.instant, memory.wall_ns);
        journal.append_meta(&Meta::Mark(Checkpoint { id, kind, tag, memory: Some(memory) }))?;
        state.next_checkpoint += 1;
        Ok(Marked { id, seq, wall_ns })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use afterimage_journal::Options;
    use afterimage_journal::meta::GuestMemory;
    use std::path::Path;

    fn ram(id: &str, bytes: u64) -> MemoryPart {
        MemoryPart { kind: VolumeKind::Ram, id: id.into(), bytes }
    }

    fn group(dir: &Path) -> Group {
        Group::open(dir, "vm", Options::default(), None).unwrap()
    }

    #[test]
    fn a_part_of_memory_keeps_its_volume_and_follows_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let group = group(dir.path());
        let state = MemoryPart { kind: VolumeKind::DeviceState, id: String::new(), bytes: 1 << 20 };
        // A block may be called as anything else is.
        let parts = [ram("pc.ram", 1 << 20), ram(DEVICE_STATE, 4096), state];
        let first = group.volumes_of_memory("vm", &parts).unwrap();
        let ids: Vec<_> = first.iter().map(|v| v.volume).collect();
        assert_eq!(ids, [1, 2, 3]);
        assert_eq!(group.volumes_of_memory("vm", &parts).unwrap(), first);
        let others = group.volumes_of_memory("other", &parts[..1]).unwrap();
        assert_eq!(others[0].volume, 4);
        let grown = [ram("pc.ram", 2 << 20), parts[2].clone()];
        let now = group.volumes_of_memory("vm", &grown).unwrap();
        assert_eq!(now[0], MemoryVolume { volume: 1, resized: true });
        assert_eq!(now[1], MemoryVolume { volume: 3, resized: false });
        let volumes = group.memory_volumes("vm");
        assert_eq!((volumes[0].bytes, volumes[0].active), (2 << 20, true));
        assert!(!volumes[1].active, "the guest has it no more");
        assert!(group.memory_volumes("other")[0].active);
        group.close().unwrap();
    }

    #[test]
    fn a_checkpoint_is_committed_only_in_the_sessions_of_its_instant() {
        let dir = tempfile::tempdir().unwrap();
        let group = group(dir.path());
        let session = group.open_session("vm", true).unwrap();
        let guests = Vec::<GuestMemory>::new();
        let memory = Memory { instant: session.from, wall_ns: 1, guests };
        let mark = |id| {
            let sessions = [("vm".to_owned(), id)];
            group.mark_memory(CheckpointKind::Crash, None, memory.clone(), &sessions)
        };
        let made = mark(session.id).unwrap();
        assert_eq!(made, Marked { id: 1, seq: session.from, wall_ns: 1 });
        group.close_session("vm", "lost", None);
        assert!(mark(session.id).unwrap_err().to_string().contains("lost a mirror"));
        let again = group.open_session("vm", true).unwrap();
        assert!(mark(session.id).is_err(), "another session");
        assert_eq!(mark(again.id).unwrap().id, 2);
        group.close().unwrap();
    }
}
