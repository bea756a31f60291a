//! What the engine does for the API.

use super::types::{
    AgentInfo, ApiError, GuestStatus, MarkReply, MarkRequest, PoolAddRequest, PoolRemoveRequest,
    ProtectRequest, SetRequest,
};
use afterimage_journal::pool::{Added, PoolStatus};
use std::future::Future;
use std::pin::Pin;

/// A boxed future, so that [`Control`] can be used as `dyn Control`.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The answer of a [`Control`].
pub type Reply<'a, T> = BoxFuture<'a, Result<T, ApiError>>;

/// The engine, as the API sees it. NAME is a guest or a group: then all guests of it are meant.
///
/// A future may be dropped when the caller goes away; what was begun is finished or undone all
/// the same. Errors are ready to be shown to people.
pub trait Control: Send + Sync + 'static {
    /// Attaches to a guest and begins its initial sync. Returns once it is attached, with the
    /// status of the guest; the sync goes on. After an error nothing of it is left.
    fn protect(&self, request: ProtectRequest) -> Reply<'_, Vec<GuestStatus>>;

    /// Ends the capture for good. With `purge` the journal goes too (and the call fails while a
    /// restore reads it); without, it stays restorable.
    fn unprotect(&self, name: String, purge: bool) -> Reply<'_, ()>;

    /// Lets go of the guest, so that snapshots, resizes and the like can be made; what the guest
    /// writes meanwhile is a gap.
    fn detach(&self, name: String) -> Reply<'_, Vec<GuestStatus>>;

    /// Takes hold of it again: a resync begins.
    fn attach(&self, name: String) -> Reply<'_, Vec<GuestStatus>>;

    /// The status of a guest, of the guests of a group, or of all.
    fn status(&self, name: Option<String>) -> Reply<'_, Vec<GuestStatus>>;

    /// Makes a checkpoint with a tag; returns when it is durable.
    fn mark(&self, name: String, request: MarkRequest) -> Reply<'_, MarkReply>;

    /// Changes settings, durably; returns the status afterwards.
    fn set(&self, name: String, request: SetRequest) -> Reply<'_, Vec<GuestStatus>>;

    /// The pool's members and what lies on them.
    fn pool(&self) -> Reply<'_, PoolStatus>;

    /// Adds a member to the pool, or changes one; durable when it returns.
    fn pool_add(&self, request: PoolAddRequest) -> Reply<'_, Added>;

    /// Begins to drain a member, or gives one up that is lost; durable when it returns.
    fn pool_remove(&self, request: PoolRemoveRequest) -> Reply<'_, ()>;

    /// The agent itself.
    fn info(&self) -> Reply<'_, AgentInfo>;
}
