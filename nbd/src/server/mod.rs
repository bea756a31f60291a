//! The server: accepts, negotiates, and answers requests, one thread a connection.
//!
//! ```text
//!  accept ─► handshake (time limit) ─► transmission (limit per request) ─► closed(reason)
//!                                       │  waiting() ─ receive ─ received()
//!                                       │  each whole request: export, reply buffered
//!                                       └─ no whole header left: send, replied()
//! ```
//!
//! What always holds: a reply is sent only after the export has returned; replies go out in the
//! order of the requests; before a thread waits for its client, every whole request that it has
//! received is answered.

mod block_status;
mod connection;
mod handshake;
mod link;
mod listen;
mod observer;
mod outbox;
mod read;
mod refusals;
mod registry;
mod socket;

use std::time::Duration;

pub use listen::{Server, ServerHandle};
pub use observer::{CloseReason, ConnectionObserver, NoObserver, Observer};
pub use socket::{ListenError, SOCKET_PATH_BYTES_MAX, SocketFile, bind};

/// Bounds of a server.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at one time; a further client gets an error reply to each of its options.
    pub connections_max: usize,
    /// How long a client may take for its whole handshake.
    pub handshake_max: Duration,
    /// How long the server waits for the rest of a request whose first byte has arrived. Between
    /// two requests a client may be silent for as long as it likes.
    pub request_max: Duration,
    /// Receive buffer of a connection, in bytes; at least 128 KiB are used, so that the largest
    /// option fits.
    pub receive_bytes: usize,
    /// Replies are sent when this many bytes of them have gathered, if not before.
    pub reply_bytes: usize,
    /// How long [`ServerHandle::shutdown`] lets connections answer what has arrived before it
    /// cuts them.
    pub drain_max: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 64,
            handshake_max: Duration::from_secs(10),
            request_max: Duration::from_secs(60),
            receive_bytes: 256 << 10,
            reply_bytes: 256 << 10,
            drain_max: Duration::from_secs(2),
        }
    }
}
