//! Events of a monitor: untyped as they came ([`Event`]), and what a guest's task needs to know
//! of them ([`QemuEvent`]).
//!
//! They stay untyped on the way, so that an event of a newer QEMU is never an error. The channel
//! is bounded; a receiver that is too slow gets [`QemuEvent::Overflow`] in the place of what it
//! lost and must look at the state itself (`query-status`, `query-block-jobs`).

use serde_json::{Value, json};
use tokio::sync::broadcast;

/// Events kept for a slow receiver before it loses the oldest.
pub const EVENTS_MAX: usize = 1024;

/// When QEMU sent an event, by the host's wall clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Timestamp {
    /// Microseconds since the Unix epoch.
    pub unix_us: i64,
}

/// An event as QEMU sent it.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its name, such as `BLOCK_JOB_ERROR`.
    pub name: String,
    /// Its data; an empty object when it has none.
    pub data: Value,
    /// When it happened.
    pub timestamp: Timestamp,
    /// It was concluded from polling, not sent by QEMU.
    pub concluded: bool,
}

/// Our own event: the monitor has ended. QEMU's names never hold a colon.
const EOF: &str = "afterimage:eof";
/// Our own event: this receiver was too slow.
const OVERFLOW: &str = "afterimage:overflow";

impl Event {
    /// Reads a QMP message with the member `event`; `None` when it has none.
    pub fn from_message(message: &Value) -> Option<Event> {
        let name = message.get("event")?.as_str()?.to_owned();
        let stamp = |k: &str| message["timestamp"][k].as_i64().unwrap_or(0).max(0);
        let unix_us =
            stamp("seconds").saturating_mul(1_000_000).saturating_add(stamp("microseconds"));
        let data = message.get("data").cloned().unwrap_or_else(|| json!({}));
        Some(Event { name, data, timestamp: Timestamp { unix_us }, concluded: false })
    }

    pub(crate) fn now(name: &str, data: Value) -> Event {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let unix_us = now.map_or(0, |d| i64::try_from(d.as_micros()).unwrap_or(i64::MAX));
        let timestamp = Timestamp { unix_us };
        Event { name: name.to_owned(), data, timestamp, concluded: true }
    }

    pub(crate) fn eof(reason: &str) -> Event {
        Event::now(EOF, json!({ "reason": reason }))
    }

    /// What the event means to us.
    pub fn meaning(&self) -> QemuEvent {
        let text = |k: &str| self.data[k].as_str().unwrap_or_default().to_owned();
        let job = || text("device");
        match self.name.as_str() {
            "BLOCK_JOB_READY" => QemuEvent::BlockJobReady { job: job() },
            "BLOCK_JOB_ERROR" => QemuEvent::BlockJobError {
                job: job(),
                operation: text("operation"),
                action: text("action"),
            },
            "BLOCK_JOB_COMPLETED" => QemuEvent::BlockJobCompleted {
                job: job(),
                error: self.data["error"].as_str().map(str::to_owned),
            },
            "BLOCK_JOB_CANCELLED" => QemuEvent::BlockJobCancelled { job: job() },
            "JOB_STATUS_CHANGE" => {
                QemuEvent::JobStatusChange { job: text("id"), status: text("status") }
            }
            "STOP" => QemuEvent::Stop,
            "RESUME" => QemuEvent::Resume,
            "SHUTDOWN" => QemuEvent::Shutdown {
                guest: self.data["guest"].as_bool().unwrap_or(false),
                reason: text("reason"),
            },
            "RESET" => QemuEvent::Reset { guest: self.data["guest"].as_bool().unwrap_or(false) },
            "MIGRATION" => QemuEvent::Migration { status: text("status") },
            "BLOCK_EXPORT_DELETED" => QemuEvent::BlockExportDeleted { id: text("id") },
            "DEVICE_DELETED" => QemuEvent::DeviceDeleted {
                device: self.data["device"].as_str().map(str::to_owned),
                path: text("path"),
            },
            "BLOCK_IO_ERROR" => QemuEvent::GuestIoError {
                node: text("node-name"),
                operation: text("operation"),
                action: text("action"),
            },
            EOF => QemuEvent::Eof { reason: text("reason") },
            OVERFLOW => QemuEvent::Overflow { lost: self.data["lost"].as_u64().unwrap_or(0) },
            other => QemuEvent::Other { name: other.to_owned() },
        }
    }
}

/// What a guest's task needs to know of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QemuEvent {
    /// A mirror has nothing left to copy in bulk.
    BlockJobReady {
        /// Its job id.
        job: String,
    },
    /// A job met an error; with `action` `stop` it is paused and keeps its dirty bitmap.
    BlockJobError {
        /// Its job id.
        job: String,
        /// `read` or `write`.
        operation: String,
        /// `stop`, `report` or `ignore`.
        action: String,
    },
    /// A job has ended; with `error`, because of it.
    BlockJobCompleted {
        /// Its job id.
        job: String,
        /// QEMU's reason when it failed.
        error: Option<String>,
    },
    /// A job was cancelled.
    BlockJobCancelled {
        /// Its job id.
        job: String,
    },
    /// A job changed its state: `created`, `running`, `ready`, `standby`, `concluded`, `null`, ...
    JobStatusChange {
        /// Its job id.
        job: String,
        /// The new state.
        status: String,
    },
    /// The guest's processors were stopped.
    Stop,
    /// The guest's processors run again.
    Resume,
    /// The guest is going down.
    Shutdown {
        /// The guest asked for it itself.
        guest: bool,
        /// QEMU's reason, such as `guest-shutdown` or `host-signal`.
        reason: String,
    },
    /// The guest was reset.
    Reset {
        /// The guest asked for it itself.
        guest: bool,
    },
    /// A migration changed its state (only sent when the capability `events` is on).
    Migration {
        /// The new state, such as `completed`.
        status: String,
    },
    /// A block export is gone.
    BlockExportDeleted {
        /// Its id.
        id: String,
    },
    /// A device was unplugged.
    DeviceDeleted {
        /// Its id, where it had one.
        device: Option<String>,
        /// Its qdev path.
        path: String,
    },
    /// The guest's own disk failed (not ours: a mirror never passes its target's errors on).
    GuestIoError {
        /// The node.
        node: String,
        /// `read` or `write`.
        operation: String,
        /// `report`, `ignore` or `stop`.
        action: String,
    },
    /// The monitor has ended: QEMU is gone, or closed the connection.
    Eof {
        /// Why, as far as known.
        reason: String,
    },
    /// This receiver was too slow; look at the state itself.
    Overflow {
        /// Events that were lost.
        lost: u64,
    },
    /// Anything else.
    Other {
        /// Its name.
        name: String,
    },
}

/// A receiver of events.
#[derive(Debug)]
pub struct Events {
    receiver: Option<broadcast::Receiver<Event>>,
    reason: String,
}

impl Events {
    pub(crate) fn new(receiver: broadcast::Receiver<Event>) -> Self {
        Events { receiver: Some(receiver), reason: "the monitor was closed".to_owned() }
    }

    /// A receiver for a monitor that has ended already.
    pub fn ended(reason: &str) -> Self {
        Events { receiver: None, reason: reason.to_owned() }
    }

    /// A channel for monitors of other makes, such as a fake in a test. The monitor has ended
    /// when the sender is dropped.
    pub fn channel() -> (broadcast::Sender<Event>, Events) {
        let (sender, receiver) = broadcast::channel(EVENTS_MAX);
        (sender, Events::new(receiver))
    }

    /// The next event. Cancel-safe. After the end it says [`QemuEvent::Eof`] for ever.
    pub async fn next(&mut self) -> Event {
        let Some(receiver) = &mut self.receiver else { return Event::eof(&self.reason) };
        match receiver.recv().await {
            Ok(event) => {
                if let QemuEvent::Eof { reason } = event.meaning() {
                    self.reason = reason;
                    self.receiver = None;
                }
                event
            }
            Err(broadcast::error::RecvError::Lagged(lost)) => {
                Event::now(OVERFLOW, json!({ "lost": lost }))
            }
            Err(broadcast::error::RecvError::Closed) => {
                self.receiver = None;
                Event::eof(&self.reason)
            }
        }
    }

    /// The next event that has been received already. After the end, none.
    pub fn said(&mut self) -> Option<Event> {
        use broadcast::error::TryRecvError;
        let receiver = self.receiver.as_mut()?;
        match receiver.try_recv() {
            Ok(event) => {
                if let QemuEvent::Eof { reason } = event.meaning() {
                    self.reason = reason;
                    self.receiver = None;
                }
                Some(event)
            }
            Err(TryRecvError::Lagged(lost)) => Some(Event::now(OVERFLOW, json!({ "lost": lost }))),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Closed) => {
                self.receiver = None;
                None
            }
        }
    }

    /// The next event's meaning. Cancel-safe.
    pub async fn next_meaning(&mut self) -> QemuEvent {
        self.next().await.meaning()
    }
}
