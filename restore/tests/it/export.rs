//! Exports over real journals, read and written by this project's own NBD client, judged by what
//! the disks in memory held. The clients of others are in `tests/cli/export.rs`.

use crate::bed::{Bed, GUEST, SECTOR, flip};
use afterimage_journal::Seq;
use afterimage_journal::meta::CopyCause;
use afterimage_nbd::proto::{BASE_ALLOCATION, STATE_HOLE, STATE_ZERO};
use afterimage_nbd::{Client, ClientError, ClientOptions, Errno, ZeroFlags};
use afterimage_restore::{ExportOptions, Exporting, Kind, When, export, open};
use rustix::fs::{FlockOperation, flock};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const HOLE: u32 = STATE_HOLE | STATE_ZERO;

/// Sockets and scratch files of a test.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(TempDir::with_prefix("x-").unwrap())
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn options(&self, name: &str, writable: bool) -> ExportOptions {
        let scratch = Some(self.0.path().to_owned());
        ExportOptions { socket: self.socket(name), disks: vec![], writable, scratch }
    }

    fn serve(&self, bed: &Bed, seq: Seq, name: &str, writable: bool) -> Exporting {
        let recovery = bed.open();
        let point = recovery.resolve(&When::Seq(seq)).unwrap();
        export(recovery, point, &self.options(name, writable)).unwrap()
    }

    fn connect(&self, socket: &str, disk: &str) -> Client {
        connect(&self.socket(socket), disk)
    }
}

fn connect(socket: &Path, disk: &str) -> Client {
    let contexts = vec![BASE_ALLOCATION.to_owned()];
    let options = ClientOptions { export: disk.to_owned(), contexts, ..ClientOptions::default() };
    Client::connect(socket, &options).unwrap()
}

fn all_of(client: &mut Client) -> Vec<u8> {
    let mut bytes = vec![0xEE; client.bytes() as usize];
    client.read(0, &mut bytes).unwrap();
    bytes
}

fn errno(done: Result<(), ClientError>) -> Errno {
    match done {
        Err(ClientError::Request { errno, .. }) => errno,
        other => panic!("{other:?}"),
    }
}

/// What a client is told of a range, as one flag a byte.
fn told(client: &mut Client) -> Vec<bool> {
    let bytes = client.bytes();
    let mut holes = Vec::new();
    for (len, flags) in client.block_status(BASE_ALLOCATION, 0, bytes).unwrap() {
        assert!(flags == 0 || flags == HOLE, "{flags}");
        holes.extend(std::iter::repeat_n(flags == HOLE, len as usize));
    }
    assert_eq!(holes.len() as u64, bytes);
    holes
}

#[test]
fn every_noted_point_is_served_byte_for_byte_several_at_a_time() {
    for seed in [11, 12] {
        let mut bed = Bed::eventful(seed);
        bed.stop_agent();
        let place = Place::new();
        let mut served = Vec::new();
        for (i, (seq, disks)) in bed.known.iter().enumerate() {
            let socket = format!("s{i}");
            served.push(place.serve(&bed, *seq, &socket, false));
            for (d, disk) in disks.iter().enumerate() {
                let mut client = place.connect(&socket, &format!("d{d}"));
                assert!(client.is_read_only());
                assert!(all_of(&mut client) == *disk, "seed {seed}: d{d} at {seq}");
            }
        }
        // The first ones still are what they were, read in odd pieces and on several threads.
        std::thread::scope(|scope| {
            for (i, (seq, disks)) in bed.known.iter().enumerate() {
                let (disk, place) = (&disks[1], &place);
                scope.spawn(move || {
                    let mut client = place.connect(&format!("s{i}"), "web/d1");
                    let mut dice = crate::bed::Dice::new(seed + i as u64);
                    for _ in 0..100 {
                        let at = dice.below(disk.len() as u64) as usize;
                        let len = 1 + dice.below((disk.len() - at).min(70_000) as u64) as usize;
                        let mut part = vec![0; len];
                        client.read(at as u64, &mut part).unwrap();
                        assert!(part == disk[at..at + len], "{len} at {at} of {seq}");
                    }
                });
            }
        });
        served.into_iter().for_each(Exporting::end);
        assert!(!place.socket("s0").exists());
    }
}

#[test]
fn what_is_captured_meanwhile_does_not_show() {
    let mut bed = Bed::new(21, &[256 << 10]);
    bed.open_session();
    bed.run(50);
    let (seq, disks) = bed.known.last().unwrap().clone();
    let place = Place::new();
    let served = place.serve(&bed, seq, "s", false);
    let mut client = place.connect("s", "");
    assert!(all_of(&mut client) == disks[0]);
    // Enough for several units.
    let big = vec![0x5A; 100_000];
    for _ in 0..60 {
        bed.write_at(0, 1000, &big);
    }
    bed.run(50);
    assert!(all_of(&mut client) == disks[0]);
    assert!(all_of(&mut place.connect("s", "d0")) == disks[0]);
    served.end();
    let (seq, disks) = bed.known.last().unwrap().clone();
    let _served = place.serve(&bed, seq, "s", false);
    assert!(all_of(&mut place.connect("s", "")) == disks[0]);
}

#[test]
fn block_status_tells_data_from_what_is_zero() {
    let mut bed = Bed::new(31, &[1 << 20]);
    bed.open_session();
    bed.write_at(0, 8192, &[1; 4096]);
    bed.write_at(0, 512 << 10, &[2; 100_000]);
    bed.zero_at(0, (512 << 10) + 4096, 8192);
    let seq = bed.write_at(0, 8192 + SECTOR, &[3; SECTOR]);
    bed.stop_agent();
    let place = Place::new();
    let _served = place.serve(&bed, seq, "s", false);
    let mut expected = vec![true; 1 << 20];
    expected[8192..12288].fill(false);
    expected[512 << 10..(512 << 10) + 100_000].fill(false);
    expected[(512 << 10) + 4096..(512 << 10) + 12288].fill(true);
    let mut client = place.connect("s", "d0");
    assert!(told(&mut client) == expected);
    assert!(all_of(&mut client).iter().zip(&expected).all(|(byte, hole)| (*byte == 0) == *hole));
    // A part of it, with ends that are nobody's.
    let part = client.block_status(BASE_ALLOCATION, 8000, 1000).unwrap();
    assert_eq!(part, [(192, HOLE), (808, 0)]);
}

#[test]
fn more_pieces_than_are_looked_at_a_time_are_all_told_and_read() {
    let mut bed = Bed::new(33, &[4 << 20]);
    bed.open_session();
    let mut seq = 0;
    for i in 0..3000 {
        seq = bed.write_at(0, i * 1024, &[i as u8 | 1; SECTOR]);
    }
    bed.stop_agent();
    let place = Place::new();
    let _served = place.serve(&bed, seq, "s", false);
    let mut client = place.connect("s", "");
    let disk = &bed.disks[0];
    assert!(all_of(&mut client) == *disk);
    let holes = told(&mut client);
    assert!(disk.iter().zip(&holes).all(|(byte, hole)| (*byte == 0) == *hole));
}

#[test]
fn a_rotten_record_costs_the_ranges_that_need_it_and_nothing_more() {
    let mut bed = Bed::new(41, &[256 << 10]);
    bed.open_session();
    let rotten = bed.write_at(0, 0, &[1; 64 << 10]);
    let seq = bed.write_at(0, 4096, &[2; 4096]);
    bed.stop_agent();
    let recovery = bed.open();
    let entry = recovery.history.entry(rotten).unwrap().unwrap();
    // Its last byte: what is read of it elsewhere is right, and must not be used all the same.
    flip(&recovery.history.units[entry.unit as usize].path, entry.at + 64 + (64 << 10) - 1);
    drop(recovery);
    let place = Place::new();
    let _served = place.serve(&bed, seq, "s", true);
    let mut client = place.connect("s", "");
    let mut block = [0; 4096];
    for at in [0, 8192, 60 << 10] {
        assert_eq!(errno(client.read(at, &mut block)), Errno::Io, "at {at}");
    }
    client.read(4096, &mut block).unwrap();
    assert_eq!(block, [2; 4096]);
    client.read(64 << 10, &mut block).unwrap();
    assert_eq!(block, [0; 4096]);
    // A block that is written whole needs it no more; one that is written in part does.
    client.write(8192, &[7; 4096], false).unwrap();
    client.read(8192, &mut block).unwrap();
    assert_eq!(block, [7; 4096]);
    assert_eq!(errno(client.write(100, &[7; 10], false)), Errno::Io);
}

#[test]
fn random_writes_zeroes_and_trims_read_back_and_leave_the_point_alone() {
    let mut bed = Bed::eventful(51);
    bed.stop_agent();
    let (seq, disks) = bed.known.last().unwrap().clone();
    let place = Place::new();
    let _written = place.serve(&bed, seq, "w", true);
    let _untouched = place.serve(&bed, seq, "r", false);
    let mut model = disks[0].clone();
    let mut clients = [place.connect("w", "d0"), place.connect("w", "web/d0")];
    let size = model.len();
    for step in 0..600 {
        let client = &mut clients[step % 2];
        // Of any alignment, some of whole blocks, some up to the disk's end (which is none).
        let unit = [1, SECTOR, 4096][bed.dice.below(3) as usize];
        let at = bed.dice.below(size as u64) as usize / unit * unit;
        let len = (unit * (1 + bed.dice.below(24) as usize)).min(size - at);
        let range = at..at + len;
        match bed.dice.below(5) {
            0 => {
                let no_hole = bed.dice.below(2) == 0;
                let flags = ZeroFlags { no_hole, ..ZeroFlags::default() };
                client.write_zeroes(at as u64, len as u64, flags).unwrap();
                model[range].fill(0);
            }
            1 => {
                client.trim(at as u64, len as u64).unwrap();
                // What it reads as is the server's choice, but one and the same from now on.
                client.read(at as u64, &mut model[range]).unwrap();
            }
            _ => {
                bed.dice.fill(&mut model[range.clone()]);
                client.write(at as u64, &model[range], step % 7 == 0).unwrap();
            }
        }
        if step % 10 == 0 {
            clients[0].flush().unwrap();
            let seen = all_of(&mut clients[(step / 10) % 2]);
            assert!(seen == model, "after step {step}");
        }
    }
    let holes = told(&mut clients[0]);
    assert!(model.iter().zip(&holes).all(|(byte, hole)| *byte == 0 || !hole));
    assert!(holes.iter().any(|hole| *hole) && holes.iter().any(|hole| !hole));
    assert!(all_of(&mut place.connect("r", "d0")) == disks[0]);
    assert!(all_of(&mut place.connect("w", "d1")) == disks[1]);
}

#[test]
fn neighbours_in_one_block_written_at_once_by_several_clients_all_stay() {
    // Many blocks, so that clients meet in some just as these come into the layer.
    const BLOCKS: usize = 1024;
    let mut bed = Bed::new(61, &[BLOCKS * 4096]);
    bed.open_session();
    let mut seq = 0;
    for at in (0..BLOCKS * 4096).step_by(64 << 10) {
        seq = bed.write_at(0, at, &[0xFF; 64 << 10]);
    }
    let place = Place::new();
    let _served = place.serve(&bed, seq, "w", true);
    let begin = std::sync::Barrier::new(8);
    std::thread::scope(|scope| {
        for n in 0..8_usize {
            let (mut client, begin) = (place.connect("w", ""), &begin);
            scope.spawn(move || {
                for block in 0..BLOCKS {
                    if block % 16 == 0 {
                        begin.wait();
                    }
                    let at = block * 4096 + n * SECTOR;
                    client.write(at as u64, &[n as u8; SECTOR], false).unwrap();
                }
            });
        }
    });
    let seen = all_of(&mut place.connect("w", ""));
    for (i, sector) in seen.chunks(SECTOR).enumerate() {
        assert!(sector.iter().all(|byte| *byte == (i % 8) as u8), "sector {i}");
    }
}

#[test]
fn the_journal_is_pinned_as_long_as_an_export_or_a_client_of_it_lives() {
    let mut bed = Bed::new(71, &[4096]);
    let seq = bed.open_session();
    let place = Place::new();
    let served = place.serve(&bed, seq, "s", false);
    let pin = std::fs::File::open(bed.journal_dir().join("pin")).unwrap();
    let delete = || flock(&pin, FlockOperation::NonBlockingLockExclusive);
    assert!(delete().is_err());
    let mut client = place.connect("s", "");
    served.end();
    assert!(client.read(0, &mut [0; 512]).is_err());
    delete().unwrap();
}

#[test]
fn disks_that_were_not_synced_are_left_out_and_chosen_ones_are_alone() {
    let mut bed = Bed::new(81, &[4096, 8192]);
    bed.sync(CopyCause::Initial);
    let seq = bed.write();
    bed.stop_agent();
    let place = Place::new();
    let recovery = open(&bed.state(), GUEST).unwrap();
    let point = recovery.resolve(&When::Seq(seq)).unwrap();
    let mut options = place.options("s", false);
    options.disks = vec!["d1".into()];
    let served = export(recovery, point, &options).unwrap();
    let names: Vec<_> = served.report.exports.iter().map(|e| (e.name.as_str(), e.bytes)).collect();
    assert_eq!(names, [("d1", 8192)]);
    assert_eq!(place.connect("s", "").bytes(), 8192);
    options.disks = vec!["d7".into()];
    options.socket = place.socket("t");
    let error = export(bed.open(), point, &options).map(drop).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    assert!(error.to_string().contains("d0"), "{error}");
    assert!(!options.socket.exists());
}
