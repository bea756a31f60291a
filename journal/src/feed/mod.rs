//! What a journal sends to a sink next: the log's end as it happens, and the files that the sink lacks.
//!
//! ```text
//!  start(inventory) ─► plan ─┬─► fresh:      Begin, Bytes .. Bytes, Seal, Sync, Begin ..
//!                            └─► background: Put .. Put, PutEnd, Put ..
//! ```
//!
//! What always holds:
//! * only what is final and durable leaves the journal (I-3), and only what passes its checksum (I-12);
//! * a `Sync` names a number up to which every record was in the ops before it;
//! * nothing is remembered between two connections: each begins from what the sink says that it has;
//! * after any error the sink is opened anew, and the feed started anew with what it says.

mod background;
mod line;
mod plan;
mod source;
mod tail;
mod whole;

use crate::error::{Error, Result};
use crate::format::unit_header::BLOCK_BYTES;
use crate::history::History;
use crate::log::{Final, Journal};
use crate::pool::FileName;
use crate::wire::{Ack, Extent, Hello, Inventory, Op};
use crate::{Seq, planted};
use line::Files;
use plan::{Want, plan};
use source::{Source, gone};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};
use tail::Unit;
use whole::Whole;

/// How often a mirror's list is compared again when it has all.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What a sink lacks, as of the last look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Bytes of the log's end that were not sent.
    pub fresh_bytes: u64,
    /// Bytes of files that were not sent, holes included.
    pub background_bytes: u64,
    /// Files of which something was not sent.
    pub background_files: u64,
}

/// See the module.
pub struct Feed {
    source: Source,
    mirror: bool,
    /// What the sink has: as it said, and as was sent since.
    sink: Inventory,
    /// Unit and byte from which the log's end goes on.
    at: (u64, u64),
    /// Whether the sink has that unit.
    begun: bool,
    unit: Option<Unit>,
    /// A unit of the log's end that can only be sent as a file.
    inline: Option<Whole>,
    /// With the bytes of the files that they are made of.
    wants: VecDeque<(Want, u64)>,
    /// Those bytes in all: asked for at each op.
    wants_bytes: u64,
    current: Option<Whole>,
    release: Vec<FileName>,
    /// How often a file was sent to its end and did not count.
    tried: BTreeMap<(FileName, [u8; 16]), u32>,
    /// What was final when it was looked at last.
    seen: Final,
    /// Something was sent since the last `Sync`.
    is_due: bool,
    /// A unit was left behind since.
    has_turned: bool,
    token: u64,
    /// Every number up to this one was sent, and when the newest record that was sent was written.
    watermark: Seq,
    wall_ns: u64,
    looked: Option<Instant>,
}

impl Feed {
    /// A feed of an open journal. It does not keep it open.
    #[must_use]
    pub fn new(journal: &Journal) -> Self {
        Self::of(Source::new(journal))
    }

    /// A feed of a journal as it lies at a site, in a bucket or in a copy, for a sink that has nothing of it
    /// or less. What is added there later is not in it. `history` is kept for as long as it is used: so
    /// that nothing is given up.
    ///
    /// # Errors
    /// The newest unit, or the epoch that was told, can't be read.
    pub fn stored(history: &History) -> Result<Self> {
        Source::stored(history).map(Self::of)
    }

    fn of(source: Source) -> Self {
        let seen = source.finals.now();
        Self {
            source,
            mirror: false,
            sink: Inventory::default(),
            at: (u64::MAX, BLOCK_BYTES),
            begun: false,
            unit: None,
            inline: None,
            wants: VecDeque::new(),
            wants_bytes: 0,
            current: None,
            release: Vec::new(),
            tried: BTreeMap::new(),
            seen,
            is_due: false,
            has_turned: false,
            token: 0,
            watermark: 0,
            wall_ns: 0,
            looked: None,
        }
    }

    /// What to open a sink with.
    #[must_use]
    pub fn hello(&self) -> Hello {
        Hello { identity: self.source.identity().clone(), epoch: self.source.epoch }
    }

    /// Begins anew from what a sink holds; after each [`crate::wire::Sink::open`].
    ///
    /// # Errors
    /// The sink has records that the journal doesn't; or the journal's files can't be read.
    pub fn start(&mut self, inventory: &Inventory, mirror: bool) -> Result<()> {
        self.discard();
        self.sink = inventory.clone();
        self.mirror = mirror;
        self.watermark = inventory.watermark;
        (self.unit, self.is_due) = (None, true);
        self.seen = self.source.finals.now();
        let plan = self.plan()?;
        (self.at, self.begun) = (plan.tail, plan.begun);
        Ok(())
    }

    fn discard(&mut self) {
        for whole in [self.current.take(), self.inline.take()].into_iter().flatten() {
            whole.discard(self.source.storage());
        }
        self.source.let_go(false);
    }

    /// Compares the lists anew.
    fn plan(&mut self) -> Result<plan::Plan> {
        let files = self.source.files(&self.seen)?;
        let last_seq = |name| self.source.last_seq_of(name);
        let own = Files { listed: &files, last_seq: &last_seq };
        let line = self.source.line(&files);
        let mut plan = plan((&own, &line), &self.seen, &self.sink, self.mirror)?;
        let wants = plan.wants.drain(..);
        self.wants = wants.map(|want| (want, self.source.file_bytes(want.source()))).collect();
        self.wants_bytes = self.wants.iter().map(|(_, bytes)| bytes).sum();
        self.release = std::mem::take(&mut plan.release);
        self.looked = Some(Instant::now());
        Ok(plan)
    }

    /// The next op of the log's end; it never waits. `None`: all that is final was sent, and a `Sync` behind
    /// it.
    ///
    /// # Errors
    /// The journal's files can't be read, or were merged meanwhile: begin anew.
    pub fn fresh(&mut self) -> Result<Option<Op>> {
        loop {
            if let Some(whole) = self.inline.take() {
                return self.next_inline(whole).map(Some);
            }
            self.seen = self.source.finals.now();
            if planted::is("ship-beyond-the-watermark") {
                self.seen.at = u64::MAX;
            }
            if std::mem::take(&mut self.has_turned)
                && self.at.0 <= self.seen.unit
                && let Some(op) = self.sync(self.turned_watermark()?)
            {
                // At each unit: what came so far counts, however much is left.
                return Ok(Some(op));
            }
            if self.at.0 > self.seen.unit || self.at.0 == 0 {
                return Ok(self.sync(self.seen.watermark));
            }
            if self.unit.is_none() && !self.open_unit()? {
                continue;
            }
            match self.step()? {
                Step::Op(op) => return Ok(Some(op)),
                Step::CaughtUp => return Ok(self.sync(self.seen.watermark)),
                Step::Waits => return Ok(None),
                Step::GoesOn => {}
            }
        }
    }

    /// Opens the unit at the log's end; `false`: the log goes on in another.
    fn open_unit(&mut self) -> Result<bool> {
        let number = self.at.0;
        let Some(found) = self.source.find(FileName::Unit(number))? else {
            let files = self.source.files(&self.seen)?;
            let next = files.iter().find(|f| f.name.numbers().1 >= number);
            match next.map(|f| f.name) {
                // Numbers may be left out.
                Some(FileName::Unit(next)) if next > number && !self.begun => {
                    self.at = (next, BLOCK_BYTES);
                    return Ok(false);
                }
                _ => return Err(gone(FileName::Unit(number))),
            }
        };
        if number <= self.seen.sealed {
            self.source.hold();
        }
        let mut unit = Unit::open(self.source.storage(), &found, self.source.group())?;
        let is_older = unit.header.epoch != self.source.epoch;
        if is_older && !unit.is_plain()? {
            self.send_inline()?;
            return Ok(false);
        }
        self.unit = Some(unit);
        Ok(true)
    }

    /// The unit at the log's end goes as a file.
    fn send_inline(&mut self) -> Result<()> {
        let name = FileName::Unit(self.at.0);
        let found = self.source.find(name)?.ok_or_else(|| gone(name))?;
        self.unit = None;
        match self.source.whole(&found, 0, true) {
            Ok(whole) => self.inline = Some(whole),
            Err(error @ (Error::Damaged { .. } | Error::Unusable { .. })) => {
                tracing::error!(unit = %name, %error, "it is damaged, and left out at the site");
                self.turn();
            }
            Err(e) => return Err(e),
        }
        Ok(())
    }

    fn next_inline(&mut self, mut whole: Whole) -> Result<Op> {
        let (op, is_last) = whole.next()?;
        self.is_due = true;
        if is_last {
            self.sink_has(whole.name(), whole.salt());
            whole.discard(self.source.storage());
            self.turn();
        } else {
            self.inline = Some(whole);
        }
        Ok(op)
    }

    /// On to the next unit.
    fn turn(&mut self) {
        if let Some(unit) = self.unit.take() {
            unit.forget_pages();
        }
        self.source.let_go(false);
        self.at = (self.at.0 + 1, BLOCK_BYTES);
        (self.begun, self.has_turned) = (false, true);
    }

    /// One look at the unit that is open.
    fn step(&mut self) -> Result<Step> {
        let Some(unit) = self.unit.as_mut() else { return Ok(Step::Waits) };
        let (number, at) = self.at;
        let last = self.seen;
        let is_newest = number == last.unit;
        let is_over = !is_newest || last.sealed >= number;
        if !self.begun && (is_over || last.at > BLOCK_BYTES) {
            self.begun = true;
            self.is_due = true;
            return Ok(Step::Op(Op::Begin(Box::new(unit.header))));
        }
        let footer = if last.sealed >= number { unit.footer()? } else { None };
        let limit = match footer {
            _ if is_newest => last.at,
            Some(footer) => footer.index_at,
            None => unit.header.unit_bytes,
        };
        if at < limit {
            let is_whole = is_newest && !planted::is("ship-beyond-the-watermark");
            let piece = unit.read(at, limit, is_whole)?;
            if !piece.bytes.is_empty() {
                self.at.1 += piece.bytes.len() as u64;
                self.wall_ns = self.wall_ns.max(piece.wall_ns);
                self.is_due = true;
                let bytes = piece.bytes;
                return Ok(Step::Op(Op::Bytes { unit: number, at, bytes }));
            }
        }
        match (is_over, footer) {
            (false, _) => Ok(Step::CaughtUp),
            // Full, and not sealed yet.
            (true, None) if last.sealed < number => Ok(Step::Waits),
            // Never will be: it is evidence of damage.
            (true, None) => {
                self.turn();
                Ok(Step::GoesOn)
            }
            (true, Some(footer)) if unit.ends_below(&footer, at)? => {
                let seal = Op::Seal { unit: number, end: at, index_crc: footer.index_crc };
                let salt = unit.header.salt;
                self.sink_has(FileName::Unit(number), salt);
                self.turn();
                self.is_due = true;
                Ok(Step::Op(seal))
            }
            // It was sealed before the run that makes all of it final.
            (true, Some(_)) if is_newest && !last.ended => Ok(Step::CaughtUp),
            (true, Some(_)) => {
                self.send_inline()?;
                Ok(Step::GoesOn)
            }
        }
    }

    /// The number up to which every record lies before the unit at the log's end: those of units that are
    /// made later are higher.
    fn turned_watermark(&self) -> Result<Seq> {
        let next = self.source.find(FileName::Unit(self.at.0))?;
        let header = next.and_then(|found| {
            let read = crate::unit::read_header(self.source.storage(), &found, self.source.group());
            read.ok().map(|(_, header)| header)
        });
        Ok(header.map_or(self.watermark, |h| h.after_seq))
    }

    /// A `Sync`, if anything was sent since the last.
    fn sync(&mut self, watermark: Seq) -> Option<Op> {
        if !std::mem::take(&mut self.is_due) {
            return None;
        }
        self.token += 1;
        self.watermark = self.watermark.max(watermark);
        let (token, watermark) = (self.token, self.watermark);
        Some(Op::Sync { token, watermark, wall_ns: self.wall_ns })
    }

    /// The sink has a file whole, or will when it took what was sent.
    fn sink_has(&mut self, name: FileName, salt: [u8; 16]) {
        let epoch = self.source.epoch_of(name);
        let (first, last) = name.numbers();
        self.sink.files.retain(|h| {
            let (a, b) = h.name.numbers();
            !(first <= a && b <= last) || (self.mirror && h.name != name)
        });
        self.sink.files.push(crate::wire::Held {
            name,
            salt,
            extent: Extent::Whole,
            epoch,
            lowest: 0,
        });
    }

    /// Waits until there may be something fresh, for at most so long; whether there may.
    #[must_use]
    pub fn wait(&self, wait: Duration) -> bool {
        self.source.finals.wait(&self.seen, wait) != self.seen
    }

    /// Whether the journal takes no records more, and all of its log was sent.
    #[must_use]
    pub fn is_done(&self) -> bool {
        let all = self.at.0 > self.seen.unit
            || (self.at == (self.seen.unit, self.seen.at) && self.seen.sealed < self.seen.unit);
        self.seen.ended && all && !self.is_due && self.inline.is_none()
    }

    /// What was not sent.
    #[must_use]
    pub fn backlog(&self) -> Backlog {
        let last = self.source.finals.now();
        let units = last.unit.saturating_sub(self.at.0);
        let fresh_bytes = match last.unit.cmp(&self.at.0) {
            std::cmp::Ordering::Less => 0,
            _ => (units * self.source.identity().unit_bytes + last.at).saturating_sub(self.at.1),
        };
        let current = self.current.as_ref();
        Backlog {
            fresh_bytes,
            background_bytes: self.wants_bytes + current.map_or(0, Whole::left_bytes),
            background_files: self.wants.len() as u64 + u64::from(current.is_some()),
        }
    }

    /// Takes an ack: what it covers need not be remembered.
    pub fn acked(&mut self, ack: &Ack) {
        self.tried.retain(|(name, _), _| !ack.whole.contains(name));
    }
}

/// What a look at the unit at the log's end came to.
enum Step {
    Op(Op),
    /// All that is final was sent.
    CaughtUp,
    /// It is full, and will be sealed.
    Waits,
    /// It was left behind, or goes as a file.
    GoesOn,
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.discard();
    }
}
