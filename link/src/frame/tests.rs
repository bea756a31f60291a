use super::convert::{self, frame_of, read_op};
use super::pack::{Measured, Packer, pays};
use super::{Accepts, HEAD_BYTES, Kind};
use afterimage_journal::format::unit_header::UnitHeader;
use afterimage_journal::pool::FileName;
use afterimage_journal::wire::{OP_BYTES_MAX, Op};
use proptest::prelude::*;

fn names() -> impl Strategy<Value = FileName> {
    let merged = (1..u64::MAX, any::<u64>());
    prop_oneof![
        (1..u64::MAX).prop_map(FileName::Unit),
        merged.prop_map(|(a, b)| FileName::Merged(a, b.max(a))),
    ]
}

fn headers() -> impl Strategy<Value = UnitHeader> {
    any::<([u8; 16], [u8; 16], [u64; 8], u32, [u8; 16])>().prop_map(
        |(group, salt, n, flags, id)| UnitHeader {
            group,
            salt,
            number: n[0],
            unit_bytes: n[1],
            epoch: n[2],
            flags,
            after_seq: n[3],
            prev_last_seq: n[4],
            wall_ns: n[5],
            mono_ns: n[6],
            boot_id: id,
            mount_id: n[7],
        },
    )
}

fn ops() -> impl Strategy<Value = Op> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..2000);
    let at = || 0..1u64 << 40;
    prop_oneof![
        headers().prop_map(|h| Op::Begin(Box::new(h))),
        (any::<u64>(), at(), bytes()).prop_map(|(unit, at, bytes)| Op::Bytes { unit, at, bytes }),
        any::<(u64, u64, u32)>().prop_map(|(unit, end, index_crc)| Op::Seal {
            unit,
            end,
            index_crc
        }),
        any::<(u64, u64, u64)>().prop_map(|(token, watermark, wall_ns)| Op::Sync {
            token,
            watermark,
            wall_ns
        }),
        (names(), at(), bytes(), at()).prop_map(|(name, at, bytes, more)| {
            let len = bytes.len() as u64 + more;
            Op::Put { name, file_bytes: at + len + 1, at, bytes, len }
        }),
        (names(), any::<u32>()).prop_map(|(name, index_crc)| Op::PutEnd { name, index_crc }),
        prop::collection::vec(names(), 0..50).prop_map(Op::Release),
    ]
}

/// The frame's kind and message, as the site takes them in.
fn judged(frame: &[u8]) -> (Kind, &[u8]) {
    let (head, message) = frame.split_at(HEAD_BYTES);
    let (kind, length) = Accepts::Ops.judge(head.try_into().unwrap()).unwrap();
    assert_eq!(length, message.len());
    (kind.unwrap(), message)
}

proptest! {
    #[test]
    fn an_op_is_the_same_behind_its_frame(op in ops(), link in prop::option::of(1..1u64 << 24)) {
        let mut packer = Packer::default();
        packer.set_link(link);
        let frame = frame_of(op.clone(), &mut packer).unwrap();
        let (kind, message) = judged(&frame);
        prop_assert_eq!(read_op(kind, message).unwrap(), op);
    }

    #[test]
    fn bytes_that_are_no_op_are_refused_without_harm(
        kind in 0..30u16,
        message in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        if let Some(kind) = Kind::of(kind) {
            let _ = read_op(kind, &message);
        }
    }
}

#[test]
fn the_largest_op_fits_and_one_byte_more_does_not() {
    let mut packer = Packer::default();
    let op = |len| Op::Bytes { unit: u64::MAX, at: u64::MAX, bytes: vec![1; len] };
    let frame = frame_of(op(OP_BYTES_MAX), &mut packer).unwrap();
    judged(&frame);
    assert!(frame_of(op(OP_BYTES_MAX + 1100), &mut packer).is_err());
}

#[test]
fn each_end_takes_only_what_it_may_be_told() {
    use Accepts as A;
    for kind in Kind::ALL {
        let mut head = [0; HEAD_BYTES];
        head[4..].copy_from_slice(&(kind as u16).to_le_bytes());
        let taken = [A::First, A::Redeem, A::Ops, A::Answers].map(|a| a.judge(&head).is_ok());
        let expected = match kind {
            Kind::Hello | Kind::Renew => [true, false, false, false],
            Kind::Redeem => [false, true, false, false],
            Kind::Begin | Kind::Bytes | Kind::Seal | Kind::Sync => [false, false, true, false],
            Kind::Put | Kind::PutEnd | Kind::Release => [false, false, true, false],
            Kind::Welcome | Kind::Held | Kind::Failed => [false, false, false, true],
            Kind::Issued | Kind::Ack | Kind::Credit => [false, false, false, true],
            Kind::Ping => [true, false, true, true],
        };
        assert_eq!(taken, expected, "{kind:?}");
    }
}

#[test]
fn compression_is_used_where_it_makes_the_link_faster() {
    let zstd_bytes_per_s = 240 << 20;
    let judge = |link_mib: Option<u64>, ratio_permille| {
        let link_bytes_per_s = link_mib.map(|m| m << 20);
        pays(&Measured { link_bytes_per_s, zstd_bytes_per_s, ratio_permille })
    };
    assert!(!judge(None, 100), "nothing waits for the link");
    assert!(judge(Some(10), 500));
    assert!(!judge(Some(10), 950), "it saves too little");
    assert!(!judge(Some(10), 1100));
    assert!(judge(Some(200), 300), "zstd is the faster one, just");
    assert!(!judge(Some(230), 300));
    assert!(!judge(Some(1000), 10));
}

#[test]
fn a_hello_needs_a_version_a_group_and_a_name() {
    let whole = convert::hello_of(&afterimage_journal::wire::Hello {
        identity: afterimage_journal::layout::Identity {
            format: 1,
            group: uuid::Uuid::from_u128(3),
            name: "shop".into(),
            unit_bytes: 1 << 20,
            encryption: None,
        },
        epoch: 4,
    });
    assert!(convert::read_hello(whole.clone()).is_ok());
    type Spoil = fn(&mut super::message::Hello);
    let spoils: [Spoil; 4] = [
        |h| h.version = 0,
        |h| h.group.truncate(15),
        |h| h.name = "../other".into(),
        |h| h.name.clear(),
    ];
    for spoil in spoils {
        let mut hello = whole.clone();
        spoil(&mut hello);
        assert!(convert::read_hello(hello.clone()).is_err(), "{hello:?}");
    }
}
