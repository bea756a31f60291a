//! One journal on its way to one sink: what is done next.
//!
//! ```text
//!          open answered             first ack               error
//!  closed ──────────────► open ─────────────────► works ─────────────► closed, pause
//!                          │  each step:  acks ─► fresh, all ─► Sync ─► one background piece
//! ```
//!
//! What always holds:
//! * a background piece goes only when nothing of the log's end waits, within the rate, and only while
//!   little of the background is on its way: what is written next is not held up by it;
//! * a `Sync` names a watermark that the ops before it hold, and what is said to be durable is what an ack
//!   named, as long as we sent that `Sync`;
//! * after any error the sink is opened anew and its inventory says where to go on;
//! * each step is bounded, but for what the sink takes. Time is told by the caller.

use super::board::{Board, Durable};
use super::rate::Rate;
use super::retry::{Retry, Trouble};
use super::source::{Covered, Source};
use afterimage_journal::Error;
use afterimage_journal::wire::{Ack, Hello, Op, Sink, SinkError};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Most ops of the log's end between two looks at acks and clock.
const FRESH_OPS_MAX: usize = 32;
/// Most acks at once.
const ACKS_MAX: usize = 32;
/// Most [`Op::Sync`]s on their way.
const SYNCS_MAX: usize = 2;
/// How long a site may leave a [`Op::Sync`] unanswered.
pub(super) const ACK_LIMIT: Duration = Duration::from_secs(60);
/// Longest wait at a time, for whatever.
const WAIT_MAX: Duration = Duration::from_millis(200);
/// Longest wait for an ack while there may be something new to send.
const ACK_WAIT: Duration = Duration::from_millis(20);
/// Least and most of the background that may be on its way, in bytes.
const AHEAD_BYTES_MIN: u64 = 1 << 20;
const AHEAD_BYTES_MAX: u64 = 64 << 20;
/// A `Sync` that is answered sooner than this lets more of the background go ahead; one later than that,
/// less.
const PROMPT: Duration = Duration::from_millis(200);
const SLOW: Duration = Duration::from_millis(500);

/// What is to be done next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The next step, at once.
    Again,
    /// Nothing for so long, unless there is something new.
    Wait(Duration),
}

/// A [`Op::Sync`] on its way.
#[derive(Debug)]
struct Flight {
    token: u64,
    covered: Covered,
    sent: Instant,
    /// The background's bytes between the one before and this.
    background_bytes: u64,
    /// Nothing of the background was left.
    is_whole: bool,
}

enum Failure {
    Sink(SinkError),
    Source(Error),
}

impl From<SinkError> for Failure {
    fn from(e: SinkError) -> Self {
        Self::Sink(e)
    }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        Self::Source(e)
    }
}

/// See the module.
pub(super) struct Link {
    sink: Box<dyn Sink>,
    board: Arc<Board>,
    rate: Rate,
    retry: Retry,
    sync_every: Duration,
    is_open: bool,
    /// Not opened before.
    not_before: Option<Instant>,
    token: u64,
    flights: VecDeque<Flight>,
    synced: Option<Instant>,
    synced_at: Covered,
    ahead_bytes_max: u64,
    /// The background's bytes since the last `Sync`.
    background_bytes: u64,
    /// The last look found nothing left of the background.
    is_whole: bool,
    /// That was acknowledged since the sink was opened.
    was_whole: bool,
}

impl Link {
    /// A link to a sink that is not opened yet; a `Sync` at most this often.
    pub(super) fn new(
        sink: Box<dyn Sink>,
        board: Arc<Board>,
        sync_every: Duration,
        seed: u64,
    ) -> Self {
        Self {
            sink,
            board,
            rate: Rate::new(0),
            retry: Retry::new(seed),
            sync_every,
            is_open: false,
            not_before: None,
            token: 0,
            flights: VecDeque::new(),
            synced: None,
            synced_at: Covered::default(),
            ahead_bytes_max: AHEAD_BYTES_MIN,
            background_bytes: 0,
            is_whole: false,
            was_whole: false,
        }
    }

    /// The background's rate from now on, in bytes a second; 0: no limit.
    pub(super) fn set_rate(&mut self, bytes_per_s: u64) {
        self.rate.set(bytes_per_s);
    }

    /// The journal was let go of: its next opening begins with the sink's.
    pub(super) fn close(&mut self) {
        self.is_open = false;
        self.board.closed();
    }

    /// Whether the sink is open.
    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Whether all that the source has is durable at the sink.
    pub(super) fn is_level(&self, source: &dyn Source) -> bool {
        self.is_open && self.flights.is_empty() && self.synced_at == source.covered()
    }

    /// Does what is to be done now.
    pub(super) fn step(
        &mut self,
        hello: &Hello,
        source: &mut dyn Source,
        now: Instant,
        wall_ns: u64,
    ) -> Step {
        let done =
            if self.is_open { self.pump(source, now) } else { self.open(hello, source, now) };
        done.unwrap_or_else(|failure| self.fail(failure, now, wall_ns))
    }

    /// Waits for what may come next.
    pub(super) fn wait(&mut self, source: &mut dyn Source, limit: Duration) {
        // Acks are taken in by the next step; here it only is waited for one.
        match self.flights.front() {
            Some(_) if self.is_open => source.wait(limit.min(ACK_WAIT)),
            _ => source.wait(limit.min(WAIT_MAX)),
        }
    }

    fn open(
        &mut self,
        hello: &Hello,
        source: &mut dyn Source,
        now: Instant,
    ) -> Result<Step, Failure> {
        let pause = self.not_before.map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        if !pause.is_zero() {
            // What piles up meanwhile.
            self.board.piled(source.left());
            return Ok(Step::Wait(pause.min(WAIT_MAX)));
        }
        let inventory = self.sink.open(hello)?;
        source.start(&inventory, self.sink.mirrors())?;
        self.is_open = true;
        self.flights.clear();
        (self.synced, self.synced_at) = (None, Covered::default());
        (self.background_bytes, self.is_whole, self.was_whole) = (0, false, false);
        self.ahead_bytes_max = AHEAD_BYTES_MIN;
        self.board.opened(inventory.watermark);
        self.board.left(source.left(), false);
        Ok(Step::Again)
    }

    fn pump(&mut self, source: &mut dyn Source, now: Instant) -> Result<Step, Failure> {
        for _ in 0..ACKS_MAX {
            let Some(ack) = self.sink.ack(Duration::ZERO)? else { break };
            self.take_ack(&ack, source, now)?;
        }
        self.check_silence(now)?;
        let caught_up = self.send_fresh(source, now)?;
        self.sync_if_due(source, now)?;
        self.board.left(source.left(), self.was_whole);
        if !caught_up {
            return Ok(Step::Again);
        }
        self.send_background(source, now)
    }

    /// Whether nothing of the log's end is left.
    fn send_fresh(&mut self, source: &mut dyn Source, now: Instant) -> Result<bool, Failure> {
        for _ in 0..FRESH_OPS_MAX {
            let Some(op) = source.fresh()? else { return Ok(true) };
            self.send(op, now)?;
        }
        Ok(false)
    }

    fn send(&mut self, op: Op, now: Instant) -> Result<u64, Failure> {
        let bytes = match &op {
            Op::Bytes { bytes, .. } | Op::Put { bytes, .. } => bytes.len() as u64,
            _ => 0,
        };
        self.sink.apply(op)?;
        self.board.sent(bytes, now);
        Ok(bytes)
    }

    /// One piece, if it may go now.
    fn send_background(&mut self, source: &mut dyn Source, now: Instant) -> Result<Step, Failure> {
        let on_its_way: u64 = self.flights.iter().map(|f| f.background_bytes).sum();
        if on_its_way + self.background_bytes >= self.ahead_bytes_max {
            return Ok(Step::Wait(ACK_WAIT));
        }
        let wait = self.rate.wait(now);
        if !wait.is_zero() {
            return Ok(Step::Wait(wait.min(WAIT_MAX)));
        }
        let Some(op) = source.background()? else {
            self.is_whole = true;
            return Ok(Step::Wait(self.until_sync(source, now)));
        };
        self.is_whole = false;
        let bytes = self.send(op, now)?;
        self.rate.spend(bytes, now);
        // An op without bytes counts too: there may be very many.
        self.background_bytes += bytes.max(512);
        Ok(Step::Again)
    }

    fn wants_sync(&self, source: &dyn Source) -> bool {
        let is_news = source.covered() != self.synced_at;
        let on_its_way = self.flights.back().is_some_and(|f| f.is_whole);
        let is_whole = self.is_whole && !self.was_whole && !on_its_way;
        is_news || is_whole || self.background_bytes > 0
    }

    fn until_sync(&self, source: &dyn Source, now: Instant) -> Duration {
        if !self.wants_sync(source) {
            return WAIT_MAX;
        }
        let since = self.synced.map_or(Duration::MAX, |at| now.saturating_duration_since(at));
        self.sync_every.saturating_sub(since).clamp(Duration::from_millis(1), WAIT_MAX)
    }

    fn sync_if_due(&mut self, source: &mut dyn Source, now: Instant) -> Result<(), Failure> {
        let since = self.synced.map_or(Duration::MAX, |at| now.saturating_duration_since(at));
        // A background that stands still for want of acks asks sooner.
        let every = match self.background_bytes * 2 >= self.ahead_bytes_max {
            true => self.sync_every / 5,
            false => self.sync_every,
        };
        if since < every || self.flights.len() >= SYNCS_MAX || !self.wants_sync(source) {
            return Ok(());
        }
        self.token += 1;
        let (token, covered) = (self.token, source.covered());
        let Covered { watermark, wall_ns } = covered;
        self.sink.apply(Op::Sync { token, watermark, wall_ns })?;
        let background_bytes = std::mem::take(&mut self.background_bytes);
        let is_whole = self.is_whole;
        self.flights.push_back(Flight { token, covered, sent: now, background_bytes, is_whole });
        (self.synced, self.synced_at) = (Some(now), covered);
        Ok(())
    }

    fn take_ack(
        &mut self,
        ack: &Ack,
        source: &mut dyn Source,
        now: Instant,
    ) -> Result<(), Failure> {
        // Files may be told of before the first `Sync` is done, and an ack may come twice.
        if ack.token > self.token {
            let why = format!("it acknowledged step {}, of {} so far", ack.token, self.token);
            return Err(SinkError::Broken(why).into());
        }
        let mut last = None;
        while self.flights.front().is_some_and(|f| f.token <= ack.token) {
            last = self.flights.pop_front();
            if let Some(flight) = &last {
                self.adapt(flight, now);
                self.was_whole |= flight.is_whole;
            }
        }
        source.acked(ack);
        let Some(flight) = last else { return Ok(()) };
        if ack.token == flight.token && ack.watermark != flight.covered.watermark {
            let (theirs, ours) = (ack.watermark, flight.covered.watermark);
            let why = format!("it acknowledged up to record {theirs} where {ours} was asked for");
            return Err(SinkError::Broken(why).into());
        }
        let Covered { watermark, wall_ns } = flight.covered;
        self.retry.works();
        self.board.acked(Durable { watermark, wall_ns });
        Ok(())
    }

    /// How much of the background may be on its way follows from how soon it is acknowledged.
    fn adapt(&mut self, flight: &Flight, now: Instant) {
        let took = now.saturating_duration_since(flight.sent);
        if took > SLOW {
            self.ahead_bytes_max = (self.ahead_bytes_max / 2).max(AHEAD_BYTES_MIN);
        } else if took < PROMPT && flight.background_bytes * 2 >= self.ahead_bytes_max {
            self.ahead_bytes_max = (self.ahead_bytes_max * 2).min(AHEAD_BYTES_MAX);
        }
    }

    fn check_silence(&self, now: Instant) -> Result<(), Failure> {
        let silent = self.flights.front().map(|f| now.saturating_duration_since(f.sent));
        match silent {
            Some(silent) if silent >= ACK_LIMIT => {
                let why = format!("it has not acknowledged anything for {} s", silent.as_secs());
                Err(SinkError::Away(why).into())
            }
            _ => Ok(()),
        }
    }

    fn fail(&mut self, failure: Failure, now: Instant, wall_ns: u64) -> Step {
        let (trouble, text) = match failure {
            Failure::Sink(e) => (Trouble::of(&e), e.to_string()),
            // It stays so until a person decides.
            Failure::Source(Error::OtherBranch(why)) => (Trouble::Refused, why),
            Failure::Source(e) => (Trouble::Source, format!("the journal can't be sent: {e}")),
        };
        self.is_open = false;
        self.flights.clear();
        let pause = self.retry.failed(trouble);
        self.not_before = now.checked_add(pause);
        self.board.failed(trouble, text, wall_ns);
        Step::Wait(pause.min(WAIT_MAX))
    }
}

#[cfg(test)]
#[path = "link_model_tests.rs"]
mod model;
#[cfg(test)]
#[path = "link_tests.rs"]
mod tests;
