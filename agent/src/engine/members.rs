//! How guests come and go.
//!
//! What always holds: of a guest that could not be attached to nothing is left, in QEMU or on disk; with the
//! last guest of a group its journal is closed, and nothing is shipped any more.

use super::opening::Opening;
use super::wanted::settings_of;
use super::{Engine, Entry, FIRST_ATTACH_LIMIT, api, sites};
use crate::api::{ApiError, GuestStatus, ProtectRequest};
use crate::group::Group;
use crate::settings::GuestSettings;
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
        let (name, journal) = (settings.name.clone(), settings.group.clone());
        let existed = layout::journal_dir(&self.state, &journal)
            .map_err(|e| api(&e))?
            .join("journal.json")
            .try_exists()
            .unwrap_or(true);
        // A group that has such a name from an older version keeps it.
        let check = if existed { layout::check_name } else { layout::check_new_name };
        check(&settings.name).and_then(|()| check(&settings.group)).map_err(|e| api(&e))?;
        let first = self.add(settings.clone(), Opening::Now).await?;
        let attached = match tokio::time::timeout(FIRST_ATTACH_LIMIT, first).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(ApiError::other("the guest's task has ended")),
            Err(_) => Err(ApiError::not_reachable(format!(
                "{name} could not be attached to within {FIRST_ATTACH_LIMIT:?}"
            ))),
        };
        let guest = self.handles(std::slice::from_ref(&name)).await.pop();
        let saved = match (attached, self.group_of(&name).await, guest) {
            (Ok(()), Some(group), Some(guest)) => match self.change_sites(&group, add).await {
                // By its task: whoever changed or unprotected it meanwhile has the last word.
                Ok(()) => guest.save().await,
                Err(error) => Err(error),
            },
            (attached, ..) => attached,
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
        if released.is_err() && GuestSettings::exist(&self.state, name) {
            // Not carried out yet, or not at all: it is protected still.
            return released;
        }
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
        if released.is_ok() {
            crate::guest::sockets::remove_run_dir(&self.state, name);
        }
        if last {
            let dir = group.dir().to_owned();
            let pool = Arc::clone(self.pool.pool());
            let state = self.state.clone();
            let notes = self.options.notes_dir.clone();
            let closed = tokio::task::spawn_blocking(move || {
                GroupSettings::remove(&state, group.name())?;
                // A journal that is not there any more may have left units elsewhere.
                let id = layout::read_identity(&dir).map_or(group.config().group, |i| i.group);
                close(&group);
                if !purge {
                    return Ok(());
                }
                if !id.is_nil() {
                    if let Some(notes) = &notes {
                        afterimage_journal::log::forget_head_note(notes, id);
                    }
                    // Members that are away have to be cleared when they come back.
                    pool.begin_purge(group.name(), id)?;
                }
                crate::group::purge(&dir).and_then(|()| pool.purge())
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
