//! What comes over a link: frames at both ends, and an invitation's line.

use super::Target;
use afterimage_journal::format::unit_header::UnitHeader;
use afterimage_journal::layout::Identity;
use afterimage_journal::pool::FileName;
use afterimage_journal::wire::{Ack, Extent, Held, HeldEpoch, Hello, Inventory, OP_BYTES_MAX, Op};
use afterimage_link::Invitation;
use afterimage_link::frame::convert::{self, frame_of, read_op};
use afterimage_link::frame::io::Reader;
use afterimage_link::frame::pack::Packer;
use afterimage_link::frame::{Accepts, HEAD_BYTES, Kind, decode, encode, message as m};
use std::time::Duration;
use uuid::Uuid;

/// No input waits for what can't come.
const WAIT_MAX: Duration = Duration::from_secs(1);

pub(super) fn targets() -> [Target; 3] {
    [
        Target { name: "link_to_site", examples: of_agent, words: WORDS, run: to_site },
        Target { name: "link_to_agent", examples: of_site, words: WORDS, run: to_agent },
        Target {
            name: "invitation",
            examples: lines,
            words: &[b"A", b"_", b"-", b"=", b"#"],
            run: line,
        },
    ]
}

const WORDS: &[&[u8]] = &[
    &[0xff, 0xff, 0xff, 0xff],
    &[0, 0, 0x10, 0],
    &[17, 0],
    &[24, 0],
    &[0, 0x80],
    &[0x28, 0xb5, 0x2f, 0xfd],
    &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
];

fn header() -> UnitHeader {
    UnitHeader {
        group: [1; 16],
        salt: [2; 16],
        number: 3,
        unit_bytes: 1 << 20,
        epoch: 4,
        flags: 0,
        after_seq: 5,
        prev_last_seq: 6,
        wall_ns: 7,
        mono_ns: 8,
        boot_id: [9; 16],
        mount_id: 10,
    }
}

fn frames(parts: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let mut all = parts.clone();
    all.push(parts.concat());
    all
}

fn of_agent() -> Vec<Vec<u8>> {
    let group = Uuid::from_u128(1);
    let identity =
        Identity { format: 1, group, name: "shop".into(), unit_bytes: 1 << 20, encryption: None };
    let name = FileName::Merged(1, 4);
    let ops = [
        Op::Begin(Box::new(header())),
        Op::Bytes { unit: 3, at: 4096, bytes: b"some bytes".to_vec() },
        Op::Seal { unit: 3, end: 8192, index_crc: 7 },
        Op::Put { name, file_bytes: 4096, at: 0, bytes: b"a piece".to_vec(), len: 4096 },
        Op::PutEnd { name, index_crc: 8 },
        Op::Release(vec![FileName::Unit(2), name]),
        Op::Sync { token: 1, watermark: 2, wall_ns: 3 },
    ];
    let mut packer = Packer::default();
    let frames_of = ops.into_iter().filter_map(|op| frame_of(op, &mut packer).ok());
    let mut parts: Vec<Vec<u8>> = frames_of.collect();
    let data = zstd_of(&[7; 3000]);
    let packed = m::Bytes { unit: 1, at: 4096, raw_bytes: 3000, data };
    let redeem = m::Redeem {
        id: vec![1; 8],
        secret: vec![2; 32],
        public_key: vec![4; 65],
        proof: vec![5; 70],
    };
    let hello = convert::hello_of(&Hello { identity, epoch: 9 });
    parts.extend(encode(Kind::Bytes, &packed));
    parts.extend(encode(Kind::Hello, &hello));
    parts.extend(encode(Kind::Redeem, &redeem));
    frames(parts)
}

/// A packer on a slow link compresses.
fn zstd_of(bytes: &[u8]) -> Vec<u8> {
    let mut packer = Packer::default();
    packer.set_link(Some(1));
    packer.pack(bytes.to_vec()).data
}

fn of_site() -> Vec<Vec<u8>> {
    let held = |name, extent| Held { name, salt: [3; 16], extent, epoch: 2, lowest: 9 };
    let inventory = Inventory {
        files: vec![
            held(FileName::Merged(1, 4), Extent::Whole),
            held(FileName::Unit(5), Extent::Open(8192)),
            held(FileName::Unit(6), Extent::Part(4096)),
        ],
        epochs: vec![HeldEpoch { epoch: 1, id: None }, HeldEpoch { epoch: 2, id: Some([7; 16]) }],
        watermark: 77,
        edge: 5,
    };
    let ack = Ack { token: 1, watermark: 77, whole: vec![FileName::Unit(5)] };
    let mut parts = Vec::new();
    parts.extend(encode(Kind::Welcome, &m::Welcome { version: 1, ..m::Welcome::default() }));
    parts.extend(convert::parts_of(&inventory).iter().flat_map(|p| encode(Kind::Held, p)));
    parts.extend(convert::acks_of(&ack).iter().flat_map(|a| encode(Kind::Ack, a)));
    parts.extend(encode(Kind::Credit, &m::Credit { fresh_bytes: 9, background_bytes: 8 }));
    parts.extend(encode(Kind::Failed, &m::Failed { cause: 3, text: "why".into() }));
    frames(parts)
}

/// All frames that a stream of these bytes has, as one end takes them.
fn read(input: &[u8], accepts: Accepts) -> Vec<(Kind, Vec<u8>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return Vec::new() };
    runtime.block_on(async {
        let mut reader = Reader::new(input, WAIT_MAX);
        let mut all = Vec::new();
        while let Ok(Some(frame)) = reader.next(accepts).await {
            all.push(frame);
        }
        all
    })
}

/// What a site takes for an op is within its limits, and is the same op when it is sent on.
fn to_site(input: &[u8]) {
    for accepts in [Accepts::First, Accepts::Redeem, Accepts::Ops] {
        for (kind, message) in read(input, accepts) {
            assert!(message.len() <= kind.bytes_max());
            match kind {
                Kind::Hello => {
                    let hello = decode::<m::Hello>(&message).and_then(convert::read_hello);
                    if let Ok((hello, version)) = hello {
                        assert!((1..=m::VERSION).contains(&version));
                        let again = convert::read_hello(convert::hello_of(&hello));
                        assert!(again.is_ok_and(|(again, _)| again == hello));
                    }
                }
                Kind::Redeem => drop(decode::<m::Redeem>(&message)),
                Kind::Renew => drop(decode::<m::Renew>(&message)),
                kind => op(kind, &message),
            }
        }
    }
}

fn op(kind: Kind, message: &[u8]) {
    let Ok(op) = read_op(kind, message) else { return };
    if let Op::Bytes { bytes, .. } | Op::Put { bytes, .. } = &op {
        assert!(bytes.len() <= OP_BYTES_MAX);
    }
    let mut packer = Packer::default();
    let again = frame_of(op.clone(), &mut packer).ok();
    let again = again.and_then(|frame| read_op(kind, &frame[HEAD_BYTES..]).ok());
    assert_eq!(again, Some(op), "not the op that was read");
}

/// What an agent takes for an inventory or an ack is within its limits.
fn to_agent(input: &[u8]) {
    let mut inventory = Inventory::default();
    for (kind, message) in read(input, Accepts::Answers) {
        match kind {
            Kind::Held => {
                let part = decode::<m::Held>(&message);
                let _ = part.and_then(|part| convert::take_part(&mut inventory, part));
            }
            Kind::Ack => {
                if let Ok(ack) = decode::<m::Ack>(&message).and_then(convert::read_ack) {
                    assert!(ack.whole.len() <= convert::NAMES_MAX);
                }
            }
            Kind::Failed => {
                let failed = decode::<m::Failed>(&message).map(convert::read_failed);
                let text = failed.map(|f| f.to_string()).unwrap_or_default();
                assert!(!text.contains(|c: char| c.is_control()));
            }
            Kind::Credit => drop(decode::<m::Credit>(&message)),
            Kind::Issued => drop(decode::<m::Issued>(&message)),
            _ => {}
        }
    }
    assert!(inventory.files.len() <= convert::INVENTORY_FILES_MAX);
}

fn lines() -> Vec<Vec<u8>> {
    let invitation =
        Invitation { fingerprint: [1; 32], id: [2; 8], secret: zeroize::Zeroizing::new([3; 32]) };
    vec![invitation.line().as_bytes().to_vec()]
}

/// A line that is taken is the one that would be printed.
fn line(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(invitation) = text.parse::<Invitation>() {
        assert_eq!(*invitation.line(), text);
    }
    let _ = format!("tls://host:1#{text}").parse::<afterimage_link::SiteUrl>();
}
