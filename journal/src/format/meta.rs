//! The payloads of records that are not data: JSON objects, fields known by name.
//!
//! JSON because they are few and small, a person with a hex dump can read them, and a field that
//! an older program doesn't know is skipped. An unknown *value* (a new kind of event) is an error.

mod merged;

pub use merged::{EPOCHS_LISTED_MAX, EpochStart, LOST_LISTED_MAX, Lost, Made, MemoryKept, Merged};

use crate::{Seq, VolumeId};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Largest payload of such a record, in bytes (a guest's XML is tens of kilobytes).
pub const META_BYTES_MAX: usize = 1 << 20;

/// The whole configuration of a group, written whenever it changes and at the start of each unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// The group's identity.
    pub group: Uuid,
    /// The group's name.
    pub name: String,
    /// Its guests.
    pub guests: Vec<Guest>,
    /// All volumes, those of removed disks too: an id is never used again.
    pub volumes: Vec<Volume>,
}

impl Config {
    /// Its disks, those that were removed too: the volumes that are no part of a guest's memory.
    pub fn disks(&self) -> impl Iterator<Item = &Volume> {
        self.volumes.iter().filter(|v| v.kind.is_disk())
    }

    /// The volumes of guests' memory and device states, those of removed guests too.
    pub fn memory_volumes(&self) -> impl Iterator<Item = &Volume> {
        self.volumes.iter().filter(|v| !v.kind.is_disk())
    }
}

/// A guest, with what is needed to start a restored copy the same way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guest {
    /// Its name, unique in the group.
    pub name: String,
    /// QEMU's arguments as they were at the last attach (empty when unknown).
    #[serde(default)]
    pub command_line: Vec<String>,
    /// Its libvirt definition, when it has one.
    #[serde(default)]
    pub libvirt_xml: Option<String>,
    /// QEMU's version text.
    #[serde(default)]
    pub qemu_version: String,
}

/// What a volume's bytes are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeKind {
    /// A disk: changes with each captured write.
    #[default]
    Disk,
    /// A RAM block of a guest: changes only by checkpoints with memory.
    Ram,
    /// What a guest's devices hold, as QEMU's migration stream has it: changes as RAM does.
    DeviceState,
}

impl VolumeKind {
    /// Whether it is a disk.
    #[must_use]
    pub fn is_disk(&self) -> bool {
        *self == Self::Disk
    }
}

/// A volume: a disk of a guest, or a part of its memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its number in records.
    pub id: VolumeId,
    /// What its bytes are.
    #[serde(default, skip_serializing_if = "VolumeKind::is_disk")]
    pub kind: VolumeKind,
    /// Its identity, which survives renames.
    pub uuid: Uuid,
    /// The guest's name.
    pub guest: String,
    /// Stable name of the disk in its guest: the device path, or QEMU's device id; of RAM, QEMU's
    /// name of the block.
    pub disk: String,
    /// QEMU's node name at the last attach.
    pub node: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Driver of the source image ("raw", "qcow2").
    pub format: String,
    /// The source image's file.
    #[serde(default)]
    pub source: String,
    /// Whether the disk is part of the group now.
    pub active: bool,
}

/// Opening or closing of a session (I-4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Its id, above 0, never used again in this journal.
    pub id: u32,
    /// The guest.
    pub guest: String,
    /// What happened.
    pub event: SessionEvent,
    /// Why it closed, for people.
    #[serde(default)]
    pub reason: String,
    /// At a close: the last position that was proved level, when it isn't this record's own.
    #[serde(default)]
    pub upto: Option<Seq>,
    /// At an opening: every block of every disk was copied or compared since the session before,
    /// so that what was lost earlier matters no more.
    #[serde(default)]
    pub full: bool,
    /// At a close because the guest ended: its images as they lay there then.
    #[serde(default)]
    pub images: Vec<ImageIdentity>,
    /// With [`SessionEvent::Maps`]: by volume, the one map that is to be trusted from now on.
    #[serde(default)]
    pub maps: Vec<(VolumeId, String)>,
}

/// What happened to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SessionEvent {
    /// Attached and level: restorable from here.
    Open,
    /// Not restorable behind this.
    Close,
    /// Another changed-block map records from now on ([`Session::maps`]).
    Maps,
}

/// Tells whether an image was touched since.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageIdentity {
    /// The volume.
    pub volume: VolumeId,
    /// The file.
    pub path: String,
    /// Device and inode number.
    pub file: (u64, u64),
    /// Size of the file in bytes.
    pub bytes: u64,
    /// Time of the last change of contents, nanoseconds since the Unix epoch.
    pub mtime_ns: i128,
    /// Time of the last change of the inode.
    pub ctime_ns: i128,
    /// The identity of the images below it, as its writer tells them; empty if there are none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub below: String,
}

/// Progress of a copy: initial sync or resync (I-5). A copy's *as-of position* is the sequence
/// number of its start record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Copy {
    /// Its id, above 0, never used again in this journal.
    pub id: u32,
    /// The volume.
    pub volume: VolumeId,
    /// What happened.
    pub event: CopyEvent,
    /// Why it is made.
    pub cause: CopyCause,
    /// All that is to be copied below this byte address is in the journal.
    #[serde(default)]
    pub upto: u64,
    /// At a start: nothing is left out because the journal has it. Blocks are written from address 0 on,
    /// zeroes too, but for those of a first copy: a new volume begins with zeroes.
    #[serde(default, skip_serializing_if = "is_false")]
    pub whole: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn is_false(flag: &bool) -> bool {
    !*flag
}

/// What happened to a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CopyEvent {
    /// It begins: its as-of position is this record's number.
    Start,
    /// It got to `upto`.
    Progress,
    /// All of it is in.
    End,
}

/// Why a copy is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CopyCause {
    /// The first full copy.
    Initial,
    /// The blocks of a changed-block map.
    Bitmap,
    /// The blocks that differ, found by comparing.
    Compare,
}

/// A checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Its number, from 1.
    pub id: u64,
    /// How consistent it is.
    pub kind: CheckpointKind,
    /// A person's label.
    #[serde(default)]
    pub tag: Option<String>,
    /// With it, the guests' memory at the same instant is in the journal: this record commits it (I-6).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
}

impl Checkpoint {
    /// The position that it names, in a record with this number.
    #[must_use]
    pub fn position(&self, seq: Seq) -> Seq {
        self.memory.as_ref().map_or(seq, |m| m.instant.min(seq))
    }
}

/// The memory of a group's guests at one instant. Its pages and device states lie before this record;
/// the volumes that hold them are read as they are *at this record's number*, the disks at `instant`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// The position of the instant: all guests were stopped, all that their disks had been told before
    /// is at or below it, nothing of what came after. The checkpoint's position.
    pub instant: Seq,
    /// Wall time of the instant, nanoseconds since the Unix epoch.
    pub wall_ns: u64,
    /// Each guest's.
    pub guests: Vec<GuestMemory>,
}

impl Memory {
    /// Each volume that it is read from, what it must be, and how many bytes of it are needed.
    pub fn needs(&self) -> impl Iterator<Item = (VolumeId, VolumeKind, u64)> {
        self.guests.iter().flat_map(|guest| {
            let state_bytes = guest.head_bytes.saturating_add(guest.tail_bytes);
            let state = (guest.state, VolumeKind::DeviceState, state_bytes);
            let blocks = guest.blocks.iter().map(|b| (b.volume, VolumeKind::Ram, b.bytes));
            blocks.chain([state])
        })
    }
}

/// One guest's memory and device state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestMemory {
    /// The guest.
    pub guest: String,
    /// Its RAM blocks, in the order in which the stream has them.
    pub blocks: Vec<RamBlock>,
    /// The volume of its device state: the head of the stream (everything before the section that
    /// lists the RAM blocks), then its tail (everything behind the last section of RAM), from byte 0.
    pub state: VolumeId,
    /// Bytes of the head.
    pub head_bytes: u64,
    /// Bytes of the tail.
    pub tail_bytes: u64,
    /// How long the guest stood still, microseconds.
    pub pause_us: u64,
}

/// A RAM block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RamBlock {
    /// The volume of its pages.
    pub volume: VolumeId,
    /// QEMU's name of the block, like `pc.ram`.
    pub id: String,
    /// Its used length, in bytes.
    pub bytes: u64,
}

/// How consistent a checkpoint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckpointKind {
    /// As after a power cut.
    Crash,
    /// File systems were frozen by the guest agent.
    Application,
}

/// The body of a record that isn't data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meta {
    /// [`Config`].
    Config(Config),
    /// [`Session`].
    Session(Session),
    /// [`Copy`].
    Copy(Copy),
    /// [`Checkpoint`].
    Mark(Checkpoint),
    /// [`Merged`].
    Merged(Merged),
}

impl Meta {
    /// The record kind that carries it.
    #[must_use]
    pub fn kind(&self) -> super::record::Kind {
        use super::record::Kind;
        match self {
            Self::Config(_) => Kind::Config,
            Self::Session(_) => Kind::Session,
            Self::Copy(_) => Kind::Copy,
            Self::Mark(_) => Kind::Mark,
            Self::Merged(_) => Kind::Merged,
        }
    }

    /// The payload.
    ///
    /// # Errors
    /// Only when a value can't be JSON, which none of these types allows.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        match self {
            Self::Config(v) => serde_json::to_vec(v),
            Self::Session(v) => serde_json::to_vec(v),
            Self::Copy(v) => serde_json::to_vec(v),
            Self::Mark(v) => serde_json::to_vec(v),
            Self::Merged(v) => serde_json::to_vec(v),
        }
    }

    /// Decodes the payload of a record of this kind; `None` for kinds without a body.
    ///
    /// # Errors
    /// The payload isn't what the kind says.
    pub fn decode(
        kind: super::record::Kind,
        payload: &[u8],
    ) -> Option<Result<Self, serde_json::Error>> {
        use super::record::Kind;
        Some(match kind {
            Kind::Config => serde_json::from_slice(payload).map(Self::Config),
            Kind::Session => serde_json::from_slice(payload).map(Self::Session),
            Kind::Copy => serde_json::from_slice(payload).map(Self::Copy),
            Kind::Mark => serde_json::from_slice(payload).map(Self::Mark),
            Kind::Merged => serde_json::from_slice(payload).map(Self::Merged),
            _ => return None,
        })
    }
}

/// The range of sequence numbers in which the group was level: any position from `from` to `to`
/// can be restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LevelRange {
    /// First restorable position.
    pub from: Seq,
    /// Last restorable position.
    pub to: Seq,
}
