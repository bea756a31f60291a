//! Journals that somebody made to do harm, or that something broke: sizes that are claimed, and files that
//! are none.

use crate::cheap::largest_allocation_of;
use crate::fixture::{draft, entries, new_journal, quiet, write};
use afterimage_journal::format::checksum::crc32c;
use afterimage_journal::format::index::{self, FOOTER_BYTES, Footer};
use afterimage_journal::format::record::{Kind, Record};
use afterimage_journal::format::unit_header::{BLOCK_BYTES, UnitHeader};
use afterimage_journal::pool::{FileName, Found};
use afterimage_journal::storage::RealStorage;
use afterimage_journal::unit::{ScanEnd, read_unit};
use afterimage_journal::{History, Journal, layout};
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::channel;
use std::time::Duration;

/// Not a time to be measured, but when a test has hung.
const HANG: Duration = Duration::from_secs(60);

/// A closed journal with two sealed units, without a catalogue.
fn closed(dir: &Path) {
    let journal = new_journal(dir, quiet());
    let payload = [5; 60_000];
    for i in 0..25 {
        journal.append(&draft(1, 4096 * i, payload.len()), &payload).unwrap();
    }
    journal.close().unwrap();
    assert!(layout::units(dir).unwrap().len() >= 2);
}

fn header_of(file: &File) -> UnitHeader {
    let mut block = vec![0; BLOCK_BYTES as usize];
    file.read_exact_at(&mut block, 0).unwrap();
    UnitHeader::decode(&block).unwrap()
}

/// Makes a unit sparse and this large, with a footer that claims so many records.
fn claim(dir: &Path, unit_bytes: u64, count: u64) {
    let file = File::options().read(true).write(true).open(layout::unit_path(dir, 1)).unwrap();
    let header = UnitHeader { unit_bytes, ..header_of(&file) };
    file.set_len(unit_bytes).unwrap();
    file.write_all_at(&header.encode(), 0).unwrap();
    let index_at = unit_bytes - FOOTER_BYTES - count * 48;
    let footer = Footer { count, first_seq: 1, last_seq: count, index_at, index_crc: 7 };
    file.write_all_at(&footer.encode(&header.salt), unit_bytes - FOOTER_BYTES).unwrap();
}

#[test]
fn a_claimed_index_is_not_allocated_before_it_is_read() {
    // One that could be, and one that can't: each record takes a header, too.
    for count in [2 << 20, 3 << 20] {
        let dir = tempfile::tempdir().unwrap();
        closed(dir.path());
        let group = layout::read_identity(dir.path()).unwrap().group.into_bytes();
        claim(dir.path(), 256 << 20, count);
        let found = Found { name: FileName::Unit(1), path: layout::unit_path(dir.path(), 1) };
        let (largest, unit) =
            largest_allocation_of(|| read_unit(&RealStorage, &found, group, None).unwrap());
        assert!(matches!(unit.end, ScanEnd::Damaged { .. }), "an index of zeroes is none");
        assert!(unit.records.len() > 10, "its records are found by their own headers");
        assert!(largest < 16 << 20, "{largest} bytes were allocated for {count} records");
    }
}

#[test]
fn a_claimed_payload_is_refused_with_its_entry() {
    let record = Record {
        kind: Kind::Write,
        flags: 0,
        volume: 1,
        addr: 0,
        len: 1 << 30,
        scope: 0,
        mono_ms: 0,
        wall_ns: 1,
        payload_crc: 1,
        payload_bytes: 1 << 30,
        compression: 0,
        encrypted: false,
        seq: 1,
    };
    let entry = index::encode(&[(BLOCK_BYTES, record)]);
    assert!(index::decode(&entry, 4 << 30).is_none());
    let small = Record { len: 4 << 20, payload_bytes: 4 << 20, ..record };
    assert!(index::decode(&index::encode(&[(BLOCK_BYTES, small)]), 4 << 30).is_some());
}

#[test]
fn a_sparse_catalogue_costs_what_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    closed(dir.path());
    let storage = RealStorage::shared();
    let identity = layout::read_identity(dir.path()).unwrap();
    let mut catalogue =
        afterimage_journal::catalogue::Catalogue::open(&storage, dir.path()).unwrap();
    let path = dir.path().join(afterimage_journal::catalogue::NAME);
    afterimage_journal::catalogue::save(&*storage, dir.path(), &identity, &mut catalogue).unwrap();
    let mut head = fs::read(&path).unwrap();
    head.truncate(64);
    // Its size, and the header's checksum over that.
    head[16..24].copy_from_slice(&(1_u64 << 29).to_le_bytes());
    head[40..44].fill(0);
    let crc = crc32c(&head);
    head[40..44].copy_from_slice(&crc.to_le_bytes());
    fs::write(&path, &head).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(64 + (1 << 29)).unwrap();
    let (largest, history) = largest_allocation_of(|| History::load(dir.path()).unwrap());
    assert!(history.damage.is_empty(), "{:?}", history.damage);
    assert!(largest < 64 << 20, "{largest} bytes were allocated");
}

/// Does something that must not wait for anybody.
fn at_once<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (told, done) = channel();
    std::thread::spawn(move || told.send(work()));
    done.recv_timeout(HANG).unwrap_or_else(|_| panic!("{what}: it hangs"))
}

/// Puts something that is no regular file in a file's place.
fn replace(path: &Path, kind: &str) {
    let _ = fs::remove_file(path);
    match kind {
        "fifo" => assert!(Command::new("mkfifo").arg(path).status().unwrap().success()),
        "directory" => fs::create_dir(path).unwrap(),
        "device" => symlink("/dev/zero", path).unwrap(),
        _ => symlink(path.with_extension("elsewhere"), path).unwrap(),
    }
}

#[test]
fn what_is_no_regular_file_is_named_and_hangs_nobody() {
    for kind in ["fifo", "directory", "device", "link"] {
        for name in ["unit-0000000001", "catalogue", "pin", "ring", "distrust", "journal.json"] {
            let home = tempfile::tempdir().unwrap();
            let dir = home.path().join("j");
            closed(&dir);
            replace(&dir.join(name), kind);
            let what = format!("{name} is a {kind}");
            let of = dir.clone();
            let loaded = at_once(&what, move || {
                History::load(&of).map(|h| (h.head, h.damage)).map_err(|e| e.to_string())
            });
            match (name, loaded) {
                ("unit-0000000001", Ok((_, damage))) => {
                    assert!(
                        damage.iter().any(|d| d.what.contains(name) && !d.unread),
                        "{damage:?}"
                    );
                }
                ("distrust" | "journal.json", Err(told)) => assert!(told.contains(name), "{told}"),
                ("catalogue" | "pin" | "ring", Ok((_, damage))) => {
                    assert!(damage.is_empty(), "{what}: {damage:?}");
                }
                (_, loaded) => panic!("{what}: {loaded:?}"),
            }
            assert!(!dir.join(name).with_extension("elsewhere").exists(), "{what}: made elsewhere");
            let of = dir.clone();
            let written = at_once(&what, move || {
                afterimage_journal::Journal::open(&of, quiet()).map(|(journal, _)| {
                    write(&journal, 0, &[1; 512]);
                })
            });
            drop(written);
            assert!(!dir.join(name).with_extension("elsewhere").exists(), "{what}: made elsewhere");
        }
    }
}

#[test]
fn data_that_looks_like_a_journal_is_never_taken_for_one() {
    const THEIRS: u64 = 7 << 30;
    let home = tempfile::tempdir().unwrap();
    // A guest that has read a unit of some journal writes it to its disk: records, an epoch, all sound.
    let forged = new_journal(&home.path().join("forged"), quiet());
    for i in 0..30 {
        write(&forged, THEIRS + 4096 * i, &[0xaa; 512]);
    }
    forged.sync().unwrap();
    let unit = fs::read(layout::unit_path(forged.dir(), 1)).unwrap();
    let journal = new_journal(&home.path().join("j"), quiet());
    let before = write(&journal, 0, &[1; 512]);
    let bearer = write(&journal, 4096, &unit[..60 << 10]);
    write(&journal, 0, &[2; 512]);
    journal.sync().unwrap();
    // Its bearer rots, and whoever reads on looks for the next record behind it.
    let copy = home.path().join("copy");
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(journal.dir()).unwrap().map(|e| e.unwrap().path()) {
        match fs::copy(&entry, copy.join(entry.file_name().unwrap())) {
            // A draft of a small file, which has its name by now.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            copied => drop(copied.unwrap()),
        }
    }
    let history = History::load(&copy).unwrap();
    let at = entries(&history).iter().find(|e| e.record.seq == bearer).unwrap().at;
    drop(history);
    let file = File::options().read(true).write(true).open(layout::unit_path(&copy, 1)).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at + 9).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at + 9).unwrap();
    for _ in 0..2 {
        let history = History::load(&copy).unwrap();
        let all = entries(&history);
        assert!(all.iter().any(|e| e.record.seq == before));
        assert!(all.iter().all(|e| e.record.addr < THEIRS), "records of the guest's are believed");
        drop(history);
        // Nor does a writer that goes on behind it.
        let (again, _) = Journal::open(&copy, quiet()).unwrap();
        write(&again, 0, &[3; 512]);
        again.close().unwrap();
    }
}
