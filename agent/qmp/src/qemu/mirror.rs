//! The mirror: how a running guest's writes come to our NBD server.
//!
//! ```text
//!             attach                    server dies: BLOCK_JOB_ERROR, action stop
//!  (nothing) ───────► ready and level ─────────────────────────► standby (paused)
//!      ▲                 │     ▲                                    │
//!      └──── detach ─────┘     └──── resume: dirty chunks are sent ─┘
//! ```
//!
//! *Level* means: ready, not paused, no error, actively synced. QEMU acknowledges a write to the
//! guest only after the server replied to it. It still says level while such a write is in
//! flight: [`Qemu::drain`], then look again, before anything is built on it.
//!
//! While a server hangs (alive, but not replying) nothing here may be called but [`Qemu::job`]:
//! cancelling, draining and stopping wait for it in QEMU's main loop, and the guest with them.
//! Ending the server with SIGKILL frees all at once.
//!
//! **A mirror is never cancelled by force, nor before it is ready (which QEMU treats as force).** QEMU
//! frees the mirror's table of writes in flight before it waits for them: under a writing guest that
//! corrupts its heap and kills it within some tens of cancels, whether the server serves or not
//! (`docs/decisions/0015-mirrors-end-in-order.md`). So a mirror ends only once its server takes writes.

use std::{collections::HashSet, path::PathBuf, time::Duration};

use afterimage_planted as planted;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use super::{Backoff, Names, Qemu};
use crate::{Error, Events, QemuEvent, Result};

/// Bytes that the mirror's own bitmap tells apart. Smaller than QEMU's default of 64 KiB, since
/// that costs small sequential writes a third of their rate.
pub const MIRROR_GRANULARITY_BYTES: u32 = 4096;

/// How long a fresh mirror may take to be level: it has nothing to copy.
const LEVEL_LIMIT: Duration = Duration::from_secs(10);
/// How long a mirror whose server serves may take to end, and its node to come free.
const END_LIMIT: Duration = Duration::from_secs(10);
/// How long undoing a mirror that did not get level may take.
const UNDO_LIMIT: Duration = Duration::from_secs(2);
/// How long QEMU tries to reach the server when the node is made, in seconds. The guest waits.
const OPEN_TIMEOUT_S: u32 = 1;

/// What is to be mirrored where.
#[derive(Debug, Clone)]
pub struct MirrorSpec {
    /// The disk's own node ([`super::Disk::node`]).
    pub node: String,
    /// The NBD server's unix socket. The caller has probed it: a server that listens and hangs
    /// would freeze the guest for a second.
    pub socket: PathBuf,
    /// The export's name at that server.
    pub export: String,
    /// The names to use.
    pub names: Names,
}

/// A mirror in QEMU, by its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The disk's own node.
    pub node: String,
    /// The job.
    pub job: String,
    /// The NBD node that it writes to.
    pub target: String,
    /// The filter above the disk's own node.
    pub filter: String,
}

impl Attachment {
    /// The attachment that [`Qemu::attach`] makes for `node` with `names`: to take up one that
    /// an earlier agent made.
    pub fn of(node: &str, names: &Names) -> Attachment {
        Attachment {
            node: node.to_owned(),
            job: names.job(),
            target: names.target(),
            filter: names.filter(),
        }
    }
}

/// The device state of a job, as QEMU tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoStatus {
    /// No error.
    Ok,
    /// The target said that it is full.
    NoSpace,
    /// Any other error, such as a lost connection.
    Failed,
}

/// The state of a block job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobState {
    /// Its id.
    pub job: String,
    /// QEMU's word: `created`, `running`, `ready`, `standby`, `paused`, `aborting`, ...
    pub status: String,
    /// It has once caught up.
    pub ready: bool,
    /// It is paused, by an error or by somebody.
    pub paused: bool,
    /// Its last error.
    pub io_status: IoStatus,
    /// Why it failed, where it did.
    pub error: Option<String>,
    /// Nothing is left to copy and every guest write goes to the target before it is
    /// acknowledged.
    pub actively_synced: bool,
    /// Bytes to copy in all, of what QEMU knows now.
    pub len: u64,
    /// Bytes copied of them.
    pub offset: u64,
}

impl JobState {
    /// Source and target are level, but for writes in flight.
    ///
    /// `standby` without `paused` is a job that a drain has held for a moment.
    pub fn is_level(&self) -> bool {
        self.ready
            && matches!(&*self.status, "ready" | "standby")
            && !self.paused
            && self.io_status == IoStatus::Ok
            && self.actively_synced
    }

    fn read(info: &Value) -> Result<JobState> {
        let odd = |what: &str| Error::shape("query-block-jobs", what);
        let flag = |k: &str| info[k].as_bool().unwrap_or(false);
        Ok(JobState {
            job: info["device"].as_str().ok_or_else(|| odd("no `device`"))?.to_owned(),
            status: info["status"].as_str().ok_or_else(|| odd("no `status`"))?.to_owned(),
            ready: flag("ready"),
            paused: flag("paused"),
            io_status: match info["io-status"].as_str() {
                Some("ok") => IoStatus::Ok,
                Some("nospace") => IoStatus::NoSpace,
                _ => IoStatus::Failed,
            },
            error: info["error"].as_str().map(str::to_owned),
            actively_synced: flag("actively-synced"),
            len: info["len"].as_u64().unwrap_or(0),
            offset: info["offset"].as_u64().unwrap_or(0),
        })
    }

    fn in_words(&self) -> String {
        let synced = if self.actively_synced { "" } else { ", not in sync" };
        format!("{}, io-status {:?}{synced}", self.status, self.io_status)
    }
}

impl Qemu {
    /// All block jobs, whoever they belong to.
    pub async fn jobs(&self) -> Result<Vec<JobState>> {
        let jobs = self.run_list("query-block-jobs", Value::Null).await?;
        jobs.iter().map(JobState::read).collect()
    }

    /// The state of a job; `None` when there is no such job (any more).
    pub async fn job(&self, job: &str) -> Result<Option<JobState>> {
        Ok(self.jobs().await?.into_iter().find(|j| j.job == job))
    }

    /// Mirrors a disk to our server and waits until both are level. Nothing is copied: what was
    /// written before is the base, to be pulled.
    ///
    /// On an error nothing is left in QEMU, unless the mirror began and its server then failed it: such
    /// a mirror is left there, paused.
    pub async fn attach(&self, spec: &MirrorSpec) -> Result<Attachment> {
        let attachment = Attachment::of(&spec.node, &spec.names);
        let mut events = self.events();
        let node = json!({
            "driver": "nbd",
            "node-name": attachment.target,
            "server": { "type": "unix", "path": spec.socket },
            "export": spec.export,
            "open-timeout": OPEN_TIMEOUT_S,
            "reconnect-delay": 0,
        });
        self.run("blockdev-add", node).await?;
        let begun = self.begin_mirror(&attachment).await;
        let level = match begun {
            Ok(()) => self.wait_level(&attachment.job, &mut events, LEVEL_LIMIT).await,
            Err(e) => Err(e),
        };
        match level {
            Ok(_) => Ok(attachment),
            Err(e) => {
                // A timeout means that QEMU's main loop is blocked, perhaps by our own server:
                // then asking for more only makes it worse.
                if !matches!(e, Error::Timeout { .. } | Error::Closed { .. })
                    && let Err(undo) = self.end_mirrors(&[&attachment], UNDO_LIMIT, |_| {}).await
                {
                    tracing::warn!(job = attachment.job, %undo, "a failed mirror was left behind");
                }
                Err(e)
            }
        }
    }

    async fn begin_mirror(&self, attachment: &Attachment) -> Result<()> {
        let mirror = json!({
            "job-id": attachment.job,
            "device": attachment.node,
            "target": attachment.target,
            "sync": "none",
            "copy-mode": "write-blocking",
            "on-target-error": "stop",
            "granularity": MIRROR_GRANULARITY_BYTES,
            "filter-node-name": attachment.filter,
        });
        self.run("blockdev-mirror", mirror).await.map(drop)
    }

    async fn wait_level(
        &self,
        job: &str,
        events: &mut Events,
        limit: Duration,
    ) -> Result<JobState> {
        let begun = Instant::now();
        let mut backoff = Backoff::new(1, 100);
        loop {
            let Some(state) = self.job(job).await? else {
                let reason = reason_of_end(job, events).await;
                return Err(Error::JobGone { job: job.to_owned(), reason });
            };
            if state.is_level() {
                return Ok(state);
            }
            let failed = state.paused && state.io_status != IoStatus::Ok;
            if failed || begun.elapsed() > limit {
                return Err(stuck(&state, "level", begun.elapsed()));
            }
            backoff.pause().await;
        }
    }

    /// Resumes a mirror that an error of its server has paused, until it is level again.
    ///
    /// The server must be back on the same socket: resuming before only makes it later. A guest
    /// write after the server's death sets QEMU's NBD node to connecting, at once and then after
    /// 1, 2, 4, 8, 16 s; until one try succeeds, each resume fails. So this repeats it for up to
    /// `limit` ([`RESUME_LIMIT`]), and takes about as long as the server was away. Unless somebody
    /// else kept the listening socket open all the while: then QEMU's first try waits there for
    /// the new server's greeting, and a few hundredths of a second are enough.
    ///
    /// `progress` hears each state on the way. Dirty chunks are sent in no order: until the end,
    /// and a drain and second look after it, this is a gap.
    pub async fn resume(
        &self,
        job: &str,
        limit: Duration,
        mut progress: impl FnMut(&JobState) + Send,
    ) -> Result<JobState> {
        let begun = Instant::now();
        let mut events = self.events();
        let mut backoff = Backoff::new(5, 100);
        loop {
            let Some(state) = self.job(job).await? else {
                let reason = reason_of_end(job, &mut events).await;
                return Err(Error::JobGone { job: job.to_owned(), reason });
            };
            progress(&state);
            if state.is_level() {
                return Ok(state);
            }
            if begun.elapsed() > limit {
                return Err(stuck(&state, "level", begun.elapsed()));
            }
            if state.paused {
                self.resume_job(job).await?;
            }
            backoff.pause().await;
        }
    }

    /// Takes a mirror away; see [`Qemu::end_mirrors`].
    pub async fn detach(&self, attachment: &Attachment) -> Result<()> {
        self.end_mirrors(&[attachment], END_LIMIT, |_| {}).await
    }

    /// Takes mirrors away, all of a guest at once: the guest goes on with its disks alone.
    ///
    /// All jobs are ended before the first node is deleted, so that no server sees its client go while
    /// another mirror of the guest still has to end. A job that is paused is resumed: its server
    /// must take writes (and may forget them). `failed` hears of each that an error has paused.
    /// Half-done states are no error: missing job, missing node. What has not ended within `limit`
    /// stays in QEMU.
    pub async fn end_mirrors(
        &self,
        attachments: &[&Attachment],
        limit: Duration,
        mut failed: impl FnMut(&JobState) + Send,
    ) -> Result<()> {
        if attachments.is_empty() {
            return Ok(());
        }
        let begun = Instant::now();
        let mut backoff = Backoff::new(2, 100);
        let mut asked = HashSet::new();
        loop {
            let mut jobs = self.jobs().await?;
            jobs.retain(|j| attachments.iter().any(|a| a.job == j.job));
            let Some(first) = jobs.first() else { break };
            if begun.elapsed() > limit {
                return Err(stuck(first, "ended", begun.elapsed()));
            }
            for job in &jobs {
                if job.paused {
                    // QEMU itself pauses all jobs for moments, another one's end among them.
                    if job.io_status != IoStatus::Ok {
                        failed(job);
                    }
                    self.resume_job(&job.job).await?;
                } else if job.ready
                    && !asked.contains(&job.job)
                    && self.ask_to_end(&job.job).await?
                {
                    asked.insert(job.job.clone());
                }
            }
            backoff.pause().await;
        }
        for attachment in attachments {
            self.delete_node(&attachment.target).await?;
        }
        Ok(())
    }

    async fn resume_job(&self, job: &str) -> Result<()> {
        match self.run("job-resume", json!({ "id": job })).await {
            // It was resumed, or ended, between the look and the command.
            Err(e) if e.refused_with("not paused") || e.refused_with("not found") => Ok(()),
            other => other.map(drop),
        }
    }

    /// Asks a job that is ready to end once both sides are level; false if it has to be asked again.
    async fn ask_to_end(&self, job: &str) -> Result<bool> {
        let force = planted::is("cancel-mirrors-by-force");
        match self.run("block-job-cancel", json!({ "device": job, "force": force })).await {
            // Paused or ended since the look: look again.
            Err(e) if e.refused_with("paused") || e.refused_with("not found") => Ok(false),
            // On its way out already.
            Err(e) if e.refused_with("in state") => Ok(true),
            other => other.map(|_| true),
        }
    }

    /// Deletes a node; done as well when there is none.
    pub(super) async fn delete_node(&self, node: &str) -> Result<()> {
        let begun = Instant::now();
        let mut backoff = Backoff::new(2, 100);
        loop {
            match self.run("blockdev-del", json!({ "node-name": node })).await {
                Err(e) if e.refused_with("Failed to find node") => return Ok(()),
                // A job gives its nodes back a moment after it has gone from the list.
                Err(e) if e.refused_with("in use") && begun.elapsed() < END_LIMIT => {}
                other => return other.map(drop),
            }
            backoff.pause().await;
        }
    }
}

/// The limit to give [`Qemu::resume`] unless there is a reason for another: QEMU's pauses between
/// two tries to connect grow to 16 s.
pub const RESUME_LIMIT: Duration = Duration::from_secs(30);

fn stuck(state: &JobState, wanted: &'static str, waited: Duration) -> Error {
    Error::JobStuck {
        job: state.job.clone(),
        wanted,
        waited_ms: u64::try_from(waited.as_millis()).unwrap_or(u64::MAX),
        state: state.in_words(),
    }
}

/// Why a job ended: QEMU tells it in an event only, sent before the job went from the list.
async fn reason_of_end(job: &str, events: &mut Events) -> Option<String> {
    const WAIT: Duration = Duration::from_millis(100);
    let find = async {
        loop {
            match events.next_meaning().await {
                QemuEvent::BlockJobCompleted { job: ended, error } if ended == job => return error,
                QemuEvent::BlockJobCancelled { job: ended } if ended == job => {
                    return Some("it was cancelled".to_owned());
                }
                QemuEvent::Eof { reason } => return Some(reason),
                _ => {}
            }
        }
    };
    timeout(WAIT, find).await.ok().flatten()
}
