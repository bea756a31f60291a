//! `afterimage doctor --rebuild GROUP`: catalogue and map runs made anew from the units alone.
//!
//! What always holds: it works under the writer's lock, so never beside an agent; units are only read;
//! killed anywhere, the journal opens as before, since what is missing is derived.

use crate::failure::{Failure, Outcome};
use crate::show;
use afterimage_journal::clock::SystemClock;
use afterimage_journal::keeper::{Home, Setup, rebuild};
use afterimage_journal::merge::Unpaced;
use afterimage_journal::storage::RealStorage;
use afterimage_journal::window::Limits;
use afterimage_journal::{History, layout};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

/// Runs it.
pub fn run(state: &Path, group: &str) -> Outcome<ExitCode> {
    let dir = layout::journal_dir(state, group).map_err(|e| Failure::usage(e.to_string()))?;
    let _lock = layout::take_lock(&dir)?;
    let storage = RealStorage::shared();
    let rebuilt = rebuild(Setup {
        ground: Arc::new(Home { storage: Arc::clone(&storage) }),
        storage,
        dir: dir.clone(),
        clock: Arc::new(SystemClock),
        pace: Arc::new(Unpaced),
        key: None,
        limits: Limits { guaranteed_ns: u64::MAX, ..Limits::new(u64::MAX, None) },
    })?;
    let history = History::load(&dir)?;
    let ranges = history.level.len();
    show::print(&format!(
        "{group}: {} of {} units in the catalogue, {} map runs made; {ranges} restorable ranges\n",
        rebuilt.units,
        history.units.len(),
        rebuilt.runs
    ))?;
    for damage in &history.damage {
        show::complain(format!("damaged: {}", damage.what));
    }
    Ok(ExitCode::from(u8::from(!history.damage.is_empty())))
}
