//! What can go wrong with a restore: the variant names the fact, [`Error::kind`] the exit code.

use crate::time::{Moment, wall_clock};
use crate::warm::NearestWarm;
use afterimage_journal::history::{NotRestorable, When};
use afterimage_journal::{ErrorKind, History, Seq};
use std::fmt;
use std::path::{Path, PathBuf};

/// Positions of one time that a refusal names.
const NAMED_MAX: usize = 8;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What an error means to who called; the numbers are the program's exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Anything else: the text says what.
    Other = 1,
    /// What was asked for has to change.
    Usage = 2,
    /// The moment can't be restored: in a gap, outside of the window, damaged.
    NotRestorable = 3,
    /// What is needed can't be got at.
    NotReachable = 4,
}

impl Kind {
    /// The exit code.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        self as u8
    }
}

/// The recovery points on both sides of a moment that can't be restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Nearest {
    /// The nearest before it.
    pub before: Option<Moment>,
    /// The nearest after it.
    pub after: Option<Moment>,
}

impl fmt::Display for Nearest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.before, &self.after) {
            (Some(b), Some(a)) => write!(f, "Nearest points: {b} before, {a} after"),
            (Some(b), None) => write!(f, "Nearest points: {b} before, none after"),
            (None, Some(a)) => write!(f, "Nearest points: none before, {a} after"),
            (None, None) => write!(f, "There is no other recovery point"),
        }
    }
}

/// A record that a point needs and that can't be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedRecord {
    /// The unit's file.
    pub unit: PathBuf,
    /// Byte offset of the record in the unit.
    pub at: u64,
    /// The record's sequence number.
    pub seq: Seq,
    /// What is wrong with it.
    pub why: String,
    /// The disk: guest and node.
    pub disk: String,
    /// Byte address in the disk of the first byte that is needed from it.
    pub addr: u64,
    /// Recovery points that don't need it.
    pub nearest: Nearest,
}

/// An error of a restore.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Wrong input: a name, a path, a disk.
    #[error("{0}")]
    Usage(String),
    /// The wanted moment can't be restored.
    #[error("{what}. {nearest}")]
    NotRestorable {
        /// The moment, and why not.
        what: String,
        /// The recovery points beside it.
        nearest: Nearest,
    },
    /// The point needs a record that is damaged (I-12).
    #[error(
        "seq:{point} can't be restored: {}: record {} at byte {} is damaged ({}); \
         it holds {} at byte {}. {}",
        record.unit.display(), record.seq, record.at, record.why, record.disk, record.addr,
        record.nearest
    )]
    Damaged {
        /// The wanted position.
        point: Seq,
        /// The record.
        record: Box<DamagedRecord>,
    },
    /// A time that the clock passed more than once.
    #[error(
        "{what} names {} positions, since the clock was set back: {}. Say which: --at {}",
        points.len(),
        points.iter().map(shown_position).collect::<Vec<_>>().join(", "),
        points.iter().map(|m| format!("seq:{}", m.point.seq)).collect::<Vec<_>>().join(" or --at ")
    )]
    Ambiguous {
        /// The time.
        what: String,
        /// The positions.
        points: Vec<Moment>,
    },
    /// The wanted moment is no checkpoint with memory.
    #[error("{what}. {nearest}")]
    NotWarm {
        /// The moment, and that its memory isn't there.
        what: String,
        /// The checkpoints with memory beside it.
        nearest: Box<NearestWarm>,
    },
    /// A checkpoint's memory needs a record that is damaged (I-12); its disks may be whole.
    #[error(
        "#{id} (seq:{point}) can't be restored with its memory: {why}. Without --warm its disks \
         are restored. {nearest}"
    )]
    MemoryDamaged {
        /// The checkpoint.
        id: u64,
        /// Its position.
        point: Seq,
        /// What is damaged, where it lies, what it holds.
        why: String,
        /// The checkpoints with memory beside it.
        nearest: Box<NearestWarm>,
    },
    /// A guest can't be resumed on this host by its own command line.
    #[error(
        "{guest} can't be resumed here: {}. Restore where it fits (a copy of the pool is enough), \
         or without --warm: its disks boot", why.join("; ")
    )]
    Unfit {
        /// The guest.
        guest: String,
        /// All that doesn't fit.
        why: Vec<String>,
    },
    /// The newest recovery point may need units that lie where nothing can be read now.
    #[error(
        "the newest point can't be told: {away}, and the newest units may lie there. Bring that \
         back, or choose a point that needs nothing of it. {nearest}"
    )]
    NewestAway {
        /// The members that can't be read, and why.
        away: String,
        /// The newest point that can be restored without them.
        nearest: Nearest,
    },
    /// A file of the target could not be written.
    #[error("{what} {}: {source}{}", path.display(), hint(source))]
    Target {
        /// Verb first: "write".
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's word.
        source: std::io::Error,
    },
    /// An export can't use a socket or a scratch directory.
    #[error("{what} {}: {source}{}", path.display(), export_hint(source))]
    Export {
        /// Verb first: "listen on".
        what: &'static str,
        /// The socket or directory.
        path: PathBuf,
        /// The operating system's word.
        source: std::io::Error,
    },
    /// The journal can't be read.
    #[error(transparent)]
    Journal(#[from] afterimage_journal::Error),
}

/// A position with the time of its newest record.
fn shown_position(moment: &Moment) -> String {
    format!("seq:{} (of {})", moment.point.seq, wall_clock(moment.point.wall_ns))
}

fn hint(source: &std::io::Error) -> &'static str {
    use std::io::ErrorKind as K;
    match source.kind() {
        K::StorageFull | K::QuotaExceeded => {
            ": free space there, or restore to another directory (nothing was left behind)"
        }
        K::FileTooLarge => ": the file system or a limit allows no file of that size",
        K::ReadOnlyFilesystem | K::PermissionDenied => ": restore to a directory you can write to",
        _ => "",
    }
}

fn export_hint(source: &std::io::Error) -> &'static str {
    use std::io::ErrorKind as K;
    match source.kind() {
        K::StorageFull | K::QuotaExceeded => ": free space there, or choose another directory",
        K::FileTooLarge => ": no file can be as large as the disk there; choose another directory",
        K::ReadOnlyFilesystem | K::PermissionDenied => ": choose a directory you can write to",
        _ => "",
    }
}

impl Error {
    pub(crate) fn export(what: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Export { what, path: path.to_owned(), source }
    }

    pub(crate) fn target(
        what: &'static str,
        path: &Path,
        source: impl Into<std::io::Error>,
    ) -> Self {
        Self::Target { what, path: path.to_owned(), source: source.into() }
    }

    /// What it means to who called.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Usage(_) | Self::Ambiguous { .. } => Kind::Usage,
            Self::NotRestorable { .. }
            | Self::Damaged { .. }
            | Self::NotWarm { .. }
            | Self::MemoryDamaged { .. } => Kind::NotRestorable,
            Self::NewestAway { .. } => Kind::NotReachable,
            Self::Target { .. } | Self::Export { .. } | Self::Unfit { .. } => Kind::Other,
            Self::Journal(afterimage_journal::Error::Io { source, .. })
                if source.kind() == std::io::ErrorKind::PermissionDenied =>
            {
                Kind::NotReachable
            }
            // A manifest or an object of a bucket that fails its checks, or no regular file.
            Self::Journal(afterimage_journal::Error::Io { source, .. })
                if source.kind() == std::io::ErrorKind::InvalidData =>
            {
                Kind::NotRestorable
            }
            Self::Journal(e) => match e.kind() {
                ErrorKind::NotRestorable => Kind::NotRestorable,
                ErrorKind::Retry => Kind::NotReachable,
                _ => Kind::Other,
            },
        }
    }

    /// The refusal of a moment, as a person reads it.
    pub(crate) fn refused(history: &History, when: &When, refusal: &NotRestorable) -> Self {
        let asked = match when {
            When::Latest => "the newest point".to_owned(),
            When::Time(ns) => wall_clock(*ns),
            When::Seq(seq) => format!("seq:{seq}"),
            When::Checkpoint(id) => format!("#{id}"),
            When::Tag(tag) => format!("tag:{tag}"),
        };
        let what = match refusal.why.strip_prefix("it ") {
            Some(rest) => format!("{asked} {rest}"),
            None => format!("{asked} can't be restored: {}", refusal.why),
        };
        let moment = |point| Moment::of(history, point);
        if !refusal.named.is_empty() {
            let points = refusal.named.iter().take(NAMED_MAX).map(|p| moment(*p)).collect();
            return Self::Ambiguous { what: asked, points };
        }
        let nearest =
            Nearest { before: refusal.before.map(moment), after: refusal.after.map(moment) };
        Self::NotRestorable { what, nearest }
    }
}
