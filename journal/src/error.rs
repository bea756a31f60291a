//! What can go wrong with a journal: the variant names the fact, [`Error::kind`] what to do.

use std::path::{Path, PathBuf};

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What the caller can do about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Free or add space, then try again.
    FreeSpace,
    /// What was asked for can't be had from this journal: restore elsewhere, or another point.
    NotRestorable,
    /// The input (a path, a name, a version) has to change.
    FixInput,
    /// Somebody else holds it: try later.
    Retry,
    /// The device or the program failed; the text says how.
    Broken,
}

/// An error of the journal.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// Verb first: "open unit".
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's word.
        source: std::io::Error,
    },
    /// Written by a newer program.
    #[error(
        "{} has format version {found}, this program reads up to {supported}: \
         use the version of afterimage that wrote it, or a newer one",
        path.display()
    )]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// The version it has.
        found: u32,
        /// The newest version that is read here.
        supported: u32,
    },
    /// Not what it should be.
    #[error("{} is not usable: {why}", path.display())]
    Unusable {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
    /// Another process has the journal open for writing.
    #[error(
        "{} is in use by another process: stop that one first (is an agent running?)",
        path.display()
    )]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// A checksum doesn't match: nothing made from it is handed out (I-12).
    #[error("{}: record {seq} at byte {at} is damaged: {why}", unit.display())]
    Damaged {
        /// The unit's file.
        unit: PathBuf,
        /// Byte offset of the record in the unit.
        at: u64,
        /// The record's sequence number.
        seq: u64,
        /// Which check failed.
        why: &'static str,
    },
    /// The journal's data is encrypted, and there is no key for it.
    #[error(
        "the journal {} is encrypted: give its key file with --key-file or AFTERIMAGE_KEY_FILE",
        journal.display()
    )]
    KeyMissing {
        /// The journal's directory.
        journal: PathBuf,
    },
    /// The key is another one's, or the journal has none.
    #[error("the key does not fit the journal {}: {why}", journal.display())]
    KeyUnfit {
        /// The journal's directory.
        journal: PathBuf,
        /// How they differ, and what to do.
        why: &'static str,
    },
    /// A block of a map run doesn't pass its check: derived data, the units' indexes hold the same.
    #[error("map run {}: the block at byte {at} is damaged: {why}", path.display())]
    BadRun {
        /// The run's file.
        path: PathBuf,
        /// Byte offset of the block.
        at: u64,
        /// Which check failed.
        why: &'static str,
    },
    /// No unit has what the map says that it has.
    #[error("record {seq} is in no unit, or not the byte {addr} of its volume")]
    Missing {
        /// The record's sequence number.
        seq: u64,
        /// Byte address in the volume.
        addr: u64,
    },
    /// The journal stopped taking records after an error; it must be opened anew.
    #[error("the journal stopped at record {last_seq}: {why}")]
    Stopped {
        /// The newest record that was committed.
        last_seq: u64,
        /// The first error.
        why: String,
        /// Whether it was the want of space.
        space: bool,
    },
    /// What comes second was not taken in: the disk was busy with what comes first.
    #[error("the journal's disk was busy with the guests' writes for {waited:?}: try again later")]
    Busy {
        /// How long it waited.
        waited: std::time::Duration,
    },
    /// The pool has no room for a unit, or a limit forbids it.
    #[error("{0}")]
    NoRoom(String),
    /// A record that no unit can hold.
    #[error("a record of {bytes} bytes is over the journal's limit of {limit_bytes}")]
    TooLarge {
        /// Asked for.
        bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// A site holds records that are not in this journal's line: a person has to decide which one goes on.
    #[error("{0}")]
    OtherBranch(String),
    /// A configuration, session or copy that doesn't fit what the journal holds.
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// Names the action and the path of a failed system call.
    pub fn io(what: &'static str, path: &Path, source: impl Into<std::io::Error>) -> Self {
        Self::Io { what, path: path.to_owned(), source: source.into() }
    }

    /// Whether the host failed and not the journal: this says nothing of what the files hold, and may be
    /// gone at the next try. Never shown as damage.
    #[must_use]
    pub fn is_host(&self) -> bool {
        matches!(self, Self::Io { source, .. } if !says_what_is_there(source))
    }

    /// Whether this process has no file descriptors or no memory left: nothing can be learned of any file.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_exhausted(source))
    }

    /// As [`Error::is_host`], where nothing can be learned of any file: this process has no file descriptors,
    /// no memory or no permission. An error of a device (`EIO`) may be about one file alone.
    #[must_use]
    pub fn is_starved(&self) -> bool {
        self.is_host() && !matches!(self, Self::Io { source, .. } if is_device(source))
    }

    /// What the caller can do.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { source, .. } => match source.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                    ErrorKind::FreeSpace
                }
                std::io::ErrorKind::NotFound
                | std::io::ErrorKind::PermissionDenied
                | std::io::ErrorKind::ReadOnlyFilesystem
                | std::io::ErrorKind::NotADirectory => ErrorKind::FixInput,
                _ => ErrorKind::Broken,
            },
            Self::NewerFormat { .. }
            | Self::Unusable { .. }
            | Self::KeyMissing { .. }
            | Self::KeyUnfit { .. }
            | Self::OtherBranch(_)
            | Self::Invalid(_) => ErrorKind::FixInput,
            Self::Locked { .. } | Self::Busy { .. } => ErrorKind::Retry,
            Self::Damaged { .. } | Self::Missing { .. } => ErrorKind::NotRestorable,
            Self::NoRoom(_) | Self::Stopped { space: true, .. } => ErrorKind::FreeSpace,
            Self::Stopped { .. } | Self::TooLarge { .. } | Self::BadRun { .. } => ErrorKind::Broken,
        }
    }
}

/// Whether an error is an answer about the file: there is none, it ends early, or it is no file of ours.
fn says_what_is_there(error: &std::io::Error) -> bool {
    use std::io::ErrorKind as K;
    let kinds = [K::NotFound, K::UnexpectedEof, K::InvalidData, K::NotADirectory, K::IsADirectory];
    kinds.contains(&error.kind())
}

/// See [`Error::is_exhausted`].
pub(crate) fn is_exhausted(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOMEM];
    error.raw_os_error().is_some_and(|raw| exhausted.iter().any(|e| e.raw_os_error() == raw))
}

/// Whether the device or file system below a file failed to read it.
fn is_device(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let device = [Errno::IO, Errno::REMOTEIO, Errno::NODATA, Errno::UCLEAN, Errno::BADMSG];
    error.raw_os_error().is_some_and(|raw| device.iter().any(|e| e.raw_os_error() == raw))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    #[test]
    fn host_errors_are_told_from_answers_about_a_file() {
        let of = |errno: Errno| Error::io("read unit", Path::new("unit-0000000001"), errno);
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::ACCESS, Errno::STALE] {
            assert!(of(errno).is_host() && of(errno).is_starved(), "{errno}");
        }
        for errno in [Errno::IO, Errno::UCLEAN] {
            assert!(of(errno).is_host() && !of(errno).is_starved(), "{errno}");
        }
        for errno in [Errno::NOENT, Errno::ISDIR] {
            assert!(!of(errno).is_host(), "{errno}");
        }
        let eof = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
        assert!(!Error::io("read unit", Path::new("unit-0000000001"), eof).is_host());
    }
}
