//! A bucket as a sink: ops become segments in objects, and manifests that name them.
//!
//! ```text
//!  Begin, Bytes, Put ──► gather ──► uploads (objects) ─┐
//!  Seal, PutEnd, Release ──► state ────────────────────┴─► manifest ──► ack ──► deletes
//! ```
//!
//! What always holds:
//! * a manifest names an object only after it is there, and an ack covers what a manifest names;
//! * an epoch's first manifest is there before its first object; after it no lower epoch commits (I-9);
//! * deleted is only what a manifest of this opening, which was committed a moment ago, calls dead for
//!   longer than the grace; so a writer that lost the journal deletes nothing that anybody may name;
//! * after any error the opening is over: what it left is found by the next one;
//! * a bucket that lost what it was given is noticed within seconds, single objects within a day.

mod audit;
mod check;
mod garbage;
mod gather;
mod held;
mod live;
mod ops;
mod put;
mod uploads;
mod verify;

pub use gather::{SEGMENT_BYTES, SEGMENT_GOOD_BYTES};
pub use uploads::{UPLOAD_BYTES_MAX, UPLOADS_MAX};

use crate::manifest::ChainError;
use crate::storage::FetchError;
use crate::store::{Bucket, Patience, Patient, Stats, StoreError};
use crate::url::S3Url;
use afterimage_journal::layout;
use afterimage_journal::wire::{Ack, Hello, Inventory, Op, Sink, SinkError};
use live::Live;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How a bucket is written.
#[derive(Debug, Clone, Copy)]
pub struct SinkOptions {
    /// What is to be acknowledged is committed when it is so old.
    pub age: Duration,
    /// What only comes in the background is committed when it is so old.
    pub background_age: Duration,
    /// How long what is dead stays.
    pub grace: Duration,
    /// The writer asks for its own last manifest so often, and before each commit.
    pub look_every: Duration,
    /// All objects are looked for so often.
    pub audit_every: Duration,
    /// Days for which objects are kept from deletion.
    pub lock_days: Option<u32>,
    /// How long requests are repeated.
    pub patience: Patience,
}

impl SinkOptions {
    /// Those of a URL.
    #[must_use]
    pub fn of(url: &S3Url) -> Self {
        Self {
            age: Duration::from_millis(2000),
            background_age: Duration::from_millis(5000),
            grace: url.grace,
            look_every: Duration::from_millis(5000),
            audit_every: audit::AUDIT_EVERY,
            lock_days: url.lock_days,
            patience: Patience::default(),
        }
    }

    /// The grace, never shorter than objects are locked.
    fn grace(&self) -> Duration {
        let locked = Duration::from_secs(u64::from(self.lock_days.unwrap_or(0)) * 86_400);
        self.grace.max(locked)
    }
}

/// A bucket that a journal is sent to.
pub struct S3Sink {
    store: Patient,
    prefix: String,
    options: SinkOptions,
    /// Whether the server was asked if it does what we need.
    checked: bool,
    /// When all objects were looked for last; `None`: not yet, or something was lost since.
    audited: Option<Instant>,
    live: Option<Live>,
}

impl S3Sink {
    /// The bucket of a URL; nothing is asked of it yet.
    ///
    /// # Errors
    /// There are no credentials, or no region.
    pub fn connect(url: &S3Url) -> Result<Self, SinkError> {
        let options = SinkOptions::of(url);
        let bucket = Bucket::connect(url).map_err(store_error)?;
        Ok(Self::over(url, Patient::new(Arc::new(bucket), options.patience), options))
    }

    /// The prefix of a URL in this store.
    #[must_use]
    pub fn over(url: &S3Url, store: Patient, options: SinkOptions) -> Self {
        Self { store, prefix: url.key(""), options, checked: false, audited: None, live: None }
    }

    /// What was asked of the bucket so far.
    #[must_use]
    pub fn stats(&self) -> &Arc<Stats> {
        self.store.stats()
    }

    fn try_open(&mut self, hello: &Hello) -> Result<Inventory, SinkError> {
        layout::check_name(&hello.identity.name).map_err(|e| SinkError::Refused(e.to_string()))?;
        let root = format!("{}{}", self.prefix, hello.identity.name);
        if !self.checked {
            check::server(&self.store, &root, self.options.lock_days)?;
            self.checked = true;
        }
        let mut live = Live::open(&self.store, root, self.options, hello)?;
        if self.audited.is_none_or(|at| at.elapsed() >= self.options.audit_every) {
            // What was lost is told with the first op: until then another opening finds it again.
            self.audited = live.audit_all()?.then(Instant::now);
        }
        let inventory = live.inventory();
        self.live = Some(live);
        Ok(inventory)
    }

    /// Does something with the opening, which ends if that fails.
    fn with<T>(
        &mut self,
        what: impl FnOnce(&mut Live) -> Result<T, SinkError>,
    ) -> Result<T, SinkError> {
        let Some(live) = &mut self.live else {
            return Err(SinkError::Broken("the bucket is not open: open it first".into()));
        };
        let done = what(live);
        if let Err(error) = &done {
            self.live = None;
            if let SinkError::Broken(_) = error {
                self.audited = None;
            }
        }
        done
    }
}

impl Sink for S3Sink {
    fn open(&mut self, hello: &Hello) -> Result<Inventory, SinkError> {
        self.live = None;
        self.try_open(hello)
    }

    fn apply(&mut self, op: Op) -> Result<(), SinkError> {
        self.with(|live| {
            live.take_over()?;
            live.apply(op)?;
            live.commit_if_due()
        })
    }

    fn ack(&mut self, wait: Duration) -> Result<Option<Ack>, SinkError> {
        let until = Instant::now() + wait;
        self.with(|live| {
            loop {
                live.commit_if_due()?;
                let ack = live.take_ack();
                let left = until.saturating_duration_since(Instant::now());
                if ack.is_some() || left.is_zero() {
                    return Ok(ack);
                }
                // Nothing comes but from this thread: there is only the time to wait for.
                std::thread::sleep(live.due_in().map_or(left, |due| due.min(left)));
            }
        })
    }

    fn mirrors(&self) -> bool {
        true
    }
}

/// What a caller does about a failed request.
fn store_error(error: StoreError) -> SinkError {
    match error {
        StoreError::Unclear(why) => SinkError::Away(why),
        StoreError::Full(why) => SinkError::Full(why),
        StoreError::Refused(why) | StoreError::Unsupported(why) => SinkError::Refused(why),
        gone @ (StoreError::NotFound(_) | StoreError::Exists(_)) => {
            SinkError::Broken(gone.to_string())
        }
    }
}

fn chain_error(error: ChainError) -> SinkError {
    match error {
        ChainError::Store(error) => store_error(error),
        // Nothing that sending again would heal.
        unusable @ (ChainError::Damaged { .. } | ChainError::Unusable { .. }) => {
            SinkError::Refused(unusable.to_string())
        }
    }
}

fn fetch_error(error: FetchError) -> SinkError {
    match error {
        FetchError::Store(error) => store_error(error),
        damaged @ FetchError::Damaged { .. } => SinkError::Broken(damaged.to_string()),
    }
}
