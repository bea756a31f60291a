//! How many may be at the door, and in.
//!
//! What always holds: those at the door are bounded in all and by source, and nobody can keep the door shut:
//! when it is full, the longest waiting one of the source that has most there makes room. An honest client is
//! there for a moment only.

use super::{LINKS_MAX, LINKS_PER_GROUP_MAX};
use afterimage_planted as planted;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::Notify;

/// Most handshakes at a time.
const HANDSHAKES_MAX: usize = 256;
/// Most handshakes at a time of one source.
const HANDSHAKES_PER_SOURCE_MAX: usize = 16;
/// Invitations that may be tried at once, and how many more each second.
const REDEEMS_MAX: f64 = 10.0;
const REDEEMS_PER_S: f64 = 2.0;

/// Where clients come from: an address, of IPv6 its /64, of which one host has all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Source(IpAddr);

impl Source {
    fn of(addr: IpAddr) -> Self {
        match addr.to_canonical() {
            IpAddr::V6(addr) if !planted::is("door-counts-whole-addresses") => {
                let [a, b, c, d, ..] = addr.segments();
                Self(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into())
            }
            addr => Self(addr),
        }
    }
}

/// Who is at the door.
#[derive(Debug)]
struct Waiting {
    source: Source,
    evicted: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    /// By the order in which they came.
    door: BTreeMap<u64, Waiting>,
    came: u64,
    links: usize,
    of_group: HashMap<String, usize>,
    /// Attempts that are used up, and as of when.
    redeems: Option<(f64, Instant)>,
}

impl State {
    fn counts(&self) -> HashMap<Source, usize> {
        let mut counts = HashMap::new();
        for waiting in self.door.values() {
            *counts.entry(waiting.source).or_default() += 1;
        }
        counts
    }

    /// Has the longest waiting one of the source that has most here make room.
    fn evict(&mut self) {
        let counts = self.counts();
        let most = counts.values().max().copied().unwrap_or(0);
        let oldest = self.door.iter().find(|(_, w)| counts.get(&w.source) == Some(&most));
        if let Some(waiting) = oldest.map(|(id, _)| *id).and_then(|id| self.door.remove(&id)) {
            waiting.evicted.notify_one();
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Admission(Arc<Mutex<State>>);

/// A place at the door, or in; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    state: Arc<Mutex<State>>,
    id: u64,
    evicted: Arc<Notify>,
    /// In: the group that it is for.
    group: Option<String>,
}

/// Why one is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Crowded {
    /// There are too many links in all.
    Site,
    /// There are too many of its group.
    Group,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    // Plain counts, whole at every step.
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Admission {
    /// A place for a handshake; `None`: its source has too many.
    pub(super) fn handshake(&self, addr: IpAddr) -> Option<Place> {
        let source = Source::of(addr);
        let mut state = lock(&self.0);
        let of_source = state.door.values().filter(|w| w.source == source).count();
        if of_source >= HANDSHAKES_PER_SOURCE_MAX {
            return None;
        }
        if state.door.len() >= HANDSHAKES_MAX {
            if planted::is("a-full-door-stays-shut") {
                return None;
            }
            state.evict();
        }
        state.came += 1;
        let (id, evicted) = (state.came, Arc::new(Notify::new()));
        state.door.insert(id, Waiting { source, evicted: Arc::clone(&evicted) });
        Some(Place { state: Arc::clone(&self.0), id, evicted, group: None })
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
    /// From the door to the inside, as one of a group.
    pub(super) fn enter(&mut self, group: &str) -> Result<(), Crowded> {
        let mut state = lock(&self.state);
        let of_group = state.of_group.get(group).copied().unwrap_or(0);
        if of_group >= LINKS_PER_GROUP_MAX && !planted::is("a-group-has-all-links") {
            return Err(Crowded::Group);
        }
        if state.links >= LINKS_MAX {
            return Err(Crowded::Site);
        }
        state.door.remove(&self.id);
        state.links += 1;
        state.of_group.insert(group.to_owned(), of_group + 1);
        self.group = Some(group.to_owned());
        Ok(())
    }

    /// Comes when the place at the door is needed for somebody else.
    pub(super) fn evicted(&self) -> impl Future<Output = ()> + use<> {
        let evicted = Arc::clone(&self.evicted);
        async move { evicted.notified().await }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = lock(&self.state);
        state.door.remove(&self.id);
        let Some(group) = &self.group else { return };
        state.links -= 1;
        if let Some(count) = state.of_group.get_mut(group) {
            *count -= 1;
            if *count == 0 {
                state.of_group.remove(group);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Admission, Crowded, HANDSHAKES_MAX, HANDSHAKES_PER_SOURCE_MAX, REDEEMS_MAX};
    use crate::server::{LINKS_MAX, LINKS_PER_GROUP_MAX};
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    fn v6(net: u16, host: u16) -> IpAddr {
        Ipv6Addr::new(0x2001, 0xdb8, 0, net, 0, 0, 0, host).into()
    }

    #[test]
    fn places_are_limited_and_come_back() {
        let admission = Admission::default();
        let [one, other]: [IpAddr; 2] = [[10, 0, 0, 1].into(), [10, 0, 0, 2].into()];
        let mut door: Vec<_> =
            (0..HANDSHAKES_PER_SOURCE_MAX).map(|_| admission.handshake(one).unwrap()).collect();
        assert!(admission.handshake(one).is_none());
        assert!(admission.handshake(other).is_some());
        door[0].enter("shop").unwrap();
        door.push(admission.handshake(one).expect("who went in is not at the door"));
        drop(door);
        let mut links = Vec::new();
        for n in 0..LINKS_MAX {
            let mut place = admission.handshake(other).unwrap();
            place.enter(&format!("g{n}")).unwrap();
            links.push(place);
        }
        assert_eq!(admission.handshake(one).unwrap().enter("shop"), Err(Crowded::Site));
        links.pop();
        admission.handshake(one).unwrap().enter("shop").unwrap();
    }

    #[test]
    fn one_group_never_has_all_links() {
        let admission = Admission::default();
        let enter = |group: &str| {
            let mut place = admission.handshake([10, 0, 0, 1].into()).unwrap();
            place.enter(group).map(|()| place)
        };
        let links: Vec<_> = (0..LINKS_MAX).filter_map(|_| enter("thief").ok()).collect();
        assert_eq!(links.len(), LINKS_PER_GROUP_MAX);
        assert!(matches!(enter("thief"), Err(Crowded::Group)));
        assert!(enter("shop").is_ok());
        drop(links);
        assert!(enter("thief").is_ok());
    }

    #[test]
    fn a_network_counts_as_one_source() {
        let admission = Admission::default();
        let held: Vec<_> = (0..1000).filter_map(|host| admission.handshake(v6(1, host))).collect();
        assert_eq!(held.len(), HANDSHAKES_PER_SOURCE_MAX);
        assert!(admission.handshake(v6(2, 0)).is_some());
        // An address of version 4 is one, written in either way.
        let four = Ipv4Addr::new(10, 0, 0, 1);
        let same =
            |n: usize| if n.is_multiple_of(2) { four.into() } else { four.to_ipv6_mapped().into() };
        let held: Vec<_> = (0..1000).filter_map(|n| admission.handshake(same(n))).collect();
        assert_eq!(held.len(), HANDSHAKES_PER_SOURCE_MAX);
    }

    /// Silent ones from as many sources as they like: whoever comes finds a place, and honest ones that
    /// are there for a moment keep theirs.
    #[test]
    fn a_full_door_opens_for_whoever_comes() {
        let admission = Admission::default();
        let mut silent = Vec::new();
        for n in 0..4 * HANDSHAKES_MAX as u16 {
            silent.extend(admission.handshake(v6(n % 40, n)));
        }
        for n in 0..50 {
            let mut honest = admission.handshake([10, 0, 1, n].into()).expect("a place");
            for n in 0..40 {
                silent.extend(admission.handshake(v6(n % 40, 7)));
            }
            assert!(super::lock(&admission.0).door.contains_key(&honest.id), "evicted");
            honest.enter(&format!("g{n}")).unwrap();
        }
        assert!(super::lock(&admission.0).door.len() <= HANDSHAKES_MAX);
    }

    #[test]
    fn invitations_can_not_be_tried_without_end() {
        let admission = Admission::default();
        let tries = (0..1000).filter(|_| admission.redeem()).count();
        assert!((REDEEMS_MAX as usize..REDEEMS_MAX as usize + 3).contains(&tries), "{tries}");
    }
}
