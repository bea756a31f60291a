//! Ends that go: half-open links, cut ones, newer ones, a site that stops.

use super::bed::{Bed, GROUP, hello, until};
use super::proxy::Proxy;
use afterimage_journal::wire::{Op, Sink, SinkError};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(30);
/// Silence that ends a link, and what a busy machine may add.
const NOTICED: Duration = Duration::from_secs(14);

fn ended(bed: &Bed) -> Option<String> {
    bed.notes(|n| n.links.last().and_then(|l| l.1.clone()))
}

fn sync(token: u64) -> Op {
    Op::Sync { token, watermark: token, wall_ns: 1 }
}

/// Waits for the error that ends a link.
fn error_of(sink: &mut impl Sink) -> SinkError {
    let begin = Instant::now();
    loop {
        match sink.ack(LIMIT) {
            Err(error) => return error,
            Ok(_) => assert!(begin.elapsed() < LIMIT, "the link stands"),
        }
    }
}

#[test]
fn a_half_open_link_is_noticed_at_both_ends() {
    let bed = Bed::new();
    bed.enroll(GROUP, "a");
    let proxy = Proxy::new(bed.addr);
    let mut sink = bed.sink_at(proxy.addr, "a");
    sink.open(&hello(GROUP, 1)).unwrap();
    // An idle link stands: both ends say that they are there.
    std::thread::sleep(Duration::from_secs(12));
    sink.apply(sync(1)).unwrap();
    assert_eq!(sink.ack(LIMIT).unwrap().unwrap().token, 1);
    proxy.set_silent();
    let begin = Instant::now();
    assert!(matches!(error_of(&mut sink), SinkError::Away(_)));
    assert!(begin.elapsed() < NOTICED, "{:?}", begin.elapsed());
    until("the site notices", NOTICED, || ended(&bed).is_some());
    assert!(begin.elapsed() < NOTICED, "{:?}", begin.elapsed());
    assert!(ended(&bed).unwrap().contains("nothing came"), "{:?}", ended(&bed));
    // Around the silent link there is another way, at once.
    let mut again = bed.sink("a");
    again.open(&hello(GROUP, 1)).unwrap();
}

#[test]
fn a_newer_link_takes_over_from_a_half_open_one_at_once() {
    let bed = Bed::new();
    bed.enroll(GROUP, "a");
    let proxy = Proxy::new(bed.addr);
    let mut old = bed.sink_at(proxy.addr, "a");
    old.open(&hello(GROUP, 3)).unwrap();
    proxy.set_silent();
    let begin = Instant::now();
    let mut new = bed.sink("a");
    new.open(&hello(GROUP, 3)).unwrap();
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    new.apply(sync(9)).unwrap();
    assert_eq!(new.ack(LIMIT).unwrap().unwrap().token, 9);
    // One with a lower epoch does not: not even while it is there.
    let stale = bed.sink("a").open(&hello(GROUP, 2)).unwrap_err();
    assert!(matches!(stale, SinkError::Refused(_)), "{stale}");
    new.apply(sync(10)).unwrap();
    assert_eq!(new.ack(LIMIT).unwrap().unwrap().token, 10);
    drop(new);
    until("it is gone", LIMIT, || ended(&bed).is_some());
    let stale = bed.sink("a").open(&hello(GROUP, 2)).unwrap_err();
    assert!(matches!(stale, SinkError::Refused(_)), "{stale}");
}

#[test]
fn a_cut_link_is_told_at_once_and_opened_again() {
    let bed = Bed::new();
    bed.enroll(GROUP, "a");
    let proxy = Proxy::new(bed.addr);
    let mut sink = bed.sink_at(proxy.addr, "a");
    for round in 1..4 {
        sink.open(&hello(GROUP, 1)).unwrap();
        sink.apply(sync(round)).unwrap();
        while sink.ack(LIMIT).unwrap().is_none_or(|a| a.token < round) {}
        proxy.cut();
        let begin = Instant::now();
        assert!(matches!(error_of(&mut sink), SinkError::Away(_)));
        assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
    }
    assert_eq!(bed.notes(|n| n.hellos.len()), 3);
}

#[test]
fn a_site_that_is_not_there_is_away_and_says_so_soon() {
    let bed = Bed::new();
    bed.enroll(GROUP, "a");
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let begin = Instant::now();
    let error = bed.sink_at(nobody, "a").open(&hello(GROUP, 1)).unwrap_err();
    assert!(matches!(error, SinkError::Away(_)), "{error:?}");
    assert!(begin.elapsed() < Duration::from_secs(2));
    // One that takes the connection and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let error = bed.sink_at(silent.local_addr().unwrap(), "a").open(&hello(GROUP, 1)).unwrap_err();
    assert!(matches!(error, SinkError::Away(_)), "{error:?}");
    assert!(begin.elapsed() < Duration::from_secs(14), "{:?}", begin.elapsed());
}

#[test]
fn a_site_that_stops_says_so_and_ends_soon() {
    let mut bed = Some(Bed::new());
    let (mut sink, addr) = (bed.as_ref().unwrap().open(), bed.as_ref().unwrap().addr);
    let begin = Instant::now();
    let stopping = std::thread::spawn({
        let bed = bed.take();
        move || drop(bed)
    });
    let error = error_of(&mut sink);
    assert!(matches!(&error, SinkError::Away(t) if t.contains("stopped")), "{error:?}");
    stopping.join().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(6), "{:?}", begin.elapsed());
    assert!(TcpStream::connect(addr).is_err());
}
