//! Checkpoints of groups' memory: on request, and by the clock.
//!
//! What always holds: a checkpoint is taken in a task of its own, which no caller that goes away ends
//! halfway; the lock over the guests is not held meanwhile.

use super::Engine;
use crate::api::{ApiError, MarkReply, MarkRequest};
use crate::capture::instant::hold_limit;
use crate::group::Group;
use crate::guest::Guest;
use crate::memory::checkpoint::{Conductor, Wanted};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// How often it is looked whether a checkpoint is due.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Takes a group's memory whenever one of its guests asks for that by now. Ends with the engine.
pub(super) fn schedule(engine: &Arc<Engine>) {
    let engine = Arc::downgrade(engine);
    tokio::spawn(async move {
        let mut every = tokio::time::interval(LOOK_EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            let Some(engine) = engine.upgrade() else { return };
            for (conductor, guests) in engine.due().await {
                tokio::spawn(async move {
                    // Whatever it ends with is in the log and in status.
                    let _ = conductor.take(&guests, &Wanted::default()).await;
                });
            }
        }
    });
}

impl Engine {
    pub(super) fn conductor(&self, group: &Arc<Group>) -> Arc<Conductor> {
        Conductor::new(Arc::clone(group), &self.state, hold_limit(self.stall_limit_ms))
    }

    /// Groups whose regular checkpoint of memory is due, with their guests. Of a group, the shortest
    /// time of its guests counts; one that a person let go of makes it wait.
    async fn due(&self) -> Vec<(Arc<Conductor>, Vec<Guest>)> {
        let guests = self.guests.lock().await;
        let mut groups: BTreeMap<&str, Vec<&super::Entry>> = BTreeMap::new();
        for entry in guests.values() {
            groups.entry(&entry.settings.group).or_default().push(entry);
        }
        let of_group = |entries: Vec<&super::Entry>| {
            let every_ms = entries.iter().filter_map(|e| e.settings.memory_every_ms).min()?;
            let conductor = Some(&entries.first()?.memory).filter(|c| c.is_due(every_ms))?;
            let absent = entries.iter().find(|e| e.group.session(&e.settings.name).is_none());
            if let Some(absent) = absent {
                conductor.waits_for(&absent.settings.name);
                return None;
            }
            let guests = entries.iter().map(|e| e.guest.clone()).collect();
            Some((Arc::clone(conductor), guests))
        };
        groups.into_values().filter_map(of_group).collect()
    }

    /// Takes the memory of the whole group that these guests are in.
    pub(super) async fn mark_memory(
        &self,
        names: &[String],
        request: MarkRequest,
    ) -> Result<MarkReply, ApiError> {
        let others = self.others_of_group(names).await;
        let mut all = match names.first() {
            Some(first) => self.handles(std::slice::from_ref(first)).await,
            None => Vec::new(),
        };
        all.extend(others);
        let conductor = match names.first() {
            Some(name) => self.guests.lock().await.get(name).map(|e| Arc::clone(&e.memory)),
            None => None,
        };
        let Some(conductor) = conductor else {
            return Err(ApiError::other(format!("{} is gone", names.join(", "))));
        };
        let wanted = Wanted {
            tag: Some(request.tag).filter(|t| !t.is_empty()),
            quiesce: names.first().filter(|_| request.quiesce).cloned(),
        };
        let work = tokio::spawn(async move { conductor.take(&all, &wanted).await });
        work.await.map_err(|e| ApiError::other(e.to_string()))?
    }
}
