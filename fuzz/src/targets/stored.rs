//! A whole journal, units, catalogue and runs, with whatever bytes changed: it is read as a restore
//! reads it, and hands out the right data or none. And the ring's header.

use super::Target;
use crate::disk::Disk;
use crate::run::{DIR, Run};
use crate::storage::SimStorage;
use afterimage_journal::format::checksum;
use afterimage_journal::ring::{RingHeader, Slot};
use afterimage_journal::storage::{Access, Storage};
use afterimage_journal::{History, Seq, View, VolumeId};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

pub(super) fn targets() -> [Target; 2] {
    [
        Target { name: "journal", examples: edits, words: &[], run: journal },
        Target { name: "ring_header", examples: rings, words: &[b"AIMGRING"], run: ring_header },
    ]
}

/// Bytes of an input that say one change: which file, how, where (4), and with what (2).
const EDIT_BYTES: usize = 8;
/// Every so many positions are compared.
const POSITIONS_STEP: usize = 6;

struct Template {
    disk: Disk,
    files: Vec<PathBuf>,
    /// What must be read at some positions, if anything is.
    expected: Vec<(Seq, VolumeId, Vec<u8>)>,
}

fn load(storage: &SimStorage) -> Result<History, afterimage_journal::Error> {
    let storage: Arc<dyn Storage> = storage.shared();
    History::load_in(&storage, Path::new(DIR))
}

fn read(history: &History, volume: VolumeId, seq: Seq, bytes: usize) -> Option<Vec<u8>> {
    let mut found = vec![0; bytes];
    View::at(history, volume, seq).ok()?.read(0, &mut found).ok()?;
    Some(found)
}

fn template() -> &'static Template {
    static TEMPLATE: OnceLock<Template> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let mut run = Run::new(7);
        run.freeze_steps();
        let history = run.history();
        let restorable = (1..=history.head).filter(|seq| history.is_restorable(*seq));
        let expected = restorable.step_by(POSITIONS_STEP).flat_map(|seq| {
            let sizes = run.model.sizes(seq).into_keys();
            let contents = sizes.map(|volume| (seq, volume, run.model.contents(volume, seq)));
            contents.collect::<Vec<_>>()
        });
        let expected: Vec<_> = expected.collect();
        assert!(expected.len() > 6, "the template holds too little");
        drop(history);
        // Half a minute later the older part is merged.
        run.clock.pass(20_000_000_000);
        (0..4).for_each(|_| run.keep());
        let names = run.storage.list(Path::new(DIR)).unwrap_or_default();
        let mut files: Vec<PathBuf> = names.iter().map(|n| Path::new(DIR).join(n)).collect();
        files.retain(|path| !path.ends_with("lock") && !path.ends_with("pin"));
        files.sort();
        Template { disk: run.storage.disk(), files, expected }
    })
}

fn edits() -> Vec<Vec<u8>> {
    let files = template().files.len() as u8;
    let places = [0u32, 60, 4096, 4160, 5000];
    let one = |file, at: u32| [&[file, 0x10][..], &at.to_le_bytes(), &[0x20, 1]].concat();
    let all = (0..files).flat_map(|file| places.map(|at| one(file, at)));
    all.chain([Vec::new()]).collect()
}

fn change(storage: &SimStorage, path: &Path, how: u8, at: u32, with: [u8; 2]) {
    let Ok(file) = storage.open(path, Access::Write) else { return };
    let size = file.bytes().unwrap_or(0).max(1);
    // Near the start or the end, where a unit has its records and its index.
    let near = u64::from(at) % size.min(1 << 14);
    let at = if how & 0x10 == 0 { size - 1 - near } else { near };
    let mut byte = [0];
    let _ = file.read_at(&mut byte, at);
    let _ = match how % 4 {
        0 => file.write_all_at(&[byte[0] ^ with[0]], at),
        1 => file.write_all_at(&with[..1], at),
        2 => file.write_all_at(&vec![with[0]; usize::from(with[1]) + 1], at),
        _ => file.set_bytes(at),
    };
}

fn journal(input: &[u8]) {
    let template = template();
    let storage = SimStorage::over(template.disk.clone(), 0);
    for edit in input.chunks_exact(EDIT_BYTES).take(64) {
        let path = &template.files[usize::from(edit[0]) % template.files.len()];
        let at = u32::from_le_bytes([edit[2], edit[3], edit[4], edit[5]]);
        change(&storage, path, edit[1], at, [edit[6], edit[7]]);
    }
    let Ok(history) = load(&storage) else { return };
    let mut listed = 0;
    for (seq, volume, expected) in &template.expected {
        if history.is_restorable(*seq)
            && let Some(found) = read(&history, *volume, *seq, expected.len())
        {
            assert!(found == *expected, "wrong data of volume {volume} at {seq}");
            listed += 1;
        }
    }
    assert!(!input.is_empty() || listed > 0, "nothing can be read of what nobody changed");
}

fn rings() -> Vec<Vec<u8>> {
    let header = RingHeader {
        group: [1; 16],
        boot_id: [2; 16],
        mount_id: 3,
        file_id: 4,
        file_born_ns: 5,
        epoch: 5,
        ring_bytes: 1 << 20,
        opening: [6; 16],
    };
    vec![header.encode()]
}

fn ring_header(input: &[u8]) {
    let mut page = input.to_vec();
    page.resize(4096, 0);
    let Some(header) = RingHeader::decode(&page) else { return };
    let encoded = header.encode();
    assert_eq!(RingHeader::decode(&encoded), Some(header), "not what was read");
    for slot in Slot::decode_all(&header, &page) {
        assert!(slot.unflushed().start <= slot.unflushed().end, "it ends before it begins");
        let bytes = slot.encode(&header.opening);
        assert_ne!(checksum::crc32c(&bytes), 0);
    }
}
