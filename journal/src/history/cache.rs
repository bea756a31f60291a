//! A small cache with a bound: what was not asked for longest goes first.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Values by key, a limited number of them, of a limited weight in all.
#[derive(Debug)]
pub(super) struct Cache<K, V> {
    entries_max: usize,
    bytes_max: usize,
    state: Mutex<State<K, V>>,
}

#[derive(Debug)]
struct State<K, V> {
    /// The one that was asked for last is the last.
    entries: Vec<(K, V, usize)>,
    bytes: usize,
}

impl<K: PartialEq + Copy, V: Clone> Cache<K, V> {
    pub(super) fn new(entries_max: usize, bytes_max: usize) -> Self {
        let state = State { entries: Vec::new(), bytes: 0 };
        Self { entries_max, bytes_max, state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State<K, V>> {
        // What it holds is only ever replaced whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, key: &K) -> Option<V> {
        let mut state = self.lock();
        let i = state.entries.iter().rposition(|(k, ..)| k == key)?;
        let entry = state.entries.remove(i);
        let value = entry.1.clone();
        state.entries.push(entry);
        Some(value)
    }

    /// Keeps a value of some weight; the newest stays, whatever it weighs.
    pub(super) fn put(&self, key: K, value: V, bytes: usize) {
        let mut state = self.lock();
        if let Some(i) = state.entries.iter().position(|(k, ..)| *k == key) {
            state.bytes -= state.entries.remove(i).2;
        }
        state.bytes += bytes;
        state.entries.push((key, value, bytes));
        let mut first = 0;
        while first + 1 < state.entries.len()
            && (state.entries.len() - first > self.entries_max || state.bytes > self.bytes_max)
        {
            state.bytes -= state.entries[first].2;
            first += 1;
        }
        state.entries.drain(..first);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_asked_for_longest_goes_first() {
        let cache = Cache::new(3, 100);
        for key in 1..=3 {
            cache.put(key, key * 10, 10);
        }
        assert_eq!(cache.get(&1), Some(10));
        cache.put(4, 40, 10);
        assert_eq!([1, 2, 3, 4].map(|k| cache.get(&k).is_some()), [true, false, true, true]);
        cache.put(5, 50, 1000);
        assert_eq!([1, 3, 4, 5].map(|k| cache.get(&k)), [None, None, None, Some(50)]);
        cache.put(6, 60, 60);
        cache.put(6, 61, 60);
        assert_eq!((cache.get(&5), cache.get(&6)), (None, Some(61)));
    }
}
