//! How a stream is cut into pieces changes nothing, and one that is cut short is an error.

use afterimage_migration::{Kind, Limits, Parts, Reader};
use proptest::prelude::*;

use crate::made::{Calls, Made, read};
use crate::rig::Vm;

/// Reads a stream cut at the given places.
fn read_at(stream: &[u8], cuts: &[usize]) -> (Calls, Parts) {
    let (mut reader, mut calls) = (Reader::new(Limits::default()), Calls::default());
    let mut from = 0;
    for &cut in cuts.iter().chain([&stream.len()]) {
        reader.feed(&stream[from..cut], &mut calls).unwrap();
        from = cut;
    }
    assert_eq!(reader.position_bytes(), stream.len() as u64);
    (calls, reader.finish().unwrap())
}

fn cuts(length: usize, count: usize) -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(0..=length, 0..count).prop_map(|mut cuts| {
        cuts.sort_unstable();
        cuts
    })
}

proptest! {
    #[test]
    fn any_split_of_a_made_stream_says_the_same(cuts in cuts(Made::whole().bytes.len(), 64)) {
        let stream = Made::whole().bytes;
        prop_assert_eq!(read_at(&stream, &cuts), read(&stream, usize::MAX).unwrap());
    }
}

#[test]
fn any_split_of_a_real_stream_says_the_same() {
    let mut vm = Vm::boot("q35", &[]);
    vm.stop();
    let stream = vm.stream();
    drop(vm);
    let whole = read(&stream, usize::MAX).unwrap();
    for piece in [1, 7, 4095, 4096, 4104, 65_537] {
        assert!(read(&stream, piece).unwrap() == whole, "pieces of {piece}");
    }
    let config = ProptestConfig::with_cases(24);
    proptest!(config, |(cuts in cuts(stream.len(), 4000))| {
        prop_assert!(read_at(&stream, &cuts) == whole);
    });
    // The device state has no lengths; its end is told all the same. Every cut is tried near what
    // looks like an end, some elsewhere.
    let tail = whole.1.tail.len();
    let near = (stream.len() - 3000)..stream.len();
    for cut in near.chain((stream.len() - tail..stream.len()).step_by(97)) {
        let error = read(&stream[..cut], 1 << 20).unwrap_err();
        assert_eq!(error.kind(), Kind::Cut, "{cut}: {error}");
    }
}

#[test]
fn a_stream_cut_short_anywhere_is_an_error() {
    let stream = Made::whole().bytes;
    for cut in 0..stream.len() {
        for piece in [usize::MAX, 1000] {
            let error = read(&stream[..cut], piece).unwrap_err();
            assert_eq!(error.kind(), Kind::Cut, "{cut}: {error}");
        }
    }
    let mut longer = stream;
    longer.push(0);
    assert_eq!(read(&longer, usize::MAX).unwrap_err().kind(), Kind::Cut);
}
