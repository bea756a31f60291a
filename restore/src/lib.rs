//! Restore: from a journal on disk to images of any recovery point, with or without an agent.
//!
//! Owns deciding ([`plan`](plan()), pure) and doing ([`restore`](restore()) to images,
//! [`export`](export()) over NBD). What always holds:
//! * a reader's lock on the journal is held as long as a [`Recovery`] lives (I-7);
//! * only listed points are restored (I-4, I-6), and no byte of a record is used before the
//!   record's checksum matched (I-12);
//! * an image gets its final name only when it is whole and durable; nothing is overwritten.
//!
//! ```text
//!              ┌─► export: NBD, block by block
//! open ─► History ─► plan (pure) ─► batches ─► apply ─► target: raw | qcow2 ─► rename
//!                       │                        └────► temporary file ─► digest ┐
//!                       └ refusal                                                ├ verify_at
//!                                               replay (simple, no map) ─► digest ┘
//! ```

mod apply;
mod batch;
mod direct;
mod error;
mod export;
mod folder;
mod names;
mod open;
mod plan;
mod refusal;
mod restore;
mod runs;
pub mod site;
mod start;
mod target;
mod time;
mod verify;
mod warm;

pub use afterimage_journal::history::{Point, When};
pub use batch::{
    BATCH_BYTES_MAX, BATCH_PIECES_MAX, Batch, Batches, Extent, LOG_BATCH_BYTES_MAX, Order, Read,
    Write,
};
pub use error::{DamagedRecord, Error, Kind, Nearest, Result};
pub use export::{
    ExportOptions, ExportReport, ExportedDisk, ExportedMemory, Exporting, SOCKET_PATH_BYTES_MAX,
    WarmExport, export, export_warm,
};
pub use open::{Recovery, open, open_in};
pub use plan::{Format, Plan, Selection, VolumePlan, plan};
pub use restore::{
    DiskReport, MemoryReport, Progress, Report, RestoreOptions, restore, restore_warm,
};
pub use start::uri_part;
pub use time::{Moment, clock, clock_at, rfc3339, wall_clock};
pub use verify::{
    DamageFound, RefusedRange, VerifyAtReport, VerifyReport, VolumeDigest, verify, verify_at,
};
pub use warm::{
    BOOT_MAX, Boot, Facts, Host, Kvm, NearestWarm, Program, ThisHost, WarmPlan, WarmPoint,
    WithQemu, boot, plan_warm,
};
