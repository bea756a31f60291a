//! What can't be taken leaves nothing behind, in time.

use crate::kit::{Bed, HANG, Memory, Rng, STATE, refused};
use afterimage_agent::memory::{Error, Event, Intake, PAGE_BYTES, Source};
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

fn bed() -> (Memory, Bed) {
    let memory = Memory::new(&mut Rng(9), &[3, 600]);
    let bed = Bed::new(&memory.listed());
    (memory, bed)
}

/// Nothing came into the journal, and the table that was given back still serves.
fn assert_untouched(bed: &mut Bed, memory: &Memory, head: u64) {
    assert_eq!(bed.records(0).len(), 0, "records of data behind {head}");
    let (_, seq) = bed.checkpoint(memory.stream(None));
    bed.assert_holds(seq, memory);
}

#[test]
fn a_page_that_never_came_is_named_and_refuses_the_checkpoint() {
    let (memory, mut bed) = bed();
    let pages = |(index, (_, bytes)): (usize, &'static (String, Vec<u8>))| {
        let pages = bytes.chunks(PAGE_BYTES).enumerate();
        pages.map(move |(i, p)| (index, i * PAGE_BYTES, p))
    };
    let kept: &'static Memory = Box::leak(Box::new(memory.clone()));
    let all = kept.blocks.iter().enumerate().flat_map(pages);
    // One is sent twice in its stead: counting alone does not find it.
    let stream = memory.stream_of(all.map(|(b, at, p)| match (b, at / PAGE_BYTES) {
        (1, 77) => (1, 78 * PAGE_BYTES, &kept.blocks[1].1[78 * PAGE_BYTES..79 * PAGE_BYTES]),
        _ => (b, at, p),
    }));
    let head = bed.journal.head();
    match refused(bed.take(stream)) {
        Error::Missing { block, pages: 600, missing: 1, offset } => {
            assert_eq!((block.as_str(), offset), ("block1", 77 * 4096));
        }
        other => panic!("{other}"),
    }
    assert_untouched(&mut bed, &memory, head);
}

#[test]
fn a_stream_cut_short_anywhere_is_refused() {
    let (memory, mut bed) = bed();
    let stream = memory.stream(None);
    let head = bed.journal.head();
    for cut in [0, 3, 40, 5000, stream.len() / 2, stream.len() - 1] {
        let error = refused(bed.take(stream[..cut].to_vec()));
        assert!(matches!(error, Error::Stream { .. }), "{cut}: {error}");
    }
    assert_untouched(&mut bed, &memory, head);
}

#[test]
fn a_spool_keeps_its_limit_and_is_gone_afterwards() {
    let (memory, mut bed) = bed();
    bed.spool.spool_bytes_max = Some(100 * 4096);
    let head = bed.journal.head();
    let error = refused(bed.take(memory.stream(None)));
    assert!(matches!(error, Error::SpoolFull { limit_bytes: 409_600 }), "{error}");
    assert_eq!(std::fs::read_dir(&bed.spool.dir).unwrap().count(), 0, "no file with a name");
    bed.spool.spool_bytes_max = None;
    assert_untouched(&mut bed, &memory, head);
}

/// Bytes of this process's open files below a directory, those without a name too.
fn open_files(below: &std::path::Path) -> Vec<Vec<u8>> {
    let all = std::fs::read_dir("/proc/self/fd").unwrap().map(|e| e.unwrap().path());
    let inside =
        |fd: &std::path::PathBuf| std::fs::read_link(fd).is_ok_and(|to| to.starts_with(below));
    all.filter(inside).map(|fd| std::fs::read(fd).unwrap()).collect()
}

#[test]
fn the_spool_of_an_encrypted_journal_holds_no_page_in_the_clear() {
    for encrypted in [false, true] {
        let memory = Memory::new(&mut Rng(9), &[3, 600]);
        let listed = memory.listed();
        let mut bed = if encrypted { Bed::encrypted(&listed) } else { Bed::new(&listed) };
        let taken = bed.take(memory.stream(None)).unwrap();
        let files = open_files(&bed.spool.dir);
        assert!(files.len() == 1 && files[0].len() > 100 * PAGE_BYTES, "{} files", files.len());
        let pages = memory.blocks[1].1.chunks(PAGE_BYTES);
        let told = pages.map(|page| &page[64..96]).filter(|part| part.iter().any(|b| *b != 0));
        let told = told.take(40).filter(|part| files[0].windows(32).any(|w| w == *part)).count();
        assert_eq!(told > 20, !encrypted, "{told} of 40 pages can be read in the spool");
        drop(taken);
        // What is spooled and stored comes back.
        let (_, seq) = bed.checkpoint(memory.stream(None));
        bed.assert_holds(seq, &memory);
    }
}

#[test]
fn silence_ends_it_in_time_wherever_it_begins() {
    let (memory, mut bed) = bed();
    bed.stall_limit = Duration::from_millis(300);
    let stream = memory.stream(None);
    for sent in [0, 20, stream.len() / 2] {
        let (mut theirs, ours) = UnixStream::pair().unwrap();
        let intake = bed.start(Source::Connected(ours));
        let begun = Instant::now();
        theirs.set_write_timeout(Some(HANG)).unwrap();
        theirs.write_all(&stream[..sent]).unwrap();
        let (taken, table) = intake.wait();
        let error = refused(taken);
        assert!(matches!(error, Error::Stalled { .. }), "{sent}: {error}");
        let took = begun.elapsed();
        assert!(took >= bed.stall_limit && took < Duration::from_secs(10), "{sent}: {took:?}");
        // QEMU is let go.
        assert!(theirs.write_all(&stream).is_err(), "{sent}: the socket is still open");
        bed.table = table;
        assert!(bed.table.is_some());
    }
    bed.stall_limit = HANG;
    let head = bed.journal.head();
    assert_untouched(&mut bed, &memory, head);
}

#[test]
fn nobody_connecting_is_silence_and_a_cancel_ends_that_too() {
    let (_, mut bed) = bed();
    let path = bed.dir.path().join("socket");
    bed.stall_limit = Duration::from_millis(200);
    let intake = bed.start(Source::Listener(UnixListener::bind(&path).unwrap()));
    let (taken, table) = intake.wait();
    assert!(matches!(refused(taken), Error::Stalled { .. }));
    bed.table = table;
    std::fs::remove_file(&path).unwrap();
    bed.stall_limit = HANG;
    let begun = Instant::now();
    let intake = bed.start(Source::Listener(UnixListener::bind(&path).unwrap()));
    intake.cancel();
    let (taken, table) = intake.wait();
    assert!(matches!(refused(taken), Error::Cancelled));
    assert!(table.is_some() && begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn the_first_page_is_told_at_once_and_a_cancel_lets_the_sender_go() {
    let (memory, mut bed) = bed();
    let path = bed.dir.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let (tell, hear) = channel();
    let tell = std::sync::Mutex::new(tell);
    let options = bed.options();
    let intake = Intake::start(Source::Listener(listener), options, move |event| {
        tell.lock().unwrap().send(event).unwrap();
    });
    let intake = intake.unwrap();
    let mut theirs = UnixStream::connect(&path).unwrap();
    let stream = memory.stream(None);
    // No page is in what comes first.
    theirs.write_all(&stream[..90]).unwrap();
    assert!(hear.recv_timeout(Duration::from_millis(200)).is_err(), "there is no page yet");
    theirs.write_all(&stream[90..90 + 3 * 4200]).unwrap();
    assert_eq!(hear.recv_timeout(HANG).unwrap(), Event::FirstPage);
    assert!(intake.progress().silent_for() < HANG);
    let begun = Instant::now();
    intake.cancel();
    let (taken, table) = intake.wait();
    assert!(matches!(refused(taken), Error::Cancelled));
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(hear.recv_timeout(HANG).unwrap(), Event::Ended);
    assert!(theirs.write_all(&stream).is_err(), "the socket is still open");
    bed.table = table;
    let head = bed.journal.head();
    assert_untouched(&mut bed, &memory, head);
}

#[test]
fn a_volume_that_is_not_the_one_compared_with_is_refused() {
    let (memory, mut bed) = bed();
    let taken = bed.take(memory.stream(None)).unwrap();
    let right = bed.ram.clone();
    bed.ram[0].volume = STATE;
    assert!(matches!(refused(bed.store(&taken)), Error::Invalid(_)));
    bed.ram = right.clone();
    bed.ram.swap(0, 1);
    assert!(matches!(refused(bed.store(&taken)), Error::Invalid(_)));
    bed.ram = right.clone();
    bed.ram.pop();
    assert!(matches!(refused(bed.store(&taken)), Error::Invalid(_)));
    bed.ram = right;
    bed.store(&taken).unwrap();
    bed.assert_holds(bed.journal.head(), &memory);
}

#[test]
fn a_journal_that_stops_midway_leaves_a_table_that_nobody_believes() {
    let memory = Memory::new(&mut Rng(9), &[6000]);
    let stream = memory.stream(None);
    let is_cut = |_| {
        let mut bed = Bed::new(&memory.listed());
        let taken = bed.take(stream.clone()).unwrap();
        let (journal, from) = (bed.journal.clone(), bed.journal.head());
        let result = std::thread::scope(|scope| {
            scope.spawn(|| {
                while journal.head() < from + 3 {
                    std::hint::spin_loop();
                }
                journal.clone().close().unwrap();
            });
            bed.store(&taken)
        });
        let table = bed.table.as_ref().unwrap();
        assert!(!table.serves(&bed.journal));
        // What was being appended, and nothing else: a part of it may be there.
        let unknown = table.unknown_pages();
        assert!(result.is_ok() || unknown <= 16, "{unknown} pages are unknown");
        result.is_err() && unknown > 0
    };
    // Whoever is quicker; and a run of zeroes is one record, there or not.
    assert!((0..40).any(is_cut), "no run of data was cut off");
}

#[test]
fn a_spool_leaves_its_file_system_room() {
    let (memory, mut bed) = bed();
    let small = bed.dir.path().join("small");
    std::fs::create_dir(&small).unwrap();
    let Some(_mounted) = Mounted::new(&small, "2M") else {
        eprintln!("this test needs root: it mounts a small file system");
        return;
    };
    let own = std::mem::replace(&mut bed.spool.dir, small.join("spool"));
    let head = bed.journal.head();
    let error = refused(bed.take(memory.stream(None)));
    assert!(matches!(error, Error::NoRoom { .. }), "{error}");
    assert_eq!(std::fs::read_dir(small.join("spool")).unwrap().count(), 0);
    bed.spool.dir = own;
    assert_untouched(&mut bed, &memory, head);
}

/// A small file system in memory; taken away when dropped.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn new(at: &std::path::Path, size: &str) -> Option<Self> {
        let size = format!("size={size}");
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(at);
        let is_mounted = mount.status().is_ok_and(|status| status.success());
        is_mounted.then(|| Self(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
