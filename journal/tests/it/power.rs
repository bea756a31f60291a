//! Power loss: what the last sync covered is there, of the rest any 512-byte sectors.

use crate::fixture::{Rng, assert_whole, bytes_of, draft, entries, new_journal, with_boot};
use afterimage_journal::format::record::Kind;
use afterimage_journal::unit::ScanEnd;
use afterimage_journal::{History, Journal, Seq};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;

type Files = BTreeMap<String, Vec<u8>>;

const SECTOR: usize = 512;
const FOOTER: usize = 64;

fn files(dir: &Path) -> Files {
    let mut all = Files::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        // A draft comes and goes; it never counts. Shared memory ends with the power.
        if !name.ends_with(".tmp")
            && name != afterimage_journal::ring::NAME
            && let Ok(bytes) = std::fs::read(dir.join(&name))
        {
            all.insert(name, bytes);
        }
    }
    all
}

/// A unit after the cut. A new unit's header and space are durable with its name. Sealing syncs the
/// data, then the index, then the footer: a later one is never there without the earlier.
fn cut_unit(sure: Option<&Vec<u8>>, live: &[u8], rng: &mut Rng, keep_percent: u64) -> Vec<u8> {
    let mut disk = sure.cloned().unwrap_or_else(|| {
        let mut fresh = vec![0; live.len()];
        fresh[..4096].copy_from_slice(&live[..4096]);
        fresh
    });
    let sealed = live[live.len() - FOOTER..].iter().any(|b| *b != 0);
    let index_at = sealed.then(|| {
        let at = live.len() - FOOTER + 32;
        u64::from_le_bytes(live[at..at + 8].try_into().unwrap()) as usize
    });
    let stage = if sealed { rng.next() % 3 } else { 0 };
    for start in (0..live.len()).step_by(SECTOR) {
        let range = start..start + SECTOR;
        let in_index = index_at.is_some_and(|at| start + SECTOR > at);
        let wanted = rng.next() % 100 < keep_percent;
        let take = match (stage, in_index) {
            (0, false) | (1, true) => wanted,
            (0, true) => false,
            _ => true,
        };
        if take {
            disk[range.clone()].copy_from_slice(&live[range]);
        }
    }
    if sealed && stage < 2 {
        let footer_at = disk.len() - FOOTER;
        disk[footer_at..].fill(0);
    }
    disk
}

fn cut(sure: &Files, live: &Files, seed: u64, keep_percent: u64, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    let mut rng = Rng(seed | 1);
    for (name, bytes) in live {
        let disk = match name.starts_with("unit-") {
            true => cut_unit(sure.get(name), bytes, &mut rng, keep_percent),
            false => bytes.clone(),
        };
        std::fs::write(to.join(name), disk).unwrap();
    }
}

fn check(dir: &Path, durable: Seq, written: &BTreeMap<Seq, Vec<u8>>) -> Seq {
    let history = History::load(dir).unwrap();
    assert_whole(&history);
    assert!(history.head >= durable, "head {} durable {durable}", history.head);
    let mut payload = Vec::new();
    let mut found = 0;
    for entry in entries(&history).iter().filter(|e| e.record.kind == Kind::Write) {
        history.read_payload(entry, &mut payload).unwrap();
        assert_eq!(Some(&payload), written.get(&entry.record.seq));
        found += 1;
    }
    assert_eq!(found, written.range(..=history.head).count(), "a prefix without a hole");
    history.head
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn power_loss_leaves_exactly_a_prefix_at_or_past_the_watermark(
        sizes in prop::collection::vec(0usize..60_000, 1..60),
        sync_every in 1usize..40,
        late in 0usize..60,
        seed in any::<u64>(),
        keep_percent in prop::sample::select(vec![0u64, 10, 50, 90, 99, 100]),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let live_dir = dir.path().join("live");
        let journal = new_journal(&live_dir, with_boot(1));
        let mut written = BTreeMap::new();
        let mut durable = journal.sync().unwrap();
        let mut sure = files(&live_dir);
        let mut slow = None;
        for (i, size) in sizes.iter().enumerate() {
            let payload = bytes_of(seed ^ i as u64, *size);
            if i == late {
                // Reserved now, committed behind the others.
                slow = Some((journal.reserve(*size as u32).unwrap(), payload));
                continue;
            }
            let seq = journal.append(&draft(1, 0, *size), &payload).unwrap();
            written.insert(seq, payload);
            if i % sync_every == sync_every - 1 {
                durable = journal.sync().unwrap();
                sure = files(&live_dir);
            }
        }
        if let Some((mut space, payload)) = slow {
            space.payload_mut().copy_from_slice(&payload);
            written.insert(space.commit(&draft(1, 0, payload.len())).unwrap(), payload);
        }
        let issued = journal.head();
        let live = files(&live_dir);
        drop(journal);
        let disk = dir.path().join("disk");
        cut(&sure, &live, seed, keep_percent, &disk);
        let head = check(&disk, durable, &written);

        let (journal, _) = Journal::open(&disk, with_boot(2)).unwrap();
        prop_assert!(journal.head() > issued, "numbers are not given out again");
        written.retain(|seq, _| *seq <= head);
        let payload = bytes_of(seed, 700);
        written.insert(journal.append(&draft(1, 0, 700), &payload).unwrap(), payload);
        let durable = journal.sync().unwrap();
        drop(journal);
        check(&disk, durable, &written);
        let history = History::load(&disk).unwrap();
        let (last, older) = history.units.split_last().unwrap();
        let torn = older.iter().find(|u| matches!(u.end, ScanEnd::Damaged { .. }));
        prop_assert!(torn.is_none(), "a torn tail isn't called damage for ever: {torn:?} {last:?}");
    }
}
