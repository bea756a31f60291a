//! Reading of many files: one after the other from a disk, several at a time from behind a network,
//! where each answer is waited for.

use super::Storage;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Files that are read at a time from behind a network.
const FAR_THREADS: usize = 16;

/// How many items of a long list are best asked for together; what comes of them is held at a time.
pub(crate) fn portion(storage: &dyn Storage) -> usize {
    if storage.is_far() { FAR_THREADS } else { 1 }
}

/// Does something for each item; what comes of them is in the order of the items.
pub(crate) fn map<T: Sync, R: Send>(
    storage: &dyn Storage,
    items: &[T],
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let threads = portion(storage).min(items.len());
    if threads <= 1 {
        return items.iter().map(work).collect();
    }
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(items.len())));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(at) else { return };
                    let result = work(item);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((at, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}
