//! What is not understood is refused by name, at its byte.

use afterimage_migration::{Fault, Kind, Limits, Reader};

use crate::made::{Calls, Made, RAM, fault, read};

/// What a stream is refused for, as a person sees it; the fault begins where `before` ended.
#[track_caller]
fn says(before: &Made, stream: &Made, kind: Kind, words: &[&str]) {
    let (at, fault) = fault(&stream.bytes);
    let text = fault.to_string();
    assert_eq!(fault.kind(), kind, "{text}");
    assert_eq!(at, before.bytes.len() as u64, "{text}");
    for word in words {
        assert!(text.contains(word), "{text:?} does not say {word:?}");
    }
}

#[test]
fn a_whole_stream_is_taken() {
    let (calls, parts) = read(&Made::whole().bytes, usize::MAX).unwrap();
    let seen: Vec<_> = calls.pages.iter().map(|p| (p.0, p.1, p.2.as_ref().map(|d| d[0]))).collect();
    assert_eq!(seen, [(0, 0, Some(0x11)), (0, 4096, Some(0x22)), (1, 0, None)]);
    assert!(parts.tail.starts_with(&[4]) && parts.tail.ends_with(b"{\"size\":42}"));
    assert!(parts.head.ends_with(&[0x7e, 0, 0, 0, RAM as u8]));
}

#[test]
fn footers_configuration_and_an_end_section_may_be_absent() {
    let bare = Made { footers: false, ..Made::begin() }.start("ram", 0, 4).list(&[("a", 1)]);
    let bare = bare.section(2).zero("a", 0).eos().devices();
    let (calls, parts) = read(&bare.bytes, usize::MAX).unwrap();
    assert_eq!(calls.pages.len(), 1);
    let head = afterimage_migration::Head::parse(&parts.head).unwrap();
    assert_eq!((head.machine, head.section, head.has_footers), (None, RAM, false));
}

#[test]
fn known_subsections_and_the_switchover_are_passed_over() {
    let made = Made::begin().configuration("pc").subsection("configuration/target-page-bits");
    let made = made.number(12).subsection("configuration/uuid").raw(&[7; 16]);
    let made = made.subsection("configuration/capabilities").number(0);
    let made = made.start("ram", 0, 4).list(&[("a", 1)]).raw(&[8, 0, 11, 0, 0]);
    let made = made.section(3).zero("a", 0).eos().raw(&[8, 0, 11, 0, 0]).devices();
    let (_, parts) = read(&made.bytes, 1).unwrap();
    assert_eq!(parts.tail[0], 4);
}

#[test]
fn ways_of_sending_memory_are_refused_by_name() {
    let before = Made::listed().section(2);
    for (flag, name) in [(0x40, "xbzrle"), (0x80, "rdma"), (0x100, "compress"), (0x200, "multifd")]
    {
        for more in [0, 0x20] {
            let stream = before.clone().word(flag | more);
            says(&before, &stream, Kind::Unsupported, &[name]);
        }
    }
    let stream = before.clone().word(4096 | 4);
    says(&before, &stream, Kind::Damaged, &["list of RAM blocks changed"]);
    for word in [0, 0x20, 0x0a, 0x18, 0x30, 0x1010, 0x400, 1] {
        says(&before, &before.clone().word(word), Kind::Damaged, &["flags mean nothing"]);
    }
}

#[test]
fn commands_are_refused_by_name() {
    let head = Made::begin().configuration("pc");
    for before in [head, Made::listed(), Made::filled()] {
        for (number, name) in [(1, "return-path"), (3, "postcopy-ram"), (8, "x-colo"), (99, "99")] {
            let stream = before.clone().raw(&[8, 0, number, 0, 0]);
            says(&before, &stream, Kind::Unsupported, &[name]);
        }
    }
}

#[test]
fn other_live_sections_and_early_devices_are_refused_by_name() {
    let head = Made::begin().configuration("pc");
    for before in [head, Made::listed(), Made::filled()] {
        for (name, remedy) in [("dirty-bitmap", "dirty-bitmaps"), ("0000:00/vfio", "passed")] {
            let stream = before.clone().start(name, 0, 1);
            says(&before, &stream, Kind::Unsupported, &[name, remedy]);
        }
    }
    for before in [Made::begin().configuration("pc"), Made::listed()] {
        let stream = before.clone().device("virtio-mem-early");
        says(&before, &stream, Kind::Unsupported, &["virtio-mem-early"]);
    }
    let before = Made::filled();
    says(&before, &before.clone().start("ram", 0, 4), Kind::Damaged, &["changed"]);
}

#[test]
fn heads_that_are_none_are_refused() {
    let nothing = Made { bytes: vec![], footers: true };
    let other = nothing.clone().raw(b"\x7fELF\0\0\0\x03");
    says(&nothing, &other, Kind::Damaged, &["no migration stream"]);
    let old = nothing.clone().raw(b"QEVM\0\0\0\x02");
    says(&nothing, &old, Kind::Unsupported, &["version 2"]);
    let before = Made::begin().configuration("pc");
    let again = before.clone().configuration("pc");
    says(&before, &again, Kind::Damaged, &["type 0x07"]);
    for (name, body, word) in [
        ("configuration/target-page-bits", &[0, 0, 0, 16][..], "2^16"),
        ("configuration/capabilities", b"\0\0\0\x01\x0fx-ignore-shared", "x-ignore-shared"),
        ("configuration/next", b"", "configuration/next"),
    ] {
        let stream = before.clone().subsection(name).raw(body);
        says(&before, &stream, Kind::Unsupported, &[word]);
    }
    for (instance, version) in [(1, 4), (0, 3), (0, 5)] {
        let stream = before.clone().start("ram", instance, version);
        says(&before, &stream, Kind::Unsupported, &["section ram"]);
    }
}

#[test]
fn lists_of_blocks_that_make_no_sense_are_refused() {
    let before = Made::begin().start("ram", 0, 4);
    says(&before, &before.clone().word(0x10), Kind::Damaged, &["word 0x10"]);
    let head = before.clone().word(8192 | 4);
    for (id, bytes, word) in [("a", 4095, "multiple"), ("a", 0, "multiple"), ("", 4096, "its id")] {
        says(&head, &head.clone().name(id).word(bytes), Kind::Damaged, &[word]);
    }
    says(&head, &head.clone().name("a").word(12288), Kind::Damaged, &["total"]);
    let before = head.name("a").word(4096);
    says(&before, &before.clone().name("a").word(4096), Kind::Damaged, &["twice"]);
    let not_text = before.clone().raw(&[2, 0xff, 0xfe]);
    says(&before, &not_text, Kind::Damaged, &["no text"]);
}

#[test]
fn pages_that_are_nowhere_are_refused() {
    let before = Made::listed().section(2);
    says(&before, &before.clone().page("c", 0, 1), Kind::Damaged, &["\"c\""]);
    says(&before, &before.clone().page("", 0, 1), Kind::Damaged, &["there is none"]);
    says(&before, &before.clone().page("a", 2, 1), Kind::Damaged, &["0x2000"]);
    says(&before, &before.clone().zero("b", u64::MAX >> 12), Kind::Damaged, &["\"b\""]);
    let filled = before.clone().word(2).name("a").raw(&[9]);
    says(&before, &filled, Kind::Damaged, &["0x09"]);
}

#[test]
fn sections_that_do_not_fit_are_refused() {
    let before = Made::listed();
    says(&before, &before.clone().raw(&[2]).number(RAM + 1), Kind::Damaged, &["section 6"]);
    says(&before, &before.clone().raw(&[6]), Kind::Damaged, &["0x06"]);
    says(&before, &before.clone().raw(&[0]), Kind::Damaged, &["0x00"]);
    let ended = Made::filled();
    says(&ended, &ended.clone().section(2), Kind::Damaged, &["0x02"]);
    let before = Made::listed().section(2).word(0x10);
    says(&before, &before.clone().raw(&[0x7e]).number(RAM + 1), Kind::Damaged, &["footer"]);
    says(&before, &before.clone().section(3), Kind::Damaged, &["footer"]);
    let before = Made { footers: false, ..Made::begin() }.start("ram", 0, 4).list(&[("a", 1)]);
    let before = before.section(2).zero("a", 0).word(0x10);
    says(&before, &before.clone().raw(&[0x7e]).number(RAM), Kind::Damaged, &["footer"]);
}

#[test]
fn memory_that_is_not_whole_is_refused() {
    let before = Made::listed().section(3).page("a", 0, 1).zero("b", 0).eos();
    says(&before, &before.clone().devices(), Kind::Unsupported, &["2 pages", "of 3", "multifd"]);
}

#[test]
fn limits_are_refused_by_name() {
    let stream = Made::whole().bytes;
    let tight = Limits { tail_bytes_max: 64, ..Limits::default() };
    let head = Limits { head_bytes_max: 20, ..Limits::default() };
    let few = Limits { block_count_max: 1, ..Limits::default() };
    let name = Limits { name_bytes_max: 10, ..Limits::default() };
    for (limits, word) in
        [(tight, "device state"), (head, "head"), (few, "RAM blocks"), (name, "machine")]
    {
        for piece in [1, usize::MAX] {
            let mut reader = Reader::new(limits);
            let mut fed = stream.chunks(piece).map(|p| reader.feed(p, &mut Calls::default()));
            let error = fed.find_map(Result::err).unwrap();
            assert_eq!(error.kind(), Kind::TooLarge);
            assert!(error.to_string().contains(word), "{error}");
            assert!(reader.finish().is_err(), "a reader that failed has parts");
        }
    }
}

#[test]
fn a_reader_that_failed_takes_nothing_more() {
    let (mut reader, mut calls) = (Reader::new(Limits::default()), Calls::default());
    assert!(reader.feed(b"QEVX\0\0\0\x03", &mut calls).is_err());
    let error = reader.feed(&Made::whole().bytes, &mut calls).unwrap_err();
    assert!(error.to_string().contains("failed before"));
    assert_eq!(calls, Calls::default());
    assert_eq!(fault(b"").1, Fault::Cut { within: "its first 8 bytes" });
}

#[test]
fn a_sink_that_fails_ends_it_with_its_own_error() {
    struct Full(u32);
    impl afterimage_migration::Sink for Full {
        type Error = &'static str;
        fn blocks(&mut self, _: &[afterimage_migration::Block]) -> Result<(), &'static str> {
            Ok(())
        }
        fn page(&mut self, _: usize, _: u64, _: &[u8]) -> Result<(), &'static str> {
            self.0 += 1;
            if self.0 == 2 { Err("no space") } else { Ok(()) }
        }
        fn zero(&mut self, _: usize, _: u64) -> Result<(), &'static str> {
            panic!("called after it failed")
        }
    }
    let mut reader = Reader::new(Limits::default());
    let error = reader.feed(&Made::whole().bytes, &mut Full(0)).unwrap_err();
    let at = Made::listed().section(2).page("a", 0, 1).bytes.len() as u64;
    assert_eq!(error, afterimage_migration::Error::Sink { at, error: "no space" });
    assert_eq!(error.kind(), Kind::Sink);
}
