//! Errors of the API: a kind, and by it the exit code of the command line, and a text for people.

use serde::{Deserialize, Serialize};

/// What the caller can do about an error; each is an exit code of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// What was asked for makes no sense: ask for something else (2).
    Usage,
    /// The moment can't be restored: a gap, outside of the window, damaged (3).
    NotRestorable,
    /// The guest, its monitor or the agent doesn't answer (4).
    NotReachable,
    /// Anything else (1).
    Other,
}

impl ErrorKind {
    /// The exit code of the command line.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Usage => 2,
            Self::NotRestorable => 3,
            Self::NotReachable => 4,
            Self::Other => 1,
        }
    }
}

/// An error of the API: the text says what happened, to what, and what to do next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// What the caller can do.
    pub kind: ErrorKind,
    /// For people.
    pub message: String,
}

impl ApiError {
    /// What was asked for makes no sense.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Usage, message: message.into() }
    }

    /// The moment can't be restored.
    pub fn not_restorable(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::NotRestorable, message: message.into() }
    }

    /// Somebody doesn't answer.
    pub fn not_reachable(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::NotReachable, message: message.into() }
    }

    /// Anything else.
    pub fn other(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Other, message: message.into() }
    }

    /// No guest or group has this name: lists those there are.
    #[must_use]
    pub fn unknown_name(name: &str, known: &[String]) -> Self {
        let known = match known {
            [] => "nothing is protected here yet: `afterimage protect` begins".to_owned(),
            known => format!("there are: {}", known.join(", ")),
        };
        Self::usage(format!("no guest or group is called {name:?}; {known}"))
    }
}
