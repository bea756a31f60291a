//! What others see of a guest: written by its task, read by status.

use crate::api::GuestState;
use crate::capture::{Gate, TapCounters};
use afterimage_journal::VolumeId;
use afterimage_journal::meta::CopyCause;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A guest's visible state.
pub struct Face {
    name: String,
    shown: Mutex<Shown>,
}

/// The part that changes.
pub struct Shown {
    /// Where it stands.
    pub state: GuestState,
    /// Why it isn't protected.
    pub reason: Option<String>,
    /// Its disks.
    pub disks: Vec<DiskFace>,
    /// What all its taps share, while it is attached.
    pub gate: Option<Arc<Gate>>,
    /// The copy that goes on.
    pub copy: Option<Arc<Progress>>,
    /// Guest writes, bytes a second, over the last seconds.
    pub bytes_per_s: u64,
    /// Guest writes a second.
    pub writes_per_s: u64,
    /// Longest answer of connections that are gone, in microseconds.
    pub answer_us_max: u64,
}

/// A disk.
#[derive(Clone)]
pub struct DiskFace {
    /// Its volume.
    pub volume: VolumeId,
    /// Stable name.
    pub id: String,
    /// QEMU's node.
    pub node: String,
    /// Size in bytes.
    pub bytes: u64,
    /// What its tap counts.
    pub counters: Arc<TapCounters>,
}

/// A copy that goes on, over all disks of the guest.
pub struct Progress {
    /// Why.
    pub cause: CopyCause,
    /// Bytes that are done.
    pub done_bytes: AtomicU64,
    /// Bytes that are to be done.
    pub total_bytes: AtomicU64,
    /// Limit, bytes a second; 0: none.
    pub rate_bytes_per_s: AtomicU64,
    /// Since when.
    pub since: Instant,
    /// Set to end it.
    pub cancel: AtomicBool,
}

impl Progress {
    /// A copy that begins now, with a limit in bytes a second (0: none).
    #[must_use]
    pub fn new(cause: CopyCause, rate_bytes_per_s: u64) -> Arc<Self> {
        Arc::new(Self {
            cause,
            done_bytes: AtomicU64::new(0),
            total_bytes: AtomicU64::new(0),
            rate_bytes_per_s: AtomicU64::new(rate_bytes_per_s),
            since: Instant::now(),
            cancel: AtomicBool::new(false),
        })
    }

    /// Bytes a second since it began.
    #[must_use]
    pub fn rate_bytes_s(&self) -> u64 {
        let ms = self.since.elapsed().as_millis().max(1) as u64;
        self.done_bytes.load(Ordering::Relaxed).saturating_mul(1000) / ms
    }
}

impl Face {
    /// The face of a guest that is not attached yet.
    #[must_use]
    pub fn new(name: &str) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_owned(),
            shown: Mutex::new(Shown {
                state: GuestState::Gap,
                reason: Some("not attached yet".into()),
                disks: Vec::new(),
                gate: None,
                copy: None,
                bytes_per_s: 0,
                writes_per_s: 0,
                answer_us_max: 0,
            }),
        })
    }

    /// The guest's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it shows now.
    pub fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows a state and the reason for it.
    pub fn show(&self, state: GuestState, reason: Option<String>) {
        let mut shown = self.shown();
        if shown.state != state || shown.reason != reason {
            tracing::info!(guest = self.name, %state, reason = reason.as_deref(), "state");
        }
        shown.state = state;
        shown.reason = reason;
    }
}
