//! A site with manners, a journal by the clock, and a link between them. Time is a number; the order of
//! everything follows from the seed.

use super::*;
use crate::api::sites::SiteStatus;
use crate::ship::board::{Ages, Moment};
use crate::ship::source::Left;
use afterimage_journal::layout::Identity;
use afterimage_journal::pool::FileName;
use afterimage_journal::wire::Inventory;
use afterimage_journal::{Result, Seq};
use std::sync::{Mutex, MutexGuard};
use uuid::Uuid;

/// Bytes of a record, and of a piece of the background.
pub(super) const RECORD_BYTES: usize = 4096;
pub(super) const PIECE_BYTES: usize = 1 << 20;
/// What handing over one op takes.
const OP_TIME: Duration = Duration::from_micros(100);
const MS_NS: u64 = 1_000_000;

/// How the site behaves.
#[derive(Debug, Clone, Default)]
pub(super) struct Manners {
    /// From a `Sync` to its ack.
    pub(super) ack_after: Duration,
    /// In a thousand calls so many fail, in a way of their own each.
    pub(super) failing_permille: u64,
    /// In a thousand acks so many come twice.
    pub(super) twice_permille: u64,
    /// No ack comes at all.
    pub(super) silent: bool,
    /// All calls fail like this.
    pub(super) down: Option<fn(String) -> SinkError>,
    /// Acks name a step that was never asked for.
    pub(super) lies: bool,
}

/// What the site has, and a clock for all.
#[derive(Debug, Default)]
pub(super) struct Place {
    pub(super) elapsed: Duration,
    pub(super) manners: Manners,
    pub(super) random: u64,
    pub(super) received: Seq,
    pub(super) durable: Seq,
    pub(super) pieces: u64,
    pub(super) pieces_durable: u64,
    pub(super) acks: Vec<(Duration, Ack, Seq, u64)>,
    pub(super) opens: u64,
    /// Pieces that came since the last record, and the most of that.
    pub(super) run: u64,
    pub(super) ops: u64,
}

impl Place {
    pub(super) fn chance(&mut self, permille: u64) -> bool {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % 1000 < permille
    }

    pub(super) fn meet(&mut self) -> std::result::Result<(), SinkError> {
        if let Some(down) = self.manners.down {
            return Err(down("as it is told".into()));
        }
        if self.chance(self.manners.failing_permille) {
            let kinds: [fn(String) -> SinkError; 4] =
                [SinkError::Away, SinkError::Full, SinkError::Refused, SinkError::Broken];
            let kind = kinds[(self.random >> 20) as usize % 4];
            return Err(kind("by chance".into()));
        }
        Ok(())
    }
}

#[derive(Clone)]
pub(super) struct Site(Arc<Mutex<Place>>);

impl Site {
    pub(super) fn new(manners: Manners, seed: u64) -> Self {
        let random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        Self(Arc::new(Mutex::new(Place { manners, random, ..Place::default() })))
    }

    pub(super) fn at(&self) -> MutexGuard<'_, Place> {
        self.0.lock().unwrap()
    }
}

impl Sink for Site {
    fn open(&mut self, _: &Hello) -> std::result::Result<Inventory, SinkError> {
        let mut place = self.at();
        place.opens += 1;
        place.meet()?;
        // What was not durable is lost with the connection.
        (place.received, place.pieces) = (place.durable, place.pieces_durable);
        place.acks.clear();
        // The edge tells how much of the background is there.
        let (watermark, edge) = (place.durable, place.pieces_durable);
        Ok(Inventory { watermark, edge, ..Inventory::default() })
    }

    fn apply(&mut self, op: Op) -> std::result::Result<(), SinkError> {
        let mut place = self.at();
        place.meet()?;
        place.ops += 1;
        match op {
            Op::Bytes { at, .. } => {
                assert_eq!(at, place.received + 1, "a record is left out, or comes twice");
                place.received = at;
                place.run = 0;
            }
            Op::Put { at, .. } => {
                assert_eq!(at, place.pieces, "a piece is left out, or comes twice");
                place.pieces += 1;
                place.run += 1;
            }
            Op::Sync { token, watermark, .. } => {
                assert!(watermark <= place.received, "a watermark above what was sent");
                let due = place.elapsed + place.manners.ack_after;
                let ack = Ack { token, watermark, whole: Vec::new() };
                let (received, pieces) = (place.received, place.pieces);
                if !place.manners.silent {
                    place.acks.push((due, ack.clone(), received, pieces));
                    let twice_permille = place.manners.twice_permille;
                    if place.chance(twice_permille) {
                        place.acks.push((due, ack, received, pieces));
                    }
                }
            }
            other => panic!("nobody sends {other:?}"),
        }
        Ok(())
    }

    fn ack(&mut self, _: Duration) -> std::result::Result<Option<Ack>, SinkError> {
        let mut place = self.at();
        place.meet()?;
        if place.manners.lies {
            return Ok(Some(Ack { token: 1 << 40, watermark: 1 << 40, whole: Vec::new() }));
        }
        if place.acks.first().is_none_or(|(due, ..)| *due > place.elapsed) {
            return Ok(None);
        }
        let (_, ack, received, pieces) = place.acks.remove(0);
        place.durable = place.durable.max(received);
        place.pieces_durable = place.pieces_durable.max(pieces);
        Ok(Some(ack))
    }
}

/// A journal of records that come by the clock, over pieces that were there before.
pub(super) struct Log {
    pub(super) site: Site,
    pub(super) every: Duration,
    pub(super) records_max: Seq,
    pub(super) sent: Seq,
    pub(super) pieces: u64,
    pub(super) pieces_sent: u64,
}

impl Log {
    pub(super) fn head(&self) -> Seq {
        let elapsed = self.site.at().elapsed.as_nanos();
        Seq::try_from(elapsed / self.every.as_nanos()).unwrap().min(self.records_max)
    }

    pub(super) fn wall_ns(&self, seq: Seq) -> u64 {
        seq * u64::try_from(self.every.as_nanos()).unwrap()
    }
}

impl Source for Log {
    fn start(&mut self, inventory: &Inventory, _: bool) -> Result<()> {
        (self.sent, self.pieces_sent) = (inventory.watermark, inventory.edge);
        Ok(())
    }

    fn fresh(&mut self) -> Result<Option<Op>> {
        if self.sent >= self.head() {
            return Ok(None);
        }
        self.sent += 1;
        Ok(Some(Op::Bytes { unit: 1, at: self.sent, bytes: vec![0; RECORD_BYTES] }))
    }

    fn background(&mut self) -> Result<Option<Op>> {
        if self.pieces_sent >= self.pieces {
            return Ok(None);
        }
        let at = self.pieces_sent;
        self.pieces_sent += 1;
        let name = FileName::Unit(1);
        let (bytes, len) = (vec![0; PIECE_BYTES], PIECE_BYTES as u64);
        Ok(Some(Op::Put { name, file_bytes: u64::MAX, at, bytes, len }))
    }

    fn left(&self) -> Left {
        Left {
            fresh_bytes: (self.head() - self.sent) * RECORD_BYTES as u64,
            background_bytes: (self.pieces - self.pieces_sent) * PIECE_BYTES as u64,
        }
    }

    fn covered(&self) -> Covered {
        Covered { watermark: self.sent, wall_ns: self.wall_ns(self.sent) }
    }

    fn acked(&mut self, _: &Ack) {}

    fn wait(&mut self, _: Duration) {
        panic!("the test tells the time");
    }

    fn is_over(&mut self) -> bool {
        false
    }
}

/// A link on its way, under a clock.
pub(super) struct Run {
    pub(super) link: Link,
    pub(super) log: Log,
    pub(super) site: Site,
    pub(super) board: Arc<Board>,
    pub(super) begun: Instant,
    /// Longest time from a record's coming to its being handed over, while the site works.
    pub(super) held_max: Duration,
    /// The site lost what it had: what it said before is not true any more.
    pub(super) is_spoilt: bool,
}

impl Ages for Log {
    fn behind_ms(&self, seq: Seq) -> Option<u64> {
        let age_ns = self.site.at().elapsed.as_nanos() - u128::from(self.wall_ns(seq + 1));
        u64::try_from(age_ns / u128::from(MS_NS)).ok()
    }

    fn newest_ms(&self, _: Seq) -> u64 {
        0
    }
}

impl Run {
    pub(super) fn new(manners: Manners, seed: u64, every: Duration, pieces: u64) -> Self {
        let site = Site::new(manners, seed);
        let board = Arc::new(Board::new("/site".into()));
        let sync_every = Duration::from_millis(100);
        let link = Link::new(Box::new(site.clone()), Arc::clone(&board), sync_every, seed);
        let log = Log {
            site: site.clone(),
            every,
            records_max: Seq::MAX,
            sent: 0,
            pieces,
            pieces_sent: 0,
        };
        Self {
            link,
            log,
            site,
            board,
            begun: Instant::now(),
            held_max: Duration::ZERO,
            is_spoilt: false,
        }
    }

    /// Goes on for so long; what holds at each step is looked at.
    pub(super) fn go(&mut self, time: Duration) {
        let until = self.site.at().elapsed + time;
        while self.site.at().elapsed < until {
            self.one();
        }
    }

    pub(super) fn one(&mut self) {
        let elapsed = self.site.at().elapsed;
        let (sent, ops) = (self.log.sent, self.site.at().ops);
        let hello = hello();
        let wall_ns = u64::try_from(elapsed.as_nanos()).unwrap();
        let step = self.link.step(&hello, &mut self.log, self.begun + elapsed, wall_ns);
        let handed = u32::try_from(self.site.at().ops - ops).unwrap();
        let mut pause = OP_TIME * handed.max(1);
        if let Step::Wait(limit) = step {
            // Woken by what comes, as the thread is.
            let next = Duration::from_nanos(self.log.wall_ns(self.log.sent + 1));
            let woken = match self.log.sent < self.log.records_max {
                true => next.saturating_sub(elapsed),
                false => Duration::MAX,
            };
            pause = match self.link.is_open() {
                true => pause + limit.min(woken).min(ACK_WAIT),
                false => limit,
            };
        }
        if self.log.sent > sent && self.link.is_open() {
            let came = Duration::from_nanos(self.log.wall_ns(sent + 1));
            self.held_max = self.held_max.max(elapsed.saturating_sub(came));
        }
        self.site.at().elapsed += pause;
        let shown = self.status();
        let durable = self.site.at().durable;
        let known = shown.watermark.unwrap_or(0);
        assert!(known <= durable || self.is_spoilt, "{shown:?} of {durable}");
        if shown.lag_ms == Some(0) {
            assert!(shown.watermark >= Some(self.log.head()), "{shown:?} called level");
        }
    }

    pub(super) fn status(&self) -> SiteStatus {
        let now_ns = u64::try_from(self.site.at().elapsed.as_nanos()).unwrap();
        let head = Some(self.log.head());
        let moment = Moment { head, now_ns, alarm_ms: 30_000, local_rpo_ms: Some(0) };
        self.board.status(&moment, &self.log)
    }
}

fn hello() -> Hello {
    let identity = Identity {
        format: 1,
        group: Uuid::nil(),
        name: "vm".into(),
        unit_bytes: 1 << 20,
        encryption: None,
    };
    Hello { identity, epoch: 1 }
}
