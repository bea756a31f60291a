//! What happens when space gets short, decided before it does.
//!
//! ```text
//!  0          80 %               hard - headroom   hard - 1 unit    hard
//!  |------------|-----------------------|----------------|-----------|
//!    all is well   alarm: says what     the oldest        no room for the next unit: capture
//!                  will happen next     history goes      stops (a gap) until there is headroom
//!                                       first, down to    and a unit more: it doesn't flap
//!                                       the guaranteed window
//! ```
//!
//! The hard line is the group's limit less what may come on top of it for a moment ([`Usage::moving_bytes`]),
//! or what its members have room for, whichever is lower. So what lies on the disk stays below the limit at
//! every moment. What readers hold (`held/`) doesn't count: a pin never costs capture.

use super::age::{edge, held_ns};
use super::{Edge, Keep, Row, Stamp, edge_behind, sound_rows};

/// The warning line, thousandths of the hard line.
pub const WARNING_PERMILLE: u64 = 800;
/// Dead share from which a unit is merged while space is plenty, thousandths.
pub const DEAD_PERMILLE: u64 = 500;
/// The same at the hard line.
pub const DEAD_PERMILLE_UNDER_PRESSURE: u64 = 125;
/// Fewest units that a limit must have room for besides the ring: the open one, two that are prepared, one
/// that is being sealed, as many of history, and what may come on top ([`MOVING_UNITS`]).
pub const LIMIT_UNITS_MIN: u64 = 8 + MOVING_UNITS;
/// Units that may be there twice for a moment: one that is being merged, one that is being moved to another
/// member.
pub const MOVING_UNITS: u64 = 2;
/// What a group keeps whatever happens, unless its window is shorter.
pub const GUARANTEED_NS: u64 = 3600 * 1_000_000_000;

/// What a group may use, and what it keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// How far back the journal is to reach: with every write, and behind that with checkpoints.
    pub keep: Keep,
    /// How far back it reaches even at the hard line, nanoseconds.
    pub guaranteed_ns: u64,
    /// The group's own limit, bytes; `None`: the pool's room.
    pub limit_bytes: Option<u64>,
}

impl Limits {
    /// Those of a window and a limit.
    #[must_use]
    pub fn new(window_ns: u64, limit_bytes: Option<u64>) -> Self {
        Self::thinned(Keep::every_write(window_ns), limit_bytes)
    }

    /// Those of a window with thinned history behind it, and a limit.
    #[must_use]
    pub fn thinned(keep: Keep, limit_bytes: Option<u64>) -> Self {
        let guaranteed_ns = keep.every_write_ns().min(GUARANTEED_NS);
        Self { keep, guaranteed_ns, limit_bytes }
    }

    /// What is kept at the hard line, nanoseconds.
    fn least_ns(&self) -> u64 {
        self.guaranteed_ns.min(self.keep.every_write_ns())
    }

    /// The same with another guaranteed window, nanoseconds; 0: all history may go before capture
    /// stops. More than the window is the window.
    #[must_use]
    pub fn with_guarantee(self, guaranteed_ns: u64) -> Self {
        Self { guaranteed_ns: guaranteed_ns.min(self.keep.every_write_ns()), ..self }
    }
}

/// What is used now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of all that counts: units, merged ones, runs, the ring, the catalogue.
    pub used_bytes: u64,
    /// Bytes that may come on top for a moment: of units that are merged or moved, of runs that are made
    /// anew. A limit has to have room for them.
    pub moving_bytes: u64,
    /// Bytes that the pool's members can still take.
    pub free_bytes: u64,
    /// Size of a new unit.
    pub unit_bytes: u64,
    /// Bytes that merging at or below the present edge will still give back.
    pub reclaimable_bytes: u64,
    /// Whether capture is stopped for space.
    pub stopped: bool,
    /// Where the base ends now.
    pub floor: Option<Edge>,
}

impl Usage {
    /// The hard line, bytes.
    #[must_use]
    pub fn hard_bytes(&self, limits: &Limits) -> u64 {
        let room = self.used_bytes.saturating_add(self.free_bytes);
        limits.limit_bytes.map_or(room, |limit| limit.saturating_sub(self.moving_bytes).min(room))
    }
}

/// Whether capture may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capture {
    /// There is room.
    Go,
    /// There is none: capture falls to the changed-block map.
    Stop,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AlarmLevel {
    /// Over the warning line.
    Warning,
    /// History goes before its time.
    Shortened,
    /// Capture stops next, or has stopped.
    Full,
}

impl AlarmLevel {
    /// In a word, as status has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Shortened => "shortened",
            Self::Full => "full",
        }
    }
}

/// What is, what happens next, and what can be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alarm {
    /// How bad it is.
    pub level: AlarmLevel,
    /// For people.
    pub text: String,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actions {
    /// Where the base is to end, below which nothing can be restored; never below the present one.
    pub floor: Option<Edge>,
    /// From where on every position is to be restorable; never below `floor`.
    pub edge: Option<Edge>,
    /// Dead share from which a unit is merged, thousandths.
    pub dead_permille: u64,
    /// What people have to know.
    pub alarm: Option<Alarm>,
    /// Whether capture may go on.
    pub capture: Capture,
}

/// Space that is kept free for what comes next, bytes.
#[must_use]
pub fn headroom_bytes(hard_bytes: u64, unit_bytes: u64) -> u64 {
    let wanted = (3 * unit_bytes).max(hard_bytes / 20);
    wanted.min(hard_bytes / 2)
}

/// Decides about edge, merging and capture. Rows ascend by number; the last one may be open.
#[must_use]
pub fn decide(usage: &Usage, rows: &[Row], limits: &Limits, now: &Stamp) -> Actions {
    let hard = usage.hard_bytes(limits);
    let headroom = headroom_bytes(hard, usage.unit_bytes);
    let short = usage.used_bytes.saturating_add(headroom).saturating_sub(hard);
    let by_time = edge(rows, now, limits.keep.upto_ns()).max(usage.floor);
    let guaranteed = edge(rows, now, limits.least_ns()).max(by_time);
    let wanted = short.saturating_sub(usage.reclaimable_bytes);
    let floor = if wanted == 0 { by_time } else { further(rows, by_time, guaranteed, wanted) };
    // Running now: until the next unit has no place. Stopped: until it has one and headroom besides.
    let needed = if usage.stopped { headroom + usage.unit_bytes } else { usage.unit_bytes };
    let fits = usage.used_bytes.saturating_add(needed) <= hard;
    let capture = if fits { Capture::Go } else { Capture::Stop };
    let state = State {
        usage,
        limits,
        hard,
        short,
        held_ns: held_ns(rows, now, floor),
        exhausted: floor == guaranteed,
        early: floor > by_time,
        capture,
    };
    Actions {
        floor,
        edge: edge(rows, now, limits.keep.every_write_ns()).max(floor),
        dead_permille: dead_permille(usage.used_bytes, hard),
        alarm: state.alarm(),
        capture,
    }
}

/// The nearest edge behind `from` whose units hold `wanted` bytes, at most `upto`. Not all of them come
/// free: what is still needed is asked for again once these were merged.
fn further(rows: &[Row], from: Option<Edge>, upto: Option<Edge>, wanted: u64) -> Option<Edge> {
    let unit = from.map_or(0, |e| e.unit);
    let mut bytes = 0u64;
    for (i, row) in rows.iter().enumerate().take(sound_rows(rows)) {
        if row.last <= unit {
            continue;
        }
        bytes = bytes.saturating_add(row.file_bytes);
        let edge = edge_behind(rows, i + 1);
        if bytes >= wanted || edge >= upto {
            return edge.min(upto).max(from);
        }
    }
    from
}

/// From [`DEAD_PERMILLE`] at the warning line down to [`DEAD_PERMILLE_UNDER_PRESSURE`] at the hard
/// one: copying more to free less is right when there is nothing else to free.
fn dead_permille(used_bytes: u64, hard_bytes: u64) -> u64 {
    let share = u128::from(used_bytes) * 1000 / u128::from(hard_bytes.max(1));
    let over = u64::try_from(share).unwrap_or(1000).min(1000).saturating_sub(WARNING_PERMILLE);
    let range = DEAD_PERMILLE - DEAD_PERMILLE_UNDER_PRESSURE;
    DEAD_PERMILLE - over * range / (1000 - WARNING_PERMILLE)
}

struct State<'a> {
    usage: &'a Usage,
    limits: &'a Limits,
    hard: u64,
    short: u64,
    held_ns: u64,
    exhausted: bool,
    early: bool,
    capture: Capture,
}

impl State<'_> {
    fn alarm(&self) -> Option<Alarm> {
        let used = self.usage.used_bytes;
        let percent = u128::from(used) * 100 / u128::from(self.hard.max(1));
        let moving = self.usage.moving_bytes;
        let (line, kept) = match self.limits.limit_bytes {
            Some(limit) if limit.saturating_sub(moving) <= self.hard => {
                ("its limit", format!("; {} are left free for merging", size(moving)))
            }
            _ => ("what its members have room for", String::new()),
        };
        let is = format!(
            "the journal uses {percent} % of {line} ({} of {}{kept})",
            size(used),
            size(self.hard)
        );
        let help = "free space, raise the limit, add a member to the pool, or shorten the window";
        let guaranteed = span(self.limits.least_ns());
        let (level, next) = if self.usage.stopped && self.capture == Capture::Stop {
            let text = "capture has stopped: writes are noted as changed blocks, and copied when there \
                        is room again; until then there are no recovery points";
            (AlarmLevel::Full, text.to_owned())
        } else if self.capture == Capture::Stop {
            let text = "capture stops now, as there is no room for another unit";
            (AlarmLevel::Full, text.to_owned())
        } else if self.short > self.usage.reclaimable_bytes && self.exhausted {
            let text = format!(
                "only the guaranteed {guaranteed} of history is left to keep: capture stops when the \
                 next units find no room"
            );
            (AlarmLevel::Full, text)
        } else if self.short > 0 || self.early {
            let text = format!(
                "the oldest history goes before its time: the window is {} now, and may go down \
                 to {guaranteed}",
                span(self.held_ns)
            );
            (AlarmLevel::Shortened, text)
        } else if u128::from(used) * 1000 >= u128::from(self.hard) * u128::from(WARNING_PERMILLE) {
            let text = format!(
                "when less than {} is left, the oldest history goes before its time, down to the last \
                 {guaranteed}; then capture stops",
                size(headroom_bytes(self.hard, self.usage.unit_bytes))
            );
            (AlarmLevel::Warning, text)
        } else {
            return None;
        };
        Some(Alarm { level, text: format!("{is}; {next}; {help}") })
    }
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let steps = (0..UNITS.len() - 1).take_while(|i| bytes >> (10 * (i + 1)) > 0).count();
    if steps == 0 {
        return format!("{bytes} B");
    }
    let tenths = (u128::from(bytes) * 10) >> (10 * steps);
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[steps])
}

/// A length of time for people.
fn span(ns: u64) -> String {
    let s = ns / 1_000_000_000;
    match s {
        0..=119 => format!("{s}s"),
        120..=7199 => format!("{}m", s / 60),
        7200..=172_799 => format!("{}h", s / 3600),
        _ => format!("{}d", s / 86_400),
    }
}
