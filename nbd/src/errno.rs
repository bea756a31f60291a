//! The error numbers that NBD knows. Whatever else happens on either side maps to one of these.

use std::io;

/// An error number of the protocol ("Error values" in `doc/proto.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[repr(u32)]
pub enum Errno {
    /// Not permitted: a write to a read-only export.
    #[error("not permitted (EPERM)")]
    Perm = 1,
    /// The device failed.
    #[error("input/output error (EIO)")]
    Io = 5,
    /// The server is out of memory.
    #[error("out of memory (ENOMEM)")]
    NoMem = 12,
    /// The request is malformed or out of range.
    #[error("invalid request (EINVAL)")]
    Inval = 22,
    /// No space left, or a write past the end.
    #[error("no space left (ENOSPC)")]
    NoSpc = 28,
    /// The request is too large.
    #[error("too large (EOVERFLOW)")]
    Overflow = 75,
    /// Not supported in the way that was asked (a fast zero that would be slow).
    #[error("not supported (ENOTSUP)")]
    NotSup = 95,
    /// The server is shutting down.
    #[error("server is shutting down (ESHUTDOWN)")]
    Shutdown = 108,
}

impl Errno {
    /// The number on the wire.
    pub fn code(self) -> u32 {
        self as u32
    }

    /// The error for a number from the wire; unknown ones count as EINVAL, as the protocol asks.
    pub fn from_code(code: u32) -> Self {
        match code {
            1 => Self::Perm,
            5 => Self::Io,
            12 => Self::NoMem,
            28 => Self::NoSpc,
            75 => Self::Overflow,
            95 => Self::NotSup,
            108 => Self::Shutdown,
            _ => Self::Inval,
        }
    }
}

impl From<&io::Error> for Errno {
    fn from(error: &io::Error) -> Self {
        use rustix::io::Errno as Os;
        match Os::from_io_error(error) {
            Some(Os::PERM | Os::ACCESS | Os::ROFS) => Self::Perm,
            Some(Os::NOMEM) => Self::NoMem,
            Some(Os::INVAL) => Self::Inval,
            Some(Os::NOSPC | Os::DQUOT | Os::FBIG) => Self::NoSpc,
            Some(Os::OVERFLOW) => Self::Overflow,
            Some(Os::OPNOTSUPP) => Self::NotSup,
            Some(Os::SHUTDOWN) => Self::Shutdown,
            _ => Self::Io,
        }
    }
}

impl From<io::Error> for Errno {
    fn from(error: io::Error) -> Self {
        Self::from(&error)
    }
}
