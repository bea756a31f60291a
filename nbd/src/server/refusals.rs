//! Clients for whom there is no place: how long they are told so, and what the log says of them.
//!
//! What always holds: however many come, the log gets a line each [`LOG_EVERY`] at most.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Limits;

/// How long a client has to hear that there is no place for it.
const TELLING_MAX: Duration = Duration::from_secs(2);
/// Time between two lines of the log.
const LOG_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
struct Logged {
    last: Option<Instant>,
    /// Refused since then.
    unlogged: u64,
}

/// What was logged of refused clients.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<Logged>);

impl Refusals {
    /// The limits of a handshake in which a client is told that it is refused.
    pub(super) fn limits(&self, of_server: &Limits) -> Limits {
        let handshake_max = of_server.handshake_max.min(TELLING_MAX);
        Limits { handshake_max, ..of_server.clone() }
    }

    /// Logs that a client was refused, or counts it for the next line.
    pub(super) fn log(&self, error: &io::Error) {
        let mut logged = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        logged.unlogged += 1;
        if logged.last.is_some_and(|last| last.elapsed() < LOG_EVERY) {
            return;
        }
        let clients = std::mem::take(&mut logged.unlogged);
        logged.last = Some(Instant::now());
        drop(logged);
        tracing::warn!(%error, clients, "NBD connection refused");
    }
}
