//! The pool beside the guests: looked after by a thread of its own ([`PoolThread`]), changed by the API.

use crate::api::{ApiError, PoolAddRequest, PoolRemoveRequest};
use crate::engine::api;
use crate::group::Group;
use afterimage_journal::pool::{Added, Pool, PoolStatus, PoolThread, UnitUse, Writers};
use afterimage_journal::storage::Storage;
use afterimage_journal::{Options, layout};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The groups whose journals may be written.
#[derive(Default)]
struct Groups(Mutex<Vec<Weak<Group>>>);

impl Groups {
    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Group>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn named(&self, name: &str) -> Option<Arc<Group>> {
        self.lock().iter().filter_map(Weak::upgrade).find(|g| g.name() == name)
    }
}

impl Writers for Groups {
    fn in_use(&self, name: &str, number: u64) -> UnitUse {
        // It may be opened for the first time right now: the journal's lock tells.
        let Some(group) = self.named(name) else { return UnitUse::Unknown };
        match group.journal() {
            Ok(journal) if number < journal.open_from() => UnitUse::Idle,
            // A journal that stopped may be opened again at any moment.
            _ => UnitUse::Written,
        }
    }

    fn give_way(&self, name: &str) {
        if let Some(group) = self.named(name) {
            let _ = group.journal().map(|journal| journal.turn());
        }
    }
}

/// The pool, looked after until it is dropped.
pub struct PoolKeeper {
    pool: Arc<Pool>,
    groups: Arc<Groups>,
    thread: PoolThread,
}

impl PoolKeeper {
    /// Opens the pool of a state directory and starts to look after it. Blocking.
    ///
    /// # Errors
    /// As [`Pool::open`]; or there is no thread to be had.
    pub fn start(state: &Path, storage: &Arc<dyn Storage>) -> afterimage_journal::Result<Self> {
        let home = layout::pool_dir(state);
        layout::make_dir(&home)?;
        let pool = Pool::open(storage, &home)?;
        let groups = Arc::new(Groups::default());
        let thread = PoolThread::start(&pool, Arc::<Groups>::clone(&groups))?;
        Ok(Self { pool, groups, thread })
    }

    /// The options of journals whose units lie in this pool.
    #[must_use]
    pub fn options(&self, options: Options) -> Options {
        Options { allocator: self.pool.clone(), ..options }
    }

    /// Notes a group whose journal may be open from now on.
    pub fn watch(&self, group: &Arc<Group>) {
        let mut groups = self.groups.lock();
        groups.retain(|g| g.strong_count() > 0);
        groups.push(Arc::downgrade(group));
    }

    /// The pool.
    #[must_use]
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// What there is to say of the pool.
    #[must_use]
    pub fn status(&self) -> PoolStatus {
        self.pool.status()
    }

    /// Adds or changes a member.
    ///
    /// # Errors
    /// As [`Pool::add`].
    pub async fn add(&self, request: PoolAddRequest) -> Result<Added, ApiError> {
        let pool = Arc::clone(&self.pool);
        let done = blocking(move || pool.add(&request.dir, request.limit)).await;
        self.thread.wake();
        done
    }

    /// Begins to drain a member, or forgets one.
    ///
    /// # Errors
    /// As [`Pool::remove`].
    pub async fn remove(&self, request: PoolRemoveRequest) -> Result<(), ApiError> {
        let pool = Arc::clone(&self.pool);
        let done = blocking(move || {
            // What it says of a member is to be true now.
            pool.tend();
            pool.remove(&request.dir, request.lost)
        });
        let done = done.await;
        self.thread.wake();
        done
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> afterimage_journal::Result<T> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| ApiError::other(e.to_string()))?.map_err(|e| api(&e))
}
