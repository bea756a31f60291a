//! How many may be at the door, and in.

use super::LINKS_MAX;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Most handshakes at a time.
const HANDSHAKES_MAX: usize = 256;
/// Most handshakes at a time of one address.
const HANDSHAKES_PER_ADDR_MAX: usize = 32;
/// Invitations that may be tried at once, and how many more each second.
const REDEEMS_MAX: f64 = 10.0;
const REDEEMS_PER_S: f64 = 2.0;

#[derive(Debug, Default)]
struct State {
    handshakes: usize,
    of_addr: HashMap<IpAddr, usize>,
    links: usize,
    /// Attempts that are used up, and as of when.
    redeems: Option<(f64, Instant)>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Admission(Arc<Mutex<State>>);

/// A place at the door, or in; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    state: Arc<Mutex<State>>,
    /// At the door: of this address. In: `None`.
    addr: Option<IpAddr>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // Plain counts, whole at every step.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Admission {
    /// A place for a handshake; `None`: there are too many.
    pub(super) fn handshake(&self, addr: IpAddr) -> Option<Place> {
        let mut state = lock(&self.0);
        let of_addr = state.of_addr.get(&addr).copied().unwrap_or(0);
        if state.handshakes >= HANDSHAKES_MAX || of_addr >= HANDSHAKES_PER_ADDR_MAX {
            return None;
        }
        state.handshakes += 1;
        state.of_addr.insert(addr, of_addr + 1);
        Some(Place { state: Arc::clone(&self.0), addr: Some(addr) })
    }

    /// Whether one more invitation may be tried now.
    pub(super) fn redeem(&self) -> bool {
        let mut state = lock(&self.0);
        let now = Instant::now();
        let used = state.redeems.map_or(0.0, |(used, at)| {
            (used - now.duration_since(at).as_secs_f64() * REDEEMS_PER_S).max(0.0)
        });
        let may = used + 1.0 <= REDEEMS_MAX;
        state.redeems = Some((used + f64::from(u8::from(may)), now));
        may
    }
}

impl Place {
    /// From the door to the inside; `false`: there are too many in.
    pub(super) fn enter(&mut self) -> bool {
        let mut state = lock(&self.state);
        if state.links >= LINKS_MAX {
            return false;
        }
        state.links += 1;
        if let Some(addr) = self.addr.take() {
            leave_door(&mut state, addr);
        }
        true
    }
}

fn leave_door(state: &mut State, addr: IpAddr) {
    state.handshakes -= 1;
    if let Some(count) = state.of_addr.get_mut(&addr) {
        *count -= 1;
        if *count == 0 {
            state.of_addr.remove(&addr);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        match self.addr {
            Some(addr) => leave_door(&mut state, addr),
            None => state.links -= 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Admission, HANDSHAKES_PER_ADDR_MAX, LINKS_MAX, REDEEMS_MAX};
    use std::net::IpAddr;

    #[test]
    fn places_are_limited_and_come_back() {
        let admission = Admission::default();
        let [one, other]: [IpAddr; 2] = [[10, 0, 0, 1].into(), [10, 0, 0, 2].into()];
        let mut door: Vec<_> =
            (0..HANDSHAKES_PER_ADDR_MAX).map(|_| admission.handshake(one).unwrap()).collect();
        assert!(admission.handshake(one).is_none());
        assert!(admission.handshake(other).is_some());
        assert!(door[0].enter());
        door.push(admission.handshake(one).expect("who went in is not at the door"));
        drop(door);
        let mut links = Vec::new();
        for _ in 0..LINKS_MAX {
            let mut place = admission.handshake(other).unwrap();
            assert!(place.enter());
            links.push(place);
        }
        assert!(!admission.handshake(one).unwrap().enter());
        links.pop();
        assert!(admission.handshake(one).unwrap().enter());
    }

    #[test]
    fn invitations_can_not_be_tried_without_end() {
        let admission = Admission::default();
        let tries = (0..1000).filter(|_| admission.redeem()).count();
        assert!((REDEEMS_MAX as usize..REDEEMS_MAX as usize + 3).contains(&tries), "{tries}");
    }
}
