//! What a watchdog sees of each connection.
//!
//! The calls come from the connection's own thread, once a batch and not once a request, and
//! must be quick. Between `received` and `replied` or `waiting` the server owes its client
//! something; from `waiting` to the next `received` it owes nothing, even when a write's payload
//! has arrived in part. Where replies go out before the whole batch is answered (before a flush,
//! say), `replied` is followed by `received` at once.

use std::io;
use std::os::fd::BorrowedFd;

use crate::proto::{option, request};

/// Makes the observer of each connection.
pub trait Observer: Send + Sync {
    /// A client has connected; `fd` is its socket, to be duplicated if it is to be kept.
    fn connected(&self, fd: BorrowedFd<'_>) -> Box<dyn ConnectionObserver>;
}

/// Watches one connection. Each call does nothing unless it is implemented.
pub trait ConnectionObserver: Send {
    /// The client asks for an export to transmit with: `Some` refuses it, with words for the client.
    fn refusal(&self, name: &str) -> Option<String> {
        let _ = name;
        None
    }
    /// The client has chosen its export; transmission begins. Called before the client is told so: it may
    /// turn out to be gone, and then `closed` follows.
    fn exporting(&self, name: &str) {
        let _ = name;
    }
    /// The thread is about to wait for the client.
    fn waiting(&self) {}
    /// Bytes have arrived after a wait, or some of a batch was answered and more is to be.
    fn received(&self) {}
    /// The thread is about to send, which may wait for the client to read.
    fn sending(&self) {}
    /// The replies that had gathered were sent.
    fn replied(&self) {}
    /// The connection is over.
    fn closed(self: Box<Self>, reason: CloseReason) {
        let _ = reason;
    }
}

/// An observer that does nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoObserver;

impl Observer for NoObserver {
    fn connected(&self, _fd: BorrowedFd<'_>) -> Box<dyn ConnectionObserver> {
        Box::new(Self)
    }
}

impl ConnectionObserver for NoObserver {}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum CloseReason {
    /// The client said goodbye: DISC, or ABORT in the handshake.
    #[error("client disconnected")]
    Disconnected,
    /// The stream ended between two messages.
    #[error("client closed the stream without disconnecting")]
    Hangup,
    /// The stream ended within a message.
    #[error("stream ended in the middle of a message")]
    Truncated,
    /// The client did not finish its handshake in time.
    #[error("handshake took longer than {0:?}")]
    HandshakeTimeout(std::time::Duration),
    /// The rest of a request did not arrive in time.
    #[error("the rest of a request did not arrive within {0:?}")]
    RequestTimeout(std::time::Duration),
    /// There was no place for the client, or the observer refused it.
    #[error("{0}")]
    Refused(String),
    /// The client asked for an export that does not exist, in a way that has no error reply.
    #[error("no export is named {0:?}")]
    UnknownExport(String),
    /// The client broke the protocol.
    #[error("client broke the protocol: {0}")]
    Protocol(String),
    /// The stream failed.
    #[error("stream failed: {0}")]
    Stream(#[source] io::Error),
    /// The server ended it.
    #[error("server ended the connection")]
    Shutdown,
    /// The export panicked.
    #[error("export panicked")]
    Panicked,
}

impl From<io::Error> for CloseReason {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Truncated,
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Hangup,
            _ => Self::Stream(error),
        }
    }
}

impl From<request::BadMagic> for CloseReason {
    fn from(error: request::BadMagic) -> Self {
        Self::Protocol(error.to_string())
    }
}

impl From<option::BadMagic> for CloseReason {
    fn from(error: option::BadMagic) -> Self {
        Self::Protocol(error.to_string())
    }
}
