//! A peer that does what it likes: it is cut off, others go on, memory stays bounded, the sink sees nothing.

use super::bed::{Bed, GROUP, hello, until};
use super::raw::{Raw, frame};
use afterimage_journal::wire::{OP_BYTES_MAX, Sink};
use afterimage_link::frame::Kind;
use std::io::Read;
use std::net::TcpStream;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(20);

/// The site cuts this off, and the group's sink has seen nothing of it.
#[track_caller]
fn cut_off(bed: &Bed, what: &str, bytes: &[u8], says_hello: bool) {
    let mut raw = Raw::connect(bed, "a");
    if says_hello {
        raw.hello();
    }
    let _ = raw.send(bytes);
    let begin = Instant::now();
    raw.rest(LIMIT);
    // Well below the time that mere silence would be borne.
    assert!(begin.elapsed() < Duration::from_secs(6), "{what}: {:?}", begin.elapsed());
    assert!(bed.notes(|n| n.ops.is_empty()), "{what}: {:?}", bed.notes(|n| n.ops.len()));
}

fn bed() -> Bed {
    let bed = Bed::new();
    bed.enroll(GROUP, "a");
    bed
}

/// A field with bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut len = bytes.len();
    while len >= 0x80 {
        out.push(len as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
    out.extend(bytes);
    out
}

/// A number.
fn number(field: u8, mut value: u64) -> Vec<u8> {
    let mut out = vec![field << 3];
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

#[test]
fn lengths_that_are_too_large_are_cut_off_before_memory_is_taken() {
    let bed = bed();
    let kinds = [
        Kind::Hello,
        Kind::Begin,
        Kind::Bytes,
        Kind::Seal,
        Kind::Sync,
        Kind::Put,
        Kind::PutEnd,
        Kind::Release,
        Kind::Ping,
        Kind::Renew,
    ];
    for kind in kinds {
        for length in [kind.bytes_max() as u32 + 1, u32::MAX] {
            let mut head = length.to_le_bytes().to_vec();
            head.extend((kind as u16).to_le_bytes());
            let hello = !matches!(kind, Kind::Hello | Kind::Renew);
            cut_off(&bed, &format!("{kind:?} of {length}"), &head, hello);
        }
    }
}

#[test]
fn garbage_and_messages_out_of_place_are_cut_off() {
    let bed = bed();
    let mut noise = vec![0u8; 4096];
    noise.iter_mut().enumerate().for_each(|(i, b)| *b = (i * 73 + 11) as u8);
    cut_off(&bed, "garbage", &noise, false);
    cut_off(&bed, "garbage behind the hello", &noise, true);
    cut_off(&bed, "an empty hello", &frame(1, &[]), false);
    cut_off(&bed, "an op first", &frame(19, &number(1, 1)), false);
    cut_off(&bed, "a second hello", &frame(1, &[]), true);
    cut_off(&bed, "a kind that is not known", &frame(99, &[]), true);
    for kind in [2u16, 3, 4, 10, 32, 33] {
        cut_off(&bed, "what only a site says", &frame(kind, &[]), true);
    }
    cut_off(&bed, "an invitation over a link", &frame(8, &[]), true);
    cut_off(&bed, "no message", &frame(17, &[0xff; 40]), true);
    cut_off(&bed, "an empty header", &frame(16, &[]), true);
    cut_off(&bed, "a file without a name", &frame(25, &[]), true);
    let name = field(1, &[number(1, 9), number(2, 3)].concat());
    cut_off(&bed, "a name that is none", &frame(25, &name), true);
    let name = field(1, &number(1, 1));
    let put = [name.clone(), number(2, 4096), number(3, 4000), number(4, 97)].concat();
    cut_off(&bed, "a piece behind the end", &frame(24, &put), true);
    let put = [name.clone(), number(2, u64::MAX), number(3, u64::MAX), number(4, 2)].concat();
    cut_off(&bed, "a place that overflows", &frame(24, &put), true);
    let put = [name.clone(), number(2, 4096), number(4, 3), field(6, b"four")].concat();
    cut_off(&bed, "more bytes than it says", &frame(24, &put), true);
    cut_off(&bed, "a release", &frame(26, &field(1, &number(1, 1))), true);
}

#[test]
fn bombs_do_not_go_off() {
    let bed = bed();
    let bomb = zstd::bulk::compress(&vec![0; 1 << 30], 1).unwrap();
    assert!(bomb.len() < OP_BYTES_MAX);
    let data = |raw: u64, data: &[u8]| {
        frame(17, &[number(1, 1), number(2, 4096), number(3, raw), field(4, data)].concat())
    };
    cut_off(&bed, "more than an op may have", &data(1 << 30, &bomb), true);
    cut_off(&bed, "more than is said", &data(OP_BYTES_MAX as u64, &bomb), true);
    cut_off(
        &bed,
        "less than is said",
        &data(4096, &zstd::bulk::compress(&[1; 9], 1).unwrap()),
        true,
    );
    cut_off(&bed, "not compressed at all", &data(4096, &[1; 2000]), true);
}

#[test]
fn a_frame_that_ends_early_is_nothing() {
    let bed = bed();
    let whole = frame(19, &[number(1, 1), number(2, 1)].concat());
    for end in 1..whole.len() {
        let mut raw = Raw::connect(&bed, "a");
        raw.hello();
        raw.send(&whole[..end]).unwrap();
    }
    until("they are gone", LIMIT, || bed.notes(|n| n.links.last().is_some_and(|l| l.1.is_some())));
    assert!(bed.notes(|n| n.ops.is_empty()));
    let mut sink = bed.sink("a");
    sink.open(&hello(GROUP, 1)).unwrap();
}

/// Who holds the door open is shut out in time, and keeps nobody else from coming in.
#[test]
fn slow_ones_are_shut_out_and_keep_nobody_out() {
    let bed = bed();
    let begin = Instant::now();
    let silent: Vec<TcpStream> = (0..100).map(|_| TcpStream::connect(bed.addr).unwrap()).collect();
    // From one address only so many may shake hands: those above are closed at once.
    let open = silent.iter().filter(|s| {
        s.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let mut s: &TcpStream = s;
        let read = s.read(&mut [0]);
        read.is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock)
    });
    let open = open.count();
    assert!((8..=16).contains(&open), "{open} may shake hands");
    // Others (of other addresses, or who are let in already) come in.
    std::thread::sleep(Duration::from_secs(11).saturating_sub(begin.elapsed()));
    let mut sink = bed.sink("a");
    sink.open(&hello(GROUP, 1)).unwrap();
    for mut stream in silent {
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let read = stream.read_to_end(&mut Vec::new());
        assert!(!read.is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock));
    }
    // Behind the handshake: the first message has to come, whole.
    let before = bed.messages();
    let mut raw = Raw::connect(&bed, "a");
    raw.send(&[200, 0, 0]).unwrap();
    let begin = Instant::now();
    raw.rest(LIMIT);
    assert!(begin.elapsed() < Duration::from_secs(13), "{:?}", begin.elapsed());
    assert_eq!(bed.messages(), before);
}

/// Many say that they will send much, and send little.
#[test]
fn memory_grows_with_what_came_not_with_what_was_said() {
    let bed = Bed::new();
    let groups: Vec<String> = (0..8).map(|i| format!("g{i}")).collect();
    groups.iter().for_each(|group| drop(bed.enroll(group, group)));
    let resident = || -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    };
    let mut many: Vec<Raw> = groups.iter().map(|group| Raw::connect(&bed, group)).collect();
    for (raw, group) in many.iter_mut().zip(&groups) {
        raw.hello_of(group);
    }
    until("all links", LIMIT, || bed.notes(|n| n.links.len()) == groups.len());
    let before = resident();
    for raw in &mut many {
        let mut head = (OP_BYTES_MAX as u32).to_le_bytes().to_vec();
        head.extend([17, 0, 1]);
        let _ = raw.send(&head);
    }
    std::thread::sleep(Duration::from_millis(300));
    let grown = resident().saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes for heads alone");
    assert!(bed.notes(|n| n.links.iter().all(|l| l.1.is_none())), "all links stand");
}
