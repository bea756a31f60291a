//! `decide` on its own.

use afterimage_guard::{Action, KillReason, Limits, SlotView, View, Worker, decide};
use proptest::prelude::*;

const MS: u64 = 1_000_000;
const NOW: u64 = 100_000 * MS;

fn limits() -> Limits {
    Limits::new(1000 * MS, 5000 * MS)
}

fn idle(index: usize) -> SlotView {
    SlotView {
        index,
        since_ns: 0,
        unread_since_ns: 0,
        held_until_ns: 0,
        shut_ns: 0,
        has_socket: true,
        guest: 0,
    }
}

fn busy(index: usize, for_ms: u64) -> SlotView {
    SlotView { since_ns: NOW - for_ms * MS, ..idle(index) }
}

fn unread(index: usize, for_ms: u64) -> SlotView {
    SlotView { unread_since_ns: NOW - for_ms * MS, ..idle(index) }
}

fn view(slots: &[SlotView], heartbeat_ms: u64) -> View<'_> {
    View {
        slots,
        heartbeat_ns: NOW - heartbeat_ms * MS,
        floor_ns: 0,
        is_stopped: false,
        now_ns: NOW,
    }
}

fn kill(reason: KillReason, stall_ms: u64) -> Vec<Action> {
    vec![Action::Kill { reason, stall_ns: stall_ms * MS }]
}

#[test]
fn stuck_loop_among_waiting_ones_is_shut_alone() {
    for stuck in [busy(1, 600), unread(1, 600)] {
        let slots = [idle(0), stuck, idle(2)];
        let shut = vec![Action::Shut { slot: 1, stall_ns: 600 * MS }];
        assert_eq!(decide(&view(&slots, 10), &limits()), shut);
    }
}

#[test]
fn stale_heartbeat_kills_at_once_when_a_guest_waits_and_else_when_it_lasts() {
    let waiting = [idle(0), idle(1)];
    assert_eq!(decide(&view(&waiting, 9_999), &limits()), []);
    // It guards nobody as it is, and would never come back by itself.
    for slots in [&waiting[..], &[]] {
        assert_eq!(decide(&view(slots, 10_000), &limits()), kill(KillReason::ProcessHung, 0));
        // But not when it is the guard that was away.
        let late = View { floor_ns: NOW - 100 * MS, ..view(slots, 90_000) };
        assert_eq!(decide(&late, &limits()), []);
    }
    let slots = [idle(0), unread(1, 700)];
    assert_eq!(decide(&view(&slots, 600), &limits()), kill(KillReason::ProcessHung, 700));
}

#[test]
fn a_stopped_process_is_killed_though_no_guest_is_seen_to_wait() {
    let slots = [idle(0)];
    let stopped = |slots, ms| View { is_stopped: true, ..view(slots, ms) };
    assert_eq!(decide(&stopped(&slots, 1199), &limits()), []);
    assert_eq!(decide(&stopped(&slots, 1200), &limits()), kill(KillReason::ProcessHung, 0));
    // It has no guests.
    assert_eq!(decide(&stopped(&[], 1200), &limits()), []);
}

#[test]
fn process_without_a_heartbeat_is_not_taken_for_hung() {
    let slots = [idle(0), busy(1, 700)];
    let view = View { heartbeat_ns: 0, ..view(&slots, 0) };
    assert_eq!(decide(&view, &limits()), [Action::Shut { slot: 1, stall_ns: 700 * MS }]);
}

#[test]
fn grace_after_a_shutdown_is_kept_then_ends_in_a_kill() {
    let shut_at = |ago_ms: u64| SlotView { shut_ns: NOW - ago_ms * MS, ..busy(0, 2000) };
    assert_eq!(decide(&view(&[shut_at(999), idle(1)], 10), &limits()), []);
    let expected = kill(KillReason::LoopDidNotEnd, 0);
    assert_eq!(decide(&view(&[shut_at(1000), idle(1)], 10), &limits()), expected);
}

#[test]
fn other_disks_of_a_stuck_guest_are_shut_before_the_stuck_one() {
    let of = |guest, slot: SlotView| SlotView { guest, ..slot };
    let slots = [of(7, busy(0, 650)), of(7, idle(1)), of(8, idle(2)), of(7, busy(3, 5)), idle(4)];
    let shut = |slot, ms: u64| Action::Shut { slot, stall_ns: ms * MS };
    let expected = [shut(1, 0), shut(3, 0), shut(0, 650)];
    assert_eq!(decide(&view(&slots, 10), &limits()), expected);
}

#[test]
fn stuck_loop_whose_socket_is_not_here_kills() {
    let slots = [SlotView { has_socket: false, ..busy(0, 650) }, idle(1)];
    assert_eq!(decide(&view(&slots, 10), &limits()), kill(KillReason::NoSocket, 650));
}

#[test]
fn hold_is_bounded_by_its_limit() {
    let held = |for_ms| SlotView { held_until_ns: u64::MAX, ..busy(0, for_ms) };
    assert_eq!(decide(&view(&[held(4999)], 10), &limits()), []);
    assert_eq!(decide(&view(&[held(5000)], 10), &limits()).len(), 1);
}

#[test]
fn guard_that_was_late_looks_again_before_it_acts() {
    let slots = [busy(0, 5000)];
    let late = View { floor_ns: NOW - 450 * MS, ..view(&slots, 5000) };
    assert_eq!(decide(&late, &limits()), []);
    let later = View { now_ns: NOW + 150 * MS, ..late };
    assert_eq!(decide(&later, &limits()), kill(KillReason::ProcessHung, 5150));
}

#[test]
fn process_without_a_guard_is_told_so() {
    assert!(Worker::from_env().is_none());
}

fn any_slot(index: usize) -> impl Strategy<Value = SlotView> {
    let ago = || prop_oneof![Just(None), (0..12_000u64).prop_map(Some)];
    let at = |ago_ms: Option<u64>| ago_ms.map_or(0, |ago_ms| NOW - ago_ms * MS);
    let until = prop_oneof![Just(0), 0..2 * NOW];
    (ago(), ago(), until, ago(), any::<bool>()).prop_map(
        move |(since, unread, held_until_ns, shut, has_socket)| SlotView {
            index,
            since_ns: at(since),
            unread_since_ns: at(unread),
            held_until_ns,
            shut_ns: at(shut),
            has_socket,
            guest: 0,
        },
    )
}

fn any_slots() -> impl Strategy<Value = Vec<SlotView>> {
    (0..6usize).prop_flat_map(|count| (0..count).map(any_slot).collect::<Vec<_>>())
}

/// The plain reading of the rules, for one slot: how long its guest has waited for us.
fn waited_ms(slot: &SlotView) -> Option<u64> {
    let began = [slot.since_ns, slot.unread_since_ns].into_iter().filter(|at| *at != 0).min()?;
    Some((NOW - began) / MS)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

    #[test]
    fn never_acts_where_nobody_waits(mut slots in any_slots(), heartbeat_ms in 0..10_000u64) {
        for slot in &mut slots {
            (slot.since_ns, slot.unread_since_ns) = (0, 0);
        }
        prop_assert_eq!(decide(&view(&slots, heartbeat_ms), &limits()), []);
    }

    #[test]
    fn shuts_or_kills_for_a_guest_that_waited_and_for_no_other(
        slots in any_slots(),
        heartbeat_ms in 0..2_000u64,
    ) {
        let actions = decide(&view(&slots, heartbeat_ms), &limits());
        for action in &actions {
            match action {
                Action::Kill { .. } => {
                    prop_assert_eq!(actions.len(), 1);
                    prop_assert!(slots.iter().any(|slot| waited_ms(slot) >= Some(600)));
                }
                Action::Shut { slot, .. } => {
                    prop_assert!(waited_ms(&slots[*slot]) >= Some(600));
                }
            }
        }
        let killed = matches!(actions[..], [Action::Kill { .. }]);
        for slot in &slots {
            let exempt = slot.held_until_ns > NOW && waited_ms(slot) < Some(5000);
            let acted = killed
                || actions.iter().any(|a| matches!(a, Action::Shut { slot: at, .. } if *at == slot.index));
            if waited_ms(slot) >= Some(600) && !exempt {
                let in_grace = slot.shut_ns != 0 && NOW - slot.shut_ns < 1000 * MS;
                prop_assert!(acted || in_grace, "{:?} is left waiting", slot);
            }
        }
    }
}
