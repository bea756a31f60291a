//! Units that are lost for good: nothing wrong is shown as right, the window goes on, capture goes on.

use crate::fixture::{VOLUME_BYTES, draft, new_journal, options, quiet, session, write};
use crate::forks::{replica, ship};
use crate::mortal::Mortal;
use crate::rounds::{Bench, ROUND, copy_files, edge_of, finish, names};
use afterimage_journal::format::record::FLAG_COPIED;
use afterimage_journal::keeper::{Keeper, rebuild};
use afterimage_journal::log::Draft;
use afterimage_journal::meta::{Copy, CopyCause, CopyEvent, Meta, SessionEvent};
use afterimage_journal::pool::{FileName, STRAY_DIR};
use afterimage_journal::storage::RealStorage;
use afterimage_journal::{History, Journal, Seq, View, layout};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn rot(path: &Path) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&[0xa5; 64], 40).unwrap();
}

fn copy_event(journal: &Journal, id: u32, event: CopyEvent, whole: bool) -> Seq {
    let (volume, cause, upto) = (1, CopyCause::Compare, VOLUME_BYTES);
    journal.append_meta(&Meta::Copy(Copy { id, volume, event, cause, upto, whole })).unwrap()
}

#[test]
fn a_compare_owes_what_the_journal_had_then() {
    for whole in [false, true] {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("j");
        let journal = new_journal(&dir, options());
        write(&journal, 0, &[7; 4096]);
        // The next units.
        for _ in 0..40 {
            write(&journal, 8192, &[1; 65536]);
        }
        copy_event(&journal, 1, CopyEvent::Start, whole);
        if whole {
            for (addr, byte) in [(0, 7u8), (8192, 1)] {
                let len = if addr == 0 { 4096 } else { 65536 };
                let copied = Draft { flags: FLAG_COPIED, scope: 1, ..draft(1, addr, len) };
                journal.append(&copied, &vec![byte; len]).unwrap();
            }
        }
        copy_event(&journal, 1, CopyEvent::End, whole);
        let seq = journal.append_meta(&session(1, SessionEvent::Open)).unwrap();
        journal.close().unwrap();
        assert!(History::load(&dir).unwrap().is_restorable(seq));
        rot(&layout::unit_path(&dir, 1));
        let history = History::load(&dir).unwrap();
        assert_eq!(history.is_restorable(seq), whole, "{:?}", history.damage);
        if whole {
            let mut read = vec![0; 4096];
            View::at(&history, 1, seq).unwrap().read(0, &mut read).unwrap();
            assert!(read == [7; 4096]);
        }
    }
}

#[test]
fn a_session_whose_end_was_lost_ends_with_what_is_lost() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("j");
    let journal = new_journal(&dir, quiet());
    journal.append_meta(&session(1, SessionEvent::Open)).unwrap();
    let fill = |byte| (0..24).map(|_| write(&journal, 0, &vec![byte; 65536])).max();
    fill(1);
    let number = journal.open_from();
    journal.append_meta(&session(1, SessionEvent::Close)).unwrap();
    fill(2);
    fill(3);
    copy_event(&journal, 1, CopyEvent::Start, true);
    copy_event(&journal, 1, CopyEvent::End, true);
    let again = journal.append_meta(&session(2, SessionEvent::Open)).unwrap();
    journal.append_meta(&session(2, SessionEvent::Close)).unwrap();
    let missed = write(&journal, 0, &[4; 512]);
    journal.sync().unwrap();
    drop(journal);
    rot(&layout::unit_path(&dir, number));
    let history = History::load(&dir).unwrap();
    assert!(history.is_restorable(again), "{:?}", history.damage);
    assert!(!history.is_restorable(missed), "nobody watched the guest then");
}

/// A journal in rounds, of which units get lost.
struct Lossy {
    bench: Bench,
    /// Points that nothing may be shown of as right but what they were; all that is not listed is as good.
    lost_at: Option<Seq>,
    /// Where a whole copy made all good.
    whole_from: Seq,
    last_lost: Seq,
}

impl Lossy {
    fn new(seed: u64) -> Self {
        let bench = Bench::over(seed, [1, 3, 2][seed as usize % 3]);
        Self { bench, lost_at: None, whole_from: 0, last_lost: 0 }
    }

    fn chance(&mut self, of: u64) -> u64 {
        self.bench.rng.next() % of
    }

    /// The files of units, without the newest.
    fn victims(&self) -> Vec<(FileName, PathBuf)> {
        let mut all = Vec::new();
        for dir in self.bench.dirs() {
            for name in names(&dir, "") {
                all.extend(FileName::parse(&name).map(|parsed| (parsed, dir.join(&name))));
            }
        }
        all.sort_by_key(|(name, _)| name.numbers().1);
        let upto = all.len().saturating_sub(4);
        all.truncate(upto);
        all
    }

    /// Loses some of it: a header rots, a file is gone, a member is dead.
    fn lose(&mut self) {
        let head = History::load(&self.bench.dir).unwrap().head;
        let victims = self.victims();
        if victims.is_empty() {
            return;
        }
        let (_, path) = &victims[self.chance(victims.len() as u64) as usize];
        let home = self.bench.dir.clone();
        match self.chance(3) {
            0 => rot(path),
            1 => fs::remove_file(path).unwrap(),
            _ => match path.parent().filter(|dir| **dir != home).and_then(Path::parent) {
                Some(member) => {
                    let member = member.to_owned();
                    self.bench.members.as_mut().unwrap().lose(&member);
                }
                None => fs::remove_file(path).unwrap(),
            },
        }
        let history = History::rebuild(&RealStorage::shared(), &self.bench.dir).unwrap();
        if let Some(from) = history.damage.iter().filter(|d| d.to.is_none()).map(|d| d.from).min() {
            self.lost_at = Some(self.lost_at.map_or(from, |at| at.min(from)));
            self.last_lost = head;
        }
    }

    /// Every block is copied, and the guest is level again.
    fn whole_copy(&mut self) {
        let (journal, _) = Journal::open(&self.bench.dir, self.bench.options()).unwrap();
        let opened = self.bench.copy_whole(&journal);
        let id = self.bench.copies + 500_000;
        journal.append_meta(&session(id, SessionEvent::Close)).unwrap();
        self.whole_from = opened;
        self.lost_at = None;
        journal.close().unwrap();
    }

    /// Whatever is listed is right, and what nothing took away is listed; with the catalogue and without.
    fn check(&self, what: &str) -> usize {
        let edge = edge_of(&self.bench.dir);
        let mut listed = 0;
        for rebuilt in [false, true] {
            let history = match rebuilt {
                true => History::rebuild(&RealStorage::shared(), &self.bench.dir),
                false => History::load(&self.bench.dir),
            };
            let history = history.unwrap();
            for (seq, disk) in &self.bench.points {
                if !history.is_restorable(*seq) {
                    let is_lost = |at: Seq| *seq >= at;
                    let excused = *seq < edge
                        || self.lost_at.is_some_and(is_lost)
                        || (*seq < self.whole_from && self.last_lost > 0);
                    assert!(
                        excused,
                        "{what}: {seq} is not listed (rebuilt: {rebuilt}), {:?}",
                        history.damage
                    );
                    continue;
                }
                listed += 1;
                let mut read = vec![0xee; disk.len()];
                match View::at(&history, 1, *seq).and_then(|view| view.read(0, &mut read)) {
                    Ok(()) => {}
                    // The catalogue has what rotted since: it is refused by name when it is read.
                    Err(e) if self.last_lost > 0 && !e.is_host() && !rebuilt => continue,
                    Err(e) => panic!("{what}: {seq}: {e}"),
                }
                let differs = read.iter().zip(disk).position(|(a, b)| a != b);
                assert_eq!(
                    differs, None,
                    "{what}: point {seq}, edge {edge}, rebuilt {rebuilt}, {:?}",
                    history.damage
                );
            }
        }
        listed
    }
}

fn run(seed: u64) {
    let mut all = Lossy::new(seed);
    for round in 0..7 {
        let units = 1 + all.chance(3);
        all.bench.round(units);
        let window = all.chance(5) * ROUND;
        all.bench.keep(window);
        all.check(&format!("seed {seed} round {round}"));
        if all.chance(3) == 0 {
            all.lose();
            all.check(&format!("seed {seed} round {round} lost"));
        }
        if all.lost_at.is_some() && all.chance(3) == 0 {
            all.whole_copy();
            let listed = all.check(&format!("seed {seed} round {round} whole"));
            assert!(listed > 0, "seed {seed} round {round}: nothing is listed behind a whole copy");
        }
    }
    // It goes on, and what is lost leaves the window.
    all.whole_copy();
    for _ in 0..5 {
        all.bench.round(3);
        all.bench.keep(2 * ROUND);
        all.bench.points.drain(..all.bench.points.len().saturating_sub(30));
    }
    let keeper = all.bench.keep(ROUND);
    assert_eq!(keeper.occupancy().merging_waits, None, "seed {seed}");
    drop(keeper);
    assert!(all.check(&format!("seed {seed} end")) > 0);
    assert!(edge_of(&all.bench.dir) >= all.whole_from, "seed {seed}: the window stands still");
    let bytes = all.bench.bytes();
    assert!(bytes < 24 << 20, "seed {seed}: {bytes} bytes");
    let history = History::load(&all.bench.dir).unwrap();
    assert!(history.damage.is_empty(), "seed {seed}: {:?}", history.damage);
}

#[test]
fn the_window_moves_past_lost_units_and_shows_nothing_wrong() {
    (0..3).for_each(run);
}

#[test]
#[ignore = "long: 200 seeds"]
fn the_window_moves_past_lost_units_over_two_hundred_seeds() {
    (3..203).for_each(run);
}

/// One unit's header rots, and many are written behind it.
fn with_a_hole() -> (Bench, FileName, Seq) {
    let mut bench = Bench::new(77);
    bench.round(2);
    bench.round(2);
    let name = FileName::parse(&names(&bench.dir, "unit-")[4]).unwrap();
    rot(&bench.dir.join(name.to_string()));
    let from = History::load(&bench.dir).unwrap().damage[0].from;
    bench.round(12);
    (bench, name, from)
}

#[test]
fn killed_while_it_gives_up_a_lost_unit_the_keeper_does_it_again() {
    let (bench, name, from) = with_a_hole();
    let before = tempfile::tempdir().unwrap();
    copy_files(&bench.dir, before.path());
    for calls in 0.. {
        fs::remove_dir_all(&bench.dir).unwrap();
        copy_files(before.path(), &bench.dir);
        let mortal = Arc::new(Mortal::new(calls));
        let killed =
            Keeper::open(bench.setup_on(mortal.clone(), 100 * ROUND)).and_then(|mut keeper| {
                while keeper.step()? || keeper.step()? {}
                Ok(())
            });
        assert_eq!(killed.is_err(), mortal.is_dead(), "{killed:?}");
        finish(&mut Keeper::open(bench.setup(100 * ROUND)).unwrap());
        let merged = format!("merged-{0:010}-{0:010}", name.numbers().0);
        assert_eq!(names(&bench.dir, "merged-"), [merged], "behind {calls} calls");
        let history = History::load(&bench.dir).unwrap();
        assert!(
            history.damage.iter().any(|d| d.is_given_up && d.from == from),
            "{:?}",
            history.damage
        );
        let before = bench.points.iter().filter(|(seq, _)| *seq < from);
        assert!(
            before.clone().count() > 0
                && before.clone().all(|(seq, _)| history.is_restorable(*seq))
        );
        assert!(bench.points.iter().all(|(seq, _)| *seq < from || !history.is_restorable(*seq)));
        if !mortal.is_dead() {
            assert!(!names(&bench.dir.join(STRAY_DIR), "unit-").is_empty(), "it is set aside");
            break;
        }
    }
    // Made anew from the units alone, it is the same.
    rebuild(bench.setup(100 * ROUND)).unwrap();
    let history = History::load(&bench.dir).unwrap();
    assert!(history.damage.iter().any(|d| d.is_given_up && d.from == from), "{:?}", history.damage);
}

#[test]
fn openings_behind_a_lost_unit_leave_out_no_epochs() {
    let (bench, ..) = with_a_hole();
    let epoch = || {
        let (journal, _) = Journal::open(&bench.dir, bench.options()).unwrap();
        write(&journal, 0, &[1; 512]);
        let epoch = journal.epoch();
        journal.close().unwrap();
        epoch
    };
    let first = epoch();
    assert_eq!([epoch(), epoch(), epoch()], [first + 1, first + 2, first + 3]);
}

#[test]
fn a_limit_makes_room_behind_a_lost_unit() {
    let (mut bench, ..) = with_a_hole();
    let limit = 20 << 20;
    for _ in 0..6 {
        bench.round(4);
        let mut setup = bench.setup(1000 * ROUND);
        setup.limits.limit_bytes = Some(limit);
        let mut keeper = Keeper::open(setup).unwrap();
        finish(&mut keeper);
        assert!(keeper.occupancy().has_room, "{:?}", keeper.occupancy());
    }
    assert!(bench.bytes() < limit, "{}", bench.bytes());
}

#[test]
fn what_its_source_lost_stays_at_a_site() {
    for mirror in [false, true] {
        let mut bench = Bench::new(91);
        let at = tempfile::tempdir().unwrap();
        let site = at.path().join("g");
        let send = |bench: &Bench| {
            let (journal, _) = Journal::open(&bench.dir, bench.options()).unwrap();
            journal.sync().unwrap();
            ship(&journal, &mut replica(bench, &site, mirror)).unwrap();
            journal.close().unwrap();
        };
        let check = |points: &[(Seq, Vec<u8>)], what: &str| {
            let history = History::load(&site).unwrap();
            assert!(history.damage.is_empty(), "{what}, mirror {mirror}: {:?}", history.damage);
            for (seq, disk) in points {
                assert!(history.is_restorable(*seq), "{what}, mirror {mirror}: {seq}");
                let mut read = vec![0xee; disk.len()];
                View::at(&history, 1, *seq).unwrap().read(0, &mut read).unwrap();
                assert!(read == *disk, "{what}, mirror {mirror}: point {seq}");
            }
        };
        bench.round(2);
        bench.round(2);
        send(&bench);
        let sent = bench.points.clone();
        rot(&bench.dir.join(&names(&bench.dir, "unit-")[2]));
        bench.round(12);
        let (journal, _) = Journal::open(&bench.dir, bench.options()).unwrap();
        bench.copy_whole(&journal);
        journal.close().unwrap();
        finish(&mut Keeper::open(bench.setup(100 * ROUND)).unwrap());
        assert_eq!(names(&bench.dir, "merged-").len(), 1, "it was given up");
        send(&bench);
        check(&sent, "given up");
        check(&bench.points, "all");
        if !mirror {
            for _ in 0..3 {
                bench.round(3);
                bench.keep(ROUND);
            }
            send(&bench);
            check(&sent, "merged");
        }
    }
}
