//! How a command fails: a text for people and an exit code for scripts.

use afterimage_agent::api::{ApiError, ErrorKind};
use std::fmt;

/// A command's end that is not success: 2 wrong usage, 3 not restorable, 4 not reachable, 1 else.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub code: u8,
    /// What happened, to what, and what to do next.
    pub message: String,
}

/// A command's end.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// Wrong usage.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { code: 2, message: message.into() }
    }

    /// Anything that has no code of its own.
    pub fn other(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into() }
    }

    /// A system call that failed: `what` is verb first.
    pub fn io(what: impl fmt::Display, error: &std::io::Error) -> Self {
        Self::other(format!("{what}: {error}"))
    }
}

impl From<ApiError> for Failure {
    fn from(e: ApiError) -> Self {
        Self { code: e.kind.exit_code(), message: e.message }
    }
}

impl From<afterimage_restore::Error> for Failure {
    fn from(e: afterimage_restore::Error) -> Self {
        Self { code: e.kind().exit_code(), message: e.to_string() }
    }
}

impl From<afterimage_journal::Error> for Failure {
    fn from(e: afterimage_journal::Error) -> Self {
        Self::from(afterimage_restore::Error::from(e))
    }
}

impl From<afterimage_restore::site::control::Refusal> for Failure {
    fn from(e: afterimage_restore::site::control::Refusal) -> Self {
        Self { code: e.code, message: e.message }
    }
}

impl From<afterimage_link::Error> for Failure {
    fn from(e: afterimage_link::Error) -> Self {
        Self { code: e.exit_code(), message: e.to_string() }
    }
}

impl From<crate::when::NoMoment> for Failure {
    fn from(e: crate::when::NoMoment) -> Self {
        Self::usage(e.to_string())
    }
}

impl From<serde_json::Error> for Failure {
    fn from(e: serde_json::Error) -> Self {
        Self::other(format!("encode JSON: {e}"))
    }
}

impl From<anyhow::Error> for Failure {
    fn from(e: anyhow::Error) -> Self {
        // A cause that knows its code keeps it.
        let code = e.chain().find_map(|cause| {
            let api = cause.downcast_ref::<ApiError>().map(|e| e.kind);
            let restore = cause.downcast_ref::<afterimage_restore::Error>();
            api.map(ErrorKind::exit_code).or_else(|| restore.map(|e| e.kind().exit_code()))
        });
        Self { code: code.unwrap_or(1), message: format!("{e:#}") }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
