//! A pool that is looked after: its members come and go, drained ones are emptied, by a thread of its own.
//!
//! What always holds: nothing that touches a member runs on a thread that a guest or a link waits for;
//! draining takes half of the time at the most, so that who writes finds the disk idle.

use super::drain::{DrainStep, UnitUse};
use super::live::Pool;
use crate::error::{Error, Result};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often the members are looked at.
const TEND_EVERY: Duration = Duration::from_secs(1);
/// Longest pause between two moved units.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Who writes the journals whose units lie in a pool.
pub trait Writers: Send + Sync {
    /// Whether a unit that is not sealed may still be written.
    fn in_use(&self, group: &str, number: u64) -> UnitUse;

    /// Units of this journal that are in use lie on a member that is being drained: seals them, or moves
    /// them itself ([`Pool::drain_step`]) while nothing is written. What can't be done now is asked again.
    fn give_way(&self, group: &str);
}

/// Looks after a pool until it is dropped.
pub struct PoolThread {
    told: Arc<Told>,
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

impl PoolThread {
    /// Starts it.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(pool: &Arc<Pool>, writers: Arc<dyn Writers>) -> Result<Self> {
        let told = Arc::new(Told::default());
        let (of_thread, heard) = (Arc::clone(pool), Arc::clone(&told));
        let thread = std::thread::Builder::new()
            .name("pool".into())
            .spawn(move || keep(&of_thread, &heard, &*writers))
            .map_err(|e| Error::io("start a thread for", pool.home(), e))?;
        Ok(Self { told, thread: Some(thread) })
    }

    /// Something changed that it should look at now.
    pub fn wake(&self) {
        self.told.wake.notify_all();
    }
}

impl Drop for PoolThread {
    fn drop(&mut self) {
        *self.told.lock() = true;
        self.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn keep(pool: &Pool, told: &Told, writers: &dyn Writers) {
    let mut said = String::new();
    let mut pause = TEND_EVERY;
    while !told.wait(pause) {
        pool.tend();
        let begin = Instant::now();
        pause = match pool.drain_step(&|group, number| writers.in_use(group, number)) {
            Ok(DrainStep::Moved(path)) => {
                tracing::debug!(path = %path.display(), "moved to another member");
                begin.elapsed().min(PAUSE_MAX)
            }
            Ok(DrainStep::Done(member)) => {
                tracing::info!(member = %member.display(), "drained: no member any more");
                TEND_EVERY
            }
            Ok(DrainStep::Open(open)) => {
                open.iter().for_each(|group| writers.give_way(group));
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
