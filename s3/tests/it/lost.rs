//! A bucket that loses what it was given: emptied, put back, some of its objects expired. It is noticed,
//! said, and made whole again by whoever has the journal.

use crate::fixture::{
    assert_same, closed_journal, hello, history_in, options, patient, send, steps, url,
};
use crate::server::Server;
use crate::store::Memory;
use afterimage_journal::History;
use afterimage_journal::storage::{Access, Storage};
use afterimage_journal::wire::{Op, Sink, SinkError};
use afterimage_s3::S3Storage;
use afterimage_s3::sink::{S3Sink, SinkOptions};
use afterimage_s3::store::Patient;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tempfile::TempDir;

type Objects = BTreeMap<String, Vec<u8>>;

fn all(store: &Patient) -> Objects {
    let (mut objects, mut after) = (Objects::new(), String::new());
    loop {
        let page = store.list("site/", &after, false).unwrap();
        for key in &page.keys {
            objects.insert(key.clone(), store.get(key, None).unwrap());
        }
        match page.keys.last() {
            Some(last) if page.more => after.clone_from(last),
            _ => return objects,
        }
    }
}

/// Makes the bucket have just these objects.
fn put_back(store: &Patient, objects: &Objects) {
    let there = all(store);
    for key in there.keys().filter(|key| !objects.contains_key(*key)) {
        store.delete(key).unwrap();
    }
    for (key, bytes) in objects.iter().filter(|(key, bytes)| there.get(*key) != Some(bytes)) {
        store.put(key, bytes, None).unwrap();
    }
}

struct Bed {
    _dir: TempDir,
    home: PathBuf,
    steps: Vec<(Op, u64)>,
    store: Patient,
    sink: S3Sink,
}

impl Bed {
    fn new(store: &Patient, options: SinkOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = closed_journal(dir.path(), 400);
        let steps = steps(&home, 50_000);
        let sink = S3Sink::over(&url(), store.clone(), options);
        Self { _dir: dir, home, steps, store: store.clone(), sink }
    }

    fn send(&mut self, upto: usize) {
        self.sink.open(&hello(&self.home, 1)).unwrap();
        let upto = self.steps.len() * upto / 3;
        send(&mut self.sink, &self.steps[..upto]).unwrap();
    }

    /// With nothing to send, the sink says within seconds that something is gone, and what to do.
    #[track_caller]
    fn notices(&mut self) -> String {
        let begin = Instant::now();
        loop {
            match self.sink.ack(Duration::from_millis(100)) {
                Ok(_) => assert!(begin.elapsed() < Duration::from_secs(20), "it goes on as before"),
                Err(SinkError::Broken(why)) => return why,
                Err(e) => panic!("{e}"),
            }
        }
    }

    /// The next opening finds what is there, gets what is not, and everything reads as at the source.
    #[track_caller]
    fn heals(mut self) {
        self.send(3);
        let ours = History::load(&self.home).unwrap();
        assert_same(&ours, &history_in(&self.store).unwrap(), u64::MAX);
        // Nor is anything left to be found by another process.
        let mut sink = S3Sink::over(&url(), self.store.clone(), options());
        let found = sink.open(&hello(&self.home, 1)).unwrap();
        assert_eq!((found.files.len(), found.watermark), (ours.units.len(), ours.head));
    }
}

fn lively() -> SinkOptions {
    SinkOptions { look_every: Duration::from_millis(200), ..options() }
}

fn emptied(store: &Patient) {
    let mut bed = Bed::new(store, lively());
    bed.send(2);
    put_back(store, &Objects::new());
    let why = bed.notices();
    assert!(why.contains("emptied") && why.contains("sent again"), "{why}");
    assert!(all(store).is_empty(), "written behind what is gone");
    bed.heals();
}

fn rolled_back(store: &Patient) {
    let mut bed = Bed::new(store, lively());
    bed.send(1);
    let before = all(store);
    bed.send(2);
    put_back(store, &before);
    bed.notices();
    bed.heals();
}

fn expired(store: &Patient, of: &str, daily: bool) {
    let options = match daily {
        true => SinkOptions { audit_every: Duration::from_millis(300), ..lively() },
        false => lively(),
    };
    let mut bed = Bed::new(store, options);
    bed.send(2);
    let objects = all(store);
    let keys: Vec<&String> = objects.keys().filter(|key| key.contains(of)).collect();
    for key in &keys[..keys.len() / 2] {
        store.delete(key).unwrap();
    }
    if daily {
        let why = bed.notices();
        assert!(why.contains("lifecycle"), "{why}");
    } else {
        bed.sink = S3Sink::over(&url(), store.clone(), options);
        let found = bed.sink.open(&hello(&bed.home, 1)).unwrap();
        assert_eq!(found.watermark, 0, "numbers are missing, and are said to be there");
    }
    bed.heals();
}

/// One of the manifests that the state is read from is changed: the newest, or the one that says all.
fn rotted(store: &Patient, newest: bool) {
    let mut bed = Bed::new(store, lively());
    bed.send(2);
    let objects = all(store);
    let mut keys = objects.keys().filter(|key| key.contains("/manifest/"));
    let key = if newest { keys.next_back() } else { keys.next() }.unwrap();
    let mut bytes = objects[key].clone();
    *bytes.last_mut().unwrap() ^= 1;
    store.put(key, &bytes, None).unwrap();
    // Readers are told which one, and what comes of it.
    let reader = S3Storage::over(&url(), store.clone(), 8 << 20);
    let identity = std::path::Path::new("s3://vault/site/pool/g/journal.json");
    let told = reader.open(identity, Access::Read).unwrap_err().to_string();
    assert!(told.contains(key.as_str()) && told.contains("damaged"), "{told}");
    assert!(told.contains("sent anew"), "{told}");
    bed.sink = S3Sink::over(&url(), store.clone(), options());
    let found = bed.sink.open(&hello(&bed.home, 1)).unwrap();
    assert_eq!((found.files.len(), found.watermark), (0, 0));
    bed.heals();
}

/// Each of them over the store in memory and over a real server.
macro_rules! over_both {
    ($($name:ident: $check:expr;)*) => {
        $(mod $name {
            use super::*;
            #[test] fn in_memory() { $check(&patient(Memory::new())); }
            #[test] fn on_a_server() { $check(&Server::start().patient()); }
        })*
    };
}

over_both! {
    an_emptied_bucket_is_noticed_and_filled_again: emptied;
    a_bucket_that_was_put_back_is_noticed_and_made_whole: rolled_back;
    data_that_expired_is_sent_again_at_the_next_opening: |store| expired(store, "/object/", false);
    data_that_expired_is_noticed_by_the_daily_audit: |store| expired(store, "/object/", true);
    manifests_that_expired_are_begun_anew: |store| expired(store, "/manifest/", false);
    newest_manifest_that_rotted_is_begun_anew: |store| rotted(store, true);
    first_manifest_that_rotted_is_begun_anew: |store| rotted(store, false);
}

#[test]
fn a_broken_chain_keeps_its_fence_and_is_told_to_readers() {
    let store = patient(Memory::new());
    let mut bed = Bed::new(&store, lively());
    bed.sink.open(&hello(&bed.home, 7)).unwrap();
    let third = bed.steps.len() / 3;
    send(&mut bed.sink, &bed.steps[..third]).unwrap();
    let first = all(&store).into_keys().find(|key| key.contains("/manifest/")).unwrap();
    store.delete(&first).unwrap();
    let reader = S3Storage::over(&url(), store.clone(), 8 << 20);
    let identity = std::path::Path::new("s3://vault/site/pool/g/journal.json");
    let told = reader.open(identity, Access::Read).unwrap_err().to_string();
    assert!(told.contains("missing") && told.contains("lifecycle"), "{told}");
    let mut sink = S3Sink::over(&url(), store.clone(), options());
    let refused = sink.open(&hello(&bed.home, 6)).unwrap_err();
    assert!(matches!(&refused, SinkError::Refused(why) if why.contains("epoch")), "{refused}");
    assert_eq!(sink.open(&hello(&bed.home, 8)).unwrap().files, vec![]);
}
