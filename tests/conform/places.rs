//! What a journal is sent to: as agents come to it, and as people do.

use super::source::Source;
use crate::kit::faulty::Faulty;
use crate::kit::{Cli, Site, s3};
use afterimage_journal::layout;
use afterimage_journal::replica::{Replica, ReplicaOptions};
use afterimage_journal::storage::{RealStorage, Storage};
use afterimage_journal::wire::Sink;
use afterimage_s3::S3Sink;
use afterimage_s3::sink::SinkOptions;
use afterimage_s3::store::{Patience, Patient};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_afterimage");

/// Where a journal can be sent to.
pub trait Place {
    /// A way there for the agent of a source.
    fn sink(&self, source: &Source) -> Box<dyn Sink>;
    /// Commands over what is there.
    fn cli(&self) -> Cli;
    /// Has it lose what it holds: all of it, or a part.
    fn lose(&self, all: bool);
    /// Whether two senders can be there at a time.
    fn takes_two(&self) -> bool {
        true
    }
}

/// A directory of this machine.
pub struct Directory(TempDir);

impl Directory {
    /// An empty one.
    pub fn new() -> Self {
        let dir = TempDir::with_prefix("place-").unwrap();
        layout::check_state(&dir.path().join("s"), true).unwrap();
        Self(dir)
    }
}

impl Place for Directory {
    fn sink(&self, _source: &Source) -> Box<dyn Sink> {
        let dir = layout::journal_dir(&self.0.path().join("s"), "shop").unwrap();
        let storage: Arc<dyn Storage> = RealStorage::shared();
        let options = ReplicaOptions::at_home(&storage);
        Box::new(Replica::open(&storage, &dir, options).unwrap())
    }

    fn cli(&self) -> Cli {
        Cli::new(PROGRAM, self.0.path().join("s"))
    }

    fn lose(&self, all: bool) {
        lose_files(&self.0.path().join("s"), all);
    }

    // The directory's lock is held.
    fn takes_two(&self) -> bool {
        false
    }
}

/// A site's daemon.
pub struct Server {
    site: Site,
    _dir: TempDir,
}

impl Server {
    /// One that nobody came to.
    pub fn new() -> Self {
        let dir = TempDir::with_prefix("place-").unwrap();
        Self { site: Site::start(PROGRAM, dir.path().join("s"), None), _dir: dir }
    }
}

impl Place for Server {
    fn sink(&self, source: &Source) -> Box<dyn Sink> {
        Box::new(source.come_to(&self.site))
    }

    fn cli(&self) -> Cli {
        Cli::new(PROGRAM, self.site.state())
    }

    fn lose(&self, all: bool) {
        lose_files(self.site.state(), all);
    }
}

/// Removes a journal's directory, or every other unit.
fn lose_files(state: &Path, all: bool) {
    let dir = layout::journal_dir(state, "shop").unwrap();
    if all {
        return std::fs::remove_dir_all(dir).unwrap();
    }
    let names = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path());
    let is_unit = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("unit-");
    let mut units: Vec<PathBuf> = names.filter(is_unit).collect();
    units.sort();
    units.iter().step_by(2).for_each(|path| std::fs::remove_file(path).unwrap());
}

/// Deletes a bucket's objects, or every other one with data.
fn lose_objects(server: &s3::Server, all: bool) {
    let store = server.patient();
    let (mut keys, mut after) = (Vec::new(), String::new());
    loop {
        let page = store.list("", &after, false).unwrap();
        keys.extend(page.keys.iter().cloned());
        match page.keys.last() {
            Some(last) if page.more => after.clone_from(last),
            _ => break,
        }
    }
    let data = keys.iter().filter(|key| all || key.contains("/object/"));
    data.step_by(if all { 1 } else { 2 }).for_each(|key| store.delete(key).unwrap());
}

/// A bucket on a real server.
pub struct Bucket(s3::Server);

impl Bucket {
    /// An empty one.
    pub fn new() -> Self {
        let server = s3::Server::start();
        // Sets the credentials in the environment of all that is started here.
        drop(server.bucket());
        Self(server)
    }
}

/// The same sink as an agent's, but that nothing waits to become larger.
fn s3_sink(place: &str) -> Box<dyn Sink> {
    let (url, ms) = (place.parse().unwrap(), Duration::from_millis);
    let options = SinkOptions {
        age: ms(0),
        background_age: ms(0),
        look_every: ms(500),
        audit_every: ms(1000),
        patience: Patience { first: ms(10), longest: ms(100), whole: ms(20_000) },
        ..SinkOptions::of(&url)
    };
    let bucket = afterimage_s3::store::Bucket::connect(&url).unwrap();
    Box::new(S3Sink::over(&url, Patient::new(Arc::new(bucket), options.patience), options))
}

impl Place for Bucket {
    fn sink(&self, _source: &Source) -> Box<dyn Sink> {
        s3_sink(&self.0.place())
    }

    fn lose(&self, all: bool) {
        lose_objects(&self.0, all);
    }

    fn cli(&self) -> Cli {
        Cli::new(PROGRAM, PathBuf::from(self.0.place()))
    }
}

/// A bucket behind [`Faulty`].
pub struct FaultyBucket {
    faulty: Faulty,
    bucket: Bucket,
}

impl FaultyBucket {
    /// An empty one.
    pub fn new() -> Self {
        let bucket = Bucket::new();
        let faulty = Faulty::before(bucket.0.addr().parse().unwrap(), 0xfa17);
        Self { faulty, bucket }
    }

    fn place(&self) -> String {
        self.bucket.0.place().replace(&self.bucket.0.addr(), &self.faulty.addr.to_string())
    }
}

impl Drop for FaultyBucket {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(self.faulty.faults() > 2, "{} requests fared badly", self.faulty.faults());
        }
    }
}

impl Place for FaultyBucket {
    fn sink(&self, _source: &Source) -> Box<dyn Sink> {
        s3_sink(&self.place())
    }

    fn lose(&self, all: bool) {
        lose_objects(&self.bucket.0, all);
    }

    fn cli(&self) -> Cli {
        Cli::new(PROGRAM, PathBuf::from(self.place()))
    }
}
