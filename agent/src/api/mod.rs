//! The agent's interface to the command line: HTTP/1.1 and JSON over `STATE/api.sock`.
//!
//! [`types`] is what goes over the wire, [`Control`] what the engine does for it, [`server`] joins
//! the two, [`client`] is the other end. What always holds: the socket is 0600 and lies in the
//! state directory, no body is larger than [`BODY_BYTES_MAX`], no error is silent: each has a kind
//! (and by it the exit code of the command line) and a text for people.
//!
//! ```text
//! GET    /v1/info                        AgentInfo
//! GET    /v1/guests                      [GuestStatus]
//! POST   /v1/guests                      ProtectRequest -> [GuestStatus]
//! GET    /v1/guests/NAME                 [GuestStatus]: the guest, or those of the group
//! PATCH  /v1/guests/NAME                 SetRequest     -> [GuestStatus]
//! DELETE /v1/guests/NAME?purge=true      unprotect
//! POST   /v1/guests/NAME/detach, attach  -> [GuestStatus]
//! POST   /v1/guests/NAME/mark            MarkRequest    -> MarkReply
//! GET    /v1/pool                        PoolStatus
//! POST   /v1/pool/add                    PoolAddRequest -> Added
//! POST   /v1/pool/remove                 PoolRemoveRequest
//! ```

pub mod client;
pub mod control;
pub mod error;
pub mod memory;
pub mod server;
pub mod sites;
pub mod types;

pub use client::Client;
pub use control::{BoxFuture, Control};
pub use memory::{MemoryCheckpoint, MemoryState, MemoryStatus};
pub use sites::{SiteState, SiteStatus};
pub use types::{
    AgentInfo, ApiError, CopyProgress, DiskStatus, ErrorKind, GapStatus, GuestState, GuestStatus,
    JournalSize, MarkReply, MarkRequest, PoolAddRequest, PoolRemoveRequest, ProtectRequest,
    SetRequest, ThinnedStatus, WindowStatus,
};

use std::path::{Path, PathBuf};

/// Largest body of a request or an answer, in bytes.
pub const BODY_BYTES_MAX: usize = 8 << 20;

/// The API's socket below a state directory.
#[must_use]
pub fn socket_path(state: &Path) -> PathBuf {
    state.join("api.sock")
}

#[cfg(test)]
mod tests;
