//! The source side: what runs beside the guests.
//!
//! ```text
//!  guard process ── starts, watches ──► worker process
//!                                        daemon ─ engine ─ one guest task a guest ─ one journal a group
//!                                                   ▲            │ QMP                ▲
//!                                          api.sock ┘            ▼                    │ records
//!                                                   QEMU ═ NBD ═► capture: a thread a connection
//! ```
//!
//! [`daemon`] is the process, [`engine`] the set of guests, [`guest`] one guest's state machine,
//! [`capture`] the way of a write from the socket into the journal, [`group`] a journal with the
//! sessions of its guests, [`settings`] what survives a restart, [`intent`] what must be undone
//! after one, [`pool`] where journals lie, [`ship`] how they get to sites, [`api`] how the command
//! line talks to all that.
//!
//! What always holds: a guest's state is changed by its own task alone; capture never waits for
//! a task; nothing is called protected that was not proved level (I-4).

pub mod api;
pub mod capture;
pub mod daemon;
pub mod engine;
pub mod group;
pub mod guest;
pub mod intent;
pub mod memory;
pub mod pool;
pub mod settings;
pub mod ship;
