//! What is encoded is decoded again, and nothing that a peer sends makes a decoder panic.

use afterimage_nbd::proto::Mode;
use afterimage_nbd::proto::option::{ContextQuery, InfoQuery, OptionHeader, OptionReply};
use afterimage_nbd::proto::reply::{Chunk, Reply};
use afterimage_nbd::proto::request::Request;
use proptest::prelude::*;

fn any_mode() -> impl Strategy<Value = Mode> {
    prop_oneof![Just(Mode::Simple), Just(Mode::Structured), Just(Mode::Extended)]
}

fn name() -> impl Strategy<Value = String> {
    "[a-z:é/-]{0,40}"
}

proptest! {
    #[test]
    fn a_request_survives_its_encoding(
        mode in any_mode(), flags: u16, command: u16, cookie: u64, offset: u64, length: u64,
        cut in 0_usize..28,
    ) {
        let length = if mode == Mode::Extended { length } else { length & 0xffff_ffff };
        let request = Request { flags, command, cookie, offset, length };
        let mut out = [0; 32];
        let bytes = request.encode(mode, &mut out);
        prop_assert_eq!(Request::decode(mode, &out[..bytes]), Ok(Some(request)));
        prop_assert_eq!(Request::decode(mode, &out[..cut]), Ok(None));
    }

    #[test]
    fn a_reply_survives_its_encoding(
        extended: bool, flags: u16, kind: u16, cookie: u64, offset: u64, length: u64,
        error: u32, cut in 0_usize..20,
    ) {
        let mode = if extended { Mode::Extended } else { Mode::Structured };
        let (offset, length) = if extended { (offset, length) } else { (0, length & 0xffff_ffff) };
        let chunk = Reply::Chunk(Chunk { flags, kind, cookie, offset, length });
        let mut out = [0; 32];
        let bytes = chunk.encode(mode, &mut out);
        prop_assert_eq!(Reply::decode(mode, &out[..bytes]), Ok(Some((chunk, bytes))));
        prop_assert_eq!(Reply::decode(mode, &out[..cut]), Ok(None));
        let simple = Reply::Simple { error, cookie };
        let bytes = simple.encode(Mode::Simple, &mut out);
        prop_assert_eq!(Reply::decode(Mode::Simple, &out[..bytes]), Ok(Some((simple, bytes))));
        prop_assert_eq!(Reply::decode(Mode::Extended, &out[..bytes]).is_err(), true);
    }

    #[test]
    fn option_headers_survive_their_encoding(option: u32, kind: u32, length: u32) {
        let header = OptionHeader { option, length };
        prop_assert_eq!(OptionHeader::decode(&header.encode()), Ok(Some(header)));
        let reply = OptionReply { option, kind, length };
        prop_assert_eq!(OptionReply::decode(&reply.encode()), Ok(Some(reply)));
    }

    #[test]
    fn option_data_survives_its_encoding_and_no_shorter_or_longer_one_is_taken(
        name in name(), wanted in prop::collection::vec(any::<u16>(), 0..6),
        queries in prop::collection::vec(name(), 0..6), cut: prop::sample::Index,
    ) {
        let info = InfoQuery { name: &name, wanted };
        let mut bytes = info.encode();
        prop_assert_eq!(InfoQuery::decode(&bytes), Some(info.clone()));
        prop_assert_eq!(InfoQuery::decode(&bytes[..cut.index(bytes.len())]), None);
        bytes.push(0);
        prop_assert_eq!(InfoQuery::decode(&bytes), None);
        let contexts =
            ContextQuery { name: &name, queries: queries.iter().map(String::as_str).collect() };
        let mut bytes = contexts.encode();
        prop_assert_eq!(ContextQuery::decode(&bytes), Some(contexts.clone()));
        prop_assert_eq!(ContextQuery::decode(&bytes[..cut.index(bytes.len())]), None);
        bytes.push(0);
        prop_assert_eq!(ContextQuery::decode(&bytes), None);
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..80), mode in any_mode(),
    ) {
        let _ = Request::decode(mode, &bytes);
        let _ = Reply::decode(mode, &bytes);
        let _ = OptionHeader::decode(&bytes);
        let _ = OptionReply::decode(&bytes);
        let _ = InfoQuery::decode(&bytes);
        let _ = ContextQuery::decode(&bytes);
    }
}

#[test]
fn a_count_of_queries_that_the_data_cannot_hold_is_refused() {
    let mut data = vec![0; 4];
    data.extend_from_slice(&u32::MAX.to_be_bytes());
    data.extend_from_slice(&[0; 32]);
    assert_eq!(ContextQuery::decode(&data), None);
}
