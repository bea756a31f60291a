//! One writer a group.

use crate::error::{Error, Result};
use afterimage_journal::wire::Sink;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, OwnedMutexGuard};
use tokio::time::timeout;

/// How long a writer that was told to end may take: what it is doing is one op.
const TAKE_OVER_LIMIT: Duration = Duration::from_secs(30);

/// A group's sink, once it was asked for.
pub(super) type Held = OwnedMutexGuard<Option<Box<dyn Sink>>>;

/// Tells a link to end.
#[derive(Debug, Default)]
pub(super) struct Stop {
    why: Mutex<Option<String>>,
    told: Notify,
    /// The link brought something: its epoch counts.
    has_begun: AtomicBool,
}

impl Stop {
    fn tell(&self, why: &str) {
        let mut told = self.why.lock().unwrap_or_else(PoisonError::into_inner);
        told.get_or_insert_with(|| why.to_owned());
        self.told.notify_one();
    }

    /// Takes note that the link brings something.
    pub(super) fn begin(&self) {
        self.has_begun.store(true, Ordering::Relaxed);
    }

    /// Comes when the link is to end, with the reason.
    pub(super) async fn told(&self) -> String {
        loop {
            let why = self.why.lock().unwrap_or_else(PoisonError::into_inner).clone();
            match why {
                Some(why) => return why,
                None => self.told.notified().await,
            }
        }
    }
}

#[derive(Default)]
struct Slot {
    sink: Arc<tokio::sync::Mutex<Option<Box<dyn Sink>>>>,
    /// The newest link's epoch, and the way to end it.
    current: Option<(u64, Arc<Stop>)>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Slots {
    slots: Mutex<HashMap<String, Slot>>,
}

impl Slots {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Slot>> {
        // Plain values, whole at every step.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a link the group's writer: an older one is told to end, and waited for.
    ///
    /// # Errors
    /// [`Error::Refused`]: the writer that is there has a higher epoch. [`Error::Away`]: one of a higher
    /// epoch looks at what is here and may go again; the older one does not end.
    pub(super) async fn take(&self, group: &str, epoch: u64, stop: &Arc<Stop>) -> Result<Held> {
        let sink = {
            let mut slots = self.lock();
            let slot = slots.entry(group.to_owned()).or_default();
            if let Some((current, other)) = slot.current.as_ref().filter(|(c, _)| epoch < *c) {
                let here = format!(
                    "a writer of group {group} with epoch {current} is here, this one has {epoch}"
                );
                return Err(match other.has_begun.load(Ordering::Relaxed) {
                    true => Error::Refused(format!("{here}: another agent took the group over")),
                    false => Error::Away(format!("{here}: another agent may take the group over")),
                });
            }
            if let Some((_, older)) = slot.current.replace((epoch, Arc::clone(stop))) {
                older.tell("a newer link of the same group took over");
            }
            Arc::clone(&slot.sink)
        };
        timeout(TAKE_OVER_LIMIT, sink.lock_owned()).await.map_err(|_| {
            let limit = TAKE_OVER_LIMIT.as_secs();
            Error::Away(format!("the older link of group {group} did not end within {limit} s"))
        })
    }

    /// A link ended; whether it was the group's newest.
    pub(super) fn leave(&self, group: &str, stop: &Arc<Stop>) -> bool {
        let mut slots = self.lock();
        let Some(slot) = slots.get_mut(group) else { return false };
        let newest = slot.current.as_ref().is_some_and(|(_, s)| Arc::ptr_eq(s, stop));
        if newest {
            slot.current = None;
        }
        newest
    }

    /// Tells all links to end.
    pub(super) fn end_all(&self, why: &str) {
        for slot in self.lock().values() {
            if let Some((_, stop)) = &slot.current {
                stop.tell(why);
            }
        }
    }
}
