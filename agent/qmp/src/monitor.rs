//! The one interface to a running QEMU.
//!
//! What holds for every implementation: commands are sent in the order of the calls, a command
//! whose future is dropped is still carried out, and events come in the order QEMU sent them.
//! When the monitor ends, each [`Events`] says so once everything before has been handed out.

use std::{future::Future, pin::Pin, time::Duration};

use serde_json::Value;

use crate::{Events, Result};

/// A boxed future, so that [`Monitor`] can be used as `dyn Monitor`.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A monitor connection: QMP socket, `virsh`, or a fake in a test.
pub trait Monitor: Send + Sync {
    /// Carry out `command` with `arguments` (an object, or `Null` for none) and return what
    /// QEMU returned.
    ///
    /// After `limit` it gives up with [`crate::Error::Timeout`]; the command may still happen.
    fn execute_within<'a>(
        &'a self,
        command: &'a str,
        arguments: Value,
        limit: Duration,
    ) -> BoxFuture<'a, Result<Value>>;

    /// The events from now on.
    fn events(&self) -> Events;

    /// The process that runs QEMU, where the monitor can tell.
    fn pid(&self) -> Option<u32>;

    /// The monitor in words, for messages: a path or a domain.
    fn describe(&self) -> String;

    /// The limit for ordinary commands. They run in QEMU's main loop and take milliseconds;
    /// seconds mean that something blocks it.
    fn limit(&self) -> Duration {
        Duration::from_secs(10)
    }

    /// [`Monitor::execute_within`] with the ordinary limit.
    fn execute<'a>(&'a self, command: &'a str, arguments: Value) -> BoxFuture<'a, Result<Value>> {
        self.execute_within(command, arguments, self.limit())
    }
}
