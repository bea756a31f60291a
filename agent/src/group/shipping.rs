//! The sites of a group.

use super::Group;
use crate::api::SiteStatus;
use crate::ship::{Ages, GroupSettings, Journals, Moment, Window};
use afterimage_journal::window::Limits;
use afterimage_journal::{Journal, Key};
use std::sync::{Arc, Weak};

/// The group, as its shippers know it: they don't keep it.
struct Known(Weak<Group>);

impl Journals for Known {
    fn now(&self) -> Option<Journal> {
        self.0.upgrade()?.journal().ok()
    }
}

impl Window for Known {
    fn limits(&self) -> Option<Limits> {
        self.0.upgrade()?.limits_at_sites()
    }

    fn key(&self) -> Option<Key> {
        self.0.upgrade()?.secret.key().ok().flatten()
    }
}

impl Group {
    /// Ships to these sites from now on, and to no other.
    pub fn ship(self: &Arc<Self>, settings: &GroupSettings) {
        let journals: Arc<dyn Journals> = Arc::new(Known(Arc::downgrade(self)));
        let window: Arc<dyn Window> = Arc::new(Known(Arc::downgrade(self)));
        self.shipping.set(settings, &self.name, &journals, &window);
    }

    /// Limits what goes to each site behind the log's end, in bytes a second; 0: no limit.
    pub fn set_ship_rate(&self, bytes_per_s: u64) {
        self.shipping.set_rate(bytes_per_s);
    }

    /// The group's sites, as they are set.
    #[must_use]
    pub fn sites(&self) -> GroupSettings {
        self.shipping.settings()
    }

    /// What there is to say of the sites.
    pub(crate) fn site_statuses(&self, moment: &Moment, ages: &dyn Ages) -> Vec<SiteStatus> {
        self.shipping.statuses(moment, ages)
    }
}
