//! A site's journal: the same bytes as the source's, written op by op.
//!
//! ```text
//!  Begin, Bytes ─► incoming unit ─► Seal: index and footer, made here     ─┐
//!  Put .. Put   ─► draft         ─► PutEnd: checked whole, named          ─┴─► keeper, readers
//!  Sync         ─► everything durable ─► ack
//! ```
//!
//! What always holds:
//! * what is taken in was checked against salt and checksums; a sender that is broken or lies is refused, and
//!   nothing that was there is harmed;
//! * an ack, and what [`Sink::open`] says is there, would survive a power loss;
//! * each op may come again, also after the keeper here merged what it was about: then it does nothing;
//! * an epoch below the highest that an op came with, or that a unit here has, is refused (I-9). One that
//!   was only told counts for nothing: who told it may find that it has another branch of the journal;
//! * it holds the journal's `lock`: nobody opens the journal for writing meanwhile.

mod claims;
mod draft;
mod epochs;
mod incoming;
mod inventory;
mod place;
mod receive;
mod told;
mod whole;

pub(crate) use incoming::{CUT_OFF, parse};
pub use told::NAME as EPOCH_FILE;
pub(crate) use told::read as told_epoch;

use crate::Seq;
use crate::arrivals::Arrivals;
use crate::clock::{Clock, SystemClock};
use crate::error::{Error, ErrorKind, Result};
use crate::format::VERSION;
use crate::format::unit_header::BLOCK_BYTES;
use crate::keeper::{Ground, Home};
use crate::layout::{self, Identity};
use crate::planted;
use crate::pool::{Allocate, FileName, HomeAllocator, Places};
use crate::storage::{Lock, Storage};
use crate::unit;
use crate::wire::{Ack, Hello, Inventory, OP_BYTES_MAX, Op, Sink, SinkError};
use claims::Sure;
use draft::{Draft, Piece};
use incoming::Incoming;
use inventory::Held;
use place::Whereabouts;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What comes of an op.
type Taken<T> = std::result::Result<T, SinkError>;

/// Name of the file that is there from a failed sync on until all that it may have been for was written
/// again.
pub const DOUBT_FILE: &str = "unsure";
/// Numbers of units, epochs and records that a sender may name: far above any that comes to pass, and far
/// from where adding to one would overflow.
const NUMBER_MAX: u64 = 1 << 60;
/// Most units that are not sealed at a time: a source has a few.
const INCOMING_MAX: usize = 64;

/// What hears of each unit that was sealed or came whole.
type OnSealed = Box<dyn Fn(u64) + Send + Sync>;

/// Where a replica's files go.
#[derive(Clone)]
pub struct ReplicaOptions {
    /// Where units go.
    pub allocator: Arc<dyn Allocate>,
    /// Where files go that come whole, and who takes files that are given up.
    pub ground: Arc<dyn Ground>,
    /// Whether it keeps exactly the files that the source keeps. Then nobody may merge here.
    pub mirror: bool,
    /// The site's own clock: by it records age from their arrival.
    pub clock: Arc<dyn Clock>,
}

impl ReplicaOptions {
    /// Everything in the journal's own directory; it has a window of its own.
    #[must_use]
    pub fn at_home(storage: &Arc<dyn Storage>) -> Self {
        let ground = Arc::new(Home { storage: Arc::clone(storage) });
        Self {
            allocator: Arc::new(HomeAllocator),
            ground,
            mirror: false,
            clock: Arc::new(SystemClock),
        }
    }
}

/// See the module.
pub struct Replica {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    options: ReplicaOptions,
    _lock: Lock,
    /// Whose journal it is; `None`: it has none yet.
    identity: Option<Identity>,
    /// Who was let in; `None`: nobody, or something went wrong since.
    sender: Option<Sender>,
    /// A sync failed, and what it was for was not written again since.
    is_doubted: bool,
    /// Units that are not sealed.
    incoming: BTreeMap<u64, Incoming>,
    /// Units that are here whole, or that something whole stands for.
    held: Held,
    draft: Option<Draft>,
    /// When what arrived, and the highest number that is here in units that are not written any more.
    arrivals: Arrivals,
    highest: Seq,
    /// What the sender can't take away.
    sure: Sure,
    /// Where it is.
    home: Whereabouts,
    /// What is to be told.
    ack: Option<Ack>,
    whole: Vec<FileName>,
    on_sealed: Option<OnSealed>,
}

/// Who was let in.
struct Sender {
    epoch: u64,
    /// Its epoch is the highest that counts, durably: it brought something.
    has_begun: bool,
}

/// What a sender is told of an error here.
fn sink_error(error: Error) -> SinkError {
    match error.kind() {
        ErrorKind::FreeSpace => SinkError::Full(error.to_string()),
        _ => match error {
            Error::Io { .. } | Error::Locked { .. } | Error::Busy { .. } => {
                SinkError::Away(error.to_string())
            }
            _ => SinkError::Refused(error.to_string()),
        },
    }
}

impl Replica {
    /// Opens the replica in `dir` (made if it isn't there) as its only writer.
    ///
    /// # Errors
    /// Another process has it open, or the agent of a journal that lies there; it can't be read or made.
    pub fn open(storage: &Arc<dyn Storage>, dir: &Path, options: ReplicaOptions) -> Result<Self> {
        storage.make_dir(dir).map_err(|e| Error::io("create directory", dir, e))?;
        let lock = layout::take_lock_in(&**storage, dir)?;
        let there = storage.exists(&dir.join("journal.json"));
        let identity = there.then(|| layout::read_identity_in(&**storage, dir)).transpose()?;
        if there {
            // One of before there was such a file: what is here counts as arriving now.
            Arrivals::begin(&**storage, dir)?;
        }
        let arrivals = Arrivals::load(&**storage, dir)?.unwrap_or_default();
        Ok(Self {
            storage: Arc::clone(storage),
            dir: dir.to_owned(),
            options,
            _lock: lock,
            identity,
            sender: None,
            is_doubted: false,
            incoming: BTreeMap::new(),
            held: Held::default(),
            draft: None,
            arrivals,
            highest: 0,
            sure: Sure::default(),
            home: Whereabouts::default(),
            ack: None,
            whole: Vec::new(),
            on_sealed: None,
        })
    }

    /// Whose journal it is; `None`: nothing came yet.
    #[must_use]
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// The journal's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Has `hear` called with the number of each unit that is sealed, or comes whole, from now on, by the
    /// thread that applies ops; for [`crate::keeper::Shared::sealed`].
    pub fn on_sealed(&mut self, hear: impl Fn(u64) + Send + Sync + 'static) {
        self.on_sealed = Some(Box::new(hear));
    }

    /// The highest epoch that an op came with, or that a unit here has: lower ones are refused.
    ///
    /// # Errors
    /// It can't be read.
    pub fn epoch(&self) -> Result<u64> {
        Ok(told::read(&*self.storage, &self.dir)?.max(self.held.epoch))
    }

    fn identity_of_sender(&self) -> Taken<&Identity> {
        let nobody = || SinkError::Broken("nobody was let in: open it first".into());
        self.identity.as_ref().filter(|_| self.sender.is_some()).ok_or_else(nobody)
    }

    /// 0: nobody was let in.
    fn sender_epoch(&self) -> u64 {
        self.sender.as_ref().map_or(0, |sender| sender.epoch)
    }

    /// Lets a sender in: its journal is this one, and none of a later epoch has begun.
    fn admit(&mut self, hello: &Hello) -> Taken<()> {
        let identity = &hello.identity;
        layout::check_name(&identity.name).map_err(sink_error)?;
        let whole = identity.unit_bytes.is_multiple_of(BLOCK_BYTES);
        let sizes = unit::UNIT_BYTES_MIN..=unit::UNIT_BYTES_MAX;
        if identity.format != VERSION || !whole || !sizes.contains(&identity.unit_bytes) {
            let why = "the journal has a format or a size of units that this program doesn't know";
            return Err(SinkError::Refused(why.into()));
        }
        if let Some(own) = self.identity.as_ref().filter(|own| *own != identity) {
            return Err(SinkError::Refused(format!(
                "{} holds another journal ({}, group {}): use another directory or name",
                self.dir.display(),
                own.name,
                own.group
            )));
        }
        let highest = self.epoch().map_err(sink_error)?;
        if hello.epoch < highest && !planted::is("accept-a-lower-epoch") {
            return Err(SinkError::Refused(format!(
                "epoch {} is over: the site {} has something of epoch {highest}; whoever has that \
                 one may write here",
                hello.epoch,
                self.dir.display()
            )));
        }
        if self.identity.is_none() {
            let parent = self.dir.parent().unwrap_or(Path::new("."));
            layout::write_identity(&*self.storage, &self.dir, identity)
                .and_then(|()| Arrivals::begin(&*self.storage, &self.dir))
                .and_then(|()| layout::sync_dir_in(&*self.storage, parent))
                .map_err(sink_error)?;
            self.identity = Some(identity.clone());
        }
        Ok(())
    }

    /// From the first op on, which comes from who compared its journal with what is here, lower epochs
    /// are refused.
    fn begin_epoch(&mut self) -> Taken<()> {
        let epoch = match &self.sender {
            Some(Sender { epoch, has_begun: false }) => *epoch,
            _ => return Ok(()),
        };
        if epoch > self.epoch().map_err(sink_error)? {
            told::write(&*self.storage, &self.dir, epoch).map_err(sink_error)?;
        }
        self.sender = Some(Sender { epoch, has_begun: true });
        Ok(())
    }

    /// A file is here whole.
    fn counts(&mut self, name: FileName) {
        let (first, last) = name.numbers();
        self.held.add(first, last);
        self.whole.push(name);
        if let Some(hear) = &self.on_sealed {
            hear(last);
        }
    }

    /// Units that are not sealed may lie elsewhere now, the same: goes on with them there. For who moves
    /// them between two ops.
    ///
    /// # Errors
    /// One is nowhere, or can't be opened: the sender has to come again.
    pub fn follow_moved(&mut self) -> Result<()> {
        let mut followed = Ok(());
        if self.incoming.values().any(|unit| !self.storage.exists(&unit.found.path)) {
            let places = Places::of(&self.storage, &self.dir)?;
            for unit in self.incoming.values_mut() {
                followed = followed.and(unit.follow(&*self.storage, &places));
            }
        }
        if followed.is_err() {
            self.sender = None;
        }
        followed
    }

    /// Makes everything that came durable, then acknowledges it.
    fn sync(&mut self, token: u64, watermark: Seq) -> Taken<()> {
        self.identity_of_sender()?;
        self.check_files().map_err(sink_error)?;
        let is_early = planted::is("ack-before-sync");
        let mut synced = Ok(());
        for unit in self.incoming.values_mut().filter(|_| !is_early) {
            synced = synced.and_then(|()| unit.sync());
        }
        if synced.is_err() {
            self.doubt();
        }
        synced.map_err(sink_error)?;
        let noted = self.note_arrivals(watermark);
        if noted.is_err() && !self.is_in_place() {
            return Err(sink_error(place::gone("find the journal", &self.dir)));
        }
        noted.map_err(sink_error)?;
        let whole = match self.ack.take() {
            Some(before) => before.whole.into_iter().chain(self.whole.drain(..)).collect(),
            None => std::mem::take(&mut self.whole),
        };
        self.ack = Some(Ack { token, watermark, whole });
        Ok(())
    }

    /// A number that is here, the highest or one of the last.
    fn highest_here(&self) -> Seq {
        let last = |unit: &Incoming| unit.records.last().map(|(_, record)| record.seq);
        self.incoming.values().filter_map(last).max().unwrap_or(0).max(self.highest)
    }

    /// Notes what is here now. Where there is no room for a note, nothing gets older than it is.
    fn note_arrivals(&mut self, watermark: Seq) -> Result<()> {
        self.highest = self.highest_here();
        let acknowledged = watermark.min(self.highest);
        self.sure.acknowledge(acknowledged);
        if !self.arrivals.note((self.highest, acknowledged), &*self.options.clock) {
            return Ok(());
        }
        match self.arrivals.save(&*self.storage, &self.dir) {
            Err(error) if error.kind() == ErrorKind::FreeSpace => {
                tracing::warn!(%error, "when records arrived can't be noted: they stay for longer");
                Ok(())
            }
            saved => saved,
        }
    }

    /// Takes over when another copy of the journal noted its records to arrive, if nothing is noted here.
    ///
    /// # Errors
    /// It can't be written.
    pub fn take_arrivals(&mut self, other: &Arrivals) -> Result<()> {
        match self.arrivals.take_over(other, &*self.options.clock) {
            true => self.arrivals.save(&*self.storage, &self.dir),
            false => Ok(()),
        }
    }

    /// A sync failed: the page cache may show what the device never took. Word of it stays, so that it is
    /// written again before anybody believes it, after the end of this process too.
    fn doubt(&mut self) {
        self.is_doubted = true;
        let path = self.dir.join(DOUBT_FILE);
        if let Err(error) = layout::replace_file_in(&*self.storage, &path, b"") {
            tracing::error!(%error, "can't leave word of the failed sync");
        }
    }

    fn put(&mut self, piece: &Piece<'_>) -> Taken<()> {
        let unit_bytes = self.identity_of_sender()?.unit_bytes;
        let name = piece.name;
        let end = piece.at.checked_add(piece.len);
        let fits = name.numbers().1 <= NUMBER_MAX
            && piece.bytes.len() <= OP_BYTES_MAX
            && piece.bytes.len() as u64 <= piece.len
            && piece.file_bytes <= unit_bytes
            && end.is_some_and(|end| end <= piece.file_bytes);
        if !fits {
            return Err(SinkError::Broken(format!("{name}: a piece that no file can have")));
        }
        if !self.options.mirror && self.held.covers_all(name.numbers()) {
            return Ok(());
        }
        let other = self.draft.take_if(|d| d.name != name || d.is_other(piece));
        if let Some(other) = other {
            other.discard(&*self.storage);
        }
        if self.draft.is_none() && piece.at == 0 {
            let dir = self.options.ground.place(&self.dir, piece.file_bytes).map_err(sink_error)?;
            self.draft = Some(Draft::begin(&*self.storage, &dir, name).map_err(sink_error)?);
        }
        let draft = self.draft.as_mut();
        let draft = draft.ok_or_else(|| SinkError::Broken(format!("{name} did not begin")))?;
        draft.take(piece)
    }

    fn apply_op(&mut self, op: Op) -> Taken<()> {
        match op {
            Op::Begin(header) => self.begin(&header),
            Op::Bytes { unit, at, bytes } => self.bytes(unit, at, &bytes),
            Op::Seal { unit, end, index_crc } => self.seal(unit, end, index_crc),
            Op::Put { name, file_bytes, at, bytes, len } => {
                self.put(&Piece { name, file_bytes, at, bytes: &bytes, len })
            }
            Op::PutEnd { name, index_crc } => self.put_end(name, index_crc),
            Op::Release(names) => self.release(&names),
            Op::Sync { token, watermark, .. } => self.sync(token, watermark),
        }
    }
}

impl Sink for Replica {
    fn open(&mut self, hello: &Hello) -> Taken<Inventory> {
        self.sender = None;
        // What was told of it, and what its own units say, come first.
        if self.identity.is_some() {
            if !self.is_in_place() {
                return Err(sink_error(place::gone("find the journal", &self.dir)));
            }
            self.load().map_err(sink_error)?;
        }
        self.admit(hello)?;
        self.settle_home();
        let inventory = self.inventory().map_err(sink_error)?;
        self.sender = Some(Sender { epoch: hello.epoch, has_begun: false });
        self.ack = None;
        self.whole.clear();
        Ok(inventory)
    }

    fn apply(&mut self, op: Op) -> Taken<()> {
        let applied = self.begin_epoch().and_then(|()| self.apply_op(op));
        if applied.is_err() {
            self.sender = None;
        }
        applied
    }

    fn ack(&mut self, _wait: Duration) -> Taken<Option<Ack>> {
        // Ops are done when `apply` returns: there is nothing to wait for.
        Ok(self.ack.take())
    }

    fn mirrors(&self) -> bool {
        self.options.mirror
    }
}
