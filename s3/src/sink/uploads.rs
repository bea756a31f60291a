//! Objects on their way to the bucket, and dead ones on their way out, by threads of their own.
//!
//! What always holds:
//! * at most [`UPLOADS_MAX`] requests and [`UPLOAD_BYTES_MAX`] are under way: whoever brings more waits;
//! * once an upload failed, nothing is taken any more: its writer begins anew.

use crate::object;
use crate::store::{Patient, StoreError};
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// Requests under way.
pub const UPLOADS_MAX: usize = 8;
/// Bytes of files that wait, or are under way.
pub const UPLOAD_BYTES_MAX: usize = 96 << 20;

/// Something dead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Grave {
    /// An object, by its key below the journal's.
    Object(String),
    /// A manifest.
    Manifest(u64),
}

enum Job {
    Put { key: String, random: [u8; 16], plain: Vec<u8>, until: Option<SystemTime> },
    Delete { key: String, grave: Grave },
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    puts: usize,
    bytes: usize,
    /// What is there: random part and bytes of the object.
    there: Vec<([u8; 16], u64)>,
    buried: Vec<Grave>,
    failed: Option<StoreError>,
    over: bool,
}

struct Shared {
    store: Patient,
    queue: Mutex<Queue>,
    work: Condvar,
    done: Condvar,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Each change of it is one assignment: a thread that fell leaves nothing half done.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The threads and their queue. Dropped, it leaves what is under way to end by itself.
pub(super) struct Uploads {
    shared: Arc<Shared>,
}

impl Drop for Uploads {
    fn drop(&mut self) {
        let mut queue = self.shared.queue();
        queue.over = true;
        queue.jobs.clear();
        self.shared.work.notify_all();
    }
}

impl Uploads {
    /// Starts the threads.
    ///
    /// # Errors
    /// The system gives none.
    pub fn start(store: Patient) -> Result<Self, StoreError> {
        let shared = Arc::new(Shared {
            store,
            queue: Mutex::default(),
            work: Condvar::new(),
            done: Condvar::new(),
        });
        let uploads = Self { shared };
        for _ in 0..UPLOADS_MAX {
            let shared = Arc::clone(&uploads.shared);
            std::thread::Builder::new()
                .name("s3-upload".into())
                .spawn(move || work(&shared))
                .map_err(|e| StoreError::Unclear(format!("start a thread for uploads: {e}")))?;
        }
        Ok(uploads)
    }

    /// Brings a segment; waits while too much is under way.
    ///
    /// # Errors
    /// An earlier one failed.
    pub fn put(
        &self,
        key: String,
        random: [u8; 16],
        plain: Vec<u8>,
        until: Option<SystemTime>,
    ) -> Result<(), StoreError> {
        let mut queue = self.shared.queue();
        while queue.failed.is_none()
            && queue.bytes > 0
            && queue.bytes + plain.len() > UPLOAD_BYTES_MAX
        {
            queue = self.shared.done.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(error) = &queue.failed {
            return Err(error.clone());
        }
        queue.puts += 1;
        queue.bytes += plain.len();
        queue.jobs.push_back(Job::Put { key, random, plain, until });
        self.shared.work.notify_one();
        Ok(())
    }

    /// Has something dead deleted, some time: [`Uploads::buried`] tells.
    pub fn delete(&self, key: String, grave: Grave) {
        self.shared.queue().jobs.push_back(Job::Delete { key, grave });
        self.shared.work.notify_one();
    }

    /// Waits until all that was brought is in the bucket: random part and bytes of each object.
    ///
    /// # Errors
    /// One of them is not.
    pub fn drain(&self) -> Result<Vec<([u8; 16], u64)>, StoreError> {
        let mut queue = self.shared.queue();
        while queue.failed.is_none() && queue.puts > 0 {
            queue = self.shared.done.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        match &queue.failed {
            Some(error) => Err(error.clone()),
            None => Ok(std::mem::take(&mut queue.there)),
        }
    }

    /// What was deleted since the last call.
    pub fn buried(&self) -> Vec<Grave> {
        std::mem::take(&mut self.shared.queue().buried)
    }
}

fn work(shared: &Shared) {
    loop {
        let mut queue = shared.queue();
        let job = loop {
            if queue.over {
                return;
            }
            match queue.jobs.pop_front() {
                Some(job) => break job,
                None => queue = shared.work.wait(queue).unwrap_or_else(PoisonError::into_inner),
            }
        };
        drop(queue);
        match job {
            Job::Put { key, random, plain, until } => {
                let bytes = plain.len();
                let object = object::encode(random, &plain);
                drop(plain);
                let put = shared.store.put(&key, &object, until);
                let mut queue = shared.queue();
                queue.puts -= 1;
                queue.bytes -= bytes;
                match put {
                    Ok(()) => queue.there.push((random, object.len() as u64)),
                    Err(error) => drop(queue.failed.get_or_insert(error)),
                }
            }
            Job::Delete { key, grave } => match shared.store.delete(&key) {
                Ok(()) => shared.queue().buried.push(grave),
                // It stays dead, and is tried again by whoever opens next.
                Err(error) => tracing::warn!(key, %error, "a dead object can't be deleted"),
            },
        }
        shared.done.notify_all();
    }
}
