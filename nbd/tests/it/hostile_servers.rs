//! Servers that break the protocol: our client ends with an error, never with wrong data, a
//! panic or a huge allocation.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use afterimage_nbd::proto::flags::*;
use afterimage_nbd::proto::option::{OptionHeader, OptionReply};
use afterimage_nbd::proto::reply::{Chunk, Reply};
use afterimage_nbd::proto::request::Request;
use afterimage_nbd::proto::{Mode, NBD_MAGIC, OPTION_MAGIC};
use afterimage_nbd::{Client, ClientError, ClientOptions};

const BYTES: u64 = 1 << 20;

fn options() -> ClientOptions {
    ClientOptions {
        contexts: vec!["base:allocation".into()],
        connect_max: Duration::from_secs(5),
        wait_max: Some(Duration::from_secs(5)),
        ..ClientOptions::default()
    }
}

/// Serves one client by hand: an honest handshake, then `answer` writes what it likes to the
/// first request.
fn served_by(
    answer: impl FnOnce(&Request) -> Vec<u8> + Send + 'static,
) -> (UnixStream, thread::JoinHandle<()>) {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || {
        let mut hello = NBD_MAGIC.to_be_bytes().to_vec();
        hello.extend(OPTION_MAGIC.to_be_bytes());
        hello.extend(3_u16.to_be_bytes());
        theirs.write_all(&hello).unwrap();
        theirs.read_exact(&mut [0; 4]).unwrap();
        loop {
            let mut header = [0; 16];
            theirs.read_exact(&mut header).unwrap();
            let header = OptionHeader::decode(&header).unwrap().unwrap();
            theirs.read_exact(&mut vec![0; header.length as usize]).unwrap();
            let option = header.option;
            let mut reply = |kind, data: &[u8]| {
                let header = OptionReply { option, kind, length: data.len() as u32 };
                theirs.write_all(&header.encode()).unwrap();
                theirs.write_all(data).unwrap();
            };
            if option == OPT_SET_META_CONTEXT {
                reply(REP_META_CONTEXT, b"\0\0\0\x07base:allocation");
            }
            if option == OPT_GO {
                let mut info = INFO_EXPORT.to_be_bytes().to_vec();
                info.extend(BYTES.to_be_bytes());
                info.extend(HAS_FLAGS.to_be_bytes());
                reply(REP_INFO, &info);
            }
            reply(REP_ACK, &[]);
            if option == OPT_GO {
                break;
            }
        }
        let mut header = [0; 28];
        theirs.read_exact(&mut header).unwrap();
        let request = Request::decode(Mode::Structured, &header).unwrap().unwrap();
        theirs.write_all(&answer(&request)).unwrap();
        // Stays until the client has made up its mind.
        let _ = theirs.read_to_end(&mut Vec::new());
    });
    (ours, server)
}

fn chunk(request: &Request, kind: u16, flags: u16, length: u64, payload: &[u8]) -> Vec<u8> {
    let mut out = [0; 32];
    let chunk = Chunk { flags, kind, cookie: request.cookie, offset: 0, length };
    let bytes = Reply::Chunk(chunk).encode(Mode::Structured, &mut out);
    [&out[..bytes], payload].concat()
}

fn data_at(request: &Request, at: u64, data: &[u8], flags: u16) -> Vec<u8> {
    let payload = [&at.to_be_bytes(), data].concat();
    chunk(request, CHUNK_OFFSET_DATA, flags, payload.len() as u64, &payload)
}

#[test]
fn replies_that_do_not_fit_the_request_end_the_connection() {
    type Answer = fn(&Request) -> Vec<u8>;
    let cases: [(&str, Answer); 12] = [
        ("noise", |_| vec![0x5a; 64]),
        ("another request's reply", |r| {
            let other = Request { cookie: r.cookie + 1, ..*r };
            chunk(&other, CHUNK_NONE, CHUNK_DONE, 0, &[])
        }),
        ("data of 4 GiB", |r| chunk(r, CHUNK_OFFSET_DATA, CHUNK_DONE, 0xffff_ffff, &[0; 8])),
        ("data before the range", |r| data_at(r, r.offset - 1, &[1; 4096], CHUNK_DONE)),
        ("data past the range", |r| data_at(r, r.offset + 1, &[1; 4096], CHUNK_DONE)),
        ("the same data twice", |r| {
            [data_at(r, r.offset, &[1; 512], 0), data_at(r, r.offset, &[2; 512], 0)].concat()
        }),
        ("less than was asked", |r| data_at(r, r.offset, &[1; 512], CHUNK_DONE)),
        ("nothing at all", |r| chunk(r, CHUNK_NONE, CHUNK_DONE, 0, &[])),
        ("a hole past the range", |r| {
            let hole = [&r.offset.to_be_bytes()[..], &8192_u32.to_be_bytes()].concat();
            chunk(r, CHUNK_OFFSET_HOLE, CHUNK_DONE, 12, &hole)
        }),
        ("a status to a read", |r| chunk(r, CHUNK_BLOCK_STATUS, CHUNK_DONE, 12, &[1; 12])),
        ("an error of 4 GiB", |r| chunk(r, CHUNK_ERROR, CHUNK_DONE, 0xffff_ffff, &[0; 8])),
        ("an error whose text is longer than it", |r| {
            chunk(r, CHUNK_ERROR, CHUNK_DONE, 6, &[0, 0, 0, 5, 0xff, 0xff])
        }),
    ];
    for (what, answer) in cases {
        let (stream, server) = served_by(answer);
        let mut client = Client::negotiate(stream, &options()).unwrap();
        let failed = client.read(4096, &mut [0; 4096]).unwrap_err();
        assert!(matches!(failed, ClientError::Protocol(_)), "{what}: {failed}");
        assert!(matches!(client.flush(), Err(ClientError::Broken)), "{what}");
        drop(client);
        server.join().unwrap();
    }
}

#[test]
fn status_replies_that_do_not_fit_end_the_connection() {
    fn status(request: &Request, context: u32, extents: &[(u32, u32)]) -> Vec<u8> {
        let mut payload = context.to_be_bytes().to_vec();
        for (len, flags) in extents {
            payload.extend(len.to_be_bytes());
            payload.extend(flags.to_be_bytes());
        }
        chunk(request, CHUNK_BLOCK_STATUS, CHUNK_DONE, payload.len() as u64, &payload)
    }
    type Answer = fn(&Request) -> Vec<u8>;
    let cases: [(&str, Answer); 6] = [
        ("an empty extent", |r| status(r, 7, &[(0, 0)])),
        ("no extent", |r| status(r, 7, &[])),
        ("another context", |r| status(r, 8, &[(4096, 0)])),
        ("4 GiB of extents", |r| chunk(r, CHUNK_BLOCK_STATUS, CHUNK_DONE, 0xffff_fffc, &[])),
        ("half an extent", |r| chunk(r, CHUNK_BLOCK_STATUS, CHUNK_DONE, 8, &[0; 8])),
        ("success without a status", |r| chunk(r, CHUNK_NONE, CHUNK_DONE, 0, &[])),
    ];
    for (what, answer) in cases {
        let (stream, server) = served_by(answer);
        let mut client = Client::negotiate(stream, &options()).unwrap();
        let failed = client.block_status("base:allocation", 0, 8192).unwrap_err();
        assert!(matches!(failed, ClientError::Protocol(_)), "{what}: {failed}");
        drop(client);
        server.join().unwrap();
    }
    // The last extent may reach past what was asked.
    let (stream, server) = served_by(|r| status(r, 7, &[(4096, 3), (1 << 30, 0)]));
    let mut client = Client::negotiate(stream, &options()).unwrap();
    assert_eq!(client.block_status("base:allocation", 0, 8192).unwrap(), [(4096, 3), (4096, 0)]);
    drop(client);
    server.join().unwrap();
}

#[test]
fn a_server_that_says_nothing_or_nonsense_is_given_up() {
    let quick = ClientOptions { connect_max: Duration::from_millis(100), ..options() };
    let (ours, _theirs) = UnixStream::pair().unwrap();
    assert!(matches!(Client::negotiate(ours, &quick), Err(ClientError::Stream(_))));
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n").unwrap();
    assert!(matches!(Client::negotiate(ours, &options()), Err(ClientError::Protocol(_))));
    // A reply to an option that declares 4 GiB.
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let mut hello = NBD_MAGIC.to_be_bytes().to_vec();
    hello.extend(OPTION_MAGIC.to_be_bytes());
    hello.extend(3_u16.to_be_bytes());
    let reply = OptionReply { option: OPT_STRUCTURED_REPLY, kind: REP_ACK, length: u32::MAX };
    hello.extend(reply.encode());
    theirs.write_all(&hello).unwrap();
    assert!(matches!(Client::negotiate(ours, &options()), Err(ClientError::Protocol(_))));
}

#[test]
fn a_server_that_stops_answering_is_given_up_after_the_limit() {
    let (stream, server) = served_by(|_| Vec::new());
    let wait_max = Some(Duration::from_millis(100));
    let mut client = Client::negotiate(stream, &ClientOptions { wait_max, ..options() }).unwrap();
    let late = client.read(0, &mut [0; 512]).unwrap_err().to_string();
    assert!(late.contains("time limit"), "{late}");
    assert!(matches!(client.read(0, &mut [0; 512]), Err(ClientError::Broken)));
    drop(client);
    server.join().unwrap();
}
