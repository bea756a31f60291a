//! Letting go of an attached guest, and finding out what became of it.
//!
//! What always holds: the session is closed first, at the last position that was proved level, and
//! the state that is shown changes with it; better evidence (QEMU itself has ended) and clearing
//! up, which may take seconds, only come after.

use super::attach;
use super::life::{self, Ending, Life};
use super::owned::Owned;
use super::removal;
use super::task::{DETACHED, Let, Task};
use crate::api::{ApiError, GuestState};
use crate::capture::CaptureEvent;
use afterimage_journal::Seq;
use afterimage_journal::meta::{ImageIdentity, Volume};
use afterimage_planted as planted;
use afterimage_qmp::QemuEvent;
use afterimage_qmp::qemu::{Names, NbdServer};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long after a lost mirror we wait to learn whether QEMU itself is ending.
const FATE_LIMIT: Duration = Duration::from_secs(2);
/// How long the look before an orderly end may take.
const LAST_LOOK_LIMIT: Duration = Duration::from_secs(2);
/// How long a sync that was told to end may take.
const SYNC_END_LIMIT: Duration = Duration::from_secs(3);
/// How long mirrors that we serve may take to end: what is in flight is written, and nothing else.
const END_LIMIT: Duration = Duration::from_secs(20);
/// How long an event that QEMU has sent may take to be seen.
const SAID_LIMIT: Duration = Duration::from_millis(10);
/// How long the next of QEMU's last events may take to be read, once QEMU has ended.
const DRAIN_LIMIT: Duration = Duration::from_millis(100);

impl Life {
    /// Lets go, in the way that the ending asks for.
    pub(super) async fn end(mut self, task: &mut Task, ending: Ending) -> Let {
        self.progress.cancel.store(true, Ordering::Relaxed);
        let name = task.context.settings.name.clone();
        let group = Arc::clone(&task.context.group);
        let session = group.session(&name);
        let confirmed = session.map(|s| s.confirmed);
        let face = Arc::clone(&task.context.face);
        let close_as = |state: GuestState, reason: &str, upto: Option<Seq>| {
            group.close_session(&name, reason, upto);
            face.show(state, Some(reason.to_owned()));
        };
        let close = |reason: &str, upto: Option<Seq>| close_as(GuestState::Gap, reason, upto);
        let monitor_lost = matches!(ending, Ending::MonitorLost(_));
        self.recall("the agent lets go of the guest");
        if ending.is_wanted() {
            self.given_back().await;
        }
        let outcome = match ending {
            Ending::Stopped(reason) => {
                close(&reason, None);
                Let::Again(reason)
            }
            Ending::Lost(reason) | Ending::MonitorLost(reason) => {
                // What a mirror's end is not the cause of.
                let known = monitor_lost || reason == attach::MIGRATED_AWAY;
                close(&reason, confirmed);
                self.attached.shared.session.store(0, Ordering::Relaxed);
                match self.fate(&reason).await {
                    Some(ended) => {
                        if let Some(session) = session {
                            let (images, upto) = match self.ended_early {
                                true => (Vec::new(), confirmed),
                                false => (self.images(), None),
                            };
                            group.amend_close(&name, session.id, &ended, upto, images);
                        }
                        Let::Ended(ended)
                    }
                    None => {
                        let cause = match known {
                            true => reason.clone(),
                            false => self.cause(reason.clone()).await,
                        };
                        if let Some(session) = session.filter(|_| cause != reason) {
                            group.amend_close(&name, session.id, &cause, confirmed, Vec::new());
                        }
                        Let::Again(cause)
                    }
                }
            }
            Ending::Changed(reason) => {
                close(&reason, confirmed);
                self.free_disks(task).await;
                Let::Again(reason)
            }
            Ending::Detach(reply) => {
                let proved = self.proved(task).await;
                close_as(GuestState::Detached, DETACHED, proved);
                if self.syncing.is_none() {
                    self.mark_ends(true).await;
                }
                let detached = self.detach(task, false).await;
                let saved = task.save_detached(true);
                let _ = reply.send(detached.and(saved));
                Let::Detached
            }
            Ending::Unprotect(reply) => {
                let proved = self.proved(task).await;
                close("no longer protected", proved);
                let _ = reply.send(self.detach(task, true).await);
                Let::End
            }
            Ending::Stop(reply) => {
                let proved = self.proved(task).await;
                close("the agent was stopped", proved);
                self.stop_captures().await;
                let _ = reply.send(Ok(()));
                Let::End
            }
            Ending::Abandoned => {
                let proved = self.proved(task).await;
                close("the agent let go", proved);
                if let Err(error) = self.detach(task, true).await {
                    tracing::warn!(%error, "left behind in QEMU");
                }
                Let::End
            }
        };
        self.stop_captures().await;
        let mut shown = task.context.face.shown();
        (shown.copy, shown.gate) = (None, None);
        (shown.bytes_per_s, shown.writes_per_s) = (0, 0);
        for disk in &self.attached.disks {
            let us = disk.counters.answer_us_max.load(Ordering::Relaxed);
            shown.answer_us_max = shown.answer_us_max.max(us);
        }
        outcome
    }

    /// The last position that is proved level, by one more look if that can be had.
    async fn proved(&mut self, task: &Task) -> Option<Seq> {
        let (group, name) = (&task.context.group, &task.context.settings.name);
        let confirmed = group.session(name)?.confirmed;
        let Ok(journal) = group.journal() else { return Some(confirmed) };
        let position = journal.head();
        let look = async {
            self.look(task, "").await.is_none()
                && self.look_at_disks(task).await.is_none()
                && self.unlevel_looks == 0
        };
        let looked = tokio::time::timeout(LAST_LOOK_LIMIT, look).await;
        match looked {
            Ok(true) => Some(position.max(confirmed)),
            _ => Some(confirmed),
        }
    }

    pub(super) async fn stop_captures(&mut self) {
        let mut captures: Vec<_> =
            self.attached.disks.iter_mut().filter_map(|d| d.capture.take()).collect();
        let stopped = tokio::task::spawn_blocking(move || {
            captures.drain(..).for_each(crate::capture::Capture::stop);
        });
        // A connection's thread that hangs is the guard's business, not ours to wait for.
        if tokio::time::timeout(FATE_LIMIT, stopped).await.is_err() {
            tracing::error!("a capture thread does not end");
        }
    }

    /// Whether QEMU itself has ended, and how.
    pub(super) async fn fate(&mut self, reason: &str) -> Option<String> {
        let deadline = tokio::time::Instant::now() + FATE_LIMIT;
        let gone = loop {
            if self.attached.process.as_ref().is_some_and(|p| !p.lives()) {
                break true;
            }
            // What QEMU has said already comes first: that the guest is going down, above all.
            while let Ok(event) = tokio::time::timeout(SAID_LIMIT, self.events.next_meaning()).await
            {
                if matches!(event, QemuEvent::Eof { .. }) {
                    break;
                }
                self.note_end(event);
            }
            // A mirror that we lost while QEMU lives on is resumed at once: the guest's changes
            // pile up meanwhile.
            if self.shutdown.is_none() && self.qemu_answers().await {
                break false;
            }
            tokio::select! {
                event = self.events.next_meaning() => match event {
                    QemuEvent::Eof { .. } => {
                        let Some(process) = &self.attached.process else { break true };
                        if !process.lives() {
                            break true;
                        }
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        if tokio::time::Instant::now() > deadline {
                            break false;
                        }
                    }
                    event => drop(self.note_end(event)),
                },
                Some(event) = self.captures.recv() => {
                    if let CaptureEvent::Closed { orderly, .. } = event {
                        self.disorderly |= !orderly;
                    }
                }
                () = tokio::time::sleep_until(deadline) => break false,
            }
        };
        if !gone {
            return None;
        }
        // What came before the end tells how it came.
        while let Ok(event) = tokio::time::timeout(DRAIN_LIMIT, self.events.next_meaning()).await {
            if matches!(event, QemuEvent::Eof { .. }) {
                break;
            }
            self.note_end(event);
        }
        while let Ok(event) = self.captures.try_recv() {
            if let CaptureEvent::Closed { orderly, .. } = event {
                self.disorderly |= !orderly;
            }
        }
        Some(match &self.shutdown {
            Some(how) => format!("the guest was shut down ({how})"),
            None => format!("QEMU ended ({reason})"),
        })
    }

    /// Why a mirror was lost while QEMU lives on: of one that was ended, the lost connection or
    /// a paused neighbour may have been seen first.
    async fn cause(&mut self, seen: String) -> String {
        if self.cancelled.is_none() && self.shutdown.is_none() {
            let asked = tokio::time::timeout(LAST_LOOK_LIMIT, self.attached.qemu.jobs()).await;
            if let Ok(Ok(jobs)) = asked {
                let listed = |job: &str| jobs.iter().any(|j| j.job == job);
                let gone = self.attached.disks.iter().find(|d| !listed(&d.attachment.job));
                self.cancelled = gone.map(|d| d.disk.node.clone());
            }
        }
        self.cancelled.as_deref().map_or(seen, life::cancelled)
    }

    pub(super) async fn qemu_answers(&self) -> bool {
        let asked = self.attached.qemu.run_state();
        matches!(tokio::time::timeout(Duration::from_millis(500), asked).await, Ok(Ok(_)))
    }

    /// The images as they lie now, if the guest ended in an orderly way and everything that it
    /// wrote is in the journal.
    pub(super) fn images(&self) -> Vec<ImageIdentity> {
        if self.shutdown.is_none() || self.disorderly || self.ended_early {
            return Vec::new();
        }
        self.attached.disks.iter().filter_map(|d| image_identity(&d.volume, &d.names)).collect()
    }

    /// Takes our mirrors out of QEMU, and everything else too where it is for good. The session has
    /// been closed.
    pub(super) async fn detach(&mut self, task: &Task, for_good: bool) -> Result<(), ApiError> {
        self.progress.cancel.store(true, Ordering::Relaxed);
        if let Some(mut syncing) = self.syncing.take() {
            // It ends by itself soon, and takes its export with it.
            if tokio::time::timeout(SYNC_END_LIMIT, &mut syncing).await.is_err() {
                syncing.abort();
                let _ = syncing.await;
            }
        }
        let qemu = self.attached.qemu.clone();
        let mut outcome = Ok(());
        let owned = Owned::by_journal(&task.context.group, &task.context.settings.name);
        let kept = |name: &str| !name.contains("-pull-") || !owned.has(name);
        if let Err(e) = qemu.remove_leftovers(END_LIMIT, kept).await {
            outcome = Err(ApiError::other(format!("remove our export from QEMU: {e}")));
        }
        let server = NbdServer { socket: self.attached.pull_socket(), ours: true };
        if let Err(error) = qemu.stop_nbd_server(&server).await {
            tracing::warn!(%error, "QEMU's NBD server was left running");
        }
        if let Err(e) = self.end_mirrors(task).await {
            outcome = Err(ApiError::other(format!("take our mirrors out of QEMU: {e:#}")));
        }
        if for_good {
            let removed = qemu.remove_leftovers(END_LIMIT, |name| !owned.has(name)).await;
            if let Err(e) = removed {
                outcome = Err(ApiError::other(format!("clean up in QEMU: {e}")));
            }
        }
        outcome
    }

    /// Lets go of the disks of a guest whose set of disks has changed: whoever unplugged one is about to
    /// take its node, and a mirror past which a guest writes is no use.
    async fn free_disks(&mut self, task: &Task) {
        self.given_back().await;
        if let Err(error) = self.detach(task, false).await {
            tracing::warn!(%error, "left behind in QEMU");
        }
    }

    /// Ends all mirrors while our servers answer all of them: no mirror may see an error before it ends.
    async fn end_mirrors(&self, task: &Task) -> anyhow::Result<()> {
        let (qemu, disks) = (&self.attached.qemu, &self.attached.disks);
        if planted::is("detach-disk-by-disk") {
            for disk in disks {
                qemu.detach(&disk.attachment).await?;
            }
            return Ok(());
        }
        for disk in disks {
            removal::disown(qemu, &task.context.group, &disk.volume).await?;
        }
        self.attached.shared.gate.let_go();
        let all: Vec<_> = disks.iter().map(|d| &d.attachment).collect();
        qemu.end_mirrors(&all, END_LIMIT, |_| {}).await?;
        Ok(())
    }
}

/// However it ended, a panic of the task included: no copy goes on, and no server of ours keeps a
/// mirror of QEMU's busy that nobody watches.
impl Drop for Life {
    fn drop(&mut self) {
        self.progress.cancel.store(true, Ordering::Relaxed);
        if let Some(syncing) = &self.syncing {
            syncing.abort();
        }
        self.attached.shared.session.store(0, Ordering::Relaxed);
        let captures: Vec<_> =
            self.attached.disks.iter_mut().filter_map(|d| d.capture.take()).collect();
        if !captures.is_empty() {
            // Waits for their connections: not on a thread that others need, unless none is left.
            let stopping = std::thread::Builder::new().name("capture-stop".into());
            drop(stopping.spawn(move || drop(captures)));
        }
    }
}

/// The image of a volume as it lies now; `None` when it is no plain file here.
pub(super) fn image_identity(volume: &Volume, names: &Names) -> Option<ImageIdentity> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(&volume.source).ok().filter(std::fs::Metadata::is_file)?;
    let ns = |s: i64, n: i64| i128::from(s) * 1_000_000_000 + i128::from(n);
    Some(ImageIdentity {
        volume: volume.id,
        path: volume.source.clone(),
        file: (meta.dev(), meta.ino()),
        bytes: meta.len(),
        mtime_ns: ns(meta.mtime(), meta.mtime_nsec()),
        ctime_ns: ns(meta.ctime(), meta.ctime_nsec()),
        below: names.below().to_owned(),
    })
}
