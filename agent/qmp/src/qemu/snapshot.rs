//! A running guest's memory as a migration stream: QEMU's settings for it, its beginning, its end.
//!
//! ```text
//!             set_for_snapshot   migrate_to     pages        all sent
//! as it was ─────────────────► set ────► active ─────► active ─────► completed ─┐
//!     ▲                         │          │ the reader went, or cancelled      │
//!     │                         │          └──────────► failed, cancelled ──────┤
//!     └───────── end_snapshot ──┴───────────────────────────────────────────────┘
//! ```
//!
//! What always holds: QEMU's settings are read before they are changed, and what was read is all
//! that [`Qemu::end_snapshot`] needs to undo a snapshot, however far it got, by another process too.
//!
//! **A snapshot that fails while QEMU has the guest stopped for it leaves the guest stopped**: a mirror whose
//! server dies before it has answered the FLUSH, say, or a `migrate_cancel` at that moment. So whoever
//! ends one has to look, and to let the guest run: [`Qemu::end_snapshot`] with `resume`. A guest that
//! somebody else paused looks the same: what is noted of the snapshot tells them apart ([`super::undo`]).
//!
//! **A reader that does not read hangs QEMU**: a processor that writes to a page which is not saved yet
//! waits for the one thread that saves, with the lock of QEMU's main loop in its hand. The monitor is
//! silent then, and `migrate_cancel` never heard. Close the stream first: that ends the migration.

use std::{collections::BTreeMap, path::Path, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Backoff, Qemu, RunState, UndoSnapshot, undo::now_ns};
use crate::{Error, Result};

/// Longest path of a unix socket, less its end, in bytes.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// How long QEMU may take to clear away a migration that has ended.
const CLEARED_LIMIT: Duration = Duration::from_secs(2);
/// The capability that lets the guest run while its pages are saved.
const BACKGROUND: &str = "background-snapshot";
/// The capability that has QEMU tell of each change of a migration's state.
const EVENTS: &str = "events";
/// What the parameters must be. A snapshot is not to be slowed down, wrapped in TLS, or handed to
/// another QEMU.
const PARAMETERS: [(&str, Setting); 3] = [
    ("max-bandwidth", Setting::Number(0)),
    ("tls-creds", Setting::Text("")),
    ("mode", Setting::Text("normal")),
];

#[derive(Clone, Copy)]
enum Setting {
    Number(u64),
    Text(&'static str),
}

impl Setting {
    fn value(self) -> Value {
        match self {
            Setting::Number(number) => json!(number),
            Setting::Text(text) => json!(text),
        }
    }
}

/// How the guest's memory is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotMode {
    /// The guest stands still for milliseconds; each page is saved before it is written to.
    Background,
    /// The guest stands still until all of its memory is read.
    Stop,
}

/// Capabilities and parameters of QEMU's migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MigrationSettings {
    /// Each capability that this QEMU knows.
    pub capabilities: BTreeMap<String, bool>,
    /// Of the parameters, those that a snapshot changes.
    pub parameters: Map<String, Value>,
}

impl MigrationSettings {
    /// What a snapshot wants where these are set: everything off that changes the stream.
    #[must_use]
    pub fn for_snapshot(&self, mode: SnapshotMode) -> MigrationSettings {
        let wanted = |name: &str| match name {
            BACKGROUND => mode == SnapshotMode::Background,
            EVENTS => true,
            _ => false,
        };
        let capabilities = self.capabilities.keys().map(|k| (k.clone(), wanted(k))).collect();
        let known = PARAMETERS.iter().filter(|(name, _)| self.parameters.contains_key(*name));
        let parameters = known.map(|(name, s)| ((*name).to_owned(), s.value())).collect();
        MigrationSettings { capabilities, parameters }
    }

    /// What differs in `wanted`, as the arguments of QEMU's two commands; empty lists when nothing
    /// does.
    fn changes_to(&self, wanted: &MigrationSettings) -> (Vec<Value>, Map<String, Value>) {
        let differs = |(name, state): &(&String, &bool)| {
            self.capabilities.get(*name).is_some_and(|now| now != *state)
        };
        let capabilities = wanted.capabilities.iter().filter(differs);
        let capabilities =
            capabilities.map(|(name, state)| json!({ "capability": name, "state": state }));
        let parameters =
            wanted.parameters.iter().filter(|(k, v)| self.parameters.get(*k) != Some(v));
        let parameters = parameters.map(|(k, v)| (k.clone(), v.clone())).collect();
        (capabilities.collect(), parameters)
    }
}

/// Where a migration stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MigrationPhase {
    /// There was none since QEMU started.
    None,
    /// One goes on (set up, active, sending devices, being cancelled, ...).
    UnderWay,
    /// The last one has sent everything.
    Completed,
    /// The last one failed, or was cancelled.
    Failed,
}

/// A migration as QEMU describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    /// Where it stands.
    pub phase: MigrationPhase,
    /// QEMU's word for it.
    pub status: String,
    /// Why it failed, in QEMU's words.
    pub error: Option<String>,
    /// Why none can be begun: devices that can't be migrated, say.
    pub blocked: Vec<String>,
    /// How long it has been going on, in milliseconds, where QEMU says so (not while it sets up).
    pub total_ms: Option<u64>,
}

impl Migration {
    fn read(answer: &Value) -> Migration {
        let status = answer["status"].as_str().unwrap_or("none").to_owned();
        let phase = match status.as_str() {
            "none" => MigrationPhase::None,
            "completed" => MigrationPhase::Completed,
            "failed" | "cancelled" => MigrationPhase::Failed,
            _ => MigrationPhase::UnderWay,
        };
        let blocked = answer["blocked-reasons"].as_array().into_iter().flatten();
        let blocked = blocked.filter_map(|r| r.as_str().map(str::to_owned)).collect();
        let error = answer["error-desc"].as_str().map(str::to_owned);
        let total_ms = answer["total-time"].as_u64();
        Migration { phase, status, error, blocked, total_ms }
    }
}

impl Qemu {
    /// The migration that goes on, or the last one.
    pub async fn migration(&self) -> Result<Migration> {
        Ok(Migration::read(&self.run("query-migrate", Value::Null).await?))
    }

    /// The settings of migration as they are now.
    pub async fn migration_settings(&self) -> Result<MigrationSettings> {
        let command = "query-migrate-capabilities";
        let read = |one: &Value| {
            let name = one["capability"].as_str()?.to_owned();
            Some((name, one["state"].as_bool()?))
        };
        let list = self.run_list(command, Value::Null).await?;
        let capabilities: Option<BTreeMap<_, _>> = list.iter().map(read).collect();
        let capabilities = capabilities.ok_or_else(|| Error::shape(command, "no name or state"))?;
        let all = self.run("query-migrate-parameters", Value::Null).await?;
        let known = PARAMETERS.iter().filter_map(|(name, _)| {
            all.get(*name).map(|value| ((*name).to_owned(), value.clone()))
        });
        Ok(MigrationSettings { capabilities, parameters: known.collect() })
    }

    /// Refuses, by name, what stands in the way of a snapshot: a guest that doesn't run, a migration
    /// that goes on, a device that forbids it, a QEMU without the capability.
    pub async fn check_snapshot(&self, mode: SnapshotMode) -> Result<MigrationSettings> {
        let state = self.run_state().await?;
        if state != RunState::Running {
            return Err(Error::NotRunning { state: format!("{state:?}").to_lowercase() });
        }
        let migration = self.migration().await?;
        if migration.phase == MigrationPhase::UnderWay {
            return Err(Error::MigrationUnderWay { status: migration.status });
        }
        if !migration.blocked.is_empty() {
            return Err(Error::MigrationBlocked { reasons: migration.blocked.join("; ") });
        }
        let settings = self.migration_settings().await?;
        if mode == SnapshotMode::Background && !settings.capabilities.contains_key(BACKGROUND) {
            let reason = format!("QEMU {} doesn't know it", self.version());
            return Err(Error::NoBackgroundSnapshot { reason });
        }
        Ok(settings)
    }

    /// Sets capabilities and parameters for a snapshot. `was` is what [`Qemu::check_snapshot`] gave:
    /// whoever calls keeps it, durably, until [`Qemu::end_snapshot`] has put it back.
    pub async fn set_for_snapshot(
        &self,
        was: &MigrationSettings,
        mode: SnapshotMode,
    ) -> Result<()> {
        let set = self.change_settings(was, &was.for_snapshot(mode)).await;
        set.map_err(|e| match e {
            // The kernel has no write tracking, memory is shared or of huge pages, ...
            Error::Command { desc, .. } if mode == SnapshotMode::Background => {
                Error::NoBackgroundSnapshot { reason: desc }
            }
            other => other,
        })
    }

    async fn change_settings(&self, now: &MigrationSettings, to: &MigrationSettings) -> Result<()> {
        let (capabilities, parameters) = now.changes_to(to);
        if !capabilities.is_empty() {
            let list = json!({ "capabilities": capabilities });
            self.run("migrate-set-capabilities", list).await?;
        }
        if !parameters.is_empty() {
            self.run("migrate-set-parameters", Value::Object(parameters)).await?;
        }
        Ok(())
    }

    /// Begins to send the guest's memory to whoever listens on `socket`. Returns as soon as QEMU has
    /// taken the command; what follows is told by events, and by [`Qemu::migration`].
    pub async fn migrate_to(&self, socket: &Path) -> Result<()> {
        let path = socket.to_str().filter(|p| p.len() <= SOCKET_PATH_BYTES_MAX);
        let Some(path) = path else {
            let name = socket.display().to_string();
            return Err(Error::BadName {
                name,
                what: "socket",
                why: "it is UTF-8 of 107 bytes at most",
            });
        };
        self.wait_cleared().await;
        self.run("migrate", json!({ "uri": format!("unix:{path}") })).await.map(drop)
    }

    /// Waits, for [`CLEARED_LIMIT`] at most, until QEMU has cleared away the migration before. QEMU 10.0
    /// refuses one that begins earlier ("duplicate yank instance"), and takes it for under way for ever.
    async fn wait_cleared(&self) {
        let is_migration = |i: &Value| i["type"] == "migration";
        let mut backoff = Backoff::new(2, 50);
        let cleared = async {
            loop {
                // Where the list can't be had, the command says what is wrong.
                let Ok(list) = self.run("query-yank", Value::Null).await else { return };
                if !list.as_array().is_some_and(|all| all.iter().any(is_migration)) {
                    return;
                }
                backoff.pause().await;
            }
        };
        let _ = tokio::time::timeout(CLEARED_LIMIT, cleared).await;
    }

    /// Ends a snapshot, however far it got: cancels its migration, lets the guest run that it left
    /// stopped, and puts the settings back that it changed. What is not the snapshot's (another process,
    /// a migration or a pause of somebody else's, settings that were changed since) is left alone.
    ///
    /// While the stream's reader lives and does not read this may find QEMU silent: the stream is to be
    /// closed first.
    ///
    /// # Errors
    /// The monitor failed, or somebody else's migration goes on: call it again later.
    pub async fn end_snapshot(&self, undo: &UndoSnapshot, limit: Duration) -> Result<()> {
        let ended = tokio::time::timeout(limit, self.undo(undo)).await;
        ended.unwrap_or_else(|_| {
            let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
            Err(Error::Timeout { command: "ending the snapshot".to_owned(), limit_ms })
        })
    }

    async fn undo(&self, undo: &UndoSnapshot) -> Result<()> {
        if undo.is_of_another(self.process()?.map(|p| p.id())) {
            return Ok(());
        }
        self.end_migration(undo).await?;
        if let Some(mode) = undo.resume {
            self.resume_if_ours(undo, mode).await?;
        }
        let now = self.migration_settings().await?;
        self.change_settings(&now, &undo.settings_to_restore(&now)).await
    }

    /// Cancels the snapshot's migration, and waits until it has ended. Without a limit of its own.
    ///
    /// # Errors
    /// The monitor failed, or somebody else's migration goes on.
    pub async fn end_migration(&self, undo: &UndoSnapshot) -> Result<()> {
        let mut backoff = Backoff::new(2, 50);
        let mut cancelled = false;
        loop {
            let migration = self.migration().await?;
            if migration.phase != MigrationPhase::UnderWay {
                return Ok(());
            }
            match undo.owns_migration(migration.total_ms, now_ns()) {
                Some(false) => return Err(Error::MigrationUnderWay { status: migration.status }),
                Some(true) if !cancelled => {
                    self.run("migrate_cancel", Value::Null).await?;
                    cancelled = true;
                }
                Some(true) | None => {}
            }
            backoff.pause().await;
        }
    }

    async fn resume_if_ours(&self, undo: &UndoSnapshot, mode: SnapshotMode) -> Result<()> {
        let stands = match self.run_state().await? {
            RunState::Paused => undo.owns_pause(self.last_io_ns().await?),
            RunState::PostMigrate if mode == SnapshotMode::Stop => undo.owns_departure(now_ns()),
            _ => return Ok(()),
        };
        match stands {
            true => self.cont().await,
            false => {
                tracing::warn!(
                    "the guest is paused, but not by the snapshot that is undone: left as it is"
                );
                Ok(())
            }
        }
    }

    /// Lets a guest run that was stopped for a snapshot of this mode. Leaves one alone that has ended, met
    /// an error, or was migrated to another host: only [`SnapshotMode::Stop`] makes one look so.
    pub async fn resume_guest(&self, mode: SnapshotMode) -> Result<()> {
        match (self.run_state().await?, mode) {
            (RunState::Paused, _) | (RunState::PostMigrate, SnapshotMode::Stop) => {
                self.cont().await
            }
            _ => Ok(()),
        }
    }

    /// When a device of the guest last finished a request to a disk, on the clock of [`now_ns`]; `None`:
    /// never, or QEMU does not say.
    async fn last_io_ns(&self) -> Result<Option<u64>> {
        let all = self.run_list("query-blockstats", Value::Null).await?;
        let now = now_ns();
        let idle = all.iter().filter_map(|device| device["stats"]["idle_time_ns"].as_u64());
        Ok(idle.min().map(|idle| now.saturating_sub(idle)))
    }
}
