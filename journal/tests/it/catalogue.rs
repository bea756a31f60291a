//! The catalogue says what the units say, or nothing: kept up unit by unit, lost, rotten or stale.

use crate::fixture::{bytes_of, entries, new_journal, quiet, session, write};
use crate::model::{Op, Run, op, save};
use afterimage_journal::catalogue::{Catalogue, Extended, NAME};
use afterimage_journal::meta::SessionEvent;
use afterimage_journal::pool::Places;
use afterimage_journal::storage::{RealStorage, Storage};
use afterimage_journal::unit::ScanEnd;
use afterimage_journal::{ErrorKind, History, Journal, Seq, View, layout};
use proptest::prelude::*;
use std::path::Path;
use std::sync::Arc;

fn storage() -> Arc<dyn Storage> {
    RealStorage::shared()
}

/// Everything that a reader learns from a journal, as text.
fn said(history: &History) -> String {
    let rows: Vec<_> = history.units.iter().map(|u| (u.name, u.first_seq, u.last_seq)).collect();
    let facts = (&history.configs, &history.sessions, &history.copies, &history.maps);
    let points = (&history.checkpoints, &history.level, &history.gaps, &history.damage);
    let numbers = (history.epoch, history.head, history.watermark, history.seen_seq);
    let ends = (history.closed, history.torn, history.cut_at, history.last_checkpoint_id);
    let more = (&history.confirmed, &history.has_data, history.edge, &history.epochs);
    let all = entries(history);
    format!("{rows:?}\n{facts:?}\n{points:?}\n{numbers:?}\n{ends:?}\n{more:?}\n{all:?}")
}

fn assert_same(dir: &Path) {
    let with = History::load(dir).unwrap();
    let without = History::rebuild(&storage(), dir).unwrap();
    assert_eq!(said(&with), said(&without));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn a_journal_says_the_same_with_and_without_its_catalogue(
        ops in prop::collection::vec(prop_oneof![3 => op(), 1 => Just(Op::Bulk)], 1..60),
    ) {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("j");
        let mut run = Run::new(&dir);
        for op in &ops {
            run.step(op);
        }
        run.check();
        run.journal = None;
        assert_same(&dir);
        save(&dir);
        assert_same(&dir);

        // Kept up unit by unit it is the one that all units make.
        let identity = layout::read_identity(&dir).unwrap();
        let mut kept = Catalogue::default();
        for found in Places::of(&storage(), &dir).unwrap().units().unwrap() {
            match kept.extend(&*storage(), &identity, &found).unwrap() {
                Extended::Added => {}
                Extended::NotYet(_) => break,
            }
        }
        let made = Catalogue::rebuild(&storage(), &dir).unwrap();
        prop_assert_eq!(
            serde_json::to_string(&kept).unwrap(),
            serde_json::to_string(&made).unwrap()
        );
    }
}

/// A closed journal of several sealed units: its numbered writes, all to one block.
fn several_units(dir: &Path) -> Vec<Seq> {
    let journal = new_journal(dir, quiet());
    journal.append_meta(&session(1, SessionEvent::Open)).unwrap();
    let writes = (0..60).map(|i| write(&journal, 0, &bytes_of(i, 65536))).collect();
    journal.close().unwrap();
    Journal::open(dir, quiet()).unwrap().0.close().unwrap();
    writes
}

fn block(history: &History, seq: Seq) -> afterimage_journal::Result<Vec<u8>> {
    let mut found = vec![0; 65536];
    View::at(history, 1, seq)?.read(0, &mut found)?;
    Ok(found)
}

#[test]
fn opening_with_a_catalogue_reads_no_index_of_a_unit_that_it_covers() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("j");
    several_units(&dir);
    save(&dir);
    let catalogue = Catalogue::open(&storage(), &dir).unwrap();
    assert!(catalogue.units().len() > 3, "{}", catalogue.units().len());
    let before = said(&History::load(&dir).unwrap());
    // What lies behind each header is gone: who reads it notices.
    for unit in catalogue.units() {
        let bytes = std::fs::read(dir.join(unit.name.to_string())).unwrap();
        std::fs::write(dir.join(unit.name.to_string()), &bytes[..4096]).unwrap();
    }
    let history = History::load(&dir).unwrap();
    assert!(history.damage.is_empty() && !history.level.is_empty(), "{:?}", history.damage);
    assert!(before.contains(&format!("{:?}", history.level)));
    let error = block(&history, history.head).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotRestorable, "{error}");
    assert!(error.to_string().contains("unit-"), "{error}");
}

#[test]
fn a_catalogue_that_is_rotten_or_of_another_journal_is_as_good_as_none() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("j");
    several_units(&dir);
    save(&dir);
    let (path, without) = (dir.join(NAME), said(&History::rebuild(&storage(), &dir).unwrap()));
    let good = std::fs::read(&path).unwrap();
    let step = good.len() / 97 + 1;
    for at in (0..64).chain((64..good.len()).step_by(step)) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        std::fs::write(&path, &bad).unwrap();
        assert_eq!(said(&History::load(&dir).unwrap()), without, "byte {at}");
    }
    for len in [0, 63, 64, good.len() - 1] {
        std::fs::write(&path, &good[..len]).unwrap();
        assert_eq!(said(&History::load(&dir).unwrap()), without, "{len} bytes");
    }
    let other = tmp.path().join("k");
    several_units(&other);
    save(&other);
    std::fs::copy(other.join(NAME), &path).unwrap();
    assert_eq!(said(&History::load(&dir).unwrap()), without);
}

#[test]
fn another_unit_under_the_name_of_one_in_the_catalogue_is_damage_and_named() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("j");
    let writes = several_units(&dir);
    save(&dir);
    let middle = History::load(&dir).unwrap().entry(writes[30]).unwrap().unwrap();
    let unit = layout::unit_path(&dir, u64::from(middle.unit) + 1);
    // A unit of the same number and group with other contents, as from an old copy of the journal.
    let bytes = std::fs::read(&unit).unwrap();
    let mut old = bytes.clone();
    let header = afterimage_journal::format::unit_header::UnitHeader::decode(&old).unwrap();
    let salted = afterimage_journal::format::unit_header::UnitHeader { salt: [7; 16], ..header };
    old[..4096].copy_from_slice(&salted.encode());
    std::fs::write(&unit, &old).unwrap();
    let history = History::load(&dir).unwrap();
    for (i, seq) in writes.iter().enumerate() {
        match block(&history, *seq) {
            Ok(found) => assert!(found == bytes_of(i as u64, 65536), "wrong data at {seq}"),
            Err(e) => assert!(e.to_string().contains(unit.to_str().unwrap()), "{e}"),
        }
    }
    assert!(block(&history, writes[30]).is_err());
    std::fs::write(&unit, &bytes).unwrap();
    assert!(block(&History::load(&dir).unwrap(), writes[30]).is_ok());
}

#[test]
fn a_unit_that_is_gone_though_the_catalogue_has_it_is_looked_for_and_then_missed() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("j");
    let writes = several_units(&dir);
    save(&dir);
    let reader = History::load(&dir).unwrap();
    assert!(reader.units.iter().all(|u| u.end == ScanEnd::Sealed));
    let unit = layout::unit_path(&dir, 2);
    let held = dir.join("held");
    std::fs::create_dir(&held).unwrap();
    let name = unit.file_name().unwrap();
    std::fs::rename(&unit, held.join(name)).unwrap();
    // Released while somebody read: found where it is held, by that reader and by a later one.
    assert!(block(&reader, writes[20]).is_ok());
    let later = History::load(&dir).unwrap();
    assert!(later.damage.is_empty() && block(&later, writes[20]).is_ok());
    std::fs::remove_file(held.join(name)).unwrap();
    let history = History::load(&dir).unwrap();
    assert!(history.damage.iter().any(|d| d.what.contains("units 2 to 2 are missing")));
}
