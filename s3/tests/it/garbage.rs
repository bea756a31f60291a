//! What is deleted, and that nobody who reads or writes is hurt by it.

use crate::fixture::{
    assert_same, closed_journal, hello, history_of, options, patient, send, steps, url,
};
use crate::server::pieces;
use crate::store::{Bag, Fault, Memory};
use afterimage_journal::History;
use afterimage_journal::pool::FileName;
use afterimage_journal::storage::{Access, Storage};
use afterimage_journal::wire::{Op, Sink};
use afterimage_s3::manifest::{Chain, MILESTONE};
use afterimage_s3::sink::{S3Sink, SinkOptions};
use afterimage_s3::storage::S3Storage;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

fn quick(grace: Duration) -> SinkOptions {
    SinkOptions { grace, ..options() }
}

fn objects(bag: &Arc<Mutex<Bag>>, what: &str) -> usize {
    bag.lock().unwrap().objects.keys().filter(|k| k.contains(what)).count()
}

/// How many objects the newest manifest names.
fn named(bag: &Arc<Mutex<Bag>>) -> usize {
    let state = Chain::new(patient(Memory::on(bag)), "site/g".into()).load().unwrap().unwrap();
    state.files.values().map(|f| f.segments.len()).sum()
}

/// Commits until something holds.
fn settle(sink: &mut S3Sink, token: &mut u64, holds: impl Fn() -> bool) {
    let begin = Instant::now();
    while !holds() {
        *token += 1;
        sink.apply(Op::Sync { token: *token, watermark: *token, wall_ns: 1 }).unwrap();
        std::thread::sleep(Duration::from_millis(1));
        assert!(begin.elapsed() < Duration::from_secs(20), "nothing is deleted");
    }
}

#[test]
fn dead_objects_go_after_their_grace_and_not_before() {
    let dir = tempfile::tempdir().unwrap();
    let home = closed_journal(dir.path(), 400);
    let steps = steps(&home, 20_000);
    let ours = History::load(&home).unwrap();
    let bag = Arc::new(Mutex::new(Bag::default()));
    let mut patient_sink =
        S3Sink::over(&url(), patient(Memory::on(&bag)), quick(Duration::from_secs(3600)));
    patient_sink.open(&hello(&home, 1)).unwrap();
    send(&mut patient_sink, &steps).unwrap();
    let all = objects(&bag, "/object/");
    assert!(all > named(&bag) + 9, "small segments were replaced, and stay: {all}");
    let mut sink = S3Sink::over(&url(), patient(Memory::on(&bag)), quick(Duration::ZERO));
    sink.open(&hello(&home, 1)).unwrap();
    let mut token = 1_000_000;
    settle(&mut sink, &mut token, || objects(&bag, "/object/") == named(&bag));
    assert_same(&ours, &history_of(&bag).unwrap(), u64::MAX);
    sink.apply(Op::Release(vec![FileName::Unit(1)])).unwrap();
    settle(&mut sink, &mut token, || objects(&bag, "unit-0000000001") == 0);
    assert_eq!(objects(&bag, "/object/"), named(&bag));
}

#[test]
fn what_an_ended_writer_left_unnamed_is_found_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let home = closed_journal(dir.path(), 200);
    let steps = steps(&home, 20_000);
    let bag = Arc::new(Mutex::new(Bag::default()));
    // Its objects arrive, the manifest that would name them does not.
    let memory = Memory::failing(&bag, |n, verb, key| {
        (n > 12 && verb == "create" && key.contains("manifest")).then_some(Fault::Dead)
    });
    let mut ended = S3Sink::over(&url(), patient(memory), options());
    ended.open(&hello(&home, 1)).unwrap();
    assert!(send(&mut ended, &steps).is_err());
    let left = objects(&bag, "/object/");
    assert!(left > 0);
    let mut sink = S3Sink::over(&url(), patient(Memory::on(&bag)), quick(Duration::ZERO));
    sink.open(&hello(&home, 2)).unwrap();
    send(&mut sink, &steps).unwrap();
    let mut token = 1_000_000;
    let is_clean = || {
        let bag = bag.lock().unwrap();
        let ours = |k: &&String| k.contains("/object/0000000001-");
        bag.objects.keys().filter(ours).count() <= 3
    };
    settle(&mut sink, &mut token, is_clean);
    assert_same(&History::load(&home).unwrap(), &history_of(&bag).unwrap(), u64::MAX);
}

#[test]
fn a_reader_that_finds_a_name_gone_plans_again() {
    let dir = tempfile::tempdir().unwrap();
    let home = closed_journal(dir.path(), 200);
    let ours = History::load(&home).unwrap();
    let steps = steps(&home, 20_000);
    let bag = Arc::new(Mutex::new(Bag::default()));
    let mut sink = S3Sink::over(&url(), patient(Memory::on(&bag)), quick(Duration::ZERO));
    sink.open(&hello(&home, 1)).unwrap();
    // The first unit is there in small segments; a reader has it open.
    let sealed = steps.iter().position(|(op, _)| matches!(op, Op::Seal { .. })).unwrap();
    send(&mut sink, &steps[..sealed]).unwrap();
    let storage = S3Storage::over(&url(), patient(Memory::on(&bag)), 0);
    let root = Path::new("s3://vault/site/pool/g");
    let open = |n: u64| storage.open(&root.join(format!("unit-{n:010}")), Access::Read);
    let file = open(1).unwrap();
    let mut buffer = vec![0; 8192];
    file.read_exact_at(&mut buffer, 4096).unwrap();
    // It is sealed meanwhile, its segments become one, the small ones are deleted.
    send(&mut sink, &steps[sealed..]).unwrap();
    let mut token = 1_000_000;
    settle(&mut sink, &mut token, || objects(&bag, "unit-0000000001") == 1);
    let mut again = vec![0; 500_000];
    file.read_exact_at(&mut again, 4096).unwrap();
    let source = std::fs::read(&ours.units[0].path).unwrap();
    assert!(again == source[4096..504_096]);
    // Released, it says so, and not that there never was one.
    sink.apply(Op::Release(vec![FileName::Unit(1)])).unwrap();
    settle(&mut sink, &mut token, || objects(&bag, "unit-0000000001") == 0);
    let told = file.read_exact_at(&mut buffer, 700_000).unwrap_err();
    assert!(told.to_string().contains("was released"), "{told}");
    assert_eq!(told.kind(), std::io::ErrorKind::StaleNetworkFileHandle);
}

#[test]
fn manifests_below_the_floor_go_but_for_those_that_stay() {
    let dir = tempfile::tempdir().unwrap();
    let home = closed_journal(dir.path(), 100);
    let ours = History::load(&home).unwrap();
    let steps = steps(&home, 50_000);
    let bag = Arc::new(Mutex::new(Bag::default()));
    let mut sink = S3Sink::over(&url(), patient(Memory::on(&bag)), quick(Duration::ZERO));
    sink.open(&hello(&home, 1)).unwrap();
    send(&mut sink, &steps).unwrap();
    let mut token = 1_000_000;
    let written =
        || bag.lock().unwrap().written.keys().filter(|k| k.contains("/manifest/")).count();
    settle(&mut sink, &mut token, || written() > 3 * MILESTONE as usize + 100);
    settle(&mut sink, &mut token, || objects(&bag, "/manifest/") < 2 * MILESTONE as usize);
    let stays: Vec<u64> = bag
        .lock()
        .unwrap()
        .objects
        .keys()
        .filter_map(|k| k.rsplit_once("/manifest/")?.1.parse().ok())
        .filter(|n| *n <= 2 * MILESTONE)
        .collect();
    assert!(stays.contains(&1) && stays.contains(&MILESTONE), "{stays:?}");
    assert_same(&ours, &history_of(&bag).unwrap(), u64::MAX);
    let mut again = S3Sink::over(&url(), patient(Memory::on(&bag)), quick(Duration::ZERO));
    assert!(again.open(&hello(&home, 1)).unwrap().watermark > 1_000_000);
}

#[test]
fn what_a_merged_unit_replaces_leaves_with_the_manifest_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let home = crate::reading::merged_journal(dir.path());
    let ours = History::load(&home).unwrap();
    let merged = ours.units.iter().find(|u| u.merged.is_some()).expect("a merged unit").clone();
    let bag = Arc::new(Mutex::new(Bag::default()));
    let mut sink = S3Sink::over(&url(), patient(Memory::on(&bag)), options());
    sink.open(&hello(&home, 9)).unwrap();
    // What it replaces was there before.
    let header = afterimage_journal::format::unit_header::UnitHeader {
        number: merged.name.numbers().0,
        flags: 0,
        epoch: 1,
        unit_bytes: 1 << 20,
        ..merged.header
    };
    sink.apply(Op::Begin(Box::new(header))).unwrap();
    for op in pieces(&merged.path, merged.name, merged.index_crc) {
        sink.apply(op).unwrap();
    }
    sink.apply(Op::Sync { token: 1, watermark: 1, wall_ns: 1 }).unwrap();
    let found = sink.open(&hello(&home, 9)).unwrap();
    let names: Vec<FileName> = found.files.iter().map(|f| f.name).collect();
    assert_eq!(names, [merged.name]);
    assert!(found.edge > 0 && found.edge == merged.merged.unwrap().edge, "{}", found.edge);
    send(&mut sink, &steps(&home, 50_000)).unwrap();
    let theirs = history_of(&bag).unwrap();
    assert_eq!((ours.edge, ours.head), (theirs.edge, theirs.head));
    assert_same(&ours, &theirs, u64::MAX);
}
