//! One opening of a journal in a bucket: the state as its manifests will tell it, and what is on its way.

use super::audit::{Audit, begin_anew};
use super::garbage::Garbage;
use super::gather::{Cut, Gather};
use super::uploads::Uploads;
use super::{SinkOptions, chain_error, fetch_error, store_error};
use crate::manifest::{Chain, Change, Committed, File, Found, Holding, Segment, Stamp, State};
use crate::storage::{Fetcher, read_at};
use crate::store::Patient;
use afterimage_journal::format::record::Record;
use afterimage_journal::layout;
use afterimage_journal::pool::FileName;
use afterimage_journal::wire::{Ack, Hello, SinkError};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// Tries to write the first manifest while others write.
const FENCES_MAX: usize = 16;
/// Bytes that reading back keeps in memory.
const CACHE_BYTES: usize = 32 << 20;
/// Without anything else to tell, what is dead is told and deleted so often.
const IDLE: Duration = Duration::from_secs(30);

/// The end of a file that is not whole.
#[derive(Debug)]
pub(super) struct Tail {
    pub gather: Gather,
    /// Its records, if all of them were brought since the opening.
    pub records: Option<Vec<(u64, Record)>>,
    /// Whether it is a unit's beyond its records: pieces of what it has when it is sealed.
    pub in_pieces: bool,
}

/// One opening.
pub(super) struct Live {
    /// Who opened it, until the first op comes: only then it takes the journal over.
    opened_by: Option<Hello>,
    pub root: String,
    pub options: SinkOptions,
    pub group: [u8; 16],
    pub epoch: u64,
    pub state: State,
    pub change: Change,
    pub tails: BTreeMap<FileName, Tail>,
    pub fetcher: Arc<Fetcher>,
    pub garbage: Garbage,
    pub uploads: Uploads,
    pub store: Patient,
    pub chain: Chain,
    /// Objects on their way, and whose they are.
    sent: HashMap<[u8; 16], FileName>,
    /// The newest sync: token, watermark, time of its record.
    pub sync: (u64, u64, u64),
    /// Files that became whole since the last manifest.
    pub whole: Vec<FileName>,
    ack: Option<Ack>,
    acked_token: u64,
    /// Since when there is something that a sync covers, or will; and something of the background.
    pub fresh_since: Option<Instant>,
    pub background_since: Option<Instant>,
    committed_at: Instant,
    /// When the newest manifest was asked for, and all objects were looked for; an audit under way.
    pub looked_at: Instant,
    pub audited_at: Instant,
    pub audit: Option<Audit>,
}

/// Nanoseconds since the Unix epoch.
pub(super) fn wall_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

impl Live {
    /// Looks at what is there. Nobody is shut out yet: who opens it may find that it has another branch of
    /// the journal.
    pub fn open(
        store: &Patient,
        root: String,
        options: SinkOptions,
        hello: &Hello,
    ) -> Result<Self, SinkError> {
        let chain = Chain::new(store.clone(), root.clone());
        let state = load(store, &root, &chain)?;
        check_state(&root, &state, hello)?;
        Ok(Self {
            opened_by: Some(hello.clone()),
            fetcher: Fetcher::new(store.clone(), CACHE_BYTES, None),
            uploads: Uploads::start(store.clone()).map_err(store_error)?,
            store: store.clone(),
            group: hello.identity.group.into_bytes(),
            epoch: hello.epoch,
            sync: (0, state.watermark, state.record_wall_ns),
            garbage: Garbage::default(),
            change: Change::default(),
            tails: BTreeMap::new(),
            sent: HashMap::new(),
            whole: Vec::new(),
            ack: None,
            acked_token: 0,
            fresh_since: None,
            background_since: None,
            committed_at: Instant::now(),
            looked_at: Instant::now(),
            audited_at: Instant::now(),
            audit: None,
            root,
            options,
            state,
            chain,
        })
    }

    /// Takes the journal over, before the first op is done: after this no lower epoch commits, nor does an
    /// earlier opening.
    ///
    /// # Errors
    /// [`SinkError::Refused`]: one of a higher epoch did so before. [`SinkError::Broken`]: somebody wrote
    /// since this was opened; what is there has to be compared again.
    pub fn take_over(&mut self) -> Result<(), SinkError> {
        let Some(hello) = self.opened_by.take() else { return Ok(()) };
        let seen = self.state.number;
        let mut state = std::mem::take(&mut self.state);
        for _ in 0..FENCES_MAX {
            check_state(&self.root, &state, &hello)?;
            let fenced = fence(&self.chain, state, self.options, &hello)?;
            // One that slept while what it knew was deleted wrote where nobody reads: it begins anew.
            let newest = self.chain.newest(0).map_err(store_error)?;
            if let Some(fenced) = fenced.filter(|f| newest == Some(f.number)) {
                if fenced.number != seen + 1 {
                    let what = format!("{} was written to meanwhile: compare again", self.root);
                    return Err(SinkError::Broken(what));
                }
                self.state = fenced;
                return Ok(());
            }
            state = load(&self.store, &self.root, &self.chain)?;
            if state.epoch == hello.epoch {
                // A later opening of our own: that one stays.
                return Err(lost(&self.root, hello.epoch, state.epoch));
            }
        }
        let root = &self.root;
        Err(SinkError::Away(format!("{root}: others write manifests faster than this one")))
    }

    /// The key of a manifest.
    pub fn manifest_key(&self, number: u64) -> String {
        self.chain.key(number)
    }

    /// The tail of a file that is not whole. Small segments at its end are read once more, so that they
    /// can become a larger one.
    pub fn tail(&mut self, name: FileName) -> Result<&mut Tail, SinkError> {
        if !self.tails.contains_key(&name) {
            let Some(file) = self.state.files.get(&name) else {
                return Err(SinkError::Broken(format!("{name} did not begin")));
            };
            let in_pieces = file.holding == Holding::Part || file.end > file.records;
            let gather = match in_pieces {
                true => Gather::at(file.end),
                false => self.read_small(name, file)?,
            };
            self.tails.insert(name, Tail { gather, records: None, in_pieces });
        }
        self.tails.get_mut(&name).ok_or_else(|| SinkError::Broken(format!("{name} did not begin")))
    }

    fn read_small(&self, name: FileName, file: &File) -> Result<Gather, SinkError> {
        let (mut small, mut bytes) = (0, 0);
        for segment in file.segments.iter().rev() {
            let good = segment.bytes >= super::SEGMENT_GOOD_BYTES as u64;
            if good || bytes + segment.bytes > super::SEGMENT_BYTES as u64 {
                break;
            }
            small += 1;
            bytes += segment.bytes;
        }
        let from = file.end - bytes.min(file.end);
        let mut buffer = vec![0; bytes as usize];
        read_at(&self.fetcher, &self.root, (name, file), &mut buffer, from, None)
            .map_err(fetch_error)?;
        Ok(Gather::again(from, buffer, small))
    }

    /// Sends a piece of a file.
    pub fn write(&mut self, name: FileName, cut: Cut) -> Result<(), SinkError> {
        let random = Uuid::new_v4().into_bytes();
        let Some(file) = self.state.files.get_mut(&name) else {
            return Err(SinkError::Broken(format!("{name} did not begin")));
        };
        let keep = file.segments.len().saturating_sub(cut.replaces);
        let replaced = file.segments.split_off(keep);
        let segment = Segment {
            at: cut.at,
            bytes: cut.bytes.len() as u64,
            object_bytes: 0,
            writer: (self.epoch, self.state.opening),
            random,
        };
        file.segments.push(segment);
        file.end = segment.end();
        if self.tails.get(&name).is_some_and(|t| !t.in_pieces) {
            file.records = file.end;
        }
        self.change.touch(name, keep);
        self.bury(name, &replaced);
        self.sent.insert(random, name);
        let key = format!("{}/{}", self.root, segment.key(name));
        self.uploads.put(key, random, cut.bytes, self.locked_until()).map_err(store_error)
    }

    /// Whether an object was not there yet when it was looked at last.
    pub fn is_on_its_way(&self, random: &[u8; 16]) -> bool {
        self.sent.contains_key(random)
    }

    /// Until when what is written now is kept from deletion.
    fn locked_until(&self) -> Option<SystemTime> {
        let days = u64::from(self.options.lock_days?);
        Some(SystemTime::now() + Duration::from_secs(days * 86_400))
    }

    /// From here on a unit that began gets pieces of what it has when it is sealed. Until all of them are
    /// there, it counts as far as its records were acknowledged.
    pub fn take_pieces(&mut self, name: FileName) -> Result<(), SinkError> {
        let tail = self.tail(name)?;
        if tail.in_pieces {
            return Ok(());
        }
        let end = tail.gather.end();
        if let Some(cut) = tail.gather.finish() {
            self.write(name, cut)?;
        }
        let gather = Gather::at(end);
        self.tails.insert(name, Tail { gather, records: None, in_pieces: true });
        Ok(())
    }

    /// From here on it gets records again: pieces behind them are given up.
    pub fn take_records(&mut self, name: FileName) -> Result<(), SinkError> {
        if !self.tail(name)?.in_pieces {
            return Ok(());
        }
        self.tails.remove(&name);
        let Some(file) = self.state.files.get_mut(&name) else { return Ok(()) };
        let keep = file.segments.partition_point(|s| s.end() <= file.records);
        let pieces = file.segments.split_off(keep);
        file.end = file.records;
        self.change.touch(name, keep);
        self.bury(name, &pieces);
        Ok(())
    }

    fn bury(&mut self, name: FileName, segments: &[Segment]) {
        let now = wall_ns();
        for segment in segments {
            let key = segment.key(name);
            self.state.dead.insert(key.clone(), now);
            self.change.dead.insert(key, now);
        }
    }

    /// Gives a file up.
    pub fn give_up(&mut self, name: FileName) {
        if let Some(file) = self.state.files.remove(&name) {
            self.bury(name, &file.segments);
            self.change.files.remove(&name);
            self.change.gone.insert(name);
            self.tails.remove(&name);
        }
    }

    /// Waits for what is on its way, and takes note of its sizes.
    pub fn settle(&mut self) -> Result<(), SinkError> {
        for (random, object_bytes) in self.uploads.drain().map_err(store_error)? {
            let Some(name) = self.sent.remove(&random) else { continue };
            // Given up meanwhile: it is dead already.
            let Some(file) = self.state.files.get_mut(&name) else { continue };
            if let Some(segment) = file.segments.iter_mut().rev().find(|s| s.random == random) {
                segment.object_bytes = object_bytes;
            }
        }
        Ok(())
    }

    /// When the next manifest is due; `None`: there is nothing to tell.
    pub fn due_in(&self) -> Option<Duration> {
        if self.opened_by.is_some() {
            return None;
        }
        let left = |since: Option<Instant>, age: Duration| {
            since.map(|since| age.saturating_sub(since.elapsed()))
        };
        let options = &self.options;
        let dead = self.has_expired().then(|| IDLE.saturating_sub(self.committed_at.elapsed()));
        let fresh = left(self.fresh_since, options.age);
        let background = left(self.background_since, options.background_age);
        let look = (self.state.number > 0)
            .then(|| options.look_every.saturating_sub(self.looked_at.elapsed()));
        [fresh, background, dead, look].into_iter().flatten().min()
    }

    /// Commits if that is due.
    pub fn commit_if_due(&mut self) -> Result<(), SinkError> {
        match self.due_in() {
            Some(left) if left.is_zero() => self.commit(),
            _ => Ok(()),
        }
    }

    /// The newest ack, once.
    pub fn take_ack(&mut self) -> Option<Ack> {
        self.ack.take()
    }

    /// Whether the newest manifest tells all already.
    fn is_told(&self) -> bool {
        let behind = |t: &Tail| t.gather.is_behind();
        self.change.is_empty()
            && self.whole.is_empty()
            && self.sync.1 == self.state.watermark
            && !self.tails.values().any(behind)
    }

    /// Writes all that was brought, and the manifest that names it.
    fn commit(&mut self) -> Result<(), SinkError> {
        self.look()?;
        self.note_buried();
        if !self.is_told() || self.has_expired() {
            self.write_manifest()?;
        }
        (self.fresh_since, self.background_since) = (None, None);
        self.committed_at = Instant::now();
        let (token, watermark, _) = self.sync;
        let mut ack = self.ack.take().unwrap_or_default();
        ack.whole.append(&mut self.whole);
        if token > self.acked_token || !ack.whole.is_empty() {
            (ack.token, ack.watermark) = (token, watermark);
            self.acked_token = token;
            self.ack = Some(ack);
        }
        self.collect()?;
        self.audit_on()
    }

    fn write_manifest(&mut self) -> Result<(), SinkError> {
        let open: Vec<FileName> = self
            .tails
            .keys()
            .filter(|n| self.state.files.get(n).is_some_and(|f| f.holding == Holding::Open))
            .copied()
            .collect();
        for name in open {
            let cut = self.tails.get_mut(&name).and_then(|t| t.gather.settle());
            if let Some(cut) = cut {
                self.write(name, cut)?;
            }
        }
        self.settle()?;
        let (_, watermark, record_wall_ns) = self.sync;
        (self.state.watermark, self.state.record_wall_ns) = (watermark, record_wall_ns);
        let stamp = Stamp {
            epoch: self.epoch,
            opens: false,
            wall_ns: wall_ns(),
            until: self.locked_until(),
        };
        let change = std::mem::take(&mut self.change);
        match self.chain.commit(&mut self.state, &change, &stamp).map_err(chain_error)? {
            Committed::Ours => Ok(()),
            Committed::Taken(epoch) => Err(lost(&self.root, self.epoch, epoch)),
        }
    }
}

/// What is there; begun anew where that can't be told any more.
fn load(store: &Patient, root: &str, chain: &Chain) -> Result<State, SinkError> {
    match chain.find().map_err(chain_error)? {
        Found::Nothing => Ok(State::default()),
        Found::State(state) => Ok(*state),
        Found::Broken(remains) => begin_anew(store, root, &remains),
    }
}

/// The first manifest of an opening; `None`: its number was taken.
fn fence(
    chain: &Chain,
    mut state: State,
    options: SinkOptions,
    hello: &Hello,
) -> Result<Option<State>, SinkError> {
    if state.identity.is_empty() {
        state.identity = layout::encode_identity(&hello.identity)
            .map_err(|e| SinkError::Refused(e.to_string()))?;
    }
    let days = options.lock_days.map(|d| Duration::from_secs(u64::from(d) * 86_400));
    let stamp = Stamp {
        epoch: hello.epoch,
        opens: true,
        wall_ns: wall_ns(),
        until: days.map(|d| SystemTime::now() + d),
    };
    match chain.commit(&mut state, &Change::default(), &stamp).map_err(chain_error)? {
        Committed::Ours => Ok(Some(state)),
        Committed::Taken(_) => Ok(None),
    }
}

/// Whether a journal may be sent to where this is.
fn check_state(root: &str, state: &State, hello: &Hello) -> Result<(), SinkError> {
    if state.epoch > hello.epoch {
        return Err(lost(root, hello.epoch, state.epoch));
    }
    if state.identity.is_empty() {
        return Ok(());
    }
    let place = Path::new(root).join("journal.json");
    let there = layout::decode_identity(&place, &state.identity)
        .map_err(|e| SinkError::Refused(e.to_string()))?;
    if there == hello.identity {
        return Ok(());
    }
    Err(SinkError::Refused(format!(
        "{root} holds another journal (group {}, ours is {}): use another prefix",
        there.group, hello.identity.group
    )))
}

/// The number of our next manifest is another writer's.
pub(super) fn lost(root: &str, ours: u64, theirs: u64) -> SinkError {
    if theirs > ours {
        return SinkError::Refused(format!(
            "{root} was taken over by epoch {theirs}, ours is {ours}: another agent writes this \
             journal now"
        ));
    }
    SinkError::Broken(format!("{root} was opened again by epoch {theirs} meanwhile"))
}
