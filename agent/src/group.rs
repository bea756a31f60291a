//! A group: one journal, its configuration, and the sessions of its guests.
//!
//! What always holds: a session is open only between a durable open record, written when its
//! guest was proved level, and a close record, or the end of the epoch (I-4); ids of sessions,
//! copies, volumes and checkpoints are never used twice in a journal; a journal that stopped is
//! opened anew, never resumed.

mod copy;
mod keeping;
mod memory;
mod opening;
mod purge;
mod secret;
mod sessions;
mod shipping;
mod state;
mod timeline;
mod volumes;

pub use copy::CopyWriter;
pub use memory::{MemoryPart, MemoryVolume};
pub use purge::purge;
pub use timeline::{Interval, Twice};

use afterimage_journal::meta::{Checkpoint, CheckpointKind, Config, CopyCause, Meta};
use afterimage_journal::{Error, Journal, Options, Result, Seq, VolumeId, layout};
use secret::Secret;
use state::State;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use uuid::Uuid;

/// A group of guests with one journal.
pub struct Group {
    name: String,
    /// The state directory.
    home: PathBuf,
    dir: PathBuf,
    options: Options,
    secret: Secret,
    state: Mutex<State>,
    keeping: Arc<keeping::Keeping>,
    shipping: crate::ship::Shipping,
}

/// What the journal has of a volume.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VolumeState {
    /// A full copy has ended.
    pub complete: bool,
    /// The first full copy got to this byte address.
    pub initial_upto: u64,
    /// Any of its records is there.
    pub has_data: bool,
    /// A comparison was begun, or found necessary, and no session has opened since.
    pub owes_compare: bool,
    /// Maps were to be pulled, and no session has opened since.
    pub owes_maps: bool,
}

/// An open session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenSession {
    /// Its id.
    pub id: u32,
    /// Where it began.
    pub from: Seq,
    /// The last position at which the guest was looked at and found level.
    pub confirmed: Seq,
    /// When that was, nanoseconds since the Unix epoch.
    pub confirmed_ns: u64,
    /// The same by a clock that is never set.
    pub confirmed_at: Instant,
}

/// What a group knows of a guest at one moment.
#[derive(Debug, Clone)]
pub struct Standing {
    /// Why the journal takes no records, if so.
    pub stopped: Option<String>,
    /// Its open session.
    pub session: Option<OpenSession>,
    /// Its sessions over time, oldest first.
    pub intervals: Vec<Interval>,
    /// Times that mean more than one position.
    pub twice: Twice,
}

/// How the session before this opening of the journal ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastSession {
    /// Its id.
    pub id: u32,
    /// Last restorable position as the journal has it.
    pub to: Seq,
    /// The last position at which its guest was looked at and found level.
    pub confirmed: Seq,
    /// It was closed by a record of its own, not by the end of its epoch.
    pub closed: bool,
}

/// A checkpoint that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Marked {
    /// Its number.
    pub id: u64,
    /// Its position.
    pub seq: Seq,
    /// The time of its record, nanoseconds since the Unix epoch.
    pub wall_ns: u64,
}

impl Group {
    /// Opens the group's journal below `state`, or creates it; encrypted, if there is a key file.
    ///
    /// # Errors
    /// The name can't be one; the key file can't be used, or isn't this journal's; the
    /// journal is damaged beyond opening, in use, of a newer version; there is no space or no permission.
    pub fn open(
        state: &Path,
        name: &str,
        options: Options,
        key_file: Option<&Path>,
    ) -> Result<Self> {
        let group = Self::unopened(state, name, options, key_file)?;
        if group.exists() {
            group.ensure_open()?;
        } else {
            let id = Uuid::new_v4();
            let options = group.secret.options(&group.options)?;
            let journal = Journal::create(&group.dir, id, name, options)?;
            let mut state = group.lock();
            state.config.group = id;
            state.journal = Some(journal);
        }
        Ok(group)
    }

    /// The group with its journal still closed: [`Self::ensure_open`] opens it, now or later.
    ///
    /// # Errors
    /// The name can't be one.
    pub fn unopened(
        state: &Path,
        name: &str,
        mut options: Options,
        key_file: Option<&Path>,
    ) -> Result<Self> {
        let keeping = Arc::new(keeping::Keeping::default());
        let inner = Arc::clone(&options.allocator);
        options.allocator = Arc::new(keeping::Limited { inner, keeping: Arc::clone(&keeping) });
        Ok(Self {
            name: name.to_owned(),
            home: state.to_owned(),
            dir: layout::journal_dir(state, name)?,
            options,
            secret: Secret::of(key_file),
            state: Mutex::new(State::empty(name)),
            keeping,
            shipping: crate::ship::Shipping::default(),
        })
    }

    /// True if there is a journal, open or not, or that can't be told.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.dir.join("journal.json").try_exists().unwrap_or(true)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whole at every step: a panic elsewhere leaves nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The group's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The journal's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The journal, when it takes records.
    ///
    /// # Errors
    /// It stopped, or could not be opened yet.
    pub fn journal(&self) -> Result<Journal> {
        let state = self.lock();
        let journal = state.journal.clone().ok_or_else(stopped)?;
        match journal.stopped() {
            None => Ok(journal),
            Some(why) => {
                let space = journal.is_out_of_space();
                Err(Error::Stopped { last_seq: journal.head(), why, space })
            }
        }
    }

    /// Why the journal takes no records, if so.
    #[must_use]
    pub fn stopped(&self) -> Option<String> {
        self.lock().stopped()
    }

    /// Closes the journal cleanly.
    ///
    /// # Errors
    /// The last records could not be made durable.
    pub fn close(&self) -> Result<()> {
        self.stop_keeper();
        let journal = self.lock().journal.take();
        let closed = journal.map_or(Ok(()), Journal::close);
        // Behind it: the journal's end gets to the sites as well.
        self.shipping.end();
        closed
    }

    /// Whether the journal holds damage: what it says of a guest's volumes can't be trusted
    /// before all of it was compared.
    #[must_use]
    pub fn is_damaged(&self, guest: &str) -> bool {
        self.lock().damaged.contains(guest)
    }

    /// Whether records that had been answered were cut off, and the guest was not level since.
    #[must_use]
    pub fn records_lost(&self, guest: &str) -> bool {
        self.lock().records_lost.contains(guest)
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> Config {
        self.lock().config.clone()
    }

    /// Changes the configuration, in the journal if anything did change.
    ///
    /// # Errors
    /// The journal stopped.
    pub fn update_config(&self, change: impl FnOnce(&mut Config)) -> Result<()> {
        let mut state = self.lock();
        let mut config = state.config.clone();
        change(&mut config);
        if config == state.config {
            return Ok(());
        }
        let journal = state.journal.clone().ok_or_else(stopped)?;
        journal.set_config(&config)?;
        state.config = config;
        Ok(())
    }

    /// What the journal has of a volume.
    #[must_use]
    pub fn volume_state(&self, volume: VolumeId) -> VolumeState {
        self.lock().volumes.get(&volume).copied().unwrap_or_default()
    }

    fn change_volume(&self, volume: VolumeId, change: impl FnOnce(&mut VolumeState)) {
        change(self.lock().volumes.entry(volume).or_default());
    }

    /// Notes that a volume is not level before a copy of this cause was made: whoever dies in
    /// between leaves that to the next (I-4).
    ///
    /// # Errors
    /// The journal stopped.
    pub fn owe(self: &std::sync::Arc<Self>, volume: VolumeId, cause: CopyCause) -> Result<()> {
        self.begin_copy(volume, (cause, false)).map(drop)
    }

    /// The changed-block map of a volume that may be trusted.
    #[must_use]
    pub fn noted_map(&self, volume: VolumeId) -> Option<String> {
        self.lock().maps.get(&volume).cloned()
    }

    /// Starts a copy of blocks into the journal; a whole one leaves nothing out because the journal has it.
    ///
    /// # Errors
    /// The journal stopped.
    pub fn begin_copy(
        self: &std::sync::Arc<Self>,
        volume: VolumeId,
        (cause, whole): (CopyCause, bool),
    ) -> Result<CopyWriter> {
        let id = {
            let mut state = self.lock();
            let id = state.next_copy;
            state.next_copy += 1;
            id
        };
        CopyWriter::begin(std::sync::Arc::clone(self), volume, (cause, whole), id)
    }

    /// Makes the regular checkpoint if it is due and every guest of the group is level.
    ///
    /// # Errors
    /// The journal stopped.
    pub fn checkpoint_if_due(&self, every_ms: u64) -> Result<()> {
        {
            let mut state = self.lock();
            // Ticks are not exact: half a tick early is on time.
            let due = u128::from(every_ms.saturating_sub(500));
            let due = state.marked.is_none_or(|t| t.elapsed().as_millis() >= due);
            if !due || !state.all_level() {
                return Ok(());
            }
            state.marked = Some(Instant::now());
        }
        self.mark(CheckpointKind::Crash, None).map(drop)
    }

    /// Makes a checkpoint. Not durable yet when this returns.
    ///
    /// # Errors
    /// A guest of the group is not level; or the journal stopped.
    pub fn mark(&self, kind: CheckpointKind, tag: Option<String>) -> Result<Marked> {
        let journal = self.journal()?;
        let mut state = self.lock();
        if !state.all_level() {
            return Err(Error::Invalid(format!(
                "the group {} is not protected at this moment: a checkpoint now could not be \
                 restored; see `afterimage status`",
                self.name
            )));
        }
        let id = state.next_checkpoint;
        let mark = Meta::Mark(Checkpoint { id, kind, tag, memory: None });
        let at = state.seen(journal.append_meta_stamped(&mark)?);
        state.next_checkpoint += 1;
        Ok(Marked { id, seq: at.seq, wall_ns: at.wall_ns })
    }

    /// How a guest stands: its journal, its session and its past, all of the same moment.
    #[must_use]
    pub fn standing(&self, guest: &str) -> Standing {
        let mut state = self.lock();
        state.twice.look(&*self.options.clock);
        let timeline = state.timelines.get(guest);
        Standing {
            stopped: state.stopped(),
            session: state.sessions.get(guest).copied(),
            intervals: timeline.map(|t| t.intervals().to_vec()).unwrap_or_default(),
            twice: state.twice.clone(),
        }
    }

    /// Wall time by the journal's clock.
    #[must_use]
    pub fn wall_ns(&self) -> u64 {
        self.options.clock.wall_ns()
    }

    /// Takes a guest out of the configuration; its volumes stay restorable.
    ///
    /// # Errors
    /// The journal stopped.
    pub fn remove_guest(&self, guest: &str) -> Result<()> {
        self.update_config(|config| {
            config.guests.retain(|g| g.name != guest);
            for volume in config.volumes.iter_mut().filter(|v| v.guest == guest) {
                volume.active = false;
            }
        })
    }
}

fn stopped() -> Error {
    Error::Stopped { last_seq: 0, why: "it is not open".into(), space: false }
}
