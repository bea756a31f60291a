//! What each place has to do.

use super::places::Place;
use super::source::{Source, images, send, send_until_there};
use afterimage_journal::feed::Feed;
use afterimage_journal::wire::{Ack, Extent, Hello, Inventory, Op, Sink, SinkError};
use afterimage_journal::{Seq, layout};
use std::time::{Duration, Instant};

/// How long a sink is asked for an answer.
const SOON: Duration = Duration::from_secs(30);

/// What is there is what the source has, at each of these positions and at the newest.
#[track_caller]
fn same(place: &dyn Place, source: &Source, positions: &[Seq]) {
    let moments = positions.iter().map(|seq| format!("seq:{seq}"));
    for at in moments.chain(["latest".into()]) {
        let ours = images(&source.cli(), &at).unwrap();
        let theirs = images(&place.cli(), &at).unwrap_or_else(|e| panic!("{at}: {e}"));
        assert!(ours == theirs, "{at} differs");
    }
    place.cli().ok(&["verify", "shop"]);
}

/// What a sink says of an op, and of a sync behind it.
fn answers(sink: &mut dyn Sink, op: Op) -> Result<(), SinkError> {
    // Files have an order of their own.
    let mut file = if let Op::PutEnd { name, .. } = &op { Some(*name) } else { None };
    sink.apply(op)?;
    sink.apply(Op::Sync { token: u64::MAX, watermark: 0, wall_ns: 0 })?;
    let mut is_synced = false;
    while !is_synced || file.is_some() {
        let Some(ack) = sink.ack(SOON)? else { panic!("no answer in {SOON:?}") };
        is_synced |= ack.token == u64::MAX;
        file = file.filter(|name| !ack.whole.contains(name));
    }
    Ok(())
}

/// What was sent is there, after each of several goes, at every moment.
pub fn has_what_it_acknowledged_at_every_moment(place: &mut dyn Place) {
    let mut source = Source::new();
    let mut sink = place.sink(&source);
    let (mut feed, mut acked) = (Feed::new(&source.journal), Ack::default());
    let mut positions = Vec::new();
    for round in 0..3 {
        positions.push(source.write(300));
        positions.push(source.write(100 * round));
        send_until_there(&mut feed, &mut *sink, &mut acked);
        assert!(acked.watermark >= *positions.last().unwrap(), "{acked:?}");
        same(place, &source, &positions);
    }
}

/// Hands each op on twice.
struct Twice(Box<dyn Sink>);

impl Sink for Twice {
    fn open(&mut self, hello: &Hello) -> Result<Inventory, SinkError> {
        self.0.open(hello)?;
        self.0.open(hello)
    }

    fn apply(&mut self, op: Op) -> Result<(), SinkError> {
        self.0.apply(op.clone())?;
        self.0.apply(op)
    }

    fn ack(&mut self, wait: Duration) -> Result<Option<Ack>, SinkError> {
        self.0.ack(wait)
    }

    fn mirrors(&self) -> bool {
        self.0.mirrors()
    }
}

/// Each op comes twice.
pub fn takes_each_op_twice_as_once(place: &mut dyn Place) {
    let mut source = Source::new();
    let mut sink = Twice(place.sink(&source));
    let (mut feed, mut acked) = (Feed::new(&source.journal), Ack::default());
    let mut positions = Vec::new();
    for _ in 0..2 {
        positions.push(source.write(400));
        send_until_there(&mut feed, &mut sink, &mut acked);
    }
    same(place, &source, &positions);
}

/// Breaks off before each so many-th op, and now and then behind it.
struct Brittle {
    inner: Box<dyn Sink>,
    ops: u64,
    breaks: u64,
}

impl Sink for Brittle {
    fn open(&mut self, hello: &Hello) -> Result<Inventory, SinkError> {
        self.inner.open(hello)
    }

    fn apply(&mut self, op: Op) -> Result<(), SinkError> {
        self.ops += 1;
        let breaks = self.ops.is_multiple_of(5);
        if !breaks || self.ops.is_multiple_of(2) {
            self.inner.apply(op)?;
        }
        if breaks {
            self.breaks += 1;
            return Err(SinkError::Away("the cable was pulled".into()));
        }
        Ok(())
    }

    fn ack(&mut self, wait: Duration) -> Result<Option<Ack>, SinkError> {
        self.inner.ack(wait)
    }

    fn mirrors(&self) -> bool {
        self.inner.mirrors()
    }
}

/// It breaks off again and again, and begins anew from what is there.
pub fn goes_on_where_it_broke_off(place: &mut dyn Place) {
    let mut source = Source::new();
    let mut sink = Brittle { inner: place.sink(&source), ops: 0, breaks: 0 };
    let (mut feed, mut acked) = (Feed::new(&source.journal), Ack::default());
    let mut positions = Vec::new();
    for _ in 0..3 {
        positions.push(source.write(400));
        send_until_there(&mut feed, &mut sink, &mut acked);
    }
    assert!(sink.breaks > 2, "{} breaks in {} ops", sink.breaks, sink.ops);
    same(place, &source, &positions);
}

/// A site that comes late gets the log's end first; what lies before counts once it is whole.
pub fn lets_old_files_count_when_they_are_whole(place: &mut dyn Place) {
    let mut source = Source::new();
    let old = source.write(700);
    let newer = source.write(700);
    let mut sink = place.sink(&source);
    let mut feed = Feed::new(&source.journal);
    let inventory = sink.open(&feed.hello()).unwrap();
    feed.start(&inventory, sink.mirrors()).unwrap();
    // All of the log's end, and of the first old file all but its end.
    while let Some(op) = feed.fresh().unwrap() {
        sink.apply(op).unwrap();
    }
    while let Some(op) = feed.background().unwrap().filter(|op| !matches!(op, Op::PutEnd { .. })) {
        sink.apply(op).unwrap();
        let _ = sink.ack(Duration::from_millis(1)).unwrap();
    }
    assert!(images(&place.cli(), "latest").is_err(), "nothing of the old files counts yet");
    send_until_there(&mut feed, &mut *sink, &mut Ack::default());
    same(place, &source, &[old, newer]);
}

/// Who had the journal before may neither write nor delete.
pub fn refuses_an_epoch_that_is_over_and_its_deletes(place: &mut dyn Place) {
    let mut source = Source::new();
    let position = source.write(700);
    let mut old = place.sink(&source);
    let mut feed = Feed::new(&source.journal);
    send_until_there(&mut feed, &mut *old, &mut Ack::default());
    let before = feed.hello();
    let held = old.open(&before).unwrap();
    let later = Hello { epoch: before.epoch + 1, ..before.clone() };
    let names = || held.files.iter().map(|f| f.name).collect();
    if place.takes_two() {
        // The old one is there still when the new one comes.
        let mut new = place.sink(&source);
        assert_eq!(new.open(&later).unwrap().watermark, held.watermark);
        answers(&mut *new, begin(held.watermark)).unwrap();
        for op in [Op::Release(names()), Op::Begin(Box::new(header(&source)))] {
            assert!(answers(&mut *old, op).is_err(), "it was let do it");
        }
        drop(new);
    } else {
        assert_eq!(old.open(&later).unwrap().watermark, held.watermark);
        answers(&mut *old, begin(held.watermark)).unwrap();
    }
    let refused = old.open(&before);
    assert!(
        matches!(&refused, Err(SinkError::Refused(why)) if why.contains("epoch")),
        "{refused:?}"
    );
    // Who goes on all the same gets nowhere.
    assert!(answers(&mut *old, Op::Release(names())).is_err());
    drop(old);
    let mut again = place.sink(&source);
    let refused = again.open(&before);
    assert!(matches!(&refused, Err(SinkError::Refused(_))), "{refused:?}");
    assert_eq!(again.open(&later).unwrap().watermark, held.watermark);
    same(place, &source, &[position]);
}

/// An op that brings nothing: with the first one an epoch begins.
fn begin(watermark: Seq) -> Op {
    Op::Sync { token: 1, watermark, wall_ns: 1 }
}

/// A header for a unit far behind the log's end.
fn header(source: &Source) -> afterimage_journal::format::unit_header::UnitHeader {
    let history = source.journal.history().unwrap();
    let last = history.units.last().unwrap();
    let mut header = last.header;
    header.number += 1;
    header
}

/// A journal of that name that is another one.
pub fn refuses_another_journal(place: &mut dyn Place) {
    let mut source = Source::new();
    let position = source.write(300);
    let mut sink = place.sink(&source);
    send_until_there(&mut Feed::new(&source.journal), &mut *sink, &mut Ack::default());
    drop(sink);
    let mut other = Source::new();
    other.write(300);
    let mut sink = place.sink(&other);
    let refused = send(&mut Feed::new(&other.journal), &mut *sink, &mut Ack::default());
    assert!(matches!(&refused, Err(SinkError::Refused(_))), "{refused:?}");
    drop(sink);
    same(place, &source, &[position]);
}

/// Two agents over copies of one state, each of which believes that its epoch is the next. The one that is
/// refused was opened more often, and must not shut the other one out.
pub fn refuses_a_fork_of_the_journal(place: &mut dyn Place) {
    let mut source = Source::new();
    source.write(300);
    send_until_there(
        &mut Feed::new(&source.journal),
        &mut *place.sink(&source),
        &mut Ack::default(),
    );
    let mut second = source.cloned();
    let mut third = source.cloned().cloned().cloned();
    let mut positions = vec![second.write(200)];
    third.write(250);
    assert!(third.journal.epoch() > second.journal.epoch());
    let mut sink = place.sink(&second);
    let (mut feed, mut acked) = (Feed::new(&second.journal), Ack::default());
    send_until_there(&mut feed, &mut *sink, &mut acked);
    same(place, &second, &positions);
    drop(sink);
    let mut sink = place.sink(&third);
    let refused = send(&mut Feed::new(&third.journal), &mut *sink, &mut Ack::default());
    assert!(matches!(&refused, Err(SinkError::Refused(_))), "{refused:?}");
    drop(sink);
    same(place, &second, &positions);
    positions.push(second.write(100));
    send_until_there(&mut feed, &mut *place.sink(&second), &mut acked);
    same(place, &second, &positions);
}

/// The state was put back from a copy and run on, and the source merged the units that differ: it stays
/// refused, whoever is restarted.
pub fn refuses_a_fork_that_was_merged_since(place: &mut dyn Place) {
    let mut source = Source::new();
    source.write(300);
    let (mut first, mut second) = (source.cloned(), source.cloned());
    assert_eq!(first.journal.epoch(), second.journal.epoch());
    let mut positions = vec![first.write(300), first.write(50)];
    let (mut feed, mut acked) = (Feed::new(&first.journal), Ack::default());
    send_until_there(&mut feed, &mut *place.sink(&first), &mut acked);
    let branch = |second: &Source, when: &str| {
        let mut sink = place.sink(second);
        let refused = send(&mut Feed::new(&second.journal), &mut *sink, &mut Ack::default());
        let is_named =
            matches!(&refused, Err(SinkError::Refused(why)) if why.contains("another branch"));
        assert!(is_named, "{when}: {refused:?}");
    };
    second.write(200);
    branch(&second, "at once");
    for _ in 0..3 {
        second.write(300);
        std::thread::sleep(Duration::from_millis(400));
    }
    second.keep(Duration::from_millis(100));
    assert!(second.write(10) > *positions.last().unwrap());
    branch(&second, "once it was merged");
    let second = second.cloned();
    branch(&second, "after its next start");
    same(place, &first, &positions);
    positions.push(first.write(100));
    send_until_there(&mut feed, &mut *place.sink(&first), &mut acked);
    same(place, &first, &positions);
    branch(&second, "later");
}

/// It loses what it holds under the sender's hands, all or some of it: that is said within seconds, though
/// little is sent, and all is there again afterwards.
pub fn says_that_it_lost_what_it_had_and_gets_it_again(place: &mut dyn Place) {
    let mut source = Source::new();
    let mut positions = vec![source.write(700)];
    let mut sink = place.sink(&source);
    let mut feed = Feed::new(&source.journal);
    send_until_there(&mut feed, &mut *sink, &mut Ack::default());
    for all in [false, true] {
        place.lose(all);
        let (begin, mut token) = (Instant::now(), 1 << 40);
        let said = loop {
            token += 1;
            let sync = Op::Sync { token, watermark: positions[0], wall_ns: 1 };
            if let Err(e) = sink.apply(sync).and_then(|()| sink.ack(Duration::from_millis(100))) {
                break e;
            }
            assert!(begin.elapsed() < SOON, "it goes on as if it had everything");
        };
        let is_said = matches!(&said, SinkError::Away(_) | SinkError::Broken(_));
        assert!(is_said && said.to_string().contains("again"), "{said:?}");
        positions.push(source.write(50));
        drop(sink);
        sink = place.sink(&source);
        let begin = Instant::now();
        while let Err(e) = send(&mut feed, &mut *sink, &mut Ack::default()) {
            assert!(begin.elapsed() < SOON && !matches!(e, SinkError::Refused(_)), "{e:?}");
        }
        same(place, &source, &positions);
    }
}

/// What arrives is not what was sent: none of it is taken, and nothing is lost.
pub fn keeps_what_it_has_when_something_damaged_comes(place: &mut dyn Place) {
    let mut source = Source::new();
    let mut positions = vec![source.write(600)];
    let mut sink = place.sink(&source);
    let mut feed = Feed::new(&source.journal);
    send_until_there(&mut feed, &mut *sink, &mut Ack::default());
    let held = sink.open(&feed.hello()).unwrap();
    let last = held.files.last().copied().unwrap();
    let Extent::Open(at) = last.extent else { panic!("{last:?} is not open") };
    let unit = last.name.numbers().0;
    let mut foreign = header(&source);
    foreign.group[0] ^= 1;
    for op in [
        Op::Bytes { unit, at, bytes: vec![0xa5; 8192] },
        Op::Bytes { unit, at: at + 512, bytes: vec![1; 512] },
        Op::Seal { unit, end: at, index_crc: 1 },
        Op::PutEnd { name: last.name, index_crc: 1 },
        Op::Begin(Box::new(foreign)),
    ] {
        sink.open(&feed.hello()).unwrap();
        let shown = format!("{op:?}").chars().take(60).collect::<String>();
        let said = answers(&mut *sink, op);
        assert!(
            matches!(&said, Err(SinkError::Broken(_) | SinkError::Refused(_))),
            "{shown}: {said:?}"
        );
        same(place, &source, &positions);
    }
    positions.push(source.write(100));
    send_until_there(&mut feed, &mut *sink, &mut Ack::default());
    same(place, &source, &positions);
}

/// The source merges what is older than its window: what it still has is there.
pub fn forgets_nothing_of_the_window_when_the_source_merges(place: &mut dyn Place) {
    let mut source = Source::new();
    let mut sink = place.sink(&source);
    let (mut feed, mut acked) = (Feed::new(&source.journal), Ack::default());
    let mut positions = Vec::new();
    for _ in 0..4 {
        positions.push(source.write(500));
        send_until_there(&mut feed, &mut *sink, &mut acked);
        std::thread::sleep(Duration::from_millis(500));
    }
    source.keep(Duration::from_secs(1));
    positions.push(source.write(100));
    send_until_there(&mut feed, &mut *sink, &mut acked);
    let home = layout::journal_dir(&source.state(), "shop").unwrap();
    let merged = std::fs::read_dir(home).unwrap().flatten();
    let merged = merged.filter(|f| f.file_name().to_string_lossy().starts_with("merged-"));
    assert!(merged.count() > 0, "nothing was merged at the source");
    positions.retain(|seq| images(&source.cli(), &format!("seq:{seq}")).is_ok());
    same(place, &source, &positions);
}
