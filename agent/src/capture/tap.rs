//! One volume's writes into its group's journal: the NBD export that a mirror writes to.

use super::discard::forget;
use super::{Gate, Latch};
use afterimage_journal::format::record::Kind;
use afterimage_journal::log::Draft;
use afterimage_journal::view::Blocks;
use afterimage_journal::{Error, ErrorKind, History, Journal, VolumeId};
use afterimage_nbd::Errno;
use afterimage_nbd::export::{Export, ExportInfo, Payload, WriteFlags, ZeroFlags};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Longest zero range in one record, in bytes.
const ZERO_BYTES_MAX: u64 = 1 << 30;

/// Longest time that a payload is received straight into the ring of the journal: while it arrives,
/// the ring's space behind it can't be used again.
const RECEIVE_WAIT: Duration = Duration::from_millis(100);

/// What a tap has seen, for rates and status.
#[derive(Debug, Default)]
pub struct TapCounters {
    /// Records of writes and zero ranges.
    pub writes: AtomicU64,
    /// Bytes that they cover.
    pub bytes: AtomicU64,
    /// Clients that are connected: a mirror that is level without one has not noticed its loss.
    pub connected: AtomicU32,
    /// Longest time from the arrival of a request to the sending of its reply, in microseconds.
    pub answer_us_max: AtomicU64,
}

/// A volume's door into the journal.
pub struct Tap {
    journal: Journal,
    volume: VolumeId,
    bytes: u64,
    counters: Arc<TapCounters>,
    shared: TapShared,
    reader: Mutex<Option<Reader>>,
}

/// What all taps of a guest share.
#[derive(Debug, Clone, Default)]
pub struct TapShared {
    /// The guest's session id, 0 outside of any.
    pub session: Arc<AtomicU32>,
    /// Shut by the first loss.
    pub gate: Arc<Gate>,
    /// Finds the instant of a memory checkpoint.
    pub latch: Arc<Latch>,
}

/// The volume's blocks as of some number of writes; for clients that read. A mirror never does.
struct Reader {
    writes: u64,
    history: History,
    blocks: Blocks,
}

impl Tap {
    /// A tap of a volume of `bytes`.
    #[must_use]
    pub fn new(
        journal: Journal,
        volume: VolumeId,
        bytes: u64,
        counters: Arc<TapCounters>,
        shared: TapShared,
    ) -> Self {
        Self { journal, volume, bytes, counters, shared, reader: Mutex::new(None) }
    }

    /// Its volume.
    #[must_use]
    pub fn volume(&self) -> VolumeId {
        self.volume
    }

    /// Its counters.
    #[must_use]
    pub fn counters(&self) -> &Arc<TapCounters> {
        &self.counters
    }

    /// What it shares with its guest's other taps.
    #[must_use]
    pub fn shared(&self) -> &TapShared {
        &self.shared
    }

    fn draft(&self, kind: Kind, addr: u64, len: u32) -> Draft {
        let scope = self.shared.session.load(Ordering::Relaxed);
        Draft { kind, flags: 0, volume: self.volume, addr, len, scope }
    }

    fn count(&self, bytes: u64) {
        self.counters.writes.fetch_add(1, Ordering::Relaxed);
        self.counters.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Tap {
    /// Refuses what comes behind a loss. False: the request is to be answered and forgotten.
    fn pass(&self) -> Result<bool, Errno> {
        if self.shared.gate.is_shut() {
            return Err(Errno::Io);
        }
        Ok(!self.shared.gate.has_let_go())
    }

    /// Takes the rest of a payload whose client stalls. The others need the ring that it was received
    /// into: it goes on in memory of its own, at most one record's, and is copied in the end.
    fn write_late(
        &self,
        addr: u64,
        mut data: Vec<u8>,
        bytes: usize,
        payload: &mut Payload<'_>,
    ) -> Result<(), Errno> {
        let got = data.len();
        data.resize(bytes, 0);
        payload.read_into(&mut data[got..]).map_err(|_| Errno::Io)?;
        let draft = self.draft(Kind::Write, addr, bytes as u32);
        self.journal.append(&draft, &data).map(drop).map_err(|e| self.refuse(&e))
    }

    /// A write or flush that can't be journaled: the gate is shut before the answer says so.
    fn refuse(&self, error: &Error) -> Errno {
        // Those that were under way meet the same: once is enough.
        if !self.shared.gate.is_shut() {
            tracing::error!(%error, "not journaled: what the guest writes now becomes a gap");
        }
        self.shared.gate.trip();
        errno(error)
    }
}

/// By the clock that QEMU stamps its events with.
fn wall_us() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |d| d.as_micros() as u64)
}

fn errno(error: &Error) -> Errno {
    match error.kind() {
        ErrorKind::FreeSpace => Errno::NoSpc,
        _ => Errno::Io,
    }
}

impl Export for Tap {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn info(&self) -> ExportInfo {
        ExportInfo {
            description: format!("afterimage capture of volume {}", self.volume),
            can_flush: true,
            can_fua: true,
            can_trim: true,
            can_zero: true,
            can_fast_zero: true,
            // Every connection writes to the one journal: a flush on any covers all.
            multi_conn: true,
            ..ExportInfo::default()
        }
    }

    fn write(&self, at: u64, payload: &mut Payload<'_>, flags: WriteFlags) -> Result<(), Errno> {
        if !self.pass()? {
            return forget(payload);
        }
        let limit = self.journal.payload_bytes_max() as usize;
        let mut addr = at;
        while payload.left() > 0 {
            let piece = payload.left().min(limit) as u32;
            let mut space = self.journal.reserve(piece).map_err(|e| self.refuse(&e))?;
            let room = space.payload_mut();
            let got = payload.read_within(room, RECEIVE_WAIT).map_err(|_| Errno::Io)?;
            if got == room.len() {
                let draft = self.draft(Kind::Write, addr, piece);
                space.commit(&draft).map_err(|e| self.refuse(&e))?;
            } else {
                let arrived = room[..got].to_vec();
                drop(space);
                self.write_late(addr, arrived, piece as usize, payload)?;
            }
            self.count(piece.into());
            addr += u64::from(piece);
        }
        if flags.fua { self.flush() } else { Ok(()) }
    }

    fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<(), Errno> {
        if !self.pass()? {
            return Ok(());
        }
        let (mut addr, end) = (at, at + len);
        while addr < end {
            let piece = (end - addr).min(ZERO_BYTES_MAX) as u32;
            let draft = self.draft(Kind::Zero, addr, piece);
            self.journal.append(&draft, &[]).map_err(|e| self.refuse(&e))?;
            self.count(piece.into());
            addr += u64::from(piece);
        }
        if flags.fua { self.flush() } else { Ok(()) }
    }

    /// Recorded as zeroes, so that what the range reads as is defined. QEMU's mirror never sends
    /// one: it keeps a guest's discard to itself while a target is attached.
    fn trim(&self, at: u64, len: u64, flags: WriteFlags) -> Result<(), Errno> {
        self.write_zeroes(at, len, ZeroFlags { fua: flags.fua, ..ZeroFlags::default() })
    }

    /// Durable before its reply; of a guest whose memory is taken, the reply may be held.
    fn flush(&self) -> Result<(), Errno> {
        if self.shared.gate.has_let_go() {
            return Ok(());
        }
        let mut draft = Draft::of(Kind::Flush);
        draft.volume = self.volume;
        let seq = self.journal.append(&draft, &[]).map_err(|e| self.refuse(&e))?;
        let hold = self.shared.latch.flushed(self.volume, seq, wall_us());
        let synced = self.journal.sync().map(drop).map_err(|e| self.refuse(&e));
        self.shared.latch.wait(hold);
        synced
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> Result<(), Errno> {
        let mut reader = self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        let writes = self.counters.writes.load(Ordering::Relaxed);
        if reader.as_ref().is_none_or(|r| r.writes != writes) {
            *reader = None;
            let history = self.journal.history().map_err(|e| errno(&e))?;
            let blocks = Blocks::at(&history, self.volume, history.head).map_err(|e| errno(&e))?;
            *reader = Some(Reader { writes, history, blocks });
        }
        match reader.as_ref() {
            Some(r) => r.blocks.read(&r.history, at, buf).map_err(|e| errno(&e)),
            None => Err(Errno::Io),
        }
    }
}
