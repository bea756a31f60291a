//! What goes wrong between an agent and a site, told by what the caller can do about it.

use afterimage_journal::wire::SinkError;
use std::fmt::Display;
use std::path::Path;

/// See the module. Texts say what happened, to what, and what to do next.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The input is wrong: a person corrects it.
    #[error("{0}")]
    Invalid(String),
    /// The other end can't be reached, or broke off: it may be tried again.
    #[error("{0}")]
    Away(String),
    /// The other end won't: not allowed, revoked, another group. A person has to see to it.
    #[error("{0}")]
    Refused(String),
    /// What came is not what the protocol says.
    #[error("{0}")]
    Broken(String),
    /// Something on this machine failed.
    #[error("{0}")]
    Local(String),
}

/// A result with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A system call that failed on a path; `what` is verb first.
    pub(crate) fn io(what: &str, path: &Path, error: impl Display) -> Self {
        Self::Local(format!("{what} {}: {error}", path.display()))
    }

    /// The exit code of a command that fails with it.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Invalid(_) => 2,
            Self::Away(_) => 4,
            Self::Refused(_) | Self::Broken(_) | Self::Local(_) => 1,
        }
    }
}

impl From<Error> for SinkError {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::Away(_) => Self::Away(text),
            Error::Broken(_) => Self::Broken(text),
            Error::Invalid(_) | Error::Refused(_) | Error::Local(_) => Self::Refused(text),
        }
    }
}
