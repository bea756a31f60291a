//! Shutting down, and ending the connections of one export.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use afterimage_nbd::proto::Mode;
use afterimage_nbd::proto::flags::*;
use afterimage_nbd::{
    Client, ClientOptions, CloseReason, Errno, Export, Limits, MemoryExport, Payload, WriteFlags,
    ZeroFlags,
};

use crate::fixture::{Fixture, PATIENCE};

#[test]
fn shutdown_answers_what_has_arrived_then_closes_everyone() {
    let Fixture { dir, server, reasons, .. } = Fixture::new(MemoryExport::new(1 << 20));
    let stream = std::os::unix::net::UnixStream::connect(dir.path().join("s")).unwrap();
    let mut busy = crate::fixture::Raw::over(stream).greet().go(Mode::Simple);
    let mut idle = Client::connect(&dir.path().join("s"), &ClientOptions::default()).unwrap();
    for _ in 0..10 {
        busy.request(CMD_WRITE, 0, 0, 4096);
        busy.send(&[7; 4096]);
    }
    server.shutdown();
    for _ in 0..10 {
        assert_eq!(busy.error(), 0);
    }
    assert!(busy.rest().is_empty());
    assert!(idle.flush().is_err());
    for _ in 0..2 {
        assert!(matches!(reasons.recv_timeout(PATIENCE).unwrap(), CloseReason::Shutdown));
    }
}

#[test]
fn shutdown_cuts_a_client_that_stopped_in_the_middle_of_a_payload() {
    let limits = Limits { drain_max: Duration::from_millis(50), ..Limits::default() };
    let Fixture { dir, server, .. } = Fixture::with_limits(MemoryExport::new(1 << 20), limits);
    let stream = std::os::unix::net::UnixStream::connect(dir.path().join("s")).unwrap();
    let mut raw = crate::fixture::Raw::over(stream).greet().go(Mode::Simple);
    raw.request(CMD_WRITE, 0, 0, 4096);
    raw.send(&[7; 100]);
    server.shutdown();
    assert!(raw.rest().is_empty());
}

#[test]
fn ending_an_export_cuts_its_connections_and_no_others() {
    let fixture = Fixture::new(MemoryExport::new(4096));
    fixture.exports.insert("b", Arc::new(MemoryExport::new(4096)));
    let options = ClientOptions { export: "b".into(), ..ClientOptions::default() };
    let mut of_b: Vec<Client> =
        (0..3).map(|_| Client::connect(&fixture.socket(), &options).unwrap()).collect();
    let mut other = fixture.client();
    fixture.exports.remove("b");
    assert_eq!(fixture.server.end_export("b", PATIENCE), 0);
    assert_eq!(fixture.server.connections(), 1);
    for client in &mut of_b {
        assert!(client.flush().is_err());
    }
    assert!(matches!(fixture.reason(), CloseReason::Shutdown));
    assert!(Client::connect(&fixture.socket(), &options).is_err());
    other.flush().unwrap();
}

/// Fails, panics or forgets its payload as told, and holds writes back until it is let.
struct Odd {
    memory: MemoryExport,
    panics: AtomicBool,
    entered: Sender<()>,
    go_on: Mutex<Receiver<()>>,
}

impl Export for Odd {
    fn bytes(&self) -> u64 {
        self.memory.bytes()
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> Result<(), Errno> {
        assert!(!self.panics.load(Ordering::Relaxed), "told to panic");
        if at == 4096 { Err(Errno::Io) } else { self.memory.read(at, buf) }
    }

    fn write(&self, at: u64, payload: &mut Payload<'_>, flags: WriteFlags) -> Result<(), Errno> {
        match at {
            0 => Err(Errno::NoSpc),
            4096 => {
                payload.read_into(&mut [0; 10])?;
                Err(Errno::Perm)
            }
            8192 => Ok(()),
            12288 => {
                self.entered.send(()).unwrap();
                self.go_on.lock().unwrap().recv_timeout(PATIENCE).unwrap();
                self.memory.write(at, payload, flags)
            }
            _ => self.memory.write(at, payload, flags),
        }
    }

    fn write_zeroes(&self, _at: u64, _len: u64, flags: ZeroFlags) -> Result<(), Errno> {
        if flags.fast { Err(Errno::NotSup) } else { Ok(()) }
    }

    fn trim(&self, _at: u64, _len: u64, _flags: WriteFlags) -> Result<(), Errno> {
        Ok(())
    }

    fn flush(&self) -> Result<(), Errno> {
        Ok(())
    }
}

fn odd() -> (Arc<Odd>, Receiver<()>, Sender<()>) {
    let (entered, has_entered) = channel();
    let (let_go, go_on) = channel();
    let odd = Odd {
        memory: MemoryExport::new(1 << 20),
        panics: AtomicBool::new(false),
        entered,
        go_on: Mutex::new(go_on),
    };
    (Arc::new(odd), has_entered, let_go)
}

#[test]
fn a_write_that_fails_without_reading_its_payload_does_not_upset_the_stream() {
    let fixture = Fixture::new(MemoryExport::new(0));
    fixture.exports.insert("", odd().0);
    for mode in [Mode::Simple, Mode::Structured, Mode::Extended] {
        let mut raw = fixture.raw().greet().go(mode);
        let flags = if mode == Mode::Extended { CMD_PAYLOAD_LEN } else { 0 };
        for length in [512_usize, 4096, 1 << 19] {
            for (at, wanted) in [(0, Errno::NoSpc), (4096, Errno::Perm), (8192, Errno::Io)] {
                raw.request(CMD_WRITE, flags, at, length as u64);
                raw.send(&vec![0x25; length]);
                assert_eq!(raw.error(), wanted.code(), "{length} at {at} in {mode:?}");
            }
        }
        raw.request(CMD_READ, 0, 4096, 512);
        assert_eq!(raw.error(), Errno::Io.code());
        raw.request(CMD_FLUSH, 0, 0, 0);
        assert_eq!(raw.error(), 0);
    }
}

#[test]
fn a_panicking_export_ends_one_connection_only() {
    let fixture = Fixture::new(MemoryExport::new(4096));
    let export = odd().0;
    fixture.exports.insert("odd", export.clone());
    let options = ClientOptions { export: "odd".into(), ..ClientOptions::default() };
    let mut client = Client::connect(&fixture.socket(), &options).unwrap();
    export.panics.store(true, Ordering::Relaxed);
    assert!(client.read(0, &mut [0; 512]).is_err());
    assert!(matches!(fixture.reason(), CloseReason::Panicked));
    fixture.assert_serves();
}

#[test]
fn no_write_is_answered_before_its_export_returns_and_others_are_served_meanwhile() {
    let fixture = Fixture::new(MemoryExport::new(0));
    let (export, has_entered, let_go) = odd();
    fixture.exports.insert("", export);
    let mut raw = fixture.raw().greet().go(Mode::Simple);
    raw.request(CMD_WRITE, 0, 12288, 512);
    raw.send(&[1; 512]);
    has_entered.recv_timeout(PATIENCE).unwrap();
    fixture.assert_serves();
    raw.stream.set_nonblocking(true).unwrap();
    let early = std::io::Read::read(&mut raw.stream, &mut [0; 16]).unwrap_err();
    assert_eq!(early.kind(), std::io::ErrorKind::WouldBlock);
    raw.stream.set_nonblocking(false).unwrap();
    let_go.send(()).unwrap();
    assert_eq!(raw.error(), 0);
}

#[test]
fn a_fast_zero_that_would_be_slow_is_refused() {
    let info = afterimage_nbd::ExportInfo {
        can_fast_zero: false,
        ..afterimage_nbd::ExportInfo::default()
    };
    let fixture = Fixture::new(MemoryExport::with_info(8192, info));
    let fast = ZeroFlags { fast: true, ..ZeroFlags::default() };
    let refused = fixture.client().write_zeroes(0, 4096, fast);
    assert!(refused.unwrap_err().to_string().contains("EINVAL"));
}

#[test]
fn a_minimum_block_size_is_told_and_enforced() {
    let info = afterimage_nbd::ExportInfo {
        block_bytes_min: 512,
        ..afterimage_nbd::ExportInfo::default()
    };
    let fixture = Fixture::new(MemoryExport::with_info(8192, info));
    let mut raw = fixture.raw().greet();
    let blind = afterimage_nbd::proto::option::InfoQuery { name: "", wanted: vec![] };
    raw.option(OPT_GO, &blind.encode());
    assert_eq!(raw.last_answer(OPT_GO), REP_ERR_BLOCK_SIZE_REQD);
    let mut raw = raw.go(Mode::Simple);
    raw.request(CMD_READ, 0, 256, 512);
    assert_eq!(raw.error(), Errno::Inval.code());
    raw.request(CMD_WRITE, 0, 512, 100);
    raw.send(&[0; 100]);
    assert_eq!(raw.error(), Errno::Inval.code());
    assert_eq!(fixture.client().block_bytes_min(), 512);
}

#[test]
fn nothing_is_left_of_connections_that_are_over() {
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let fixture = Fixture::new(MemoryExport::new(1 << 20));
    fixture.assert_serves();
    fixture.reason();
    while fixture.server.connections() > 0 {
        std::thread::yield_now();
    }
    let before = descriptors();
    for round in 0..300 {
        let mut client = fixture.client();
        client.write(0, &[1; 512], false).unwrap();
        match round % 3 {
            0 => client.disconnect().unwrap(),
            1 => drop(client),
            _ => drop(fixture.raw().greet()),
        }
    }
    while fixture.server.connections() > 0 {
        std::thread::yield_now();
    }
    // Other tests in this process may open and close some of their own.
    let after = descriptors();
    assert!(after < before + 150, "{before} descriptors before, {after} after");
}

#[test]
fn ending_an_export_under_load_lets_no_write_in_afterwards() {
    let fixture = Fixture::new(MemoryExport::new(4096));
    for _ in 0..20 {
        let memory = Arc::new(MemoryExport::new(1 << 20));
        fixture.exports.insert("loaded", memory.clone());
        let socket = fixture.socket();
        let writers: Vec<_> = (0..3)
            .map(|_| {
                let socket = socket.clone();
                std::thread::spawn(move || {
                    let options =
                        ClientOptions { export: "loaded".into(), ..ClientOptions::default() };
                    let Ok(mut client) = Client::connect(&socket, &options) else { return };
                    let data = [7; 4096];
                    let writes = (0..).map(|round: u64| (round % 256 * 4096, &data[..]));
                    assert!(client.write_many(writes, 16, false).is_err(), "never ends by itself");
                })
            })
            .collect();
        while fixture.server.connections() < 3 {
            std::thread::yield_now();
        }
        fixture.exports.remove("loaded");
        assert_eq!(fixture.server.end_export("loaded", PATIENCE), 0);
        assert_eq!(Arc::strong_count(&memory), 1, "a connection still has the export");
        for writer in writers {
            writer.join().unwrap();
        }
    }
}
