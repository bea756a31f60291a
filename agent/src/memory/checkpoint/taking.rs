//! One guest's part of a checkpoint: its QEMU, its stream, and what has to be undone.
//!
//! What always holds: what undoes it is on disk before QEMU is touched, and goes only once that is
//! done; a stream is shut before its QEMU is asked for anything, since one whose reader stands still
//! answers nobody (see `afterimage_qmp::qemu::snapshot`).

use super::instant::Order;
use super::owed::settle_left;
use super::still::Words;
use super::{Failure, Outcome};
use crate::capture::{Armed, Stopped};
use crate::group::Group;
use crate::guest::Lease;
use crate::guest::sockets::{check_path, give_to};
use crate::intent::{self, Intent, Standing};
use crate::memory::{Event, Intake, Options, Source, SpoolAt, Table, Taken};
use crate::settings::MemoryMode;
use afterimage_journal::meta::VolumeKind;
use afterimage_planted as planted;
use afterimage_qmp::qemu::{MigrationPhase, SnapshotMode, UndoSnapshot};
use afterimage_qmp::{Events, QemuEvent};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant as Moment};
use tokio::sync::watch;

/// How long QEMU may send nothing, and the spool take nothing: the guest's processors may wait for it.
const STALL_LIMIT: Duration = Duration::from_secs(5);
/// How long QEMU may take to say that a stream which ended has ended well.
const COMPLETE_LIMIT: Duration = Duration::from_secs(5);
/// How long cancelling a snapshot and putting its settings back may take.
pub(super) const END_LIMIT: Duration = Duration::from_secs(5);
/// How long the events of the guest's stop and start may take.
const EVENTS_LIMIT: Duration = Duration::from_secs(5);
/// The same behind the first page, where they come in the order of things.
const RESUME_LIMIT: Duration = Duration::from_secs(2);
/// How long they may take where they are wanted for their exact times only.
const STAMPS_LIMIT: Duration = Duration::from_millis(200);
/// How often it is looked whether the stream's reader hangs.
const LOOK_LIMIT: Duration = Duration::from_secs(1);
/// Between two looks whether QEMU is done.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// What was heard of the stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Heard {
    pub(super) first_page: bool,
    pub(super) ended: bool,
}

/// See the module.
pub(super) struct Taking {
    pub(super) lease: Lease,
    pub(super) mode: SnapshotMode,
    table: Option<Table>,
    /// What undoes it, and the note of that on disk.
    pub(super) owed: Option<(UndoSnapshot, Standing)>,
    /// QEMU's settings may be the snapshot's.
    pub(super) is_set: bool,
    /// How the guest may have come to a stand because of us.
    pub(super) may_stand: Option<Order>,
    intake: Option<Intake>,
    heard: watch::Receiver<Heard>,
    pub(super) events: Option<Events>,
    /// What its monitor has said since the checkpoint began.
    pub(super) words: Words,
    pub(super) armed: Option<Armed>,
    /// Its first FLUSH.
    pub(super) stopped: Option<Stopped>,
    pub(super) pause_us: u64,
    pub(super) taken: Option<Taken>,
}

impl Taking {
    pub(super) fn new(lease: Lease, table: Table) -> Self {
        let mode = match lease.settings.memory_mode {
            MemoryMode::Stop => SnapshotMode::Stop,
            MemoryMode::Auto | MemoryMode::Background => SnapshotMode::Background,
        };
        Self {
            lease,
            mode,
            table: Some(table),
            owed: None,
            is_set: false,
            may_stand: None,
            intake: None,
            heard: watch::channel(Heard::default()).1,
            events: None,
            words: Words::default(),
            armed: None,
            stopped: None,
            pause_us: 0,
            taken: None,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.lease.settings.name
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.lease.dir.join("memory.sock")
    }

    /// Makes everything ready but the guest and its QEMU: the note, who reads.
    pub(super) async fn prepare(&mut self, group: &Group, spool: &Path) -> Outcome<()> {
        let (qemu, name) = (self.lease.qemu.clone(), self.name().to_owned());
        settle_left(qemu, self.lease.state.clone(), name).await?;
        // Before the look whether it runs: who stops it from here on is heard.
        self.events = Some(self.lease.qemu.events());
        let was = self.lease.qemu.check_snapshot(self.mode).await?;
        let undo = UndoSnapshot {
            monitor: self.lease.monitor.clone(),
            was,
            resume: None,
            mode: Some(self.mode),
            process: self.lease.process.as_ref().map(|p| p.id()),
            begun_ns: None,
            stopped_ns: None,
            migrate_ns: None,
        };
        let (state, name) = (self.lease.state.clone(), self.name().to_owned());
        let intent = Intent::Resume(undo.clone());
        let write = move || intent::write(&state, &name, &intent, None);
        let standing = tokio::task::spawn_blocking(write).await.map_err(Failure::other)??;
        self.owed = Some((undo, standing));
        if planted::is("settings-before-the-freeze") {
            self.set_up().await?;
        }
        self.listen(group, spool)
    }

    /// Changes QEMU's settings to those of a snapshot. As late as can be: a migration that somebody else
    /// begins meanwhile, during a freeze of the guest that takes seconds, must not find them.
    pub(super) async fn set_up(&mut self) -> Outcome<()> {
        if self.is_set {
            return Ok(());
        }
        let was = self.lease.qemu.check_snapshot(self.mode).await?;
        self.note(|undo| undo.was = was.clone()).await?;
        self.is_set = true;
        Ok(self.lease.qemu.set_for_snapshot(&was, self.mode).await?)
    }

    fn listen(&mut self, group: &Group, spool: &Path) -> Outcome<()> {
        let socket = self.socket();
        check_path(&socket).map_err(Failure::other)?;
        let _ = std::fs::remove_file(&socket);
        let bound = UnixListener::bind(&socket);
        let listener =
            bound.map_err(|e| Failure::other(format!("listen on {}: {e}", socket.display())))?;
        give_to(&socket, self.lease.process.as_ref()).map_err(Failure::other)?;
        let volumes = group.memory_volumes(self.name());
        let ram = volumes.into_iter().filter(|v| v.kind == VolumeKind::Ram);
        let table = self.table.take().ok_or_else(|| Failure::other("its table is in use"))?;
        let options = Options {
            table,
            volumes: ram.map(|v| (v.disk, v.id)).collect(),
            spool: SpoolAt { dir: spool.to_owned(), spool_bytes_max: None },
            stall_limit: STALL_LIMIT,
        };
        let (tell, heard) = watch::channel(Heard::default());
        let hear = move |event| {
            tell.send_modify(|heard| match event {
                Event::FirstPage => heard.first_page = true,
                Event::Ended => heard.ended = true,
            });
        };
        self.heard = heard;
        self.intake = Some(Intake::start(Source::Listener(listener), options, hear)?);
        Ok(())
    }

    /// Waits for something of the stream; its end is always one.
    pub(super) async fn hears(&mut self, wanted: impl Fn(&Heard) -> bool) -> Heard {
        let heard = self.heard.wait_for(|heard| heard.ended || wanted(heard)).await;
        heard.map_or(Heard { ended: true, ..Heard::default() }, |heard| *heard)
    }

    /// Whether a page of the guest's memory came.
    pub(super) fn has_pages(&self) -> bool {
        self.heard.borrow().first_page
    }

    /// Why a stream ended that should not have.
    pub(super) async fn why_ended(&mut self) -> Failure {
        let read = self.read().await.err().unwrap_or_else(|| Failure::other("it came too soon"));
        // QEMU knows better, if it failed first.
        match self.lease.qemu.migration().await {
            Ok(migration) if migration.phase == MigrationPhase::Failed => {
                let why = migration.error.unwrap_or(migration.status);
                match read {
                    Failure::Plain(error) => Failure::other(format!("{error}; QEMU: {why}")),
                    other => other,
                }
            }
            _ => read,
        }
    }

    /// Waits for the stream's end, and shuts it when its reader hangs: that would hang the guest.
    async fn read(&mut self) -> Outcome<()> {
        while tokio::time::timeout(LOOK_LIMIT, self.hears(|heard| heard.ended)).await.is_err() {
            let hangs = |i: &&Intake| i.progress().silent_for() > STALL_LIMIT + LOOK_LIMIT;
            if let Some(intake) = self.intake.as_ref().filter(hangs) {
                intake.cancel();
            }
        }
        let Some(intake) = self.intake.take() else {
            return Err(Failure::other("nobody reads the memory"));
        };
        let waited = tokio::task::spawn_blocking(move || intake.wait()).await;
        let (taken, table) = waited.map_err(Failure::other)?;
        self.table = table;
        self.taken = Some(taken?);
        Ok(())
    }

    /// Waits until QEMU too says that all was sent.
    pub(super) async fn complete(&mut self) -> Outcome<()> {
        if self.taken.is_none() {
            self.read().await?;
        }
        let begin = Moment::now();
        loop {
            let migration = self.lease.qemu.migration().await?;
            match migration.phase {
                MigrationPhase::Completed => return Ok(()),
                MigrationPhase::UnderWay if begin.elapsed() < COMPLETE_LIMIT => {}
                _ => {
                    let why = migration.error.unwrap_or(migration.status);
                    return Err(Failure::other(format!("QEMU did not send all memory: {why}")));
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// All of the guest's memory is here, the guest runs, QEMU is as it was.
    pub(super) async fn read_whole(&mut self) -> Outcome<()> {
        self.complete().await?;
        self.undo().await?;
        Ok(())
    }

    /// The migration's own stop and start of the guest as QEMU stamped them, in microseconds.
    pub(super) async fn stamps(&mut self) -> Outcome<(u64, u64)> {
        let limit = if self.may_be_late() { EVENTS_LIMIT } else { RESUME_LIMIT };
        let Some(events) = &mut self.events else { return Err(unstamped()) };
        let words = &mut self.words;
        let find = async {
            loop {
                match words.of_migration() {
                    Ok(Some(stamps)) => return Ok(stamps),
                    Ok(None) => {}
                    Err(why) => return Err(Failure::Unfit(why.into())),
                }
                let event = events.next().await;
                match event.meaning() {
                    QemuEvent::Eof { reason } => return Err(Failure::other(reason)),
                    _ => words.hear(&event),
                }
            }
        };
        tokio::time::timeout(limit, find).await.unwrap_or_else(|_| Err(unstamped()))
    }

    /// How long a guest stood still that was stopped by command, in microseconds; `own_us` where QEMU does
    /// not say.
    pub(super) async fn stood_us(&mut self, own_us: u64) -> u64 {
        let Some(events) = &mut self.events else { return own_us };
        let words = &mut self.words;
        let find = async {
            loop {
                if let Some(us) = words.stood_us() {
                    return us;
                }
                let event = events.next().await;
                if matches!(event.meaning(), QemuEvent::Eof { .. }) {
                    return own_us;
                }
                words.hear(&event);
            }
        };
        tokio::time::timeout(STAMPS_LIMIT, find).await.unwrap_or(own_us)
    }

    /// What the guest's stop proves: one FLUSH to each disk, between the stamps.
    pub(super) fn check(&self, stop_us: u64, resume_us: u64) -> Outcome<()> {
        let flushes = self.armed.as_ref().map(Armed::flushes).unwrap_or_default();
        fits(&self.lease.disks, &flushes, self.stopped, (stop_us, resume_us))
            .map_err(|why| Failure::Unfit(format!("{}: {why}", self.name())))
    }

    /// What is to be stored, to be put back with [`Taking::store_back`].
    pub(super) fn parts(&mut self) -> Option<(Table, Taken)> {
        Some((self.table.take()?, self.taken.take()?))
    }

    pub(super) fn store_back(&mut self, table: Table) {
        self.table = Some(table);
    }

    /// Ends it, however far it got. Gives the table, if it is known still.
    pub(super) async fn end(mut self) -> Option<(String, Table)> {
        // Its reply goes before QEMU is asked for anything.
        self.armed = None;
        if let Some(intake) = self.intake.take() {
            intake.cancel();
            let waited = tokio::task::spawn_blocking(move || intake.wait());
            if let Ok(Ok((_, table))) = tokio::time::timeout(2 * STALL_LIMIT, waited).await {
                self.table = table;
            }
        }
        if let Err(error) = self.undo().await {
            let gone = self.lease.process.as_ref().is_some_and(|p| !p.lives());
            match gone {
                true => self.settled(),
                false => tracing::error!(
                    guest = self.name(), %error,
                    "its QEMU may not be as it was: this is tried again at the next attach"
                ),
            }
        }
        let _ = std::fs::remove_file(self.socket());
        let name = self.name().to_owned();
        self.table.take().map(|table| (name, table))
    }
}

fn unstamped() -> Failure {
    Failure::Unfit("QEMU did not tell when the guest stopped and ran again".into())
}

/// Whether what came between a guest's stop and start is what its stop sends.
fn fits(
    disks: &[afterimage_journal::VolumeId],
    flushes: &std::collections::BTreeMap<afterimage_journal::VolumeId, u32>,
    first: Option<Stopped>,
    (stop_us, resume_us): (u64, u64),
) -> Result<(), String> {
    let wrong = disks.iter().find(|d| flushes.get(d) != Some(&1));
    if let Some(disk) = wrong {
        let count = flushes.get(disk).copied().unwrap_or(0);
        return Err(format!("{count} flushes of volume {disk}, not one"));
    }
    let Some(first) = first else { return Err("no flush came".into()) };
    match (stop_us..=resume_us).contains(&first.wall_us) {
        true => Ok(()),
        false => Err("its flush came outside of its stop".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instant_is_believed_only_with_one_flush_a_disk_between_stop_and_start() {
        let first = Some(Stopped { seq: 7, wall_us: 100 });
        let one_each = [(1, 1), (2, 1)].into();
        assert_eq!(fits(&[1, 2], &one_each, first, (99, 101)), Ok(()));
        assert_eq!(fits(&[1, 2], &one_each, first, (100, 100)), Ok(()));
        assert!(fits(&[1, 2], &one_each, None, (99, 101)).is_err());
        assert!(fits(&[1, 2], &one_each, first, (101, 102)).is_err(), "before the stop");
        assert!(fits(&[1, 2], &one_each, first, (98, 99)).is_err(), "behind the start");
        assert!(fits(&[1, 2], &[(1, 1)].into(), first, (99, 101)).is_err(), "one is missing");
        assert!(fits(&[1, 2], &[(1, 2), (2, 1)].into(), first, (99, 101)).is_err(), "one too many");
    }
}
