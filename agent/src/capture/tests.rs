use super::{Capture, CaptureEvent, DiscardServer, Tap, TapShared};
use afterimage_journal::format::record::Kind;
use afterimage_journal::{History, Journal, Options};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const VOLUME_BYTES: u64 = 64 << 20;

/// A client that speaks just enough: the old simple way in, then writes.
fn client(socket: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.read_exact(&mut [0; 18]).unwrap();
    // No zeroes behind the answer; option 1 is the export of this name.
    let mut hello = 3u32.to_be_bytes().to_vec();
    hello.extend(b"IHAVEOPT");
    hello.extend(1u32.to_be_bytes());
    hello.extend(0u32.to_be_bytes());
    stream.write_all(&hello).unwrap();
    stream.read_exact(&mut [0; 10]).unwrap();
    stream
}

fn write_header(at: u64, bytes: u32) -> Vec<u8> {
    let mut header = 0x2560_9513u32.to_be_bytes().to_vec();
    header.extend([0, 0, 0, 1]);
    header.extend(at.to_be_bytes());
    header.extend(at.to_be_bytes());
    header.extend(bytes.to_be_bytes());
    header
}

fn finish(stream: &mut UnixStream) {
    let mut reply = [0; 16];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply[4..8], [0; 4], "refused");
}

#[test]
fn a_client_that_stalls_in_a_payload_stops_neither_the_others_nor_the_journal() {
    let tmp = tempfile::tempdir().unwrap();
    let options = Options {
        unit_bytes: 1 << 20,
        ring_bytes: 1 << 20,
        unit_wait: Duration::from_secs(10),
        ..Options::default()
    };
    let dir = tmp.path().join("j");
    let journal = Journal::create(&dir, uuid::Uuid::new_v4(), "g", options).unwrap();
    let tap = Tap::new(journal.clone(), 1, VOLUME_BYTES, Arc::default(), TapShared::default());
    let socket = tmp.path().join("socket");
    let (sender, _events) = tokio::sync::mpsc::unbounded_channel();
    let capture =
        Capture::start(&socket, Arc::new(tap), None, (1, Some(std::process::id())), sender)
            .unwrap();
    let mut stalled = client(&socket);
    stalled.write_all(&write_header(0, 65536)).unwrap();
    stalled.write_all(&[9; 1000]).unwrap();
    let mut busy = client(&socket);
    // Eight times what the ring holds. Were it kept, the journal would stop and refuse.
    for i in 1..=128u64 {
        busy.write_all(&write_header(i * 65536, 65536)).unwrap();
        busy.write_all(&[i as u8; 65536]).unwrap();
        finish(&mut busy);
    }
    stalled.write_all(&[9; 64536]).unwrap();
    finish(&mut stalled);
    let head = journal.head();
    capture.stop();
    journal.close().unwrap();
    let history = History::load(&dir).unwrap();
    let all: Vec<_> = history.entries().map(|e| e.unwrap()).collect();
    let writes = all.iter().filter(|e| e.record.kind == Kind::Write);
    let (first, last) = writes.fold((None, None), |(first, _), e| (first.or(Some(e)), Some(e)));
    assert_eq!(first.unwrap().record.addr, 65536, "numbers follow the arrival of whole writes");
    assert_eq!(last.unwrap().record.addr, 0);
    assert!(last.unwrap().record.seq <= head);
    let mut data = Vec::new();
    history.read_payload(last.unwrap(), &mut data).unwrap();
    assert_eq!(data, vec![9; 65536]);
}

/// A mirror that is being removed: its writes are answered, whatever becomes of the journal and of the
/// guest's other connections, and none is kept.
#[test]
fn writes_are_answered_and_forgotten_once_the_guest_was_let_go() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("j");
    let options = Options { unit_bytes: 1 << 20, ring_bytes: 1 << 20, ..Options::default() };
    let journal = Journal::create(&dir, uuid::Uuid::new_v4(), "g", options).unwrap();
    let shared = TapShared::default();
    let (sender, mut events) = tokio::sync::mpsc::unbounded_channel();
    let captures = [1, 2].map(|volume| {
        let tap = Tap::new(journal.clone(), volume, VOLUME_BYTES, Arc::default(), shared.clone());
        let socket = tmp.path().join(format!("socket{volume}"));
        let capture =
            Capture::start(&socket, Arc::new(tap), None, (1, None), sender.clone()).unwrap();
        (capture, client(&socket))
    });
    let [(one, first), (two, mut second)] = captures;
    // A connection that is only beginning would shut an armed gate.
    for _ in 0..2 {
        assert!(matches!(events.blocking_recv().unwrap(), CaptureEvent::Connected(_)));
    }
    shared.gate.arm();
    second.write_all(&write_header(0, 4096)).unwrap();
    second.write_all(&[7; 4096]).unwrap();
    finish(&mut second);
    let head = journal.head();
    shared.gate.let_go();
    // The end of one disk's connection is no loss of the other's.
    drop(first);
    while !matches!(events.blocking_recv().unwrap(), CaptureEvent::Closed { volume: 1, .. }) {}
    journal.close().unwrap();
    for i in 0..4u64 {
        second.write_all(&write_header(i * 65536, 65536)).unwrap();
        second.write_all(&[8; 65536]).unwrap();
        finish(&mut second);
    }
    one.stop();
    two.stop();
    let history = History::load(&dir).unwrap();
    let behind = history.entries().map(|e| e.unwrap()).filter(|e| e.record.seq > head);
    assert_eq!(behind.filter(|e| e.record.kind == Kind::Write).count(), 0);
}

#[test]
fn a_discarding_server_takes_all_writes_and_no_place_of_another() {
    let tmp = tempfile::tempdir().unwrap();
    let socket = tmp.path().join("socket");
    let server = DiscardServer::start(&socket, VOLUME_BYTES).unwrap();
    let mut writer = client(&socket);
    for i in 0..4u64 {
        writer.write_all(&write_header(i * 65536, 65536)).unwrap();
        writer.write_all(&[8; 65536]).unwrap();
        finish(&mut writer);
    }
    assert!(DiscardServer::start(&socket, VOLUME_BYTES).is_err(), "somebody listens there");
    drop(server);
    DiscardServer::start(&socket, VOLUME_BYTES).unwrap();
}

/// Asks for the only export by GO, and gives the kind of the first answer.
fn go(socket: &Path) -> u32 {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.read_exact(&mut [0; 18]).unwrap();
    let mut hello = 3u32.to_be_bytes().to_vec();
    hello.extend(b"IHAVEOPT");
    hello.extend(7u32.to_be_bytes());
    hello.extend(6u32.to_be_bytes());
    hello.extend([0; 6]);
    stream.write_all(&hello).unwrap();
    let mut answer = [0; 20];
    stream.read_exact(&mut answer).unwrap();
    u32::from_be_bytes(*answer[12..].first_chunk().unwrap())
}

#[test]
fn stranger_on_the_mirrors_socket_is_refused_and_changes_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let dir = tmp.path().join("j");
    let journal = Journal::create(&dir, uuid::Uuid::new_v4(), "g", Options::default()).unwrap();
    let shared = TapShared::default();
    let tap = Arc::new(Tap::new(journal.clone(), 1, VOLUME_BYTES, Arc::default(), shared.clone()));
    let socket = tmp.path().join("socket");
    let (sender, mut events) = tokio::sync::mpsc::unbounded_channel();
    // No process has this number: whoever comes is a stranger.
    let guest = (1, Some(u32::MAX));
    let capture = Capture::start(&socket, Arc::clone(&tap), None, guest, sender).unwrap();
    let mut mirror = client(&socket);
    mirror.write_all(&write_header(0, 512)).unwrap();
    mirror.write_all(&[1; 512]).unwrap();
    finish(&mut mirror);
    shared.gate.arm();
    assert_eq!(go(&socket), (1 << 31) + 2, "refused by policy");
    let mut old_style = UnixStream::connect(&socket).unwrap();
    old_style.read_exact(&mut [0; 18]).unwrap();
    old_style.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\0").unwrap();
    assert_eq!(old_style.read(&mut [0; 1]).unwrap(), 0, "its connection is closed");
    mirror.write_all(&write_header(512, 512)).unwrap();
    mirror.write_all(&[2; 512]).unwrap();
    finish(&mut mirror);
    assert!(!shared.gate.is_shut());
    assert_eq!(tap.counters().connected.load(std::sync::atomic::Ordering::Relaxed), 1);
    assert_eq!(events.try_recv().unwrap(), super::CaptureEvent::Connected(1));
    assert!(events.try_recv().is_err(), "the stranger was neither connected nor closed");
    // Once the mirror has gone, the socket is anybody's; the gate is shut by then.
    drop(mirror);
    while !shared.gate.is_shut() {
        std::thread::sleep(Duration::from_millis(5));
    }
    capture.stop();
    journal.close().unwrap();
}
