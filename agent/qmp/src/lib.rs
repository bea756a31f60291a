//! Everything Afterimage says to a hypervisor.
//!
//! - [`monitor`]: the one interface to a running QEMU: commands with a time limit, events in order.
//! - [`client`]: that interface over a QMP unix socket.
//! - [`libvirt`]: that interface through `virsh`, for guests whose monitor libvirt owns.
//! - [`qemu`]: typed operations on a running QEMU, as mirror capture needs them.
//! - [`guest_agent`]: freezing and thawing the file systems inside the guest.
//!
//! What always holds: no call waits without a limit, no buffer grows without one, and an answer
//! that is not understood is an error that names the command; never a guess.

pub mod client;
pub mod error;
pub mod event;
pub mod guest_agent;
pub mod libvirt;
pub mod monitor;
pub mod qemu;

pub use client::{Client, Limits};
pub use error::{Error, Kind, Result};
pub use event::{Event, Events, QemuEvent, Timestamp};
pub use monitor::Monitor;
pub use qemu::Qemu;
