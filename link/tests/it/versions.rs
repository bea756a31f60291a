//! Neighbours of one version apart: fields that are new, fields that are missing, kinds that may be skipped.

use super::bed::{Bed, GROUP, hello, until};
use super::raw::{Raw, frame};
use afterimage_journal::wire::Op;
use afterimage_link::frame::{HEAD_BYTES, Kind, convert, decode, encode, message as m};
use prost::Message;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(10);

/// The hello of the next version.
#[derive(Clone, PartialEq, prost::Message)]
struct NextHello {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(fixed64, tag = "2")]
    features: u64,
    #[prost(bytes = "vec", tag = "4")]
    group: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(uint32, tag = "6")]
    format: u32,
    #[prost(uint64, tag = "7")]
    unit_bytes: u64,
    #[prost(uint64, tag = "10")]
    epoch: u64,
    #[prost(string, tag = "77")]
    what_is_new: String,
    #[prost(message, optional, tag = "78")]
    and_nested: Option<m::Sync>,
}

/// A sync of the next version; and one of a version before ours, that knew less.
#[derive(Clone, PartialEq, prost::Message)]
struct NextSync {
    #[prost(uint64, tag = "1")]
    token: u64,
    #[prost(uint64, tag = "2")]
    watermark: u64,
    #[prost(fixed64, tag = "3")]
    wall_ns: u64,
    #[prost(bytes = "vec", tag = "1000")]
    signature: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct EarlierSync {
    #[prost(uint64, tag = "1")]
    token: u64,
}

#[test]
fn a_client_of_the_next_version_is_understood() {
    let bed = Bed::new();
    bed.enroll(GROUP, "a");
    let hello = convert::hello_of(&hello(GROUP, 5));
    let next = NextHello {
        version: m::VERSION + 1,
        features: u64::MAX,
        group: hello.group,
        name: hello.name,
        format: hello.format,
        unit_bytes: hello.unit_bytes,
        epoch: hello.epoch,
        what_is_new: "much".into(),
        and_nested: Some(m::Sync { token: 1, watermark: 2, wall_ns: 3 }),
    };
    let mut raw = Raw::connect(&bed, "a");
    // Before the hello too: what may be skipped is.
    raw.send(&frame(0x9000, b"says something new")).unwrap();
    raw.send(&frame(1, &next.encode_to_vec())).unwrap();
    raw.send(&frame(0xffff, &[0xff; 300])).unwrap();
    let sync = NextSync { token: 7, watermark: 8, wall_ns: 9, signature: vec![1; 64] };
    raw.send(&frame(19, &sync.encode_to_vec())).unwrap();
    raw.send(&frame(19, &EarlierSync { token: 8 }.encode_to_vec())).unwrap();
    until("both syncs", LIMIT, || bed.notes(|n| n.ops.len()) == 2);
    let ops = bed.notes(|n| n.ops.clone());
    assert_eq!(ops[0], Op::Sync { token: 7, watermark: 8, wall_ns: 9 });
    assert_eq!(ops[1], Op::Sync { token: 8, watermark: 0, wall_ns: 0 });
    // What can't be skipped ends the link; what came before it is answered.
    raw.send(&frame(0x7fff, b"")).unwrap();
    let said = raw.rest(LIMIT);
    let length = u32::from_le_bytes(said[..4].try_into().unwrap()) as usize;
    assert_eq!(said[4], Kind::Welcome as u8);
    let welcome: m::Welcome = decode(&said[HEAD_BYTES..HEAD_BYTES + length]).unwrap();
    assert_eq!((welcome.version, welcome.features), (m::VERSION, 0));
    assert!(String::from_utf8_lossy(&said).contains("kind 32767 must not come"));
}

#[test]
fn a_site_of_the_next_version_is_understood() {
    // What it says besides is skipped by the reader of frames.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ack = NextSync { token: 5, watermark: 6, wall_ns: 0, signature: vec![9; 9] };
    let mut said = frame(0x8123, &[1; 100]);
    said.extend(frame(Kind::Ack as u16, &ack.encode_to_vec()));
    let read = runtime.block_on(async {
        let mut reader = afterimage_link::frame::io::Reader::new(said.as_slice(), LIMIT);
        reader.next(afterimage_link::frame::Accepts::Answers).await
    });
    let (kind, message) = read.unwrap().unwrap();
    assert_eq!(kind, Kind::Ack);
    let ack: m::Ack = decode(&message[..]).unwrap_or_default();
    assert_eq!((ack.token, ack.watermark), (5, 6));
}

/// The bytes of version 1: what was once sent is read for ever.
#[test]
fn version_1_is_written_as_it_was() {
    let hello = m::Hello {
        version: 1,
        features: 0,
        program: "p".into(),
        group: vec![7; 16],
        name: "shop".into(),
        format: 1,
        unit_bytes: 1 << 20,
        cipher: String::new(),
        key_check: String::new(),
        epoch: 3,
    };
    let bytes = encode(Kind::Hello, &hello).unwrap();
    let hex = afterimage_link::identity::text::to_hex(&bytes);
    let group = "07".repeat(16);
    let known = format!("25000000010008011a01702210{group}2a0473686f703001388080405003");
    assert_eq!(hex, known);
    let sync = encode(Kind::Sync, &m::Sync { token: 1, watermark: 300, wall_ns: 5 }).unwrap();
    let hex = afterimage_link::identity::text::to_hex(&sync);
    assert_eq!(hex, "0e0000001300080110ac02190500000000000000");
}
