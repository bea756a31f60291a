//! What goes over the wire. Fields are only ever added; times are RFC 3339 in UTC.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

pub use super::error::{ApiError, ErrorKind};
use super::memory::MemoryStatus;
use super::sites::SiteStatus;
use crate::settings::MemoryMode;
use afterimage_journal::Seq;
use afterimage_journal::history;
use afterimage_journal::keeper::Occupancy;
use afterimage_journal::meta::CopyCause;
use afterimage_journal::pool::Limit;
use afterimage_journal::window::Keep;

/// `protect`: a guest that is to be captured from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtectRequest {
    /// The guest's name.
    pub name: String,
    /// Its QMP socket, an absolute path. Either this or `libvirt`.
    #[serde(default)]
    pub qmp: Option<PathBuf>,
    /// Its libvirt domain.
    #[serde(default)]
    pub libvirt: Option<String>,
    /// Node names, device ids or qdev paths of the disks; empty: all that can be captured.
    #[serde(default)]
    pub disks: Vec<String>,
    /// Disks that others may write to as well (`share-rw=on`), and that are captured all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared_disks: Vec<String>,
    /// The group that it joins; `None`: a group of its own, with the guest's name.
    #[serde(default)]
    pub group: Option<String>,
    /// How far back every moment is to be restorable at least, in seconds.
    pub window_s: u64,
    /// The same and which checkpoints are kept for longer, like `24h,1m:7d`; begins with `window_s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<Keep>,
    /// What the group's journal may take on disk, in bytes; `None`: what the pool has room for.
    #[serde(default)]
    pub limit_bytes: Option<u64>,
    /// How far back the journal reaches even when space is short, in seconds; `None`: an hour.
    #[serde(default)]
    pub guarantee_s: Option<u64>,
    /// Time between crash-consistent checkpoints, in milliseconds.
    pub checkpoint_every_ms: u64,
    /// Limit of initial sync and resync, in bytes a second; `None`: no limit.
    #[serde(default)]
    pub rate_bytes_per_s: Option<u64>,
    /// The guest agent's socket, an absolute path, for `mark --quiesce`.
    #[serde(default)]
    pub guest_agent: Option<PathBuf>,
    /// Time between checkpoints of memory, in milliseconds; `None`: only those that are asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_every_ms: Option<u64>,
    /// How memory is taken.
    #[serde(default)]
    pub memory_mode: MemoryMode,
    /// The file with the key that the group's journal is encrypted with, an absolute path; `None`: a new
    /// journal is not encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// Sites that the group's journal is sent to, besides those that it has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sites: Vec<String>,
    /// Age of the oldest record that a site lacks from which on there is an alarm, in milliseconds;
    /// `None`: as it is, or half a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpo_alarm_ms: Option<u64>,
}

/// `set`: what is to change; the rest stays. No resync follows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetRequest {
    /// As in [`ProtectRequest`]; alone, it leaves what is kept for longer as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window_s: Option<u64>,
    /// As in [`ProtectRequest`]; one without steps ends thinning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<Keep>,
    /// As in [`ProtectRequest`]; 0: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_bytes: Option<u64>,
    /// As in [`ProtectRequest`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guarantee_s: Option<u64>,
    /// As in [`ProtectRequest`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_every_ms: Option<u64>,
    /// Bytes a second; 0: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_bytes_per_s: Option<u64>,
    /// As in [`ProtectRequest`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_agent: Option<PathBuf>,
    /// As in [`ProtectRequest`]; 0: only those that are asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_every_ms: Option<u64>,
    /// As in [`ProtectRequest`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mode: Option<MemoryMode>,
    /// Where the guest is found from now on, an absolute path; the VM that is found there next is the guest,
    /// whichever it is. Of one guest only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qmp: Option<PathBuf>,
    /// The same by libvirt domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub libvirt: Option<String>,
    /// As in [`ProtectRequest`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sites: Vec<String>,
    /// As in [`ProtectRequest`]: these as well, from the next attach on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shared_disks: Vec<String>,
    /// Shared disks that are not to be captured any more, from the next attach on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub no_shared_disks: Vec<String>,
    /// Sites that the group's journal is not sent to any more; what they have stays there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub no_sites: Vec<String>,
    /// As in [`ProtectRequest`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rpo_alarm_ms: Option<u64>,
}

/// `mark`: a checkpoint with a label.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MarkRequest {
    /// The label.
    pub tag: String,
    /// Freeze the file systems by the guest agent first: application-consistent, or an error.
    #[serde(default)]
    pub quiesce: bool,
    /// With the memory of all of the group's guests.
    #[serde(default)]
    pub memory: bool,
}

/// The checkpoint that `mark` made; it is durable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MarkReply {
    /// Its number.
    pub id: u64,
    /// Its position.
    pub seq: Seq,
    /// Its time.
    pub time: Timestamp,
    /// `crash` or `application`.
    pub kind: String,
    /// With memory.
    #[serde(default)]
    pub memory: bool,
}

/// `pool add`: a directory that becomes a member, or a member that changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolAddRequest {
    /// The directory, an absolute path.
    pub dir: PathBuf,
    /// What is to be done with its limit.
    #[serde(default)]
    pub limit: Limit,
}

/// `pool remove`: a member that is to be drained, or given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolRemoveRequest {
    /// The directory, an absolute path.
    pub dir: PathBuf,
    /// It is gone for good, with all that lay on it.
    #[serde(default)]
    pub lost: bool,
}

/// Where a guest stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestState {
    /// Attached, the first full copy goes on: no recovery point yet.
    InitialSync,
    /// Attached and level: each moment is restorable.
    Protected,
    /// Attached again, changed blocks are copied: a gap until it ends.
    Resync,
    /// Writes are missed: the agent, the guest's monitor or the journal is out of service.
    Gap,
    /// Not attached because somebody asked for it, or because the guest isn't running.
    Detached,
}

impl fmt::Display for GuestState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::InitialSync => "initial-sync",
            Self::Protected => "protected",
            Self::Resync => "resync",
            Self::Gap => "gap",
            Self::Detached => "detached",
        })
    }
}

/// `status NAME --json`. The fields up to `stall_ms_max` are stable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GuestStatus {
    /// The guest.
    pub guest: String,
    /// Where it stands.
    pub state: GuestState,
    /// What a loss of this machine's memory would cost now: the age of the oldest write that is
    /// not durable, or the time since the last recovery point, in milliseconds; `None`: there is
    /// no recovery point.
    pub rpo_ms: Option<u64>,
    /// The newest record.
    pub head_seq: Seq,
    /// The durable watermark.
    pub durable_seq: Seq,
    /// First and last of the moments that can all be restored, but for the gaps between; `None`: there
    /// is none.
    pub window: Option<WindowStatus>,
    /// Intervals inside the window, and behind it, without recovery points.
    pub gaps: Vec<GapStatus>,
    /// What the journal takes on disk.
    pub journal: JournalSize,
    /// The guest's disks.
    pub disks: Vec<DiskStatus>,
    /// The longest that a guest write waited for us since this agent started, in milliseconds.
    pub stall_ms_max: u64,
    /// The guest's group.
    pub group: String,
    /// Whether the group's journal is encrypted.
    #[serde(default)]
    pub encrypted: bool,
    /// Why it isn't protected, and what to do; `None` when it is.
    #[serde(default)]
    pub reason: Option<String>,
    /// The journal's epoch.
    #[serde(default)]
    pub epoch: u64,
    /// How far back every moment is to be restorable at least, in seconds.
    #[serde(default)]
    pub window_s: u64,
    /// The same and which checkpoints are to be kept for longer; `None`: none.
    #[serde(default)]
    pub keep: Option<Keep>,
    /// What is left of the history before the window; `None`: nothing.
    #[serde(default)]
    pub thinned: Option<ThinnedStatus>,
    /// Time between checkpoints, in milliseconds; 0: not known.
    #[serde(default)]
    pub checkpoint_every_ms: u64,
    /// Guest writes over the last seconds, bytes a second.
    #[serde(default)]
    pub write_rate_bytes_s: u64,
    /// Guest writes over the last seconds, writes a second.
    #[serde(default)]
    pub writes_per_s: u64,
    /// The initial sync or resync that goes on.
    #[serde(default)]
    pub copy: Option<CopyProgress>,
    /// How often the agent's worker was started anew since the guard started.
    #[serde(default)]
    pub agent_restarts: u64,
    /// Whether this was read from disk because no agent runs.
    #[serde(default)]
    pub offline: bool,
    /// What the group's journal uses, what its limits lead to, how far merging and scrubbing are.
    #[serde(default)]
    pub space: Option<Occupancy>,
    /// Checkpoints of its memory; `None`: none are asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryStatus>,
    /// The sites of its group.
    #[serde(default)]
    pub sites: Vec<SiteStatus>,
    /// What a person took knowingly, and has to bear in mind for as long as it lasts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// The journal window: from the oldest to the newest recovery point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowStatus {
    /// The oldest recovery point.
    pub from: Timestamp,
    /// Its position, where the clock was set back and showed its time twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_seq: Option<Seq>,
    /// The newest recovery point.
    pub to: Timestamp,
    /// Its position, where the clock was set back and showed its time twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_seq: Option<Seq>,
}

/// Checkpoints that were kept from before the window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThinnedStatus {
    /// The oldest of them.
    pub from: Timestamp,
    /// Its position, where the clock was set back and showed its time twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_seq: Option<Seq>,
    /// How many there are.
    pub checkpoints: u64,
}

/// An interval without recovery points.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GapStatus {
    /// The last recovery point before it.
    pub from: Timestamp,
    /// Its position, where the clock was set back and showed its time twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_seq: Option<Seq>,
    /// The first one behind it; `None` while it lasts.
    pub to: Option<Timestamp>,
    /// Its position, where the clock was set back and showed its time twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_seq: Option<Seq>,
    /// Why.
    pub reason: String,
}

/// What a journal takes on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalSize {
    /// Units.
    pub units: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A disk of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskStatus {
    /// Its guest.
    pub guest: String,
    /// Its stable name in the guest: device path or id.
    pub id: String,
    /// QEMU's node name.
    pub node: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// How much of it is in the journal, in bytes: all of it once the initial sync is over.
    pub synced_bytes: u64,
}

/// An initial sync or resync that goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyProgress {
    /// Why it is made.
    pub cause: CopyCause,
    /// Bytes that are done.
    pub done_bytes: u64,
    /// Bytes that are to be done.
    pub total_bytes: u64,
    /// Its speed, bytes a second.
    pub rate_bytes_s: u64,
}

/// The agent itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentInfo {
    /// Its version.
    pub version: String,
    /// The process that does the work.
    pub worker_pid: u32,
    /// The process that guards it.
    pub guard_pid: u32,
    /// Its state directory.
    pub state: PathBuf,
    /// Since when the worker runs.
    pub since: Timestamp,
    /// The longest stall that a guest may see, in milliseconds.
    pub stall_limit_ms: u64,
    /// The guests, and how each is reached (a socket's path, or `libvirt:DOMAIN`).
    #[serde(default)]
    pub monitors: Vec<(String, String)>,
}

/// A time of a record, from nanoseconds since the Unix epoch (0 where it has none; one beyond
/// the year 9999 counts as the last moment of it).
#[must_use]
pub fn time(wall_ns: u64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(wall_ns)).unwrap_or(Timestamp::MAX)
}

/// The position of a point whose time means another one too.
fn unnamed(history: &history::History, seq: Seq) -> Option<Seq> {
    (!history.is_named_by_time(&history.point(seq))).then_some(seq)
}

impl GapStatus {
    /// A gap of a journal.
    #[must_use]
    pub fn of(history: &history::History, gap: &history::Gap) -> Self {
        Self {
            from: time(gap.from_ns),
            from_seq: unnamed(history, gap.from),
            to: gap.to_ns.map(time),
            to_seq: gap.to.and_then(|to| unnamed(history, to)),
            reason: gap.reason.clone(),
        }
    }
}

impl WindowStatus {
    /// The window of a journal.
    #[must_use]
    pub fn of(history: &history::History) -> Option<Self> {
        let (from, to) = history.window()?;
        Some(Self {
            from: time(from.wall_ns),
            from_seq: unnamed(history, from.seq),
            to: time(to.wall_ns),
            to_seq: unnamed(history, to.seq),
        })
    }
}

impl ThinnedStatus {
    /// What a journal's history has.
    #[must_use]
    pub fn of(history: &history::History) -> Option<Self> {
        let oldest = history.thinned_from()?;
        let before = history.checkpoints.partition_point(|c| c.seq < history.edge);
        Some(Self {
            from: time(oldest.wall_ns),
            from_seq: unnamed(history, oldest.seq),
            checkpoints: before as u64,
        })
    }

    /// What a journal's keeper tells.
    #[must_use]
    pub fn of_space(space: &Occupancy) -> Option<Self> {
        let from = time(space.kept_from_wall_ns);
        (space.kept > 0).then_some(Self { from, from_seq: None, checkpoints: space.kept })
    }
}
