//! What goes from a journal to a sink: a site's directory, a site's server, a bucket.
//!
//! A sink holds the *same bytes*: units and merged units under the same names, each record at the same
//! offset under the same salt ([decision 12]). So a site's
//! journal is a journal like any other, an encrypted one without its key too.
//!
//! ```text
//!  journal ─► feed ─► ops, in order ─► sink          fresh:      Begin, Bytes .. Bytes, Seal; Sync
//!                 ◄──────────── acks ◄─              background: Put .. Put, PutEnd
//! ```
//!
//! [decision 12]: ../../../docs/decisions/0012-sites-hold-the-same-bytes.md
//!
//! What always holds:
//! * only bytes that nobody writes any more, of records at or below the durable watermark, leave a
//!   journal (I-3);
//! * each op names its place, so that one that comes twice does nothing the second time;
//! * an ack covers only what would survive a power loss at the sink;
//! * a sink refuses an epoch below the highest that it took an op of (I-9), for releases too: who opens
//!   it and finds that it has another branch of the journal goes, and shuts nobody out.

use crate::Seq;
use crate::format::unit_header::UnitHeader;
use crate::layout::Identity;
use crate::pool::FileName;
use std::time::Duration;

/// Most bytes of a unit in one op: the largest record (4 MiB of data, its header and padding) fits. A
/// feed makes them about 1 MiB where records are smaller.
pub const OP_BYTES_MAX: usize = (4 << 20) + 4096;

/// Who comes, and with what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The journal: its group, name, unit size and encryption.
    pub identity: Identity,
    /// The journal's epoch; the sink has it durably before it answers.
    pub epoch: u64,
}

/// How much of a unit's file a sink holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// All of it: sealed, or a whole merged unit.
    Whole,
    /// A unit that is not sealed: all below this byte, which is where a record begins.
    Open(u64),
    /// A file that came in pieces (`Op::Put`): all below this byte. It doesn't count until `Op::PutEnd`.
    Part(u64),
}

/// One file that a sink holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Its name.
    pub name: FileName,
    /// The salt in its header: a file of this name with another one is another file.
    pub salt: [u8; 16],
    /// How much of it is there, durably.
    pub extent: Extent,
    /// The epoch in its header; 0: not told.
    pub epoch: u64,
    /// The lowest number in a unit that is not sealed; 0: not told.
    pub lowest: Seq,
}

/// Most epochs that an inventory lists: the newest.
pub const HELD_EPOCHS_MAX: usize = 1024;

/// An epoch of which a sink holds records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldEpoch {
    /// Its number.
    pub epoch: u64,
    /// The salt of its first unit, which no other opening of the journal has; `None`: not known there.
    pub id: Option<[u8; 16]>,
}

/// What a sink holds of a journal.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Ascending by first unit, what replaces before what it replaces. Empty: nothing yet.
    pub files: Vec<Held>,
    /// The epochs that it holds records of, ascending: the newest [`HELD_EPOCHS_MAX`]. Empty: not told.
    pub epochs: Vec<HeldEpoch>,
    /// Every number up to this one is durable there, or merged away, or was never given.
    pub watermark: Seq,
    /// Where the sink's window begins; positions before it are not restorable there.
    pub edge: Seq,
}

/// One step. All but [`Op::Put`], [`Op::PutEnd`] and [`Op::Release`] concern the log's end and come in
/// the log's order; those come in an order of their own, between the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// A unit begins; it stands behind all that came before. There already: nothing to do.
    Begin(Box<UnitHeader>),
    /// The next bytes of a unit that began: whole records (and reservations that were given up), from
    /// byte `at` on.
    Bytes {
        /// Number of the unit.
        unit: u64,
        /// Byte of its file.
        at: u64,
        /// At most [`OP_BYTES_MAX`].
        bytes: Vec<u8>,
    },
    /// A unit is complete: the sink writes index and footer itself, from the records that it got.
    Seal {
        /// Number of the unit.
        unit: u64,
        /// Byte at which its records end.
        end: u64,
        /// CRC of the index, as in the source's footer: another one means that bytes differ.
        index_crc: u32,
    },
    /// A piece of a file that is whole at the source, from its first byte to its last; a hole is told
    /// by its length alone.
    Put {
        /// Its name.
        name: FileName,
        /// Its size.
        file_bytes: u64,
        /// Byte of the file.
        at: u64,
        /// At most [`OP_BYTES_MAX`]; zeroes may be left out at the end of a piece.
        bytes: Vec<u8>,
        /// Bytes of the file that this piece stands for: `bytes`, then zeroes.
        len: u64,
    },
    /// All pieces of a file came: the sink checks it, makes it durable, and lets it count. What it
    /// replaces is given up then.
    PutEnd {
        /// Its name.
        name: FileName,
        /// CRC of its index.
        index_crc: u32,
    },
    /// Files that the journal gave up; only for sinks that mirror it ([`Sink::mirrors`]).
    Release(Vec<FileName>),
    /// What came before is to be made durable, and then acknowledged.
    Sync {
        /// Comes back in [`Ack::token`]; grows.
        token: u64,
        /// The journal's durable watermark: all of it was in the ops before, or is in files that come in
        /// the background.
        watermark: Seq,
        /// When the newest record up to there was written, nanoseconds since the Unix epoch; tells the lag.
        wall_ns: u64,
    },
}

/// What is durable at a sink.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ack {
    /// The highest [`Op::Sync`] that is done.
    pub token: u64,
    /// The watermark of that one.
    pub watermark: Seq,
    /// Files that count since the last ack.
    pub whole: Vec<FileName>,
}

/// Why a sink does not take what it is sent.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// It can't be reached, or broke off: try again by itself.
    #[error("{0}")]
    Away(String),
    /// It has no room at the moment: try again later.
    #[error("{0}")]
    Full(String),
    /// It won't, and won't later: a lower epoch, another journal, not allowed. A person has to see to it.
    #[error("{0}")]
    Refused(String),
    /// What arrived is not what was sent, or breaks the order of ops: begin anew from its inventory.
    #[error("{0}")]
    Broken(String),
}

/// Where a journal is sent to. One caller at a time; calls block for a bounded time each.
///
/// After any error the sink is opened again, and its inventory says where to go on.
pub trait Sink: Send {
    /// Connects, and says what is there. Called first, and after each error.
    ///
    /// # Errors
    /// See [`SinkError`].
    fn open(&mut self, hello: &Hello) -> Result<Inventory, SinkError>;

    /// Takes one op. It may return before the op is done; it waits while too much is under way.
    ///
    /// # Errors
    /// See [`SinkError`]; it may be about an earlier op.
    fn apply(&mut self, op: Op) -> Result<(), SinkError>;

    /// The newest ack, if there is one that was not told yet; waits for one for at most so long.
    ///
    /// # Errors
    /// See [`SinkError`].
    fn ack(&mut self, wait: Duration) -> Result<Option<Ack>, SinkError>;

    /// Whether it keeps exactly the files that the journal keeps, since nobody merges there. Then it gets
    /// merged units and [`Op::Release`]; else it has a window of its own.
    fn mirrors(&self) -> bool {
        false
    }
}
