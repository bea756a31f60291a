//! A bucket as the journal's disk, to read: `History::load_in` and all that restores work on it.
//!
//! ```text
//!  s3://BUCKET/PREFIX              as a state directory
//!  s3://BUCKET/PREFIX/pool/NAME    a journal: journal.json, unit-*, merged-*
//! ```
//!
//! What always holds:
//! * a reader sees a journal as one manifest told it, and a newer one only when an object of that is gone;
//! * nothing is written, and no lock can be had: what a manifest calls dead stays for its grace instead;
//! * a file that is there in part doesn't count, and isn't listed.

mod cache;
mod fetch;
mod file;
mod read_only;
mod spill;

pub(crate) use fetch::{FetchError, Fetcher};
pub(crate) use file::{io_error, read_at};
pub(crate) use read_only::{Only, ReadOnly, Readable};

use crate::manifest::{Chain, ChainError, Holding, State};
use crate::store::{Bucket, Patience, Patient, Stats, StoreError};
use crate::url::S3Url;
use afterimage_journal::layout;
use afterimage_journal::pool::FileName;
use afterimage_journal::storage::{Access, Lock, LockKind, Room, Storage, StoredFile};
use read_only::{Text, read_only};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of unpacked frames that are kept in memory, unless said otherwise.
pub const CACHE_BYTES_DEFAULT: usize = 256 << 20;
/// Pages of a listing of groups.
const GROUP_PAGES_MAX: usize = 100;

/// A bucket's journals, to read.
#[derive(Debug)]
pub struct S3Storage {
    /// What paths begin with.
    root: PathBuf,
    prefix: String,
    store: Patient,
    fetcher: Arc<Fetcher>,
    groups: Mutex<BTreeMap<String, Arc<Group>>>,
}

/// A journal, as a manifest told it.
#[derive(Debug)]
struct Group {
    root: String,
    chain: Chain,
    state: Mutex<Arc<State>>,
    fetcher: Arc<Fetcher>,
}

fn chain_error(error: ChainError) -> io::Error {
    match error {
        ChainError::Store(error) => file::io_error(error.into()),
        ChainError::Damaged { .. } | ChainError::Unusable { .. } => {
            io::Error::new(io::ErrorKind::InvalidData, error)
        }
    }
}

impl S3Storage {
    /// The journals below a URL, with [`CACHE_BYTES_DEFAULT`] of cache in memory.
    ///
    /// # Errors
    /// There are no credentials, or no region.
    pub fn connect(url: &S3Url) -> Result<Self, StoreError> {
        let store = Patient::new(Arc::new(Bucket::connect(url)?), Patience::default());
        Ok(Self::over(url, store, CACHE_BYTES_DEFAULT))
    }

    /// Keeps what memory has no room for in a temporary file: for one who reads here and there and
    /// comes back, not for one who reads all once and in order.
    #[must_use]
    pub fn with_temporary_file(mut self) -> Self {
        match spill::Spill::make() {
            Ok(spill) => {
                self.fetcher = Fetcher::new(self.store.clone(), CACHE_BYTES_DEFAULT, Some(spill));
            }
            // Slower where the same objects are needed again.
            Err(error) => {
                tracing::warn!(%error, "nothing of the bucket is kept in a temporary file");
            }
        }
        self
    }

    /// The journals below a URL, in this store.
    #[must_use]
    pub fn over(url: &S3Url, store: Patient, cache_bytes_max: usize) -> Self {
        Self {
            root: PathBuf::from(url.to_string()),
            prefix: url.key(""),
            fetcher: Fetcher::new(store.clone(), cache_bytes_max, None),
            store,
            groups: Mutex::default(),
        }
    }

    /// What stands for the state directory in paths.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.root
    }

    /// What was asked of the bucket so far.
    #[must_use]
    pub fn stats(&self) -> &Arc<Stats> {
        self.store.stats()
    }

    /// Asks whether the bucket is there and may be read.
    ///
    /// # Errors
    /// It isn't, or mayn't, or the server doesn't answer.
    pub fn check(&self) -> Result<(), StoreError> {
        self.store.list(&self.prefix, "", true).map(drop)
    }

    /// Forgets what is known: the next look is at the newest manifests.
    pub fn refresh(&self) {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Names of the journals.
    ///
    /// # Errors
    /// A request failed.
    fn names(&self) -> io::Result<Vec<String>> {
        let (mut names, mut after) = (Vec::new(), String::new());
        for _ in 0..GROUP_PAGES_MAX {
            let page = self
                .store
                .list(&self.prefix, &after, true)
                .map_err(|e| file::io_error(e.into()))?;
            let found =
                page.keys.iter().filter_map(|k| k.strip_prefix(&self.prefix)?.strip_suffix('/'));
            names.extend(found.filter(|n| layout::check_name(n).is_ok()).map(str::to_owned));
            match page.keys.last() {
                // Behind all that begins so: '0' is the character behind '/'.
                Some(last) if page.more => after = format!("{}0", last.trim_end_matches('/')),
                _ => break,
            }
        }
        Ok(names)
    }

    /// The journal of this name, as its newest manifest told it when it was first looked at.
    fn group(&self, name: &str) -> io::Result<Arc<Group>> {
        let known = |groups: &BTreeMap<String, Arc<Group>>| groups.get(name).cloned();
        if let Some(group) = known(&self.groups.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(group);
        }
        let root = format!("{}{name}", self.prefix);
        let chain = Chain::new(self.store.clone(), root.clone());
        let state = chain.load().map_err(chain_error)?;
        let state = state.ok_or_else(|| not_found(format!("there is no journal {name}")))?;
        let fetcher = Arc::clone(&self.fetcher);
        let group = Arc::new(Group { root, chain, state: Mutex::new(Arc::new(state)), fetcher });
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Arc::clone(groups.entry(name.to_owned()).or_insert(group)))
    }

    /// What a path means.
    fn locate(&self, path: &Path) -> io::Result<Located> {
        let below = path.strip_prefix(&self.root).map_err(|_| nothing(path))?;
        let text = below.to_str().ok_or_else(|| nothing(path))?;
        Ok(match text.split('/').collect::<Vec<_>>()[..] {
            [""] => Located::State,
            ["pool"] => Located::Pool,
            ["pool", group] if layout::check_name(group).is_ok() => Located::Journal(group.into()),
            ["pool", group, file] if layout::check_name(group).is_ok() => {
                Located::File(group.into(), file.into())
            }
            _ => return Err(nothing(path)),
        })
    }

    fn file(&self, path: &Path) -> io::Result<Arc<dyn StoredFile>> {
        let Located::File(group, file) = self.locate(path)? else { return Err(nothing(path)) };
        let wanted = FileName::parse(&file);
        if wanted.is_none() && file != "journal.json" {
            return Err(nothing(path));
        }
        let group = self.group(&group)?;
        let state = group.state();
        let Some(name) = wanted else {
            return Ok(Arc::new(ReadOnly(Text(state.identity.clone()))));
        };
        let counts = |f: &&crate::manifest::File| f.holding != Holding::Part;
        let found = state.files.get(&name).filter(counts).ok_or_else(|| nothing(path))?;
        Ok(Arc::new(ReadOnly(BucketFile { salt: found.salt, name, group })))
    }
}

enum Located {
    State,
    Pool,
    Journal(String),
    File(String, String),
}

fn not_found(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, why)
}

fn nothing(path: &Path) -> io::Error {
    not_found(format!("the bucket holds no {}", path.display()))
}

impl Group {
    fn state(&self) -> Arc<State> {
        Arc::clone(&self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The newest state, after an object that `seen` names was gone; none if there is none newer.
    fn newer(&self, seen: &State) -> io::Result<Option<Arc<State>>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.number > seen.number {
            return Ok(Some(Arc::clone(&state)));
        }
        match self.chain.load().map_err(chain_error)? {
            Some(found) if found.number > seen.number => {
                *state = Arc::new(found);
                Ok(Some(Arc::clone(&state)))
            }
            _ => Ok(None),
        }
    }
}

/// A file of a journal in a bucket.
#[derive(Debug)]
struct BucketFile {
    group: Arc<Group>,
    name: FileName,
    salt: [u8; 16],
}

impl BucketFile {
    fn of<'s>(&self, state: &'s State) -> io::Result<&'s crate::manifest::File> {
        state.files.get(&self.name).filter(|f| f.salt == self.salt).ok_or_else(|| {
            let why =
                format!("{} was released in the bucket while it was read: start again", self.name);
            // Not "not found": it is no damage that it was merged into another.
            io::Error::new(io::ErrorKind::StaleNetworkFileHandle, why)
        })
    }
}

impl Readable for BucketFile {
    fn read(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let mut state = self.group.state();
        loop {
            let file = (self.name, self.of(&state)?);
            let group = &*self.group;
            match read_at(&group.fetcher, &group.root, file, buffer, at, Some(&state)) {
                Ok(read) => return Ok(read),
                // A name that is gone: the newest manifest says where the bytes are now.
                Err(FetchError::Store(StoreError::NotFound(key))) => match group.newer(&state)? {
                    Some(newer) => state = newer,
                    None => {
                        return Err(io::Error::new(
                            io::ErrorKind::InvalidData,
                            format!("object {key} is lost: the newest manifest names it"),
                        ));
                    }
                },
                Err(e) => return Err(file::io_error(e)),
            }
        }
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.of(&self.group.state())?.file_bytes)
    }

    fn allocated(&self) -> io::Result<u64> {
        let state = self.group.state();
        Ok(self.of(&state)?.segments.iter().map(|s| s.object_bytes).sum())
    }
}

impl Storage for S3Storage {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn StoredFile>> {
        match access {
            Access::Read => self.file(path),
            Access::Write | Access::Replace => Err(read_only()),
        }
    }

    fn is_far(&self) -> bool {
        true
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        match self.locate(dir)? {
            Located::State => Ok(vec!["pool".into()]),
            Located::Pool => self.names(),
            Located::Journal(group) => {
                let state = self.group(&group)?.state();
                let counts = state.files.iter().filter(|(_, f)| f.holding != Holding::Part);
                let mut names: Vec<String> = counts.map(|(name, _)| name.to_string()).collect();
                names.push("journal.json".into());
                Ok(names)
            }
            Located::File(..) => Err(nothing(dir)),
        }
    }

    fn make_dir(&self, _: &Path) -> io::Result<()> {
        Err(read_only())
    }

    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        Err(read_only())
    }

    fn remove(&self, _: &Path) -> io::Result<()> {
        Err(read_only())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn exists(&self, path: &Path) -> bool {
        match self.locate(path) {
            Ok(Located::State | Located::Pool) => true,
            Ok(Located::Journal(group)) => self.group(&group).is_ok(),
            Ok(Located::File(..)) => self.file(path).is_ok(),
            Err(_) => false,
        }
    }

    fn lock(&self, _: &Path, _: LockKind) -> io::Result<Lock> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "a bucket has no locks"))
    }

    fn room(&self, _: &Path) -> io::Result<Room> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn mount_id(&self, _: &Path) -> u64 {
        0
    }
}
