//! Warm restore: a guest's memory as it was at a checkpoint, as a stream that QEMU resumes from.
//!
//! ```text
//! resolve ─► WarmPoint ─► plan_warm ─► WarmPlan ─► restore_warm ─► images, GUEST.memory, script
//!              (P, C)        │  ▲                      │
//!                 needs ─► fit (pure)         apply ─► stream (pages in the order of addresses)
//!                            ▲
//!                  host: facts of this machine
//! ```
//!
//! What always holds:
//! * disks are read at the checkpoint's instant P, memory and device state at C, the position of
//!   the record that commits them: one moment of the guest (I-6);
//! * what keeps a guest from being resumed here is said before anything is written;
//! * each page is read once, and none whose record failed its checksum gets into a stream (I-12).

mod fit;
mod host;
mod plan;
mod probe;
mod program;
mod resolve;
mod runstate;
mod state;
mod stream;

pub use fit::{Facts, Kvm, Program};
pub use host::{Host, ThisHost};
pub use plan::{WarmPlan, plan_warm};
pub use probe::{BOOT_MAX, Boot, boot};
pub use program::WithQemu;
pub use resolve::{NearestWarm, WarmPoint};

pub(crate) use plan::{GuestPlan, guest_plan};
pub(crate) use state::DeviceState;
pub(crate) use stream::{StreamFile, StreamJob};
