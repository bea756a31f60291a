//! BLOCK_STATUS with a payload that selects contexts: what libnbd's own test of it asks of qemu-nbd.

use afterimage_nbd::proto::flags::*;
use afterimage_nbd::proto::option::{ContextQuery, InfoQuery};
use afterimage_nbd::proto::{Fields, Mode};
use afterimage_nbd::{Errno, Export, MemoryExport, Payload, StatusSink, WriteFlags, ZeroFlags};

use crate::fixture::{Fixture, Raw};

const BYTES: u64 = 1 << 20;
const CONTEXTS: [&str; 4] = ["base:allocation", "a:depth", "a:bitmap:0", "a:bitmap:1"];

/// Memory with further contexts, each of which is one extent with its index as flags.
struct Several(MemoryExport);

impl Export for Several {
    fn bytes(&self) -> u64 {
        self.0.bytes()
    }

    fn read(&self, at: u64, buf: &mut [u8]) -> Result<(), Errno> {
        self.0.read(at, buf)
    }

    fn write(&self, at: u64, payload: &mut Payload<'_>, flags: WriteFlags) -> Result<(), Errno> {
        self.0.write(at, payload, flags)
    }

    fn write_zeroes(&self, at: u64, len: u64, flags: ZeroFlags) -> Result<(), Errno> {
        self.0.write_zeroes(at, len, flags)
    }

    fn trim(&self, at: u64, len: u64, flags: WriteFlags) -> Result<(), Errno> {
        self.0.trim(at, len, flags)
    }

    fn flush(&self) -> Result<(), Errno> {
        Ok(())
    }

    fn block_status(
        &self,
        context: &str,
        _: u64,
        len: u64,
        sink: &mut StatusSink<'_>,
    ) -> Result<(), Errno> {
        let index = CONTEXTS.iter().position(|own| *own == context).unwrap();
        sink.push(len, index as u32 + 10);
        Ok(())
    }

    fn contexts(&self) -> Vec<String> {
        CONTEXTS.map(str::to_owned).to_vec()
    }
}

/// A client that has selected all contexts, with their ids.
fn client(fixture: &Fixture) -> (Raw, Vec<u32>) {
    let mut raw = fixture.raw().greet();
    raw.option(OPT_EXTENDED_HEADERS, &[]);
    assert_eq!(raw.last_answer(OPT_EXTENDED_HEADERS), REP_ACK);
    let query = ContextQuery { name: "", queries: CONTEXTS.to_vec() }.encode();
    raw.option(OPT_SET_META_CONTEXT, &query);
    let mut ids = Vec::new();
    for context in CONTEXTS {
        let (kind, data) = raw.answer(OPT_SET_META_CONTEXT);
        assert_eq!((kind, &data[4..]), (REP_META_CONTEXT, context.as_bytes()));
        ids.push(Fields::new(&data).u32().unwrap());
    }
    assert_eq!(raw.last_answer(OPT_SET_META_CONTEXT), REP_ACK);
    raw.option(OPT_GO, &InfoQuery { name: "", wanted: vec![] }.encode());
    let mut offered = false;
    loop {
        let (kind, data) = raw.answer(OPT_GO);
        if kind == REP_ACK {
            break;
        }
        let mut fields = Fields::new(&data);
        if fields.u16() == Some(INFO_EXPORT) {
            offered =
                fields.bytes(8).and_then(|_| fields.u16()).unwrap() & BLOCK_STATUS_PAYLOAD != 0;
        }
    }
    assert!(offered, "the server says that it takes payloads");
    raw.mode = Mode::Extended;
    (raw, ids)
}

/// Asks; gives the id, length and flags of each context's extent, or the error's number.
fn ask(raw: &mut Raw, at: u64, flags: u16, length: u64, ids: &[u32]) -> Result<Vec<[u64; 3]>, u32> {
    let mut payload = length.to_be_bytes().to_vec();
    payload.extend(ids.iter().flat_map(|id| id.to_be_bytes()));
    raw.request(CMD_BLOCK_STATUS, flags | CMD_PAYLOAD_LEN, at, payload.len() as u64);
    raw.send(&payload);
    answer(raw)
}

fn answer(raw: &mut Raw) -> Result<Vec<[u64; 3]>, u32> {
    let mut found = Vec::new();
    loop {
        let header = raw.take(32);
        let mut fields = Fields::new(&header[4..]);
        let (flags, kind) = (fields.u16().unwrap(), fields.u16().unwrap());
        let bytes = u64::from_be_bytes(header[24..].try_into().unwrap());
        let data = raw.take(bytes as usize);
        let mut fields = Fields::new(&data);
        if kind == CHUNK_ERROR {
            assert!(flags & CHUNK_DONE != 0 && found.is_empty());
            return Err(fields.u32().unwrap());
        }
        assert_eq!(kind, CHUNK_BLOCK_STATUS_EXT);
        let (id, count) = (fields.u32().unwrap(), fields.u32().unwrap());
        assert_eq!(count, 1);
        found.push([u64::from(id), fields.u64().unwrap(), fields.u64().unwrap()]);
        assert!(fields.is_empty());
        if flags & CHUNK_DONE != 0 {
            return Ok(found);
        }
    }
}

#[test]
fn a_status_payload_selects_the_contexts_that_are_answered() {
    let fixture = Fixture::new(Several(MemoryExport::new(BYTES as usize)));
    let (mut raw, ids) = client(&fixture);
    let extents = |length: u64, wanted: &[usize]| {
        Ok(wanted.iter().map(|i| [u64::from(ids[*i]), length, *i as u64 + 10]).collect::<Vec<_>>())
    };
    // Without a payload: all of them.
    raw.request(CMD_BLOCK_STATUS, 0, 0, BYTES);
    assert_eq!(answer(&mut raw), extents(BYTES, &[0, 1, 2, 3]));
    assert_eq!(ask(&mut raw, 0, 0, BYTES, &ids), extents(BYTES, &[0, 1, 2, 3]));
    assert_eq!(ask(&mut raw, 0, 0, BYTES, &[ids[0], ids[2]]), extents(BYTES, &[0, 2]));
    // The order of the request is not that of the answer.
    assert_eq!(ask(&mut raw, 0, 0, 512, &[ids[3], ids[1]]), extents(512, &[1, 3]));
    // Near the end: the payload's length is not the range's.
    assert_eq!(ask(&mut raw, BYTES - 1, 0, 1, &[ids[1]]), extents(1, &[1]));
    assert_eq!(ask(&mut raw, 0, CMD_REQ_ONE, BYTES, &[ids[1]]), extents(BYTES, &[1]));
    let unknown = [ids.iter().max().unwrap() + 1];
    let twice = [ids[0], ids[0]];
    let many = ids.repeat(25);
    for (what, length, ids, at) in [
        ("no context", BYTES, &[][..], 0),
        ("an unknown context", BYTES, &unknown, 0),
        ("a context twice", BYTES, &twice, 0),
        ("too many", BYTES, &many, 0),
        ("past the end", BYTES, &ids[..1], 512),
        ("overflow", u64::MAX, &ids[..1], 512),
        ("nothing", 0, &ids[..1], 512),
    ] {
        let refused = ask(&mut raw, at, 0, length, ids);
        assert_eq!(refused, Err(Errno::Inval.code()), "{what}");
    }
    for length in [0, 4, 8, 13] {
        raw.request(CMD_BLOCK_STATUS, CMD_PAYLOAD_LEN, 0, length);
        raw.send(&vec![0; length as usize]);
        assert_eq!(answer(&mut raw), Err(Errno::Inval.code()), "payload of {length} bytes");
    }
    raw.request(CMD_BLOCK_STATUS, 0, 0, BYTES);
    assert_eq!(answer(&mut raw), extents(BYTES, &[0, 1, 2, 3]));
}
