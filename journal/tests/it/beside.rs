//! The keeper's thread beside a writer that goes on all the time, and readers that come and go.

use crate::fixture::{Rng, VOLUME_BYTES, bytes_of, new_journal, options, session, write};
use afterimage_journal::keeper::{Home, KeeperThread, Setup};
use afterimage_journal::merge::Unpaced;
use afterimage_journal::meta::SessionEvent;
use afterimage_journal::window::Limits;
use afterimage_journal::{History, Journal, Seq, View};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

const ROUNDS: u64 = 60;

fn keep(dir: &Path, journal: &Journal) -> KeeperThread {
    let options = options();
    let keeper = KeeperThread::start(Setup {
        storage: Arc::clone(&options.storage),
        dir: dir.to_owned(),
        clock: Arc::clone(&options.clock),
        ground: Arc::new(Home { storage: options.storage }),
        pace: Arc::new(Unpaced),
        key: None,
        limits: Limits { guaranteed_ns: 0, ..Limits::new(100_000_000, None) },
    })
    .unwrap();
    let shared = keeper.shared();
    journal.on_sealed(move |number| shared.sealed(number));
    keeper
}

fn assert_point(history: &History, seq: Seq, disk: &[u8]) {
    let mut read = vec![0xee; disk.len()];
    View::at(history, 1, seq).unwrap().read(0, &mut read).unwrap();
    assert!(read == disk, "point {seq}");
}

#[test]
fn readers_beside_writer_and_keeper_see_every_listed_point_as_it_was() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("g");
    let journal = new_journal(&dir, options());
    journal.append_meta(&session(1, SessionEvent::Open)).unwrap();
    let keeper = keep(&dir, &journal);
    let (mut rng, mut disk) = (Rng(77), vec![0; VOLUME_BYTES as usize]);
    let mut points: Vec<(Seq, Vec<u8>)> = Vec::new();
    let mut checked = 0;
    for round in 0..ROUNDS {
        let mut written = 0;
        while written < 1 << 20 {
            let len = 512 * (1 + rng.next() % 64);
            let at = 512 * (rng.next() % ((VOLUME_BYTES - len) / 512));
            let bytes = bytes_of(rng.next(), len as usize);
            let seq = write(&journal, at, &bytes);
            disk[at as usize..(at + len) as usize].copy_from_slice(&bytes);
            written += len;
            if rng.next().is_multiple_of(60) {
                points.push((seq, disk.clone()));
            }
        }
        if round % 10 == 9 {
            let history = History::load(&dir).unwrap();
            assert!(history.damage.is_empty(), "{:?}", history.damage);
            for (seq, disk) in points.iter().filter(|(seq, _)| history.is_restorable(*seq)) {
                assert_point(&history, *seq, disk);
                checked += 1;
            }
        }
    }
    points.push((journal.head(), disk));
    // Merging catches up some time.
    let limit = Instant::now() + Duration::from_secs(60);
    while keeper.shared().occupancy().merged_bytes == 0 {
        assert!(Instant::now() < limit, "{:?}", keeper.shared().occupancy());
        std::thread::sleep(Duration::from_millis(20));
    }
    let occupancy = keeper.shared().occupancy();
    assert!(occupancy.error.is_none() && occupancy.edge > 0, "{occupancy:?}");
    drop(keeper);
    journal.close().unwrap();
    let (journal, history) = Journal::open(&dir, options()).unwrap();
    drop(journal);
    assert!(history.damage.is_empty(), "{:?}", history.damage);
    let (seq, disk) = points.last().unwrap();
    assert_point(&history, *seq, disk);
    assert!(checked > 0);
}

#[test]
fn a_keeper_stops_at_once_though_its_pace_is_slow() {
    use afterimage_journal::merge::{Pace, Throttle};
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let throttle = Throttle::new(1, Arc::clone(&stop));
    let waiting = std::thread::spawn(move || throttle.spend(1 << 30));
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(!waiting.join().unwrap());
}
