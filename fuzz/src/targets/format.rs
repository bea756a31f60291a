//! The journal's structures. Behind a checksum nothing new would ever be reached: so each input
//! is tried as it is and with its checksums made right. What decodes must encode to the same.

use super::Target;
use afterimage_journal::format::cipher::{self, Cipher, Key, Origin};
use afterimage_journal::format::index::{self, ENTRY_BYTES, FOOTER_BYTES, Footer};
use afterimage_journal::format::meta::{self, Meta};
use afterimage_journal::format::record::{self, Decoded, HEADER_BYTES, Kind, Record};
use afterimage_journal::format::unit_header::{HeaderError, UnitHeader};
use afterimage_journal::format::{ALIGN_BYTES, checksum, payload};

const SALT: [u8; 16] = *b"salt of the unit";
const UNIT_BYTES: u64 = 1 << 20;

pub(super) fn targets() -> [Target; 6] {
    [
        Target { name: "unit_header", examples: headers, words: &[b"AIMGUNIT"], run: unit_header },
        Target { name: "record", examples: records, words: &[b"AIrc"], run: record_header },
        Target { name: "payload", examples: payloads, words: &[], run: packed_payload },
        Target { name: "index", examples: indexes, words: &[], run: index_entries },
        Target { name: "footer", examples: footers, words: &[b"AIMGSEAL"], run: footer },
        Target { name: "meta", examples: metas, words: WORDS, run: meta_json },
    ]
}

fn header() -> UnitHeader {
    UnitHeader {
        group: [1; 16],
        salt: SALT,
        number: 3,
        unit_bytes: UNIT_BYTES,
        epoch: 2,
        flags: 1,
        after_seq: 77,
        prev_last_seq: 70,
        wall_ns: 1,
        mono_ns: 2,
        boot_id: [3; 16],
        mount_id: 4,
    }
}

fn headers() -> Vec<Vec<u8>> {
    vec![header().encode()[..132].to_vec()]
}

fn unit_header(input: &[u8]) {
    for fixed in [false, true] {
        let mut block = input.to_vec();
        if fixed && block.len() >= 132 {
            block[128..132].fill(0);
            let crc = checksum::crc32c(&block[..132]);
            block[128..132].copy_from_slice(&crc.to_le_bytes());
        }
        match UnitHeader::decode(&block) {
            Ok(header) => assert_eq!(header.encode()[..132], block[..132], "not what was read"),
            Err(HeaderError::Checksum) => assert!(!fixed, "a right checksum was refused"),
            Err(_) => {}
        }
    }
}

fn example(kind: Kind, seq: u64) -> Record {
    Record {
        kind,
        flags: u8::from(seq.is_multiple_of(3)),
        volume: 1,
        addr: seq * 512,
        len: 512,
        scope: 9,
        mono_ms: 5,
        wall_ns: 6,
        payload_crc: 7,
        payload_bytes: if kind == Kind::Write { 512 } else { 0 },
        compression: 0,
        encrypted: false,
        seq,
    }
}

/// A compressed record.
fn packed(seq: u64) -> Record {
    let compression = payload::ZSTD;
    Record { len: 4096, payload_bytes: 600, compression, ..example(Kind::Write, seq) }
}

/// An encrypted record, compressed or not.
fn sealed(seq: u64) -> Record {
    let clear = if seq.is_multiple_of(2) { packed(seq) } else { example(Kind::Write, seq) };
    Record { encrypted: true, payload_bytes: clear.payload_bytes + cipher::TAG_BYTES, ..clear }
}

fn records() -> Vec<Vec<u8>> {
    let all = [Kind::Write, Kind::Zero, Kind::Mark, Kind::Tick, Kind::Watermark, Kind::Close];
    let all = all.iter().map(|kind| example(*kind, 5)).chain([packed(5), sealed(6), sealed(9)]);
    all.map(|record| record::encode(&SALT, 4096, &record).to_vec()).collect()
}

fn record_header(input: &[u8]) {
    let Some(bytes) = input.first_chunk::<{ HEADER_BYTES as usize }>() else { return };
    for fixed in [0, 1, 2] {
        let mut bytes = *bytes;
        if fixed >= 1 {
            let payload_bytes = u32::from_le_bytes(bytes[4..8].try_into().unwrap_or_default());
            bytes[..12].copy_from_slice(&record::encode_frame(&SALT, 4096, payload_bytes));
        }
        if fixed == 2 {
            bytes[52..56].fill(0);
            let crc = checksum::salted(&SALT, &bytes);
            bytes[52..56].copy_from_slice(&crc.to_le_bytes());
        }
        match record::decode(&SALT, 4096, &bytes) {
            Decoded::Record(r) => {
                assert_eq!(record::encode(&SALT, 4096, &r), bytes, "not what was read");
                assert_ne!(record::decode(&SALT, 4160, &bytes), Decoded::Record(r), "moved");
            }
            Decoded::None => assert!(fixed == 0, "a right frame was refused"),
            Decoded::Reserved { .. } => assert_eq!(bytes[56..], [0; 8]),
            Decoded::Broken { seq, .. } => assert_ne!(seq, 0),
        }
    }
}

/// Length of the data, then what is stored of it.
fn payloads() -> Vec<Vec<u8>> {
    let data: Vec<u8> = (0..3 * 4096).map(|i| b"payload "[i % 8] ^ (i / 4096) as u8).collect();
    let Ok(mut packer) = payload::Packer::new() else { return Vec::new() };
    let (_, stored) = packer.pack(&data);
    vec![[&(data.len() as u32).to_le_bytes(), stored].concat(), vec![0; 20]]
}

fn packed_payload(input: &[u8]) {
    let Some((len, stored)) = input.split_first_chunk::<4>() else { return };
    let (len, payload_bytes) = (u32::from_le_bytes(*len) % (1 << 18), stored.len() as u32);
    let record = Record { len, payload_bytes, ..packed(1) };
    let encoded = record::encode(&SALT, 4096, &record);
    let Decoded::Record(record) = record::decode(&SALT, 4096, &encoded) else {
        let is_short = (1..len).contains(&payload_bytes);
        assert!(len > payload::PACKED_LEN_BYTES_MAX || !is_short, "lengths that can be");
        return;
    };
    let mut room = Vec::new();
    let unit = header();
    let origin = |cipher| Origin { cipher, unit: &unit, at: 4096 };
    if let Ok(data) = payload::unpack(&origin(&Cipher::Plain), &record, stored, &mut room) {
        assert_eq!(data.len(), len as usize);
    }
    // Nobody who has not the key makes anything that opens with it.
    let cipher = Cipher::Open(Key::new([5; 32].into()));
    for record in [record, Record { encrypted: true, ..record }] {
        assert!(payload::unpack(&origin(&cipher), &record, stored, &mut room).is_err());
    }
    assert!(room.len() <= payload::PACKED_LEN_BYTES_MAX as usize);
}

fn indexes() -> Vec<Vec<u8>> {
    let mut records: Vec<_> =
        (0..4).map(|i| (4096 + i * 640, example(Kind::Write, i + 1))).collect();
    records.push((4096 + 4 * 640, packed(5)));
    records.push((4096 + 6 * 640, sealed(6)));
    records.push((4096 + 8 * 640, sealed(7)));
    vec![index::encode(&records), Vec::new()]
}

fn index_entries(input: &[u8]) {
    let whole = input.len() / ENTRY_BYTES as usize * ENTRY_BYTES as usize;
    let Some(records) = index::decode(&input[..whole], UNIT_BYTES) else { return };
    assert_eq!(records.len(), whole / ENTRY_BYTES as usize);
    for (at, r) in &records {
        assert!(at % ALIGN_BYTES == 0);
        assert!(at + HEADER_BYTES + u64::from(r.payload_bytes) <= UNIT_BYTES, "outside its unit");
    }
    let again = index::decode(&index::encode(&records), UNIT_BYTES);
    let same = |all: &Vec<(u64, Record)>| {
        let mut all = all.clone();
        all.sort_by_key(|(at, r)| (*at, r.seq, r.addr, r.len));
        let said = |(at, r): &(u64, Record)| {
            (*at, r.seq, r.addr, r.len, r.kind, (r.compression, r.encrypted))
        };
        all.iter().map(said).collect::<Vec<_>>()
    };
    assert_eq!(again.as_ref().map(same), Some(same(&records)), "not what was read");
}

fn footers() -> Vec<Vec<u8>> {
    let index_at = UNIT_BYTES - FOOTER_BYTES - 2 * ENTRY_BYTES - 32;
    let footer = Footer { count: 2, first_seq: 1, last_seq: 2, index_at, index_crc: 3 };
    vec![footer.encode(&SALT).to_vec()]
}

fn footer(input: &[u8]) {
    for fixed in [false, true] {
        let mut bytes = input.to_vec();
        if fixed && bytes.len() >= 64 {
            bytes.truncate(64);
            bytes[44..48].fill(0);
            let crc = checksum::salted(&SALT, &bytes);
            bytes[44..48].copy_from_slice(&crc.to_le_bytes());
        }
        let Some(footer) = Footer::decode(&SALT, UNIT_BYTES, &bytes) else { continue };
        let end = footer.index_at.checked_add(footer.count.checked_mul(ENTRY_BYTES).unwrap());
        assert!(end.is_some_and(|end| end <= UNIT_BYTES - FOOTER_BYTES), "outside its unit");
    }
}

const WORDS: &[&[u8]] = &[
    b"\"event\":\"open\"",
    b"\"close\"",
    b"\"maps\"",
    b"\"upto\":",
    b"null",
    b"[",
    b"]",
    b"{}",
    b"18446744073709551616",
    b"-1",
    b"1e99",
    b"\\u0000",
    b"\"kind\":\"crash\"",
    b"\"volumes\":[",
];

fn metas() -> Vec<Vec<u8>> {
    let config = meta::Config {
        group: uuid::Uuid::from_u128(7),
        name: "g".into(),
        guests: Vec::new(),
        volumes: Vec::new(),
    };
    let mark = meta::Checkpoint {
        id: 1,
        kind: meta::CheckpointKind::Crash,
        tag: Some("t".into()),
        memory: None,
    };
    let copy = meta::Copy {
        id: 1,
        volume: 2,
        event: meta::CopyEvent::End,
        cause: meta::CopyCause::Bitmap,
        upto: 4096,
        whole: true,
    };
    let guest = meta::GuestMemory {
        guest: "vm".into(),
        blocks: vec![meta::RamBlock { volume: 2, id: "pc.ram".into(), bytes: 1 << 30 }],
        state: 3,
        head_bytes: 100,
        tail_bytes: 200,
        pause_us: 50,
    };
    let memory = Some(meta::Memory { instant: 9, wall_ns: 1, guests: vec![guest] });
    let warm = meta::Checkpoint { memory, ..mark.clone() };
    let all = [
        (8, Meta::Config(config)),
        (4, Meta::Mark(mark)),
        (4, Meta::Mark(warm)),
        (7, Meta::Copy(copy)),
    ];
    let mut examples: Vec<Vec<u8>> = all
        .iter()
        .filter_map(|(kind, body)| Some([&[*kind][..], &body.encode().ok()?].concat()))
        .collect();
    let session = br#"{"id":1,"guest":"vm","event":"open","reason":"","upto":null,"full":true,"images":[],"maps":[[1,"m"]]}"#;
    examples.push([&[6][..], session].concat());
    examples
}

fn meta_json(input: &[u8]) {
    let Some((kind, payload)) = input.split_first() else { return };
    let Some(kind) = Kind::from_u8(*kind) else { return };
    let Some(Ok(body)) = Meta::decode(kind, payload) else { return };
    let Ok(bytes) = body.encode() else { panic!("what was read can't be written") };
    let again = Meta::decode(kind, &bytes);
    let again = again.and_then(Result::ok).and_then(|body| body.encode().ok());
    assert_eq!(again.as_ref(), Some(&bytes), "not what was read");
}
