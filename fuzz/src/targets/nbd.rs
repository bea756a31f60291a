//! NBD, both sides: headers one by one, and whole peers that say whatever they like.

use super::Target;
use afterimage_nbd::proto::Mode;
use afterimage_nbd::proto::option::{ContextQuery, InfoQuery, OptionHeader, OptionReply};
use afterimage_nbd::proto::reply::{Chunk, EXTENDED_BYTES, Reply};
use afterimage_nbd::proto::request::Request;
use afterimage_nbd::{
    Client, ClientOptions, Exports, Limits, MemoryExport, NoObserver, Server, ServerHandle,
};
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Bytes of the export that servers serve.
const EXPORT_BYTES: usize = 64 << 10;
/// No peer here takes this long, unless somebody waits for what cannot come.
const WAIT_MAX: Duration = Duration::from_secs(1);

pub(super) fn targets() -> [Target; 4] {
    [
        Target { name: "nbd_headers", examples: headers, words: MAGICS, run: header },
        Target { name: "nbd_options", examples: options, words: MAGICS, run: option },
        Target { name: "nbd_to_server", examples: clients, words: MAGICS, run: to_server },
        Target { name: "nbd_to_client", examples: servers, words: MAGICS, run: to_client },
    ]
}

const MAGICS: &[&[u8]] = &[
    b"NBDMAGIC",
    b"IHAVEOPT",
    &[0x00, 0x03, 0xe8, 0x89, 0x04, 0x55, 0x65, 0xa9],
    &[0x25, 0x60, 0x95, 0x13],
    &[0x21, 0xe4, 0x1c, 0x71],
    &[0x67, 0x44, 0x66, 0x98],
    &[0x66, 0x8e, 0x33, 0xef],
    &[0x6e, 0x8a, 0x27, 0x8c],
    &[0x00, 0x00, 0x00, 0x03],
    &[0x80, 0x00, 0x00, 0x01],
    b"base:allocation",
];

const MODES: [Mode; 3] = [Mode::Simple, Mode::Structured, Mode::Extended];

fn request(command: u16, offset: u64, length: u64) -> Request {
    Request { flags: 0, command, cookie: 0x11, offset, length }
}

fn headers() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for mode in MODES {
        let mut bytes = [0; EXTENDED_BYTES];
        let len = request(0, 512, 512).encode(mode, &mut bytes);
        all.push(bytes[..len].to_vec());
        let simple = Reply::Simple { error: 0, cookie: 5 };
        let len = simple.encode(mode, &mut bytes);
        all.push(bytes[..len].to_vec());
    }
    all
}

fn header(input: &[u8]) {
    for mode in MODES {
        let mut bytes = [0; EXTENDED_BYTES];
        if let Ok(Some(found)) = Request::decode(mode, input) {
            let len = found.encode(mode, &mut bytes);
            assert_eq!(bytes[..len], input[..len], "not the request that was read");
        }
        if let Ok(Some((found, len))) = Reply::decode(mode, input) {
            assert_eq!(found.encode(mode, &mut bytes), len);
            assert_eq!(bytes[..len], input[..len], "not the reply that was read");
        }
    }
}

fn options() -> Vec<Vec<u8>> {
    vec![
        InfoQuery { name: "export", wanted: vec![0, 3] }.encode(),
        ContextQuery { name: "", queries: vec!["base:allocation", "qemu:"] }.encode(),
        OptionHeader { option: 7, length: 6 }.encode().to_vec(),
        OptionReply { option: 7, kind: 3, length: 12 }.encode().to_vec(),
    ]
}

fn option(input: &[u8]) {
    if let Some(found) = InfoQuery::decode(input) {
        assert_eq!(found.encode(), input, "not what was read");
    }
    if let Some(found) = ContextQuery::decode(input) {
        assert!(found.queries.len() <= input.len() / 4, "more than it can hold");
        assert_eq!(found.encode(), input, "not what was read");
    }
    if let Ok(Some(found)) = OptionHeader::decode(input) {
        assert_eq!(found.encode(), input[..16], "not what was read");
    }
    if let Ok(Some(found)) = OptionReply::decode(input) {
        assert_eq!(found.encode(), input[..20], "not what was read");
    }
}

/// A client's whole side: flags, GO, then requests.
fn clients() -> Vec<Vec<u8>> {
    let go = |extended: bool| {
        let mut bytes = 3u32.to_be_bytes().to_vec();
        for kind in [8, 11].into_iter().take(1 + usize::from(extended)) {
            bytes.extend(OptionHeader { option: kind, length: 0 }.encode());
        }
        let contexts = ContextQuery { name: "", queries: vec!["base:allocation"] }.encode();
        bytes.extend(OptionHeader { option: 10, length: contexts.len() as u32 }.encode());
        bytes.extend(contexts);
        let info = InfoQuery { name: "", wanted: vec![3] }.encode();
        bytes.extend(OptionHeader { option: 7, length: info.len() as u32 }.encode());
        bytes.extend(info);
        bytes
    };
    let mut all = Vec::new();
    for (mode, extended) in [(Mode::Structured, false), (Mode::Extended, true)] {
        let mut bytes = go(extended);
        for (command, length) in
            [(0, 1024), (1, 16), (3, 0), (6, 4096), (4, 512), (7, 8192), (2, 0)]
        {
            let mut header = [0; EXTENDED_BYTES];
            let len = request(command, 512, length).encode(mode, &mut header);
            bytes.extend(&header[..len]);
            if command == 1 {
                bytes.extend([0xab; 16]);
            }
        }
        all.push(bytes);
    }
    all
}

fn server() -> &'static ServerHandle {
    static SERVER: OnceLock<ServerHandle> = OnceLock::new();
    SERVER.get_or_init(|| {
        let dir = tempfile::tempdir().map(tempfile::TempDir::keep);
        let path = dir.unwrap_or_else(|e| panic!("{e}")).join("socket");
        let exports = Arc::new(Exports::single(Arc::new(MemoryExport::new(EXPORT_BYTES))));
        let listened = Server::listen(&path, exports, Limits::default(), Arc::new(NoObserver));
        let server = listened.unwrap_or_else(|e| panic!("{e}"));
        let _ = std::fs::remove_dir_all(path.parent().unwrap_or(&path));
        server
    })
}

/// Whatever a client says, the server ends the connection in good time and takes others.
fn to_server(input: &[u8]) {
    let Ok((ours, theirs)) = UnixStream::pair() else { return };
    assert!(server().adopt(theirs).is_ok(), "connections are left over");
    let _ = ours.set_read_timeout(Some(WAIT_MAX));
    let mut from = &ours;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ = (&ours).write_all(input).and_then(|()| ours.shutdown(Shutdown::Write));
        });
        let mut buffer = [0; 4096];
        loop {
            match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(_) => {}
                Err(e) => {
                    assert_ne!(e.kind(), ErrorKind::WouldBlock, "it neither answers nor ends");
                    break;
                }
            }
        }
        let _ = ours.shutdown(Shutdown::Both);
    });
    let deadline = std::time::Instant::now() + WAIT_MAX;
    while server().connections() > 32 {
        assert!(std::time::Instant::now() < deadline, "connections are left over");
        std::thread::yield_now();
    }
}

/// A server's whole side: greeting, replies to the options, then to a read.
fn servers() -> Vec<Vec<u8>> {
    let mut bytes = b"NBDMAGICIHAVEOPT\x00\x03".to_vec();
    let mut reply = |option, kind, data: &[u8]| {
        bytes.extend(OptionReply { option, kind, length: data.len() as u32 }.encode());
        bytes.extend(data);
    };
    reply(8, 1, &[]);
    let context = [&1u32.to_be_bytes()[..], b"base:allocation"].concat();
    reply(10, 4, &context);
    reply(10, 1, &[]);
    let mut info = vec![0, 0];
    info.extend((EXPORT_BYTES as u64).to_be_bytes());
    info.extend([0x0d, 0xed]);
    reply(7, 3, &info);
    reply(7, 1, &[]);
    let mut header = [0; EXTENDED_BYTES];
    for (kind, cookie, data) in
        [(1, 1, vec![0; 520]), (5, 2, vec![0, 0, 0, 1, 0, 0, 16, 0, 0, 0, 0, 3])]
    {
        let length = data.len() as u64;
        let chunk = Chunk { flags: 1, kind, cookie, offset: 0, length };
        let len = Reply::Chunk(chunk).encode(Mode::Structured, &mut header);
        bytes.extend(&header[..len]);
        bytes.extend(data);
    }
    vec![bytes]
}

/// Whatever a server says, the client returns in good time, with no more than was asked for.
fn to_client(input: &[u8]) {
    let Ok((ours, theirs)) = UnixStream::pair() else { return };
    // It all fits the socket's buffer; what the client says is never read.
    let _ = (&ours).write_all(input).and_then(|()| ours.shutdown(Shutdown::Write));
    let options = ClientOptions {
        contexts: vec!["base:allocation".into()],
        extended: input.len() % 2 == 1,
        connect_max: WAIT_MAX,
        wait_max: Some(WAIT_MAX),
        ..ClientOptions::default()
    };
    let Ok(mut client) = Client::negotiate(theirs, &options) else { return };
    let mut buffer = [0; 512];
    if client.read(0, &mut buffer).is_ok() && client.has_context("base:allocation") {
        let _ = client.block_status("base:allocation", 0, 4096);
        let _ = client.flush();
    }
}
