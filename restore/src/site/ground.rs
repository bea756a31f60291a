//! Where a group's units go: the pool's members, as far as the keeper sees room.

use afterimage_journal::keeper::Shared;
use afterimage_journal::pool::{Allocate, Pool, Slot};
use afterimage_journal::{Error, Result};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// The keeper that runs now, if one does.
pub(super) type KeeperNow = Arc<Mutex<Option<Arc<Shared>>>>;

/// Gives out no room for a unit when the keeper sees none.
pub(super) struct Limited {
    pub(super) pool: Arc<Pool>,
    pub(super) keeper: KeeperNow,
}

impl fmt::Debug for Limited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limited").finish_non_exhaustive()
    }
}

impl Allocate for Limited {
    fn allocate(&self, journal: &Path, unit_bytes: u64) -> Result<Slot> {
        // Not held over what the pool does.
        let keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match keeper.map(|k| k.occupancy()) {
            Some(full) if !full.has_room => {
                let why = full.alarm_text;
                Err(Error::NoRoom(why.unwrap_or_else(|| "the site has no room for it".into())))
            }
            _ => self.pool.allocate(journal, unit_bytes),
        }
    }
}
