//! What people want of a group's sites.
//!
//! What always holds: a site is on disk before it is shipped to, and gone from there before it is not;
//! of two changes at once the second sees the first. Nothing that touches a site runs under the lock over
//! the guests.

use super::{Engine, Entry, api};
use crate::api::ApiError;
use crate::group::Group;
use crate::ship::settings::SITES_MAX;
use crate::ship::{GroupSettings, Site, SitesChange, target};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Lowest age of an alarm: records leave the journal when they are durable, some hundred milliseconds
/// after they came.
const RPO_ALARM_MS_MIN: u64 = 1000;

/// Reads and checks a change, as far as that changes nothing.
pub(super) fn change_of(
    (state, group): (&Path, &str),
    add: &[String],
    remove: &[String],
    rpo_alarm_ms: Option<u64>,
) -> Result<SitesChange, ApiError> {
    if let Some(ms) = rpo_alarm_ms.filter(|ms| *ms < RPO_ALARM_MS_MIN) {
        return Err(ApiError::usage(format!(
            "an alarm after {ms} ms: the shortest time is {RPO_ALARM_MS_MIN} ms"
        )));
    }
    let change = SitesChange::parse(add, remove, rpo_alarm_ms).map_err(ApiError::usage)?;
    for site in &change.add {
        target::check(site, state, group)?;
    }
    Ok(change)
}

/// The settings after a change; what has to be made for a site is made.
fn changed(
    state: &Path,
    group: &str,
    mut settings: GroupSettings,
    change: &SitesChange,
) -> Result<GroupSettings, ApiError> {
    if let Some(unknown) = change.remove.iter().find(|name| !settings.has(name)) {
        let known: Vec<&str> = settings.sites.iter().map(|s| s.site.as_str()).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        return Err(ApiError::usage(format!(
            "group {group} has no site {unknown}; its sites: {known}"
        )));
    }
    settings.sites.retain(|s| !change.remove.contains(&s.site));
    let new: Vec<&Site> = change.add.iter().filter(|s| !settings.has(&s.name())).collect();
    if settings.sites.len() + new.len() > SITES_MAX {
        return Err(ApiError::usage(format!("group {group} can have {SITES_MAX} sites at most")));
    }
    for site in new {
        settings.sites.push(target::adopt(site, state, group)?);
    }
    settings.rpo_alarm_ms = change.rpo_alarm_ms.unwrap_or(settings.rpo_alarm_ms);
    Ok(settings)
}

/// Has what goes to each site in the background limited as the group's guests want it: by the lowest
/// rate that any of them names.
pub(super) fn limit(guests: &BTreeMap<String, Entry>, group: &str) {
    let of_group = || guests.values().filter(|e| e.settings.group == group);
    let rate = of_group().filter_map(|e| e.settings.rate_bytes_per_s).min();
    if let Some(entry) = of_group().next() {
        entry.group.set_ship_rate(rate.unwrap_or(0));
    }
}

impl Engine {
    /// Changes the sites of a group that is open, durably.
    pub(super) async fn change_sites(
        &self,
        group: &Arc<Group>,
        change: SitesChange,
    ) -> Result<(), ApiError> {
        if change.is_empty() {
            return Ok(());
        }
        let _one_at_a_time = self.site_changes.lock().await;
        let (state, group) = (self.state.clone(), Arc::clone(group));
        let work = move || {
            let settings = changed(&state, group.name(), group.sites(), &change)?;
            settings.save(&state, group.name()).map_err(|e| api(&e))?;
            group.ship(&settings);
            Ok(())
        };
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|e| ApiError::other(e.to_string()))?
    }

    /// The group of a guest.
    pub(super) async fn group_of(&self, guest: &str) -> Option<Arc<Group>> {
        self.guests.lock().await.get(guest).map(|e| Arc::clone(&e.group))
    }
}
