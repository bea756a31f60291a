//! What is put in at one end comes out at the other: the same ops, acks, inventories, errors.

use super::bed::{Bed, GROUP, hello, until};
use afterimage_journal::format::unit_header::UnitHeader;
use afterimage_journal::pool::FileName;
use afterimage_journal::wire::{Ack, Extent, HELD_EPOCHS_MAX, Held, HeldEpoch};
use afterimage_journal::wire::{OP_BYTES_MAX, Op, Sink, SinkError};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(10);

fn header() -> UnitHeader {
    UnitHeader {
        group: [1; 16],
        salt: [2; 16],
        number: 3,
        unit_bytes: 1 << 20,
        epoch: 4,
        flags: 1,
        after_seq: 5,
        prev_last_seq: 6,
        wall_ns: 7,
        mono_ns: 8,
        boot_id: [9; 16],
        mount_id: 10,
    }
}

fn ops() -> Vec<Op> {
    let merged = FileName::Merged(1, 9);
    vec![
        Op::Begin(Box::new(header())),
        Op::Bytes { unit: 3, at: 4096, bytes: vec![] },
        Op::Bytes { unit: 3, at: 4096, bytes: (0..OP_BYTES_MAX).map(|i| i as u8).collect() },
        Op::Seal { unit: 3, end: 8192, index_crc: u32::MAX },
        Op::Sync { token: 1, watermark: 77, wall_ns: u64::MAX },
        Op::Put { name: merged, file_bytes: 1 << 40, at: 8, bytes: vec![5; 999], len: 1 << 30 },
        Op::PutEnd { name: merged, index_crc: 1 },
    ]
}

#[test]
fn every_op_arrives_as_it_was_sent_and_acks_come_back() {
    let bed = Bed::new();
    let mut sink = bed.open();
    for op in ops() {
        sink.apply(op).unwrap();
    }
    // The sync that the last file passed, or may have passed, is done again behind it.
    until("all ops", LIMIT, || bed.notes(|n| n.ops.len()) == ops().len() + 1);
    // The two orders may mix; each is kept.
    let fresh = |op: &Op| !matches!(op, Op::Put { .. } | Op::PutEnd { .. });
    let (mut came, mut sent) = (bed.notes(|n| n.ops.clone()), ops());
    assert!(matches!(came.pop(), Some(Op::Sync { token: 1, watermark: 77, .. })));
    came.sort_by_key(|op| !fresh(op));
    sent.sort_by_key(|op| !fresh(op));
    assert_eq!(came, sent);
    let mut acked = Ack::default();
    until("the acks", LIMIT, || {
        if let Some(ack) = sink.ack(Duration::from_millis(10)).unwrap() {
            acked.token = acked.token.max(ack.token);
            acked.watermark = acked.watermark.max(ack.watermark);
            acked.whole.extend(ack.whole);
        }
        acked.token == 1 && !acked.whole.is_empty()
    });
    assert_eq!((acked.watermark, acked.whole), (77, vec![FileName::Merged(1, 9)]));
    assert_eq!(bed.notes(|n| n.hellos.clone()), [hello(GROUP, 1)]);
}

#[test]
fn a_long_inventory_comes_whole() {
    let bed = Bed::new();
    let file = |i: u64| Held {
        name: if i == 0 { FileName::Merged(1, 5) } else { FileName::Unit(i + 5) },
        salt: [i as u8; 16],
        extent: match i % 3 {
            0 => Extent::Whole,
            1 => Extent::Open(i * 512),
            _ => Extent::Part(u64::MAX),
        },
        epoch: i % 5,
        lowest: i % 7 * 1000,
    };
    let epoch = |epoch: u64| HeldEpoch {
        epoch,
        id: (!epoch.is_multiple_of(3)).then_some([epoch as u8; 16]),
    };
    bed.notes(|n| {
        n.inventory.files = (0..20_000).map(file).collect();
        n.inventory.epochs = (1..=HELD_EPOCHS_MAX as u64).map(epoch).collect();
        n.inventory.watermark = 123;
        n.inventory.edge = 45;
        n.mirrors = true;
    });
    bed.enroll(GROUP, "a");
    let mut sink = bed.sink("a");
    assert!(!sink.mirrors());
    let inventory = sink.open(&hello(GROUP, 1)).unwrap();
    assert!(inventory == bed.notes(|n| n.inventory.clone()));
    assert!(sink.mirrors());
}

#[test]
fn what_a_sink_says_is_said_to_the_agent_in_kind_and_words() {
    let bed = Bed::new();
    bed.enroll(GROUP, "a");
    let errors: [fn(String) -> SinkError; 4] =
        [SinkError::Away, SinkError::Full, SinkError::Refused, SinkError::Broken];
    for error in errors {
        let mut sink = bed.sink("a");
        sink.open(&hello(GROUP, 1)).unwrap();
        bed.notes(|n| n.fails = Some(error("the words".into())));
        sink.apply(Op::Sync { token: 1, watermark: 1, wall_ns: 1 }).unwrap();
        let said = loop {
            match sink.ack(LIMIT) {
                Ok(None) => panic!("nothing was said"),
                Ok(Some(_)) => {}
                Err(said) => break said,
            }
        };
        assert_eq!(format!("{said:?}"), format!("{:?}", error("the words".into())));
        assert!(matches!(sink.ack(LIMIT), Err(SinkError::Away(_))), "it is to be opened again");
        assert!(matches!(sink.apply(ops().remove(0)), Err(SinkError::Away(_))));
    }
}
