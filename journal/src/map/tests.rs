//! Runs, stacks and levels against plain arrays, over real files.

use super::levels::{self, UnitRow, aligned};
use super::piece::{Piece, Placed, record_pieces};
use super::run::{Run, RunWriter, Span};
use super::stack::{Layer, Stack};
use super::{MemRun, compact};
use crate::error::{Error, Result};
use crate::format::record::{FLAG_COPIED, Kind, Record};
use crate::storage::RealStorage;
use crate::{Seq, VolumeId};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use uuid::Uuid;

const GROUP: Uuid = Uuid::from_u128(7);
const SECTORS: u64 = 400;

fn span(level: u8, first_unit: u64, last_unit: u64) -> Span {
    Span { level, first_unit, last_unit, first_seq: first_unit * 10, last_seq: last_unit * 10 + 9 }
}

fn write(dir: &Path, span: &Span, run: &MemRun) -> Result<Arc<Run>> {
    let mut writer = RunWriter::create(&RealStorage::shared(), dir, GROUP, span)?;
    for (volume, piece) in run.pieces() {
        writer.push(*volume, piece)?;
    }
    Ok(Arc::new(writer.finish()?))
}

fn open(path: &Path) -> Result<Arc<Run>> {
    Run::open(&RealStorage::shared(), path, GROUP).map(Arc::new)
}

fn piece(sector: u64, sectors: u64, rank: Seq, seq: Seq) -> Piece {
    Piece {
        start: sector * 512,
        end: (sector + sectors) * 512,
        rank,
        seq,
        zero: seq.is_multiple_of(5),
    }
}

/// The highest (rank, number) of each sector, by hand.
fn model<'p>(pieces: impl IntoIterator<Item = &'p Placed>) -> BTreeMap<(VolumeId, u64), Piece> {
    let mut sectors = BTreeMap::new();
    for (volume, p) in pieces {
        for sector in p.start / 512..p.end / 512 {
            let held = sectors.entry((*volume, sector)).or_insert(*p);
            if p.precedence() > held.precedence() {
                *held = *p;
            }
        }
    }
    sectors
}

/// What sorted, disjoint pieces say of each sector; fails when they are not sorted and disjoint.
fn said(pieces: &[Placed]) -> BTreeMap<(VolumeId, u64), (Seq, Seq, bool)> {
    for pair in pieces.windows(2) {
        assert!((pair[0].0, pair[0].1.end) <= (pair[1].0, pair[1].1.start), "{pair:?}");
    }
    let each = pieces.iter().flat_map(|(volume, p)| {
        (p.start / 512..p.end / 512).map(|s| ((*volume, s), (p.rank, p.seq, p.zero)))
    });
    each.collect()
}

fn expected(
    model: &BTreeMap<(VolumeId, u64), Piece>,
    volume: Option<VolumeId>,
    range: std::ops::Range<u64>,
) -> BTreeMap<(VolumeId, u64), (Seq, Seq, bool)> {
    let inside = model
        .iter()
        .filter(|((v, s), _)| volume.is_none_or(|wanted| *v == wanted) && range.contains(s));
    inside.map(|(at, p)| (*at, (p.rank, p.seq, p.zero))).collect()
}

fn records() -> impl Strategy<Value = Vec<Vec<Placed>>> {
    // Every record has its own number; its rank is at or below that.
    let record = (0..3u16, 0..SECTORS, 1..60u64, 0..40u64);
    let layer = prop::collection::vec(record, 0..40);
    prop::collection::vec(layer, 0..6).prop_map(|layers| {
        let mut seq = 0;
        let mut number = |(volume, sector, sectors, below): (u16, u64, u64, u64)| {
            seq += 1;
            let rank = if below > 20 { seq - seq.min(below) } else { seq };
            // Volumes far apart: both bytes of the number count.
            (volume * 257, piece(sector, sectors, rank, seq))
        };
        layers.into_iter().map(|l| l.into_iter().map(&mut number).collect()).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(160))]

    #[test]
    fn the_highest_wins_at_each_sector_however_it_is_stored(
        layers in records(),
        volume in 0..3u16,
        (from, len) in (0..SECTORS, 0..80u64),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let volume = volume * 257;
        let all = model(layers.iter().flatten());
        let mut stack = Vec::new();
        for (i, layer) in layers.iter().enumerate() {
            let run = MemRun::build(layer.clone());
            prop_assert_eq!(said(run.pieces()), expected(&model(layer), None, 0..u64::MAX));
            if i % 2 == 0 {
                stack.push(Layer::from(Arc::new(run)));
                continue;
            }
            let file = write(dir.path(), &span(1, i as u64 * 16 + 1, i as u64 * 16 + 16), &run)?;
            let read: Vec<Placed> = file.all().collect::<Result<_>>()?;
            prop_assert_eq!(&read, run.pieces());
            let ranks: Vec<Seq> = run.pieces().iter().map(|(_, p)| p.rank).collect();
            prop_assert_eq!(file.rank_max(), ranks.iter().copied().max().unwrap_or(0));
            prop_assert_eq!(file.rank_min(), ranks.iter().copied().min().unwrap_or(0));
            for sector in from..from + len {
                let found = file.find(volume, sector * 512 + 100)?;
                prop_assert_eq!(found, run.find(volume, sector * 512 + 100));
                prop_assert_eq!(found.is_some(), model(layer).contains_key(&(volume, sector)));
            }
            stack.push(Layer::from(file));
        }
        let range = from * 512..(from + len) * 512;
        let wanted = expected(&all, Some(volume), from..from + len);
        let seen = Stack::new(stack.clone());
        let found: Vec<Placed> =
            seen.find(volume, range.clone())?.into_iter().map(|p| (volume, p)).collect();
        prop_assert_eq!(said(&found), wanted.clone());
        let resolved: Vec<Placed> =
            seen.resolve(volume, range).map(|p| p.map(|p| (volume, p))).collect::<Result<_>>()?;
        prop_assert_eq!(said(&resolved), wanted);
        let mut survived = BTreeMap::new();
        let base = Span { level: 0, first_unit: 1, last_unit: 99, first_seq: 1, last_seq: 990 };
        let writer = RunWriter::create(&RealStorage::shared(), dir.path(), GROUP, &base)?;
        let run = Arc::new(compact(&stack, writer, |_, p| {
            *survived.entry(p.seq).or_insert(0) += p.bytes();
            Ok(())
        })?);
        let read: Vec<Placed> = run.all().collect::<Result<_>>()?;
        prop_assert_eq!(said(&read), expected(&all, None, 0..u64::MAX));
        let mut live = BTreeMap::new();
        all.values().for_each(|p| *live.entry(p.seq).or_insert(0) += 512);
        prop_assert_eq!(survived, live);
    }

    #[test]
    fn a_cover_shows_every_record_of_a_position_and_none_above_it(
        units in 1..40u64,
        overlap in 0..3u64,
        edges in prop::collection::vec(1..40u64, 0..3),
        merged in 0..6u64,
        at in 0..420u64,
        built in prop_oneof![0..40usize, Just(40)],
    ) {
        // Unit N holds the numbers 10N to 10N+9, and a few of its neighbour's.
        let row = |first: u64, last: u64| UnitRow {
            first, last, first_seq: first * 10 - overlap, last_seq: last * 10 + 9 + overlap,
            sealed: last < units,
        };
        let mut runs: Vec<Span> = edges.iter().filter(|e| **e < units).map(|&e| Span {
            level: 0, first_unit: 1, last_unit: e, first_seq: 1, last_seq: e * 10 + 9 + overlap,
        }).collect();
        let all: Vec<UnitRow> = (1..=units).map(|n| row(n, n)).collect();
        for _ in 0..built {
            let Some(build) = levels::plan(&runs, &all).build else { break };
            prop_assert!(!runs.contains(&build.span));
            let first = all[build.span.first_unit as usize - 1].first_seq;
            prop_assert_eq!(build.span.first_seq, first);
            prop_assert_eq!(build.span.last_seq, all[build.span.last_unit as usize - 1].last_seq);
            runs.push(build.span);
        }
        let mut rows = all.clone();
        if merged > 1 && merged < units {
            rows.splice(..merged as usize, [row(1, merged)]);
        }
        let cover = levels::cover(at, &runs, &rows);
        let base = cover.base.map(|i| runs[i]);
        for run in base.iter().chain(cover.runs.iter().map(|i| &runs[*i])) {
            prop_assert!(run.last_seq <= at, "{run:?} hides what counts at {at}");
        }
        for n in (1..=units).filter(|n| n * 10 - overlap <= at) {
            let by_run = cover.runs.iter().map(|i| runs[*i]).chain(base);
            let covered = by_run.into_iter().any(|r| r.first_unit <= n && n <= r.last_unit)
                || cover.units.iter().any(|i| rows[*i].first <= n && n <= rows[*i].last);
            prop_assert!(covered, "unit {n} of {cover:?}");
        }
        let full = cover.units.iter().filter(|i| rows[**i].sealed && rows[**i].last_seq <= at).count();
        prop_assert!(built < 40 || merged > 1 || !edges.is_empty() || full <= 7, "{cover:?}");
        for i in levels::plan(&runs, &rows).delete {
            let base = runs.iter().filter(|r| r.is_base()).max_by_key(|r| r.last_seq);
            prop_assert!(runs[i].last_seq <= base.map_or(0, |b| b.last_seq));
        }
    }
}

/// A run of several index blocks: pieces of one sector, each second one left out.
fn large(dir: &Path, pieces: u64) -> Arc<Run> {
    let each = (0..pieces).map(|i| (3, piece(i * 2, 1, i + 1, i + 1)));
    write(dir, &span(2, 1, 256), &MemRun::build(each.collect())).unwrap()
}

#[test]
fn runs_of_several_index_blocks_are_found_through_and_read_on() {
    let dir = tempfile::tempdir().unwrap();
    for pieces in [0, 1, 127, 128, 254 * 127, 254 * 127 + 1, 254 * 127 * 2 + 5000] {
        let run = large(dir.path(), pieces);
        assert_eq!(run.pieces(), pieces);
        assert_eq!(run.bytes(), std::fs::metadata(run.path()).unwrap().len());
        let all: Vec<Placed> = run.all().collect::<Result<_>>().unwrap();
        assert_eq!(all.len() as u64, pieces);
        assert!(all.iter().enumerate().all(|(i, (_, p))| p.seq == i as u64 + 1));
        for i in (0..pieces).step_by(997).chain(pieces.checked_sub(1)) {
            assert_eq!(run.find(3, i * 1024).unwrap().unwrap().seq, i + 1);
            assert_eq!(run.find(3, i * 1024 + 512).unwrap(), None);
            let some = run.iter(3, i * 1024 + 100..i * 1024 + 2000).next().unwrap().unwrap();
            assert_eq!((some.start, some.end, some.seq), (i * 1024 + 100, i * 1024 + 512, i + 1));
        }
        assert!(run.iter(2, 0..u64::MAX).next().is_none() && run.find(4, 0).unwrap().is_none());
    }
}

#[test]
fn damage_anywhere_is_an_error_that_names_the_block() {
    let dir = tempfile::tempdir().unwrap();
    let path = large(dir.path(), 400).path().to_owned();
    let whole = std::fs::read(&path).unwrap();
    let all = |path: &Path| open(path)?.all().collect::<Result<Vec<_>>>();
    let copy = dir.path().join("copy");
    for at in (0..whole.len()).step_by(29) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        std::fs::write(&copy, &bytes).unwrap();
        // The index block is not asked for when everything is read.
        let result = all(&copy).and_then(|_| open(&copy)?.find(3, 0).map(|_| ()));
        let block = (at / 4096 * 4096) as u64;
        match result {
            Err(Error::BadRun { path, at: found, .. }) => {
                assert_eq!((path.as_path(), found), (copy.as_path(), block));
            }
            other => panic!("byte {at}: {other:?}"),
        }
    }
    for length in (0..whole.len()).step_by(1000) {
        std::fs::write(&copy, &whole[..length]).unwrap();
        assert!(all(&copy).is_err(), "{length} bytes");
    }
    // Two blocks that changed places, and one of another run at the same place.
    let mut swapped = whole.clone();
    swapped[4096..12288].rotate_left(4096);
    std::fs::write(&copy, &swapped).unwrap();
    assert!(matches!(all(&copy), Err(Error::BadRun { at: 4096, .. })));
    let mut foreign = std::fs::read(large(dir.path(), 400).path()).unwrap();
    foreign[..4096].copy_from_slice(&whole[..4096]);
    std::fs::write(&copy, &foreign).unwrap();
    assert!(matches!(all(&copy), Err(Error::BadRun { .. })));
    assert!(matches!(
        Run::open(&RealStorage::shared(), &path, Uuid::from_u128(8)),
        Err(Error::BadRun { at: 0, .. })
    ));
}

#[test]
fn a_stack_passes_an_error_on_and_stops() {
    let dir = tempfile::tempdir().unwrap();
    let run = large(dir.path(), 400);
    let mut bytes = std::fs::read(run.path()).unwrap();
    bytes[2 * 4096 + 50] ^= 1;
    std::fs::write(run.path(), &bytes).unwrap();
    let mem = MemRun::build(vec![(3, piece(0, 900, 7, 7))]);
    let stack = Stack::new(vec![open(run.path()).unwrap().into(), Arc::new(mem).into()]);
    let seen: Vec<Result<Piece>> = stack.resolve(3, 0..u64::MAX).collect();
    assert!(seen.last().unwrap().is_err() && seen.iter().filter(|p| p.is_err()).count() == 1);
    assert!(stack.find(3, 260 * 512..264 * 512).is_err());
    // What lies in another block is still found.
    assert_eq!(stack.find(3, 512..1024).unwrap()[0].seq, 7);
}

#[test]
fn a_run_that_is_not_finished_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let storage = RealStorage::shared();
    let mut writer = RunWriter::create(&storage, dir.path(), GROUP, &span(1, 1, 16)).unwrap();
    writer.push(1, &piece(8, 8, 1, 1)).unwrap();
    for (volume, wrong) in [
        (1, piece(15, 1, 2, 2)),
        (0, piece(50, 1, 2, 2)),
        (1, Piece { start: 8191, ..piece(0, 90, 2, 2) }),
        (1, piece(20, 0, 2, 2)),
    ] {
        assert!(writer.push(volume, &wrong).is_err(), "{volume} {wrong:?}");
    }
    drop(writer);
    assert_eq!(storage.list(dir.path()).unwrap(), Vec::<String>::new());
    let stopped = compact(
        &[Arc::new(MemRun::build(vec![(1, piece(0, 8, 1, 1))])).into()],
        RunWriter::create(&storage, dir.path(), GROUP, &span(1, 1, 16)).unwrap(),
        |_, _| Err(Error::Invalid("stop".into())),
    );
    assert!(stopped.is_err());
    assert_eq!(storage.list(dir.path()).unwrap(), Vec::<String>::new());
}

#[test]
fn long_pieces_and_odd_ones_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let odd = Piece { start: 3, end: 4, rank: 2, seq: 5, zero: false };
    let long = Piece { start: 1 << 30, end: 10 << 30, rank: 8, seq: 8, zero: true };
    let cut = Piece { start: (12 << 30) + 1, end: u64::MAX, rank: 9, seq: 9, zero: true };
    let placed = [odd, long, cut].map(|p| (u16::MAX, p)).to_vec();
    let run = write(dir.path(), &span(1, 1, 16), &MemRun::build(placed.clone())).unwrap();
    assert!(run.pieces() > 3);
    // What was put in as several comes out as one where pieces are put together.
    let stack = Stack::new(vec![run.clone().into()]);
    let seen: Vec<_> =
        stack.resolve(u16::MAX, 0..u64::MAX).map(|p| (u16::MAX, p.unwrap())).collect();
    assert_eq!(seen, placed);
    assert_eq!(run.find(u16::MAX, 1 << 63).unwrap(), Some(cut));
    assert_eq!(run.find(u16::MAX, 3).unwrap(), Some(odd));
    assert_eq!(open(run.path()).unwrap().span(), &span(1, 1, 16));
}

#[test]
fn a_copied_record_ranks_where_its_copy_began() {
    let record = |kind, flags, seq, len| Record {
        kind,
        flags,
        volume: 2,
        addr: 4096,
        len,
        scope: 5,
        mono_ms: 0,
        wall_ns: 0,
        payload_crc: 0,
        payload_bytes: 0,
        compression: 0,
        encrypted: false,
        seq,
    };
    let records = [
        record(Kind::Write, FLAG_COPIED, 30, 8192),
        record(Kind::Zero, 0, 20, 4096),
        record(Kind::Tick, 0, 21, 4096),
    ];
    let pieces: Vec<Placed> = record_pieces(&records, |id| (id == 5).then_some(10)).collect();
    let seen = MemRun::build(pieces);
    let said: Vec<_> = seen.pieces().iter().map(|(_, p)| (p.start, p.seq, p.zero)).collect();
    assert_eq!(said, [(4096, 20, true), (8192, 30, false)]);
    assert_eq!(record_pieces(&records, |_| None).count(), 1);
}

#[test]
fn of_two_copied_records_of_one_copy_the_later_counts_whatever_layer_it_is_in() {
    let layer = |seq| Layer::from(Arc::new(MemRun::build(vec![(1, piece(0, 8, 10, seq))])));
    for seqs in [[31, 42], [42, 31]] {
        let stack = Stack::new(seqs.map(layer).to_vec());
        assert_eq!(stack.find(1, 0..4096).unwrap()[0].seq, 42);
        assert_eq!(stack.resolve(1, 0..4096).next().unwrap().unwrap().seq, 42);
    }
}

#[test]
fn levels_are_made_of_the_level_below_and_dropped_behind_the_edge() {
    let row = |n: u64| UnitRow {
        first: n,
        last: n,
        first_seq: n * 10,
        last_seq: n * 10 + 9,
        sealed: n < 300,
    };
    let rows: Vec<UnitRow> = (1..=300).map(row).collect();
    let mut runs = Vec::new();
    while let Some(build) = levels::plan(&runs, &rows).build {
        assert_eq!(build.runs.len() + build.units.len(), 8, "{build:?}");
        runs.push(build.span);
    }
    assert_eq!(runs.iter().filter(|r| r.level == 1).count(), 299 / 8);
    assert_eq!(runs.iter().filter(|r| r.level == 2).count(), 299 / 64);
    let cover = levels::cover(2900, &runs, &rows);
    // 1-256 as four, 257-288 as four, and 289, 290 by their own indexes.
    assert_eq!((cover.base, cover.runs.len(), cover.units.len()), (None, 8, 2));
    runs.push(Span { level: 0, first_unit: 1, last_unit: 40, first_seq: 10, last_seq: 409 });
    let plan = levels::plan(&runs, &rows);
    let deleted: Vec<_> = plan.delete.iter().map(|i| runs[*i].first_unit).collect();
    assert_eq!((plan.build, deleted), (None, vec![1, 9, 17, 25, 33]));
    assert_eq!(levels::cover(2900, &runs, &rows).base, Some(runs.len() - 1));
    assert_eq!(levels::cover(408, &runs, &rows).base, None);
    assert_eq!((aligned(1, 8), aligned(1, 9), aligned(4, 4097)), ((1, 8), (9, 16), (4097, 8192)));
}
