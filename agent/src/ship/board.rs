//! What a link shows: written by its thread, read by `status`.
//!
//! What always holds: what is said to be at a site is what its last ack covers, whatever was sent since,
//! and however long its thread is gone; nothing here has a secret in it.

use super::retry::Trouble;
use super::source::Left;
use crate::api::sites::{SiteState, SiteStatus};
use crate::api::types::time;
use afterimage_journal::Seq;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Age of the oldest record that a site lacks from which on it is called behind.
const BEHIND_MS: u64 = 5000;
/// Speeds are told over this time.
const SPEED_OVER: Duration = Duration::from_secs(4);

/// See the module.
#[derive(Debug)]
pub(super) struct Board {
    name: String,
    begun: Instant,
    shown: Mutex<Shown>,
}

/// What a site is known to have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Durable {
    /// Every number up to this one.
    pub(super) watermark: Seq,
    /// When the newest of them was written; 0: unknown.
    pub(super) wall_ns: u64,
}

#[derive(Debug, Default)]
struct Shown {
    is_open: bool,
    /// Nothing of what it lacks lies before the log's end.
    is_whole: bool,
    durable: Option<Durable>,
    left: Left,
    trouble: Option<(Trouble, String)>,
    /// The last error, also when it is over.
    error: Option<(String, u64)>,
    sent_bytes: u64,
    speed: Speed,
}

/// How fast bytes go, over some seconds.
#[derive(Debug, Default)]
struct Speed {
    since: Option<Instant>,
    bytes: u64,
    bytes_per_s: u64,
}

impl Speed {
    fn sent(&mut self, bytes: u64, now: Instant) {
        self.bytes += bytes;
        let since = *self.since.get_or_insert(now);
        let took = now.saturating_duration_since(since);
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX).max(1);
        let told = self.bytes.saturating_mul(1000) / ms;
        if took >= SPEED_OVER {
            (self.bytes_per_s, self.since, self.bytes) = (told, Some(now), 0);
        } else if self.bytes_per_s == 0 && took >= SPEED_OVER / 8 {
            self.bytes_per_s = told;
        }
    }
}

/// What the journal says at the moment that a status is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Its newest record; `None`: it is not open.
    pub head: Option<Seq>,
    /// Now, nanoseconds since the Unix epoch.
    pub now_ns: u64,
    /// What is shown as an alarm: older records than this that a site lacks.
    pub alarm_ms: u64,
    /// How long the guest's newest restorable moment lies back, for whatever reason; `None`: there is none.
    pub local_rpo_ms: Option<u64>,
}

/// How old records are, as far as that was looked at.
pub trait Ages {
    /// Age of the oldest record behind this one, in milliseconds; `None`: it was not looked at then.
    fn behind_ms(&self, seq: Seq) -> Option<u64>;
    /// Age of this record, which is the newest, in milliseconds.
    fn newest_ms(&self, seq: Seq) -> u64;
}

impl Board {
    pub(super) fn new(name: String) -> Self {
        Self { name, begun: Instant::now(), shown: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Shown> {
        // Plain values, whole at every step.
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The site answered: this is there.
    pub(super) fn opened(&self, watermark: Seq) {
        let mut shown = self.lock();
        (shown.is_open, shown.is_whole, shown.trouble) = (true, false, None);
        // Less than before, where the site lost something: that is what is true now.
        let known = shown.durable.filter(|known| known.watermark == watermark);
        shown.durable = Some(known.unwrap_or(Durable { watermark, wall_ns: 0 }));
    }

    /// It has this durably, and answered in good order.
    pub(super) fn acked(&self, durable: Durable) {
        let mut shown = self.lock();
        shown.trouble = None;
        if shown.durable.is_none_or(|known| known.watermark <= durable.watermark) {
            shown.durable = Some(durable);
        }
    }

    /// What is left to be sent. `is_whole`: all that lies before the log's end is durably there.
    pub(super) fn left(&self, left: Left, is_whole: bool) {
        let mut shown = self.lock();
        (shown.left, shown.is_whole) = (left, is_whole);
    }

    /// What is left to be sent to a site that is not reached.
    pub(super) fn piled(&self, left: Left) {
        self.lock().left = left;
    }

    /// So much was given to the sink.
    pub(super) fn sent(&self, bytes: u64, now: Instant) {
        let mut shown = self.lock();
        shown.sent_bytes += bytes;
        shown.speed.sent(bytes, now);
    }

    /// It failed.
    pub(super) fn failed(&self, trouble: Trouble, text: String, now_ns: u64) {
        let mut shown = self.lock();
        shown.is_open = false;
        // Since when it is so, not since the last try.
        let since = match (&shown.trouble, &shown.error) {
            (Some((known, _)), Some((_, since))) if *known == trouble => *since,
            _ => now_ns,
        };
        shown.error = Some((text.clone(), since));
        shown.trouble = Some((trouble, text));
    }

    /// The journal was let go of: what is sent next comes from another opening of it.
    pub(super) fn closed(&self) {
        self.lock().is_open = false;
    }

    /// What there is to say.
    pub(super) fn status(&self, moment: &Moment, ages: &dyn Ages) -> SiteStatus {
        let shown = self.lock();
        let missing_ms = shown.durable.and_then(|d| missing_ms(d, moment, ages));
        let restorable = shown.is_whole.then_some(missing_ms).flatten();
        let state = shown.state(missing_ms, moment);
        let lag_ms = shown.durable.and_then(|d| match d {
            _ if moment.head.is_some_and(|head| d.watermark >= head) => Some(0),
            Durable { wall_ns: 0, .. } => missing_ms,
            _ => {
                let newest_ms = moment.head.map_or(0, |head| ages.newest_ms(head));
                let newest_ns = moment.now_ns.saturating_sub(newest_ms * 1_000_000);
                // 0 is said of what is level only.
                Some((newest_ns.saturating_sub(d.wall_ns) / 1_000_000).max(1))
            }
        });
        let (error, since_ns) = shown.error.clone().unzip();
        let left = shown.left;
        let due_bytes = left.fresh_bytes.saturating_add(left.background_bytes);
        SiteStatus {
            site: self.name.clone(),
            state,
            watermark: shown.durable.map(|d| d.watermark),
            lag_ms,
            rpo_ms: restorable.and_then(|ms| Some(moment.local_rpo_ms?.max(ms))),
            backlog_bytes: left.fresh_bytes,
            background_bytes: left.background_bytes,
            catch_up_s: match due_bytes {
                _ if !shown.is_open => None,
                0 => Some(0),
                bytes => bytes.checked_div(shown.speed.bytes_per_s),
            },
            sent_bytes: shown.sent_bytes,
            error,
            error_since: since_ns.map(time),
            failing: shown.trouble.is_some(),
            alarm: self.alarm(&shown, missing_ms, moment),
        }
    }

    fn alarm(&self, shown: &Shown, missing_ms: Option<u64>, moment: &Moment) -> Option<String> {
        let name = &self.name;
        let why = shown.trouble.as_ref().map(|(_, text)| format!(": {text}")).unwrap_or_default();
        let unknown_ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        match missing_ms {
            Some(ms) if ms > moment.alarm_ms => {
                Some(format!("site {name} lacks what was written since {} s ago{why}", ms / 1000))
            }
            None if unknown_ms > moment.alarm_ms => Some(format!(
                "what site {name} holds is not known since {} s{why}",
                unknown_ms / 1000
            )),
            _ => None,
        }
    }
}

/// Age of the oldest record that a site lacks; 0: it lacks none. At most too high.
fn missing_ms(durable: Durable, moment: &Moment, ages: &dyn Ages) -> Option<u64> {
    if moment.head.is_some_and(|head| head <= durable.watermark) {
        return Some(0);
    }
    // What came to a journal that is not open now is not known.
    let looked = moment.head.and_then(|_| ages.behind_ms(durable.watermark));
    // What it lacks was written behind the newest that it has.
    let written =
        (durable.wall_ns > 0).then(|| moment.now_ns.saturating_sub(durable.wall_ns) / 1_000_000);
    let age_ms = match (looked, written) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    };
    age_ms.map(|ms| ms.max(1))
}

impl Shown {
    fn state(&self, missing_ms: Option<u64>, moment: &Moment) -> SiteState {
        match (&self.trouble, missing_ms) {
            (Some((Trouble::Refused, _)), _) => SiteState::Refused,
            (Some((Trouble::Full, _)), _) => SiteState::Full,
            (Some((Trouble::Away | Trouble::Broken, _)), _) => SiteState::Away,
            (Some((Trouble::Source, _)), _) => SiteState::Behind,
            (None, _) if !self.is_open => SiteState::Connecting,
            (None, None) => SiteState::Connecting,
            (None, Some(_)) if !self.is_whole => SiteState::Copying,
            (None, Some(ms)) if ms > BEHIND_MS.min(moment.alarm_ms) => SiteState::Behind,
            (None, Some(_)) => SiteState::Shipping,
        }
    }
}

#[cfg(test)]
#[path = "board_tests.rs"]
mod tests;
