//! The journal engine: captured writes as an ordered, checksummed, replayable log.
//!
//! Owns everything that lies in a journal directory. What always holds:
//! * one counter numbers every record (I-2), so any prefix is crash-consistent over all volumes;
//! * nothing above the durable watermark may leave the journal (I-3);
//! * a position is restorable only inside a session in which every guest was level (I-4).
//!
//! Folder by folder: [`format`] is bytes without I/O, [`unit`] one file of the log, [`log`] the
//! append path, [`history`] what can be restored, [`map`] and [`view`] a volume at a position,
//! [`window`] how far back that reaches, [`layout`] where journals lie below a state directory. The
//! bytes are in `docs/format.md`.

pub mod arrivals;
pub mod catalogue;
pub mod clock;
pub mod error;
pub mod feed;
pub mod format;
pub mod history;
pub mod keeper;
pub mod key;
pub mod layout;
pub mod log;
pub mod map;
pub mod merge;
pub mod pool;
pub mod replica;
pub mod ring;
pub mod scrub;
pub mod storage;
pub mod text;
pub mod unit;
pub mod view;
pub mod window;
pub mod wire;

use afterimage_planted as planted;

pub use error::{Error, ErrorKind, Result};
pub use format::cipher::Key;
pub use format::meta;
pub use history::History;
pub use log::{Journal, Options, Reservation};
pub use view::View;

/// The position of a record in its journal; 0 is "before everything".
pub type Seq = u64;
/// Number of a volume within its group; assigned by the journal's configuration, never reused.
pub type VolumeId = u16;
