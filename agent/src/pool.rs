//! The pool beside the guests: looked after by a thread of its own, changed by the API.
//!
//! What always holds: nothing that touches a member runs on the threads that guests wait for;
//! draining takes half of the time at the most, so that capture finds the disk idle.

use crate::api::{ApiError, PoolAddRequest, PoolRemoveRequest};
use crate::engine::api;
use crate::group::Group;
use afterimage_journal::pool::{Added, DrainStep, Pool, PoolStatus};
use afterimage_journal::storage::Storage;
use afterimage_journal::{Error, Options, layout};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often the members are looked at.
const TEND_EVERY: Duration = Duration::from_secs(1);
/// Longest pause between two moved units.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// The groups whose journals may be written.
type Groups = Arc<Mutex<Vec<Weak<Group>>>>;

/// The pool, looked after until it is dropped.
pub struct PoolKeeper {
    pool: Arc<Pool>,
    told: Arc<Told>,
    groups: Groups,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Told {
    end: Mutex<bool>,
    wake: Condvar,
}

impl Told {
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits; whether it is to end.
    fn wait(&self, limit: Duration) -> bool {
        let end = self.lock();
        if *end {
            return true;
        }
        let waited = self.wake.wait_timeout(end, limit);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
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
        let (told, groups) = (Arc::new(Told::default()), Groups::default());
        let (of_thread, heard, watched) = (Arc::clone(&pool), Arc::clone(&told), groups.clone());
        let thread = std::thread::Builder::new()
            .name("pool".into())
            .spawn(move || keep(&of_thread, &heard, &watched))
            .map_err(|e| Error::io("start a thread for", &home, e))?;
        Ok(Self { pool, told, groups, thread: Some(thread) })
    }

    /// The options of journals whose units lie in this pool.
    #[must_use]
    pub fn options(&self, options: Options) -> Options {
        Options { allocator: self.pool.clone(), ..options }
    }

    /// Notes a group whose journal may be open from now on.
    pub fn watch(&self, group: &Arc<Group>) {
        let mut groups = lock(&self.groups);
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
        self.told.wake.notify_all();
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
        self.told.wake.notify_all();
        done
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> afterimage_journal::Result<T> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| ApiError::other(e.to_string()))?.map_err(|e| api(&e))
}

impl Drop for PoolKeeper {
    fn drop(&mut self) {
        *self.told.lock() = true;
        self.told.wake.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(groups: &Groups) -> MutexGuard<'_, Vec<Weak<Group>>> {
    groups.lock().unwrap_or_else(PoisonError::into_inner)
}

fn named(groups: &Groups, name: &str) -> Option<Arc<Group>> {
    lock(groups).iter().filter_map(Weak::upgrade).find(|g| g.name() == name)
}

/// Whether a unit may still be written. A journal that stopped may be opened again at any moment.
fn in_use(groups: &Groups, name: &str, number: u64) -> bool {
    let Some(group) = named(groups, name) else { return false };
    group.journal().map_or(true, |journal| number >= journal.open_from())
}

fn keep(pool: &Pool, told: &Told, groups: &Groups) {
    let mut said = String::new();
    let mut pause = TEND_EVERY;
    while !told.wait(pause) {
        pool.tend();
        let begin = Instant::now();
        pause = match pool.drain_step(&|group, number| in_use(groups, group, number)) {
            Ok(DrainStep::Moved(path)) => {
                tracing::debug!(path = %path.display(), "moved to another member");
                begin.elapsed().min(PAUSE_MAX)
            }
            Ok(DrainStep::Done(member)) => {
                tracing::info!(member = %member.display(), "drained: no member any more");
                TEND_EVERY
            }
            Ok(DrainStep::Open(open)) => {
                for group in open.iter().filter_map(|name| named(groups, name)) {
                    // What can't turn now is asked again.
                    let _ = group.journal().map(|journal| journal.turn());
                }
                TEND_EVERY
            }
            Ok(DrainStep::Waiting(why)) => {
                if said != why {
                    tracing::warn!(why, "draining waits");
                }
                said = why;
                TEND_EVERY
            }
            Ok(DrainStep::Idle) => TEND_EVERY,
            Err(error) => {
                let text = error.to_string();
                if said != text {
                    tracing::error!(error = text, "draining failed");
                }
                said = text;
                PAUSE_MAX
            }
        };
    }
}
