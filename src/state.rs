//! The state directory as an option, and what can be said of it without an agent.

use crate::failure::{Failure, Outcome};
use afterimage_agent::api::{
    Client, DiskStatus, GapStatus, GuestState, GuestStatus, JournalSize, ThinnedStatus,
    WindowStatus, types,
};
use afterimage_agent::settings::GuestSettings;
use afterimage_journal::history::{Point, When};
use afterimage_journal::meta::Volume;
use afterimage_journal::storage::Storage;
use afterimage_journal::{History, key, layout};
use afterimage_restore::{Recovery, WarmPoint};
use afterimage_s3::{S3Storage, S3Url};
use jiff::Timestamp;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is said of a guest of which only a journal is left.
pub const NOT_PROTECTED: &str = "it is not protected any more; its journal can be restored";

/// Where agent and journals lie.
#[derive(Clone, Debug, clap::Args)]
pub struct StateArgs {
    /// The state directory. `checkpoints`, `restore`, `export` and `verify` read a bucket too:
    /// s3://BUCKET/PREFIX?endpoint=URL&region=REGION
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/lib/afterimage",
        env = "AFTERIMAGE_STATE"
    )]
    pub state: PathBuf,
}

impl StateArgs {
    /// The agent that runs on it.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(&self.state)
    }

    /// The journal of a guest or group, in a state directory or a bucket.
    ///
    /// # Errors
    /// There is none, it can't be read, or no journal knows the name; of a bucket: the text is no URL,
    /// there are no credentials.
    pub fn open(&self, name: &str) -> Outcome<Recovery> {
        self.open_with(name, |bucket| bucket)
    }

    /// As [`Self::open`], to read here and there, and the same again: what memory has no room for is
    /// kept in a temporary file, so that a bucket gives it once.
    ///
    /// # Errors
    /// As there.
    pub fn open_to_reread(&self, name: &str) -> Outcome<Recovery> {
        self.open_with(name, S3Storage::with_temporary_file)
    }

    fn open_with(&self, name: &str, made: fn(S3Storage) -> S3Storage) -> Outcome<Recovery> {
        let Some(text) = self.state.to_str().filter(|text| S3Url::is_meant(text)) else {
            return Ok(afterimage_restore::open(&self.state, name)?);
        };
        let url: S3Url = text.parse().map_err(|e| Failure::usage(format!("--state: {e}")))?;
        let bucket = S3Storage::connect(&url).map_err(|e| Failure::usage(e.to_string()))?;
        bucket.check().map_err(|e| Failure { code: 4, message: e.to_string() })?;
        let state = bucket.state_dir().to_owned();
        let storage: Arc<dyn Storage> = Arc::new(made(bucket));
        Ok(afterimage_restore::open_in(&storage, &state, name)?)
    }
}

/// Refuses a bucket where a directory is needed.
///
/// # Errors
/// It is a bucket.
pub fn refuse_bucket(state: &Path) -> Outcome {
    let shown = state.display();
    if state.to_str().is_some_and(S3Url::is_meant) {
        return Err(Failure::usage(format!(
            "{shown} is a bucket: `checkpoints`, `restore`, `export` and `verify` read it, this \
             command needs a state directory"
        )));
    }
    Ok(())
}

/// Checks that a directory is a state directory, or holds a copy of a pool.
///
/// # Errors
/// It isn't, or a newer program wrote it.
pub fn check(state: &Path) -> Outcome {
    let shown = state.display();
    refuse_bucket(state)?;
    if !state.is_dir() {
        return Err(Failure::usage(format!(
            "there is no directory {shown}: give the state directory with --state"
        )));
    }
    if !state.join("format").exists() && !layout::pool_dir(state).is_dir() {
        return Err(Failure::usage(format!(
            "{shown} is not a state directory: it has neither a file `format` nor a \
             directory `pool`"
        )));
    }
    Ok(layout::check_state(state, false)?)
}

/// Which key an encrypted journal has.
#[derive(Debug, clap::Args)]
pub struct KeyArgs {
    /// File with the key of an encrypted journal; one that is not encrypted needs none
    #[arg(long, value_name = "FILE", env = "AFTERIMAGE_KEY_FILE")]
    key_file: Option<PathBuf>,
}

impl KeyArgs {
    /// Gives a journal its key, if it is encrypted.
    ///
    /// # Errors
    /// There is none, it can't be read, or it is another journal's.
    pub fn unlock(&self, recovery: &mut Recovery) -> Outcome {
        if recovery.history.identity.encryption.is_some() {
            let key = self.key_file.as_deref().map(key::read).transpose()?;
            recovery.history.unlock(key.as_ref())?;
            recovery.history.check_key()?;
        }
        Ok(())
    }
}

/// The status of guests as their journals on disk tell it, when no agent runs. A journal that
/// can't be read is a line for standard error, not the end of the others.
///
/// # Errors
/// There is no such directory, it isn't a state directory, a newer program wrote it, or no journal
/// knows the name.
pub fn offline_status(state: &Path, name: Option<&str>) -> Outcome<Vec<GuestStatus>> {
    if let Some(name) = name {
        let recovery = afterimage_restore::open(state, name)?;
        let settings = GuestSettings::load_all(state).unwrap_or_default();
        let all = of_journal(&recovery.history, &settings);
        let wanted = recovery.guest.as_deref();
        let mine: Vec<GuestStatus> =
            all.into_iter().filter(|s| wanted.is_none_or(|g| s.guest == g)).collect();
        return crate::show::as_shown(&mine);
    }
    check(state)?;
    let settings = GuestSettings::load_all(state).unwrap_or_default();
    let mut all = Vec::new();
    for journal in layout::journals(state)? {
        match History::load(&layout::journal_dir(state, &journal)?) {
            Ok(history) => all.extend(of_journal(&history, &settings)),
            Err(e) => crate::show::complain(e),
        }
    }
    all.sort_by(|a, b| a.guest.cmp(&b.guest));
    crate::show::as_shown(&all)
}

fn of_journal(history: &History, settings: &[GuestSettings]) -> Vec<GuestStatus> {
    // After the end of its protection a guest is in no newer configuration.
    let last = history.configs.iter().rev().find(|(_, config)| !config.guests.is_empty());
    let Some((_, config)) = last else { return Vec::new() };
    let is_member =
        |guest: &str| history.config().is_some_and(|c| c.guests.iter().any(|g| g.name == guest));
    let journal = size_of(history);
    let window = WindowStatus::of(history);
    let now = Timestamp::now();
    let guests = config.guests.iter();
    guests
        .map(|guest| {
            let known = settings.iter().find(|s| s.name == guest.name);
            let (state, reason) = if is_member(&guest.name) {
                state_of(history, &guest.name, known)
            } else {
                (GuestState::Detached, NOT_PROTECTED.to_owned())
            };
            let volumes = config.disks().filter(|v| v.active && v.guest == guest.name);
            GuestStatus {
                guest: guest.name.clone(),
                state,
                rpo_ms: window.as_ref().map(|w| {
                    u64::try_from(now.duration_since(w.to).as_millis()).unwrap_or_default()
                }),
                head_seq: history.head,
                durable_seq: history.watermark,
                window: window.clone(),
                gaps: history.gaps.iter().map(|gap| GapStatus::of(history, gap)).collect(),
                journal,
                disks: volumes.map(|v| disk(history, v)).collect(),
                stall_ms_max: 0,
                group: history.identity.name.clone(),
                encrypted: history.identity.encryption.is_some(),
                reason: Some(reason),
                epoch: history.epoch,
                window_s: known.map_or(0, |s| s.window_s),
                keep: known.and_then(|s| s.keep.clone()),
                thinned: ThinnedStatus::of(history),
                checkpoint_every_ms: known.map_or(0, |s| s.checkpoint_every_ms),
                write_rate_bytes_s: 0,
                writes_per_s: 0,
                copy: None,
                agent_restarts: 0,
                offline: true,
                space: None,
                memory: None,
                sites: Vec::new(),
                warnings: known.map(GuestSettings::warnings).unwrap_or_default(),
            }
        })
        .collect()
}

fn state_of(
    history: &History,
    guest: &str,
    settings: Option<&GuestSettings>,
) -> (GuestState, String) {
    let last = history.sessions.iter().rev().find(|s| s.guest == guest);
    if settings.is_some_and(|s| s.detached) {
        return (GuestState::Detached, "it was detached; no agent runs".into());
    }
    match last {
        // Its images were recorded: the guest had ended when the agent let go of it.
        Some(s) if !s.images.is_empty() => {
            (GuestState::Detached, format!("{}; no agent runs", s.reason))
        }
        _ => (GuestState::Gap, "no agent runs: what the guest writes is not captured".into()),
    }
}

fn size_of(history: &History) -> JournalSize {
    // Preallocated units count as what they take, holes don't.
    let allocated = history.units.iter().filter_map(|u| std::fs::metadata(&u.path).ok());
    JournalSize {
        units: history.units.len() as u64,
        bytes: allocated.map(|m| m.blocks() * 512).sum(),
    }
}

fn disk(history: &History, volume: &Volume) -> DiskStatus {
    let copies = || history.copies.values().filter(|c| c.volume == volume.id);
    let synced_bytes = if copies().any(|c| c.ended.is_some()) {
        volume.bytes
    } else {
        copies().map(|c| c.upto).max().unwrap_or(0).min(volume.bytes)
    };
    DiskStatus {
        guest: volume.guest.clone(),
        id: volume.disk.clone(),
        node: volume.node.clone(),
        bytes: volume.bytes,
        synced_bytes,
    }
}

/// Times of records, as the API has them.
#[must_use]
pub fn time(wall_ns: u64) -> Timestamp {
    types::time(wall_ns)
}

/// The recovery point of a wanted moment. A moment in the future has none, however soon it is.
///
/// # Errors
/// It can't be restored: the nearest points are named.
pub fn resolve(recovery: &Recovery, wanted: &When) -> Outcome<Point> {
    check_past(recovery, wanted)?;
    Ok(recovery.resolve(wanted)?)
}

/// The checkpoint with memory that a wanted moment means.
///
/// # Errors
/// It means none: the nearest ones are named.
pub fn resolve_warm(recovery: &Recovery, wanted: &When) -> Outcome<WarmPoint> {
    check_past(recovery, wanted)?;
    Ok(recovery.resolve_warm(wanted)?)
}

fn check_past(recovery: &Recovery, wanted: &When) -> Outcome {
    let history = &recovery.history;
    // Points of before a clock was set back may have times to come.
    let is_recorded = |ns: u64| ns <= history.wall_ns(history.head);
    if let When::Time(ns) = wanted
        && time(*ns) > Timestamp::now()
        && !is_recorded(*ns)
    {
        let nearest = recovery.nearest(history.head + 1);
        let what = format!("{} lies in the future", crate::show::clock(time(*ns)));
        return Err(afterimage_restore::Error::NotRestorable { what, nearest }.into());
    }
    Ok(())
}
