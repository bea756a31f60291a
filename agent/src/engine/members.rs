//! How guests come and go.
//!
//! What always holds: of a guest that could not be attached to nothing is left, in QEMU or on disk; with the
//! last guest of a group its journal is closed, and nothing is shipped any more.

use super::opening::Opening;
use super::wanted::settings_of;
use super::{Engine, Entry, FIRST_ATTACH_LIMIT, api, sites};
use crate::api::{ApiError, GuestStatus, ProtectRequest};
use crate::group::Group;
use crate::ship::GroupSettings;
use afterimage_journal::layout;
use std::sync::Arc;

impl Engine {
    pub(super) async fn protect_guest(
        &self,
        request: ProtectRequest,
    ) -> Result<Vec<GuestStatus>, ApiError> {
        let group = request.group.as_ref().unwrap_or(&request.name);
        let add =
            sites::change_of((&self.state, group), &request.sites, &[], request.rpo_alarm_ms)?;
        let settings = settings_of(request, self.options.unit_bytes)?;
        layout::check_name(&settings.name).map_err(|e| api(&e))?;
        layout::check_name(&settings.group).map_err(|e| api(&e))?;
        let (name, journal) = (settings.name.clone(), settings.group.clone());
        let existed = layout::journal_dir(&self.state, &journal)
            .map_err(|e| api(&e))?
            .join("journal.json")
            .exists();
        let first = self.add(settings.clone(), Opening::Now).await?;
        let attached = match tokio::time::timeout(FIRST_ATTACH_LIMIT, first).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(ApiError::other("the guest's task has ended")),
            Err(_) => Err(ApiError::not_reachable(format!(
                "{name} could not be attached to within {FIRST_ATTACH_LIMIT:?}"
            ))),
        };
        let taken = self.guests.lock().await.get(&name).map(|e| e.settings.clone());
        let settings = taken.unwrap_or(settings);
        let saved = match (attached, self.group_of(&name).await) {
            (Ok(()), Some(group)) => {
                let shipped = self.change_sites(&group, add).await;
                shipped.and_then(|()| settings.save(&self.state).map_err(|e| api(&e)))
            }
            (attached, _) => attached,
        };
        if let Err(error) = saved {
            // Nothing of it stays: neither in QEMU nor on disk.
            if let Err(left) = self.drop_guest(&name, !existed).await {
                tracing::warn!(guest = name, error = %left, "undone in part");
            }
            return Err(error);
        }
        Ok(self.statuses(&[name]).await)
    }

    /// Ends a guest's task, and its group with the last guest of it.
    pub(super) async fn drop_guest(&self, name: &str, purge: bool) -> Result<(), ApiError> {
        let Some(guest) = self.handles(&[name.to_owned()]).await.pop() else { return Ok(()) };
        let released = guest.unprotect().await;
        // From here on under the lock: nobody may join a group whose journal is being closed.
        let mut guests = self.guests.lock().await;
        let Some(entry) = guests.remove(name) else { return released };
        if let Err(error) = entry.group.remove_guest(name) {
            tracing::warn!(guest = name, %error, "the journal still lists the guest");
        }
        let last = !guests.values().any(|e| e.settings.group == entry.settings.group);
        let Entry { group, sampler, memory, .. } = entry;
        memory.forget(name);
        drop(guest);
        sampler.end();
        if last {
            let dir = group.dir().to_owned();
            let pool = Arc::clone(self.pool.pool());
            let state = self.state.clone();
            let notes = self.options.notes_dir.clone();
            let closed = tokio::task::spawn_blocking(move || {
                GroupSettings::remove(&state, group.name())?;
                close(&group);
                if !purge {
                    return Ok(());
                }
                if let (Some(notes), Ok(identity)) = (&notes, layout::read_identity(&dir)) {
                    afterimage_journal::log::forget_head_note(notes, identity.group);
                }
                crate::group::purge(&dir).and_then(|()| pool.purge(group.name()))
            });
            closed.await.map_err(|e| ApiError::other(e.to_string()))?.map_err(|e| api(&e))?;
        }
        released
    }
}

pub(super) fn close(group: &Group) {
    if let Err(error) = group.close() {
        tracing::warn!(group = group.name(), %error, "not closed cleanly");
    }
}
