//! What every sink has to do, over the store in memory and over a real server.

use crate::fixture::{
    assert_same, closed_journal, hello, history_in, options, patient, send, steps, url, volume_at,
};
use crate::server::{Server, pieces};
use crate::store::Memory;
use afterimage_journal::History;
use afterimage_journal::pool::FileName;
use afterimage_journal::wire::{Extent, Op, Sink, SinkError};
use afterimage_s3::sink::S3Sink;
use afterimage_s3::store::Patient;
use std::time::Duration;

/// Sends a journal in three goes, each op twice, and reads it back.
fn conforms(store: &Patient) {
    let dir = tempfile::tempdir().unwrap();
    let home = closed_journal(dir.path(), 600);
    let ours = History::load(&home).unwrap();
    assert!(ours.units.len() > 3, "{} units", ours.units.len());
    let mut sink = S3Sink::over(&url(), store.clone(), options());
    assert!(sink.mirrors());
    assert!(matches!(sink.apply(Op::Release(vec![])), Err(SinkError::Broken(_))), "not open");
    assert_eq!(sink.open(&hello(&home, 1)).unwrap().files, vec![]);
    let steps = steps(&home, 50_000);
    let third = steps.len() / 3;
    let mut acked = send(&mut sink, &steps[..third]).unwrap();
    for part in [third..2 * third, 2 * third..steps.len()] {
        // Half of what was sent comes again, to an opening that finds it there.
        let found = sink.open(&hello(&home, 1)).unwrap();
        assert_eq!(found.watermark, acked);
        let again = part.start / 2..part.end;
        let last = found.files.last().unwrap();
        assert!(
            last.extent == Extent::Whole || matches!(last.extent, Extent::Open(at) if at >= 4096),
            "{last:?}"
        );
        acked = send(&mut sink, &steps[again]).unwrap();
    }
    assert_eq!(acked, ours.head);
    let theirs = history_in(store).unwrap();
    assert_same(&ours, &theirs, u64::MAX);
    assert_eq!(format!("{:?}", ours.level), format!("{:?}", theirs.level));
    assert_eq!((ours.head, ours.epoch, ours.closed), (theirs.head, theirs.epoch, theirs.closed));
    for range in &ours.level {
        assert!(volume_at(&ours, range.to) == volume_at(&theirs, range.to));
    }
    in_pieces(store, &home, &ours, &mut sink);
}

/// A unit is given up and comes again in pieces.
fn in_pieces(store: &Patient, home: &std::path::Path, ours: &History, sink: &mut S3Sink) {
    let name = FileName::Unit(2);
    let sync = |sink: &mut S3Sink, token| {
        sink.apply(Op::Sync { token, watermark: ours.head, wall_ns: 1 }).unwrap();
        sink.ack(Duration::from_secs(5)).unwrap().expect("an ack")
    };
    sink.open(&hello(home, 1)).unwrap();
    sink.apply(Op::Release(vec![name])).unwrap();
    sync(sink, 1);
    assert!(!history_in(store).unwrap().damage.is_empty(), "unit 2 is missing");
    let unit = ours.units.iter().find(|u| u.name == name).unwrap();
    let mut ops: Vec<Op> = pieces(&unit.path, name, unit.index_crc).collect();
    let end = ops.pop().unwrap();
    for op in ops.clone().into_iter().chain(ops) {
        sink.apply(op).unwrap();
        sink.ack(Duration::ZERO).unwrap();
    }
    assert!(!history_in(store).unwrap().damage.is_empty(), "a part doesn't count");
    sink.apply(end.clone()).unwrap();
    let ack = sync(sink, 2);
    assert!(ack.whole.contains(&name), "{ack:?}");
    assert_same(ours, &history_in(store).unwrap(), u64::MAX);
    sink.apply(end).unwrap();
    assert!(sync(sink, 3).whole.contains(&name), "said again to who asks again");
}

#[test]
fn a_store_in_memory_conforms() {
    conforms(&patient(Memory::new()));
}

#[test]
fn a_real_server_conforms() {
    let server = Server::start();
    conforms(&server.patient());
}

#[test]
fn what_is_not_what_was_sent_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let home = closed_journal(dir.path(), 600);
    let steps = steps(&home, 50_000);
    let bad = |change: &dyn Fn(&mut Op)| {
        let mut sink = S3Sink::over(&url(), patient(Memory::new()), options());
        sink.open(&hello(&home, 1)).unwrap();
        for (op, _) in &steps {
            let mut op = op.clone();
            change(&mut op);
            if let Err(e) = sink.apply(op) {
                assert!(matches!(e, SinkError::Broken(_)), "{e}");
                assert!(matches!(sink.ack(Duration::ZERO), Err(SinkError::Broken(_))));
                return e.to_string();
            }
        }
        panic!("it was taken");
    };
    let flipped = bad(&|op| {
        if let Op::Bytes { bytes, .. } = op {
            bytes[100] ^= 1;
        }
    });
    assert!(flipped.contains("damaged"), "{flipped}");
    let cut = bad(&|op| {
        if let Op::Bytes { bytes, .. } = op {
            bytes.pop();
        }
    });
    assert!(cut.contains("no whole record"), "{cut}");
    let late = bad(&|op| {
        if let Op::Bytes { at, .. } = op {
            *at += 64;
        }
    });
    assert!(late.contains("it ends at"), "{late}");
    let other = bad(&|op| {
        if let Op::Seal { index_crc, .. } = op {
            *index_crc ^= 1;
        }
    });
    assert!(other.contains("another index"), "{other}");
    let foreign = bad(&|op| {
        if let Op::Begin(header) = op {
            header.group[0] ^= 1;
        }
    });
    assert!(foreign.contains("another journal's"), "{foreign}");
}
