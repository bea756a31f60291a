//! Journals on their way to sites.
//!
//! ```text
//!  group ── journal ─┬─ shipper (a thread): feed ─► link ─► sink ─► site
//!                    └─ shipper (a thread): feed ─► link ─► sink ─► another site
//! ```
//!
//! [`site`] reads what a person writes, [`target`] makes a sink of it, [`settings`] is what a group
//! remembers, [`link`] decides what is sent next, [`shipper`] is the thread that does it, [`board`] what
//! `status` sees of it. What always holds: the sites of a group know nothing of each other; a journal's
//! capture never waits for any of them (I-10).

mod board;
mod directory;
mod feed;
mod link;
mod rate;
mod retry;
pub mod settings;
mod shipper;
pub mod site;
mod source;
pub mod target;

pub use board::{Ages, Moment};
pub use directory::Window;
pub use settings::{GroupSettings, SiteSettings, SitesChange};
pub use site::Site;

use crate::api::sites::SiteStatus;
use afterimage_journal::Journal;
use afterimage_journal::wire::Hello;
use shipper::Shipper;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use target::Target;

/// How long the end of a journal that was closed may take to get to a site that is reached.
const GRACE: Duration = Duration::from_secs(2);

/// All shippers of one group.
#[derive(Debug, Default)]
pub struct Shipping(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    settings: GroupSettings,
    rate_bytes_per_s: u64,
    shippers: BTreeMap<String, Shipper>,
    /// Sites that can't be shipped to at all, and why.
    refused: BTreeMap<String, String>,
}

/// Where the journal is that is open now.
pub trait Journals: Send + Sync {
    /// It; `None`: none is.
    fn now(&self) -> Option<Journal>;
}

impl Shipping {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Plain values, whole at every step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ships to these sites from now on, and to no other. `home`: the state directory.
    pub fn set(
        &self,
        settings: &GroupSettings,
        (home, group): (&Path, &str),
        journals: &Arc<dyn Journals>,
        window: &Arc<dyn Window>,
    ) {
        let mut state = self.lock();
        let gone: Vec<_> = state.shippers.keys().filter(|s| !settings.has(s)).cloned().collect();
        let gone: Vec<_> = gone.iter().filter_map(|name| state.shippers.remove(name)).collect();
        state.settings = settings.clone();
        state.refused.clear();
        for site in &settings.sites {
            if state.shippers.contains_key(&site.site) {
                continue;
            }
            let started = Target::of(site, home, group, Arc::clone(window)).and_then(|target| {
                let opened = opened(Arc::clone(journals));
                Shipper::start(target, opened).map_err(|e| format!("start a thread for it: {e}"))
            });
            match started {
                Ok(shipper) => {
                    shipper.set_rate(state.rate_bytes_per_s);
                    state.shippers.insert(site.site.clone(), shipper);
                }
                Err(error) => {
                    tracing::error!(group, site = site.site, error, "not shipped to");
                    state.refused.insert(site.site.clone(), error);
                }
            }
        }
        drop(state);
        end(&gone.iter().collect::<Vec<_>>(), Duration::ZERO);
    }

    /// Limits the background to so many bytes a second to each site; 0: no limit.
    pub fn set_rate(&self, bytes_per_s: u64) {
        let mut state = self.lock();
        state.rate_bytes_per_s = bytes_per_s;
        for shipper in state.shippers.values() {
            shipper.set_rate(bytes_per_s);
        }
    }

    /// The group's sites, as they are set.
    #[must_use]
    pub fn settings(&self) -> GroupSettings {
        self.lock().settings.clone()
    }

    /// What there is to say of the sites.
    #[must_use]
    pub fn statuses(&self, moment: &Moment, ages: &dyn Ages) -> Vec<SiteStatus> {
        let state = self.lock();
        let moment = Moment { alarm_ms: state.settings.rpo_alarm_ms, ..*moment };
        let sites = state.settings.sites.iter();
        let status = |site: &SiteSettings| match state.shippers.get(&site.site) {
            Some(shipper) => shipper.board.status(&moment, ages),
            None => SiteStatus::refused(&site.site, state.refused.get(&site.site).cloned()),
        };
        sites.map(status).collect()
    }

    /// Ends all of it. The end of a journal that was closed before gets to the sites that are reached, within
    /// a short time.
    pub fn end(&self) {
        let shippers = std::mem::take(&mut self.lock().shippers);
        end(&shippers.values().collect::<Vec<_>>(), GRACE);
    }
}

/// Ends shippers, all within the same time.
fn end(shippers: &[&Shipper], grace: Duration) {
    for shipper in shippers {
        shipper.finish();
    }
    let begun = std::time::Instant::now();
    for shipper in shippers {
        if !shipper.end(grace.saturating_sub(begun.elapsed())) {
            tracing::warn!("a site keeps its thread waiting: it is left to itself");
        }
    }
}

fn opened(journals: Arc<dyn Journals>) -> shipper::Opened {
    Box::new(move || {
        let journal = journals.now()?;
        let hello = Hello { identity: journal.identity().clone(), epoch: journal.epoch() };
        let source = feed::FeedSource::new(&journal, Arc::clone(&journals));
        Some((hello, Box::new(source) as Box<dyn source::Source>))
    })
}
