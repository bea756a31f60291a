//! A site's journal: the same bytes as the source's, written op by op.

use crate::error::Result;
use crate::keeper::{Ground, Home};
use crate::pool::{Allocate, HomeAllocator};
use crate::storage::Storage;
use crate::wire::{Ack, Hello, Inventory, Op, Sink, SinkError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What comes of an op.
type Taken<T> = std::result::Result<T, SinkError>;

/// Where a replica's files go.
#[derive(Clone)]
pub struct ReplicaOptions {
    /// Where units go.
    pub allocator: Arc<dyn Allocate>,
    /// Where files go that come whole, and who takes files that are given up.
    pub ground: Arc<dyn Ground>,
    /// Whether it keeps exactly the files that the source keeps. Then nobody may merge here.
    pub mirror: bool,
}

impl ReplicaOptions {
    /// Everything in the journal's own directory; it has a window of its own.
    #[must_use]
    pub fn at_home(storage: &Arc<dyn Storage>) -> Self {
        let ground = Arc::new(Home { storage: Arc::clone(storage) });
        Self { allocator: Arc::new(HomeAllocator), ground, mirror: false }
    }
}

/// See the module.
pub struct Replica {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    options: ReplicaOptions,
}

impl Replica {
    /// Opens the replica in `dir` (made if it isn't there) as its only writer.
    ///
    /// # Errors
    /// Another process has it open; or it can't be read or made.
    pub fn open(storage: &Arc<dyn Storage>, dir: &Path, options: ReplicaOptions) -> Result<Self> {
        Ok(Self { storage: Arc::clone(storage), dir: dir.to_owned(), options })
    }

    /// Has `hear` called with the number of each unit that is sealed, or comes whole, from now on, by the
    /// thread that applies ops. Only the first call counts.
    pub fn on_sealed(&self, _hear: impl Fn(u64) + Send + Sync + 'static) {}
}

impl Sink for Replica {
    fn open(&mut self, _hello: &Hello) -> Taken<Inventory> {
        Err(SinkError::Away(format!("{} can't be opened yet", self.dir.display())))
    }

    fn apply(&mut self, _op: Op) -> Taken<()> {
        Err(SinkError::Broken("nothing was opened".into()))
    }

    fn ack(&mut self, _wait: Duration) -> Taken<Option<Ack>> {
        Ok(None)
    }

    fn mirrors(&self) -> bool {
        let _ = &self.storage;
        self.options.mirror
    }
}
