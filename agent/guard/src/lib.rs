//! The guard: the parent process of the agent's worker.
//!
//! QEMU waits for each mirrored write. When the worker that answers is killed, QEMU sees the end
//! of its connection and the guest goes on without an error; when the worker *hangs*, the guest
//! stalls without limit, and QEMU's monitor with it. So the guard watches, and kills in time
//! (I-10), then undoes what the worker had done to guests (a freeze) and starts the next one.
//!
//! ```text
//!  guard process                      shared memory                      worker process
//!  ┌──────────────┐ reads   ┌──────────────────────────────┐  writes  ┌────────────────────┐
//!  │ poll + tick  │◄────────┤ heartbeat, a line a slot     │◄─────────┤ I/O loops, beats   │
//!  │ Watch        │ writes  │ counters (restarts, kills)   │  reads   │ Worker, SlotGuard  │
//!  │ decide()     ├────────►│                              ├─────────►│                    │
//!  │              │         └──────────────────────────────┘          │                    │
//!  │ duplicates   │◄──────── SCM_RIGHTS on a SEQPACKET pair ──────────┤ guest sockets ─────┼─ QEMU
//!  └──────────────┘                                                   └────────────────────┘
//! ```
//!
//! What always holds:
//! - The guard's loop waits in `poll` alone: no disk, no lock of the worker's, no log sink.
//! - What to do is decided by [`decide`], which is pure; doing is in [`run`].
//! - A worker is started only after its predecessor was reaped (I-9).
//! - A worker dies with its guard.
//! - A loop that is idle and has nothing unread is never acted upon.

mod backoff;
mod child;
mod config;
mod decide;
mod report;
mod run;
mod shared;
mod watch;
mod worker;

pub use config::{GuardConfig, GuardError, Program};
pub use decide::{Action, KillReason, Limits, SlotView, View, decide};
pub use run::run;
pub use shared::{Counters, SLOTS, now_ns};
pub use worker::{SlotGuard, SlotKind, Ticket, Worker};
