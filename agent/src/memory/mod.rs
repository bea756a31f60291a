//! From QEMU's stream of a guest's memory to records of the journal.
//!
//! ```text
//!  QEMU ══ socket ══► a thread that never waits for a disk            a thread for the disk
//!                     parser ─► compare with the table ─► buffers ═════► spool
//!                                                                         │ the stream ended whole
//!  journal ◄── store: runs in the order of addresses, zeroes, device state ◄┘
//! ```
//!
//! [`intake`] reads one guest's stream, [`table`] knows what the journal holds of each page,
//! [`pages`] says of each page of the stream whether it is to be stored, [`spool`] keeps those that
//! are until the stream has ended whole, [`store`] makes records of them. The caller writes the
//! mark that commits the checkpoint.
//!
//! What always holds:
//! * nothing of a stream is in the journal before all of it was taken and each page of each block
//!   was seen;
//! * the table tells what the journal holds *now*, named by a mark or not: a checkpoint that was
//!   cut off costs the next one nothing but bytes;
//! * no payload is kept in memory beyond the spool's buffers (32 MiB); what a guest's checkpoint costs
//!   while it lasts is 4 bytes a page, what the table costs always is 16 bytes a page (4 MiB for
//!   each GiB of RAM).

pub mod checkpoint;
pub mod intake;
pub mod pages;
mod rebuild;
pub mod spool;
pub mod store;
pub mod table;

pub use afterimage_migration::Block;
pub use intake::{Event, Intake, Options, Progress, Source, Taken};
pub use spool::SpoolAt;
pub use store::{Stored, store};
pub use table::Table;

use std::path::PathBuf;
use std::time::Duration;

/// Bytes of a page of guest memory: what is compared and stored.
pub const PAGE_BYTES: usize = 4096;

/// Bytes of a guest's device state volume: the most that its head and tail may have together.
pub const STATE_BYTES_MAX: u64 = 64 << 20;

/// Why a guest's memory was not taken or not stored. Whatever it is: the snapshot is to be
/// cancelled, the guest to run on, and older checkpoints are as they were.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The caller ended it.
    #[error("the checkpoint of memory was cancelled")]
    Cancelled,
    /// Nothing moved for too long.
    #[error("{what} for {limit:?}: the snapshot is given up so that the guest is not held")]
    Stalled {
        /// Who did nothing.
        what: &'static str,
        /// How long it was waited.
        limit: Duration,
    },
    /// The socket failed.
    #[error("{doing} QEMU's memory stream: {error}")]
    Socket {
        /// What was tried, like "read".
        doing: &'static str,
        /// What the system said.
        error: std::io::Error,
    },
    /// The stream isn't one that can be taken.
    #[error("QEMU's memory stream, byte {at}: {fault}")]
    Stream {
        /// Where what is wrong begins, in bytes from its first one.
        at: u64,
        /// What it is.
        fault: afterimage_migration::Fault,
    },
    /// A block's pages did not all come.
    #[error(
        "QEMU sent {missing} of {pages} pages of RAM block {block} not at all, the first at \
         {offset:#x}: the checkpoint would keep what was there before"
    )]
    Missing {
        /// QEMU's name of the block.
        block: String,
        /// Pages of the block.
        pages: u64,
        /// Pages that never came.
        missing: u64,
        /// Byte address in the block of the first of them.
        offset: u64,
    },
    /// The spool can't be written or read.
    #[error("{doing} the spool in {dir}: {error}")]
    Spool {
        /// What was tried.
        doing: &'static str,
        /// The directory.
        dir: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// The spool has its full size.
    #[error(
        "the changed pages take more than the spool's limit of {limit_bytes} bytes: raise it, or \
         take checkpoints of memory more often"
    )]
    SpoolFull {
        /// The limit.
        limit_bytes: u64,
    },
    /// The file system would be left with too little.
    #[error(
        "the spool in {dir} would leave the file system less than {floor_bytes} bytes \
         ({free_bytes} are free): free some, or give the state directory more room"
    )]
    NoRoom {
        /// The directory.
        dir: PathBuf,
        /// What is free.
        free_bytes: u64,
        /// What has to stay free.
        floor_bytes: u64,
    },
    /// The table doesn't describe this journal as it is now.
    #[error("{0}: what the journal holds of the guest's memory has to be read anew")]
    StaleTable(String),
    /// What the caller named doesn't fit the stream.
    #[error("{0}")]
    Invalid(String),
    /// The device state is larger than its volume.
    #[error(
        "the guest's device state has {bytes} bytes, a checkpoint holds at most {limit_bytes}: \
         which device is so large? (a display with much memory of its own is likely)"
    )]
    StateTooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// The journal failed.
    #[error("journal: {0}")]
    Journal(#[from] afterimage_journal::Error),
    /// A thread could not be started or ended without a word.
    #[error("the thread that takes memory {0}")]
    Thread(String),
}

/// What this module's functions return.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A refusal by the parser, or by what took its pages.
    fn of_stream(error: afterimage_migration::Error<Self>) -> Self {
        match error {
            afterimage_migration::Error::Sink { error, .. } => error,
            afterimage_migration::Error::Stream { at, fault } => Self::Stream { at, fault },
        }
    }

    /// A refusal at the stream's end, which is no page's.
    fn of_end(error: afterimage_migration::Error) -> Self {
        match error {
            afterimage_migration::Error::Sink { error, .. } => match error {},
            afterimage_migration::Error::Stream { at, fault } => Self::Stream { at, fault },
        }
    }
}
