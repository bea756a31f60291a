//! Clients that break the protocol, on purpose or not: each ends with the right error or is cut
//! off, what it declares is never allocated, and others do not notice.

use crate::fixture::{Fixture, Raw};
use afterimage_nbd::proto::Mode;
use afterimage_nbd::proto::flags::*;
use afterimage_nbd::proto::option::{ContextQuery, InfoQuery, OptionHeader};
use afterimage_nbd::{CloseReason, Errno, Limits, MemoryExport};
use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

const BYTES: u64 = 1 << 20;

fn fixture() -> Fixture {
    Fixture::memory(BYTES as usize).0
}

/// The most address space that the process has had, in bytes.
fn address_space_peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmPeak:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib << 10
}

#[test]
fn malformed_options_get_their_error_and_the_handshake_goes_on() {
    let fixture = fixture();
    let mut raw = fixture.raw().greet();
    let mut bad_name = InfoQuery { name: "abcd", wanted: vec![] }.encode();
    bad_name[5] = 0xff;
    let mut long_name = 5000_u32.to_be_bytes().to_vec();
    long_name.resize(5006, b'a');
    let mut huge_name = u32::MAX.to_be_bytes().to_vec();
    huge_name.extend_from_slice(&[0; 10]);
    let mut surplus = InfoQuery { name: "", wanted: vec![3] }.encode();
    surplus.push(0);
    let mut many = vec![0; 4];
    many.extend_from_slice(&u32::MAX.to_be_bytes());
    let contexts = ContextQuery { name: "", queries: vec!["base:allocation"] }.encode();
    let nowhere = InfoQuery { name: "nowhere", wanted: vec![] }.encode();
    let before: [(&str, u32, &[u8], u32); 14] = [
        ("data with LIST", OPT_LIST, b"x", REP_ERR_INVALID),
        ("data with STRUCTURED_REPLY", OPT_STRUCTURED_REPLY, b"x", REP_ERR_INVALID),
        ("data with EXTENDED_HEADERS", OPT_EXTENDED_HEADERS, b"x", REP_ERR_INVALID),
        ("data with STARTTLS", OPT_STARTTLS, b"x", REP_ERR_INVALID),
        ("STARTTLS", OPT_STARTTLS, b"", REP_ERR_POLICY),
        ("unknown option", 4711, b"what is this", REP_ERR_UNSUP),
        ("GO without data", OPT_GO, b"", REP_ERR_INVALID),
        ("GO with a bad name", OPT_GO, &bad_name, REP_ERR_INVALID),
        ("GO with a long name", OPT_GO, &long_name, REP_ERR_INVALID),
        ("GO with a name of 4 GiB", OPT_GO, &huge_name, REP_ERR_INVALID),
        ("GO with surplus data", OPT_GO, &surplus, REP_ERR_INVALID),
        ("GO for an unknown export", OPT_GO, &nowhere, REP_ERR_UNKNOWN),
        ("INFO for an unknown export", OPT_INFO, &nowhere, REP_ERR_UNKNOWN),
        ("contexts without chunks", OPT_SET_META_CONTEXT, &contexts, REP_ERR_INVALID),
    ];
    for (what, option, data, wanted) in before {
        raw.option(option, data);
        assert_eq!(raw.last_answer(option), wanted, "{what}");
    }
    raw.option(OPT_EXTENDED_HEADERS, &[]);
    assert_eq!(raw.last_answer(OPT_EXTENDED_HEADERS), REP_ACK);
    let unknown = ContextQuery { name: "nowhere", queries: vec![] }.encode();
    let after: [(&str, u32, &[u8], u32); 5] = [
        ("structured after extended", OPT_STRUCTURED_REPLY, b"", REP_ERR_EXT_HEADER_REQD),
        ("4 Gi queries", OPT_SET_META_CONTEXT, &many, REP_ERR_INVALID),
        ("contexts of an unknown export", OPT_LIST_META_CONTEXT, &unknown, REP_ERR_UNKNOWN),
        ("too long an option", 99, &vec![0; 100_000], REP_ERR_TOO_BIG),
        ("a long option that fits", 99, &vec![0; 65_536], REP_ERR_UNSUP),
    ];
    for (what, option, data, wanted) in after {
        raw.option(option, data);
        assert_eq!(raw.last_answer(option), wanted, "{what}");
    }
    raw.enter(Mode::Extended).request(CMD_DISC, 0, 0, 0);
    assert!(matches!(fixture.reason(), CloseReason::Disconnected));
}

#[test]
fn a_handshake_that_cannot_be_answered_ends_the_connection() {
    let fixture = fixture();
    let extended_first = |raw: &mut Raw| {
        raw.option(OPT_EXTENDED_HEADERS, &[]);
        assert_eq!(raw.last_answer(OPT_EXTENDED_HEADERS), REP_ACK);
        raw.option(OPT_EXPORT_NAME, &[]);
    };
    type Act<'a> = &'a dyn Fn(&mut Raw);
    let cases: [(&str, Act<'_>); 6] = [
        ("bad option magic", &|raw| raw.send(&[0x55; 16])),
        ("an option of 4 GiB", &|raw| {
            raw.send(&OptionHeader { option: OPT_LIST, length: u32::MAX }.encode());
        }),
        ("an export name of 4 GiB", &|raw| {
            raw.send(&OptionHeader { option: OPT_EXPORT_NAME, length: u32::MAX }.encode());
        }),
        ("an export name that is no string", &|raw| raw.option(OPT_EXPORT_NAME, &[0xff, 0])),
        ("an unknown export by EXPORT_NAME", &|raw| raw.option(OPT_EXPORT_NAME, b"nowhere")),
        ("EXPORT_NAME after extended headers", &extended_first),
    ];
    for (what, act) in cases {
        let mut raw = fixture.raw().greet();
        act(&mut raw);
        raw.rest();
        let reason = fixture.reason();
        let refused = matches!(reason, CloseReason::Protocol(_) | CloseReason::UnknownExport(_));
        assert!(refused, "{what}: {reason:?}");
    }
    let mut unknown_flags = fixture.raw();
    unknown_flags.send(&u32::MAX.to_be_bytes());
    unknown_flags.rest();
    assert!(matches!(fixture.reason(), CloseReason::Protocol(_)));
    fixture.assert_serves();
    assert!(address_space_peak() < 3 << 30, "a declared size was allocated");
}

#[test]
fn wrong_requests_get_their_error_and_the_connection_goes_on() {
    let fixture = fixture();
    for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
        let mut raw = fixture.raw().greet().go(mode);
        let write = if mode == Mode::Extended { CMD_PAYLOAD_LEN } else { 0 };
        let cases: [(&str, u16, u16, u64, u64, Errno); 13] = [
            ("unknown command", 4711, 0, 0, 0, Errno::Inval),
            ("read past the end", CMD_READ, 0, BYTES - 1, 2, Errno::Inval),
            ("read where the sum overflows", CMD_READ, 0, u64::MAX, 512, Errno::Inval),
            ("read of almost 4 GiB", CMD_READ, 0, 0, 0xffff_ffff, Errno::Inval),
            ("read with a flag of zeroing", CMD_READ, CMD_NO_HOLE, 0, 512, Errno::Inval),
            ("unknown flag", CMD_READ, 1 << 14, 0, 512, Errno::Inval),
            ("write past the end", CMD_WRITE, write, BYTES, 512, Errno::NoSpc),
            ("write where the sum overflows", CMD_WRITE, write, u64::MAX, 64, Errno::NoSpc),
            ("write with a flag of zeroing", CMD_WRITE, write | CMD_NO_HOLE, 0, 64, Errno::Inval),
            ("zeroes past the end", CMD_WRITE_ZEROES, 0, 1, BYTES, Errno::NoSpc),
            ("trim past the end", CMD_TRIM, 0, 1, BYTES, Errno::Inval),
            ("flush past the end", CMD_FLUSH, 0, BYTES, 512, Errno::Inval),
            ("status without a context", CMD_BLOCK_STATUS, 0, 0, 512, Errno::Inval),
        ];
        for (what, command, flags, at, length, wanted) in cases {
            raw.request(command, flags, at, length);
            if command == CMD_WRITE {
                raw.send(&vec![0xee; length as usize]);
            }
            assert_eq!(raw.error(), wanted.code(), "{what} in {mode:?}");
        }
        // As qemu-nbd does: the range is reserved, and what lies inside the export is no harm.
        for (at, length) in [(0, 0), (512, 512), (0, BYTES)] {
            raw.request(CMD_FLUSH, 0, at, length);
            assert_eq!(raw.error(), 0, "flush of {length} at {at} in {mode:?}");
        }
    }
}

#[test]
fn an_option_that_was_negotiated_is_refused_the_second_time() {
    let fixture = fixture();
    let mut raw = fixture.raw().greet();
    for (option, wanted) in [
        (OPT_STRUCTURED_REPLY, REP_ACK),
        (OPT_STRUCTURED_REPLY, REP_ERR_INVALID),
        (OPT_EXTENDED_HEADERS, REP_ACK),
        (OPT_EXTENDED_HEADERS, REP_ERR_INVALID),
        (OPT_STRUCTURED_REPLY, REP_ERR_EXT_HEADER_REQD),
    ] {
        raw.option(option, &[]);
        assert_eq!(raw.last_answer(option), wanted, "option {option}");
    }
    let mut raw = raw.enter(Mode::Extended);
    raw.request(CMD_FLUSH, 0, 0, 0);
    assert_eq!(raw.error(), 0);
}

#[test]
fn an_extended_payload_where_none_belongs_is_skipped() {
    let fixture = fixture();
    let mut raw = fixture.raw().greet().go(Mode::Extended);
    for command in [CMD_READ, CMD_TRIM, CMD_FLUSH, CMD_BLOCK_STATUS, 999] {
        raw.request(command, CMD_PAYLOAD_LEN, 0, 300_000);
        raw.send(&vec![0x25; 300_000]);
        assert_eq!(raw.error(), Errno::Inval.code(), "command {command}");
    }
    // 64 bits of length where there is no payload are only out of range.
    raw.request(CMD_TRIM, 0, 0, u64::MAX);
    assert_eq!(raw.error(), Errno::Inval.code());
    raw.request(CMD_WRITE_ZEROES, 0, 4096, u64::MAX);
    assert_eq!(raw.error(), Errno::NoSpc.code());
}

#[test]
fn a_payload_larger_than_agreed_gets_its_error_and_ends_the_connection() {
    let fixture = fixture();
    for (mode, flags, length) in [
        (Mode::Simple, 0, 0xffff_ffff),
        (Mode::Structured, 0, (32 << 20) + 1),
        (Mode::Extended, CMD_PAYLOAD_LEN, u64::MAX),
    ] {
        let mut raw = fixture.raw().greet().go(mode);
        raw.request(CMD_WRITE, flags, 0, length);
        assert_eq!(raw.error(), Errno::Overflow.code());
        raw.rest();
        assert!(matches!(fixture.reason(), CloseReason::Protocol(_)));
    }
    fixture.assert_serves();
    assert!(address_space_peak() < 3 << 30, "a declared size was allocated");
}

#[test]
fn a_request_with_the_wrong_magic_ends_the_connection() {
    let fixture = fixture();
    for (mode, other) in [(Mode::Structured, Mode::Extended), (Mode::Extended, Mode::Structured)] {
        let mut raw = fixture.raw().greet().go(mode);
        raw.mode = other;
        raw.request(CMD_FLUSH, 0, 0, 0);
        assert!(raw.rest().is_empty());
        assert!(matches!(fixture.reason(), CloseReason::Protocol(_)));
    }
    fixture.assert_serves();
}

#[test]
fn a_client_that_sends_byte_by_byte_is_served() {
    let fixture = fixture();
    let mut raw = fixture.raw();
    raw.take(18);
    let mut bytes = 3_u32.to_be_bytes().to_vec();
    let go = InfoQuery { name: "", wanted: vec![] }.encode();
    bytes.extend(OptionHeader { option: OPT_GO, length: go.len() as u32 }.encode());
    bytes.extend(go);
    bytes.extend(raw.header(CMD_WRITE, 0, 512, 5));
    bytes.extend(b"bytes");
    bytes.extend(raw.header(CMD_READ, 0, 511, 7));
    for byte in bytes {
        raw.send(&[byte]);
    }
    assert_eq!(raw.last_answer(OPT_GO), REP_ACK);
    assert_eq!(raw.error(), 0);
    assert_eq!(raw.error(), 0);
    assert_eq!(raw.take(7), b"\0bytes\0");
}

#[test]
fn half_a_message_and_then_the_end_leaves_others_working() {
    let fixture = fixture();
    let mut other = fixture.client();
    let write = |raw: &mut Raw| {
        raw.request(CMD_WRITE, 0, 0, 8192);
        raw.send(&[9; 5000]);
    };
    type Act<'a> = &'a dyn Fn(&mut Raw);
    let cases: [(&str, Act<'_>); 2] =
        [("half a header", &|raw| raw.send(&[0x25, 0x60])), ("half a payload", &write)];
    for (what, act) in cases {
        let mut raw = fixture.raw().greet().go(Mode::Structured);
        act(&mut raw);
        // While it hangs there, the other goes on.
        other.write(0, &[1; 4096], false).unwrap();
        let mut data = [0; 8192];
        other.read(0, &mut data).unwrap();
        assert!(data[4096..].iter().all(|byte| *byte == 0), "{what}: half a write was taken");
        drop(raw);
        let reason = fixture.reason();
        assert!(matches!(reason, CloseReason::Truncated), "{what}: {reason:?}");
        other.write(0, &[0; 4096], false).unwrap();
    }
    drop(fixture.raw().greet().go(Mode::Structured));
    assert!(matches!(fixture.reason(), CloseReason::Hangup));
    other.flush().unwrap();
}

#[test]
fn a_flood_without_reading_replies_stops_at_a_bound_and_harms_nobody() {
    let fixture = Fixture::new(MemoryExport::new(64 << 20));
    for (mode, command, length) in [
        (Mode::Simple, CMD_READ, 32 << 20),
        (Mode::Structured, CMD_READ, 32 << 20),
        (Mode::Extended, CMD_READ, 1 << 20),
        (Mode::Structured, CMD_FLUSH, 0),
    ] {
        let mut raw = fixture.raw().greet().go(mode);
        let request = raw.header(command, 0, 0, length);
        let burst = request.repeat(512);
        // The server stops reading once its client does: the sender blocks for good, however
        // long it is let.
        raw.stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        let mut sent = 0_usize;
        loop {
            match raw.stream.write(&burst) {
                Ok(bytes) => sent += bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("{error}"),
            }
            assert!(sent < 16 << 20, "the server goes on reading without end");
        }
        fixture.assert_serves();
        assert!(matches!(fixture.reason(), CloseReason::Disconnected));
        drop(raw);
        fixture.reason();
    }
    assert!(address_space_peak() < 3 << 30);
}

#[test]
fn a_silent_client_is_dropped_in_the_handshake_and_never_after_it() {
    let handshake_max = Duration::from_secs(1);
    let limits = Limits { handshake_max, ..Limits::default() };
    let fixture = Fixture::with_limits(MemoryExport::new(4096), limits);
    let mut idle = fixture.raw().greet().go(Mode::Structured);
    let mut silent = fixture.raw();
    silent.rest();
    assert!(matches!(fixture.reason(), CloseReason::HandshakeTimeout(_)));
    // One that drips is no better off: the limit holds for the whole handshake.
    let mut dripping = fixture.raw().greet();
    let drip = [OPT_LIST.to_be_bytes(); 3].concat();
    while dripping.stream.write(&OptionHeader { option: 77, length: 12 }.encode()).is_ok()
        && dripping.stream.write(&drip).is_ok()
    {
        std::thread::sleep(Duration::from_millis(10));
    }
    let reason = fixture.reason();
    let dropped = matches!(reason, CloseReason::HandshakeTimeout(_));
    assert!(dropped || matches!(reason, CloseReason::Hangup), "{reason:?}");
    // Idle for more than the limit by now.
    idle.request(CMD_FLUSH, 0, 0, 0);
    assert_eq!(idle.error(), 0);
}

#[test]
fn a_client_past_the_limit_gets_an_error_reply_and_the_rest_are_served() {
    let limits = Limits { connections_max: 3, ..Limits::default() };
    let fixture = Fixture::with_limits(MemoryExport::new(4096), limits);
    let mut served: Vec<Raw> = (0..3).map(|_| fixture.raw().greet().go(Mode::Structured)).collect();
    let go = InfoQuery { name: "", wanted: vec![] }.encode();
    for _ in 0..5 {
        let mut refused = fixture.raw().greet();
        for (option, data) in [(OPT_STRUCTURED_REPLY, &[][..]), (OPT_GO, &go), (OPT_LIST, &[])] {
            refused.option(option, data);
            let (kind, words) = refused.answer(option);
            assert_eq!(kind, REP_ERR_POLICY, "option {option}");
            assert!(String::from_utf8(words).unwrap().contains("3 clients are connected"));
        }
        refused.option(OPT_ABORT, &[]);
        assert_eq!(refused.last_answer(OPT_ABORT), REP_ACK);
        assert!(refused.rest().is_empty());
        // There is no error reply to EXPORT_NAME.
        let mut old = fixture.raw().greet();
        old.option(OPT_EXPORT_NAME, &[]);
        assert!(old.rest().is_empty());
    }
    // Those that stay silent take nobody's place. Each is greeted or cut: that is how its accept is known.
    let mut silent: Vec<Raw> = (0..40).map(|_| fixture.raw()).collect();
    let greeted = |raw: &mut Raw| raw.stream.read_exact(&mut [0; 18]).is_ok();
    assert!(silent.iter_mut().map(greeted).filter(|greeted| *greeted).count() > 0);
    assert_eq!(fixture.server.connections(), 3);
    for raw in &mut served {
        raw.request(CMD_FLUSH, 0, 0, 0);
        assert_eq!(raw.error(), 0);
    }
    served.pop().unwrap().request(CMD_DISC, 0, 0, 0);
    assert!(matches!(fixture.reason(), CloseReason::Disconnected));
    while fixture.server.connections() == 3 {
        std::thread::yield_now();
    }
    fixture.assert_serves();
}

#[test]
fn the_rest_of_a_request_has_a_time_limit_and_an_idle_client_none() {
    let limits = Limits { request_max: Duration::from_millis(300), ..Limits::default() };
    let fixture = Fixture::with_limits(MemoryExport::new(BYTES as usize), limits);
    let mut idle = fixture.raw().greet().go(Mode::Structured);
    type Act<'a> = &'a dyn Fn(&mut Raw);
    let half_header: Act<'_> = &|raw| raw.send(&[0x25, 0x60]);
    let half_payload: Act<'_> = &|raw| {
        raw.request(CMD_WRITE, 0, 0, 8192);
        raw.send(&[9; 5000]);
    };
    let half_refused: Act<'_> = &|raw| {
        raw.request(CMD_WRITE, 0, BYTES, 8192);
        raw.send(&[9; 5000]);
    };
    let drip: Act<'_> = &|raw| {
        raw.request(CMD_WRITE, 0, 0, 1 << 20);
        while raw.stream.write(&[9; 10]).is_ok() {
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    for (what, act) in [
        ("half a header", half_header),
        ("half a payload", half_payload),
        ("half a payload that is refused", half_refused),
        ("a payload that drips", drip),
    ] {
        let mut raw = fixture.raw().greet().go(Mode::Structured);
        act(&mut raw);
        raw.rest();
        let reason = fixture.reason();
        assert!(matches!(reason, CloseReason::RequestTimeout(_)), "{what}: {reason:?}");
    }
    idle.request(CMD_FLUSH, 0, 0, 0);
    assert_eq!(idle.error(), 0);
}

#[test]
fn noise_of_any_kind_harms_nobody() {
    let fixture = fixture();
    let mut honest = fixture.client();
    let mut seed = 1;
    let mut noise = move || {
        seed += 1;
        crate::fixture::pattern(seed, 4096)
    };
    for round in 0..150_u64 {
        let mode = [Mode::Simple, Mode::Structured, Mode::Extended][round as usize % 3];
        let raw = fixture.raw();
        let mut raw = match round % 5 {
            0 => raw,
            1 => raw.greet(),
            _ => raw.greet().go(mode),
        };
        // Requests that begin well, then anything.
        let bytes = noise();
        let mut stream = Vec::new();
        for (index, word) in bytes.chunks_exact(32).enumerate().take(24) {
            let field = |at: usize| u64::from_le_bytes(word[at..at + 8].try_into().unwrap());
            let small = index % 3 != 0;
            let (offset, length) = if small {
                (field(0) % (2 * BYTES), field(8) % 5000)
            } else {
                (field(0), if raw.mode == Mode::Extended { field(8) } else { field(8) >> 32 })
            };
            let command = (field(16) % 9) as u16;
            if command == CMD_DISC {
                continue;
            }
            stream.extend(raw.header(command, (field(24) % 64) as u16, offset, length));
            let payload = command == CMD_WRITE && small;
            stream.extend(&bytes[..if payload { length as usize % 4096 } else { 0 }]);
        }
        // The server may have had enough at any time.
        let _ = raw.stream.write_all(&stream);
        let _ = raw.stream.shutdown(std::net::Shutdown::Write);
        raw.rest();
        let reason = fixture.reason();
        assert!(!matches!(reason, CloseReason::Panicked), "round {round}");
        if round % 10 == 0 {
            honest.write(0, &[1; 512], false).unwrap();
            honest.read(0, &mut [0; 512]).unwrap();
        }
    }
    assert!(address_space_peak() < 3 << 30, "a declared size was allocated");
}
