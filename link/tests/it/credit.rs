//! What is under way is bounded, what is fresh goes first, and compression is used where it pays.

use super::bed::{Bed, GROUP, hello, until};
use super::proxy::Proxy;
use super::raw::{Raw, frame};
use afterimage_journal::pool::FileName;
use afterimage_journal::wire::{Op, Sink};
use afterimage_link::server::{BACKGROUND_BYTES_MAX, FRESH_BYTES_MAX};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(30);
const PIECE: usize = 1 << 20;

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut word = seed | 1;
    let step = |word: &mut u64| {
        *word ^= *word << 13;
        *word ^= *word >> 7;
        *word ^= *word << 17;
        *word as u8
    };
    (0..len).map(|_| step(&mut word)).collect()
}

fn put(i: u64, bytes: Vec<u8>) -> Op {
    let len = bytes.len() as u64;
    Op::Put { name: FileName::Unit(1), file_bytes: 1 << 30, at: i << 20, bytes, len }
}

fn bytes(i: u64, bytes: Vec<u8>) -> Op {
    Op::Bytes { unit: 1, at: 4096 + (i << 20), bytes }
}

#[test]
fn a_slow_site_holds_the_agent_up_and_neither_end_fills() {
    let bed = Bed::new();
    let mut sink = bed.open();
    bed.notes(|n| n.slow = Duration::from_millis(20));
    let begin = Instant::now();
    let mut taken = Vec::new();
    for i in 0..40 {
        sink.apply(bytes(i, noise(i, PIECE))).unwrap();
        taken.push(begin.elapsed());
        let done = bed.notes(|n| n.ops.len()) as u64;
        // What is put may be one frame ahead of what is counted.
        assert!((i + 1 - done) << 20 <= FRESH_BYTES_MAX + (2 << 20), "{} under way", i + 1 - done);
    }
    assert!(taken[4] < Duration::from_millis(200), "{taken:?}");
    assert!(taken[39] > Duration::from_millis(20 * 25), "{taken:?}");
    until("all of it", LIMIT, || bed.notes(|n| n.ops.len()) == 40);
}

#[test]
fn fresh_ops_pass_what_waits_in_the_background() {
    let bed = Bed::new();
    let mut sink = bed.open();
    bed.notes(|n| n.slow = Duration::from_millis(500));
    let pieces = (BACKGROUND_BYTES_MAX >> 20) - 1;
    for i in 0..pieces {
        sink.apply(put(i, noise(i, PIECE))).unwrap();
    }
    until("the first piece", LIMIT, || bed.messages() > pieces);
    sink.apply(Op::Sync { token: 1, watermark: 1, wall_ns: 1 }).unwrap();
    until("all of it", LIMIT, || bed.notes(|n| n.ops.len()) as u64 == pieces + 1);
    let at = bed.notes(|n| n.ops.iter().position(|op| matches!(op, Op::Sync { .. })).unwrap());
    assert!(at as u64 <= pieces - 2, "it came as number {at} of {pieces}");
}

/// On a slow link fresh ops go out before background ones that were put earlier.
#[test]
fn a_background_piece_delays_fresh_ops_by_its_own_size_at_the_most() {
    let bed = Bed::new();
    bed.enroll(GROUP, "a");
    let proxy = Proxy::new(bed.addr);
    let mut sink = bed.sink_at(proxy.addr, "a");
    sink.open(&hello(GROUP, 1)).unwrap();
    proxy.set_rate(1 << 20);
    // What the kernel and the proxy hold between the two ends can't be passed: some of them fill it.
    for i in 0..4 {
        sink.apply(put(i, noise(i, PIECE))).unwrap();
    }
    std::thread::sleep(Duration::from_secs(1));
    let between = proxy.between();
    let begin = Instant::now();
    sink.apply(Op::Sync { token: 1, watermark: 1, wall_ns: 1 }).unwrap();
    assert_eq!(sink.ack(LIMIT).unwrap().unwrap().token, 1);
    let waited = begin.elapsed().as_secs_f64();
    let most = (between + PIECE as u64 + (256 << 10)) as f64 / f64::from(1 << 20) + 0.7;
    assert!(waited < most, "{waited} s; {between} bytes lay between");
    until("all of it", LIMIT, || bed.notes(|n| n.ops.len()) == 5);
}

#[test]
fn who_sends_more_than_the_credit_is_cut_off() {
    let bed = Bed::new();
    bed.enroll(GROUP, "a");
    bed.notes(|n| n.slow = Duration::from_millis(500));
    let mut raw = Raw::connect(&bed, "a");
    raw.hello();
    let mut message = vec![0x08, 1, 0x10, 0, 0x22, 0x80, 0x80, 0x40];
    message.extend(vec![7; PIECE]);
    let op = frame(17, &message);
    let sent = (0..32).take_while(|_| raw.send(&op).is_ok()).count();
    let said = String::from_utf8_lossy(&raw.rest(LIMIT)).into_owned();
    assert!(said.contains("under way"), "{sent} sent: {said:?}");
    assert!(bed.notes(|n| n.ops.len()) <= 12);
}

#[test]
fn a_slow_link_is_spared_by_compression_and_a_fast_one_left_alone() {
    let bed = Bed::new();
    bed.enroll(GROUP, "a");
    let proxy = Proxy::new(bed.addr);
    let text: Vec<u8> = (0..PIECE).map(|i| (i / 700) as u8).collect();
    let mut sink = bed.sink_at(proxy.addr, "a");
    sink.open(&hello(GROUP, 1)).unwrap();
    proxy.set_rate(8 << 20);
    for i in 0..32 {
        sink.apply(bytes(i, text.clone())).unwrap();
    }
    until("all of it", LIMIT, || bed.notes(|n| n.ops.len()) == 32);
    let (raw, sent) = sink.payload_bytes();
    assert!(
        sent * 3 < raw * 2,
        "{sent} of {raw} were sent: the link is slow, and it would have paid"
    );
    assert!(proxy.bytes() < sent * 11 / 10 + 100_000, "{} went over", proxy.bytes());
    assert!(
        bed.notes(|n| n
            .ops
            .iter()
            .all(|op| matches!(op, Op::Bytes { bytes, .. } if *bytes == text)))
    );
    // Noise is sent as it is, on the slow link too.
    let (_, before) = sink.payload_bytes();
    for i in 0..8 {
        sink.apply(bytes(i, noise(i, PIECE))).unwrap();
    }
    assert_eq!(sink.payload_bytes().1 - before, 8 << 20);
}
