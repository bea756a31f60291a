//! Snapshots of a running guest's memory: what QEMU sends, what stays behind in it, and what it
//! takes to end one.

use std::{
    io::Read,
    os::unix::net::{UnixListener, UnixStream},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use afterimage_qmp::{
    Error, Event, Events, Qemu, QemuEvent,
    qemu::{
        MigrationPhase, MigrationSettings, MirrorSpec, MonitorChannel, RunState, SnapshotMode,
        UndoSnapshot, now_ns, undo_snapshot_blocking,
    },
};
use serde_json::json;

use crate::rig::*;

use SnapshotMode::{Background, Stop};

/// Reads a whole stream.
fn sink(listener: UnixListener) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

async fn completed(qemu: &Qemu) {
    let deadline = Instant::now() + SOON;
    loop {
        let migration = qemu.migration().await.unwrap();
        match migration.phase {
            MigrationPhase::Completed => return,
            MigrationPhase::UnderWay => {}
            other => panic!("{other:?}: {migration:?}"),
        }
        assert!(Instant::now() < deadline, "{migration:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The note of a snapshot that began a moment ago.
fn ours(vm: &Vm, was: &MigrationSettings, mode: SnapshotMode, resume: bool) -> UndoSnapshot {
    ours_since(now_ns(), vm, was, mode, resume)
}

/// As [`ours`] does, for a migration that QEMU was told to begin at `told_ns`. One that still goes on
/// is taken for ours by this time only.
fn ours_since(
    told_ns: u64,
    vm: &Vm,
    was: &MigrationSettings,
    mode: SnapshotMode,
    resume: bool,
) -> UndoSnapshot {
    UndoSnapshot {
        monitor: MonitorChannel::Socket(vm.path("qmp2")),
        was: was.clone(),
        resume: resume.then_some(mode),
        mode: Some(mode),
        process: vm.qemu.process().unwrap().map(|p| p.id()),
        begun_ns: Some(told_ns),
        stopped_ns: None,
        migrate_ns: Some(told_ns),
    }
}

/// Settings that somebody else made, and that a snapshot must not lose.
async fn somebodys_settings(vm: &Vm) -> MigrationSettings {
    let set = json!({ "capabilities": [{ "capability": "xbzrle", "state": true }] });
    vm.qemu.monitor().execute("migrate-set-capabilities", set).await.unwrap();
    let set = json!({ "max-bandwidth": 12_345_678 });
    vm.qemu.monitor().execute("migrate-set-parameters", set).await.unwrap();
    let settings = vm.qemu.migration_settings().await.unwrap();
    assert!(settings.capabilities["xbzrle"]);
    assert_eq!(settings.parameters["max-bandwidth"], 12_345_678);
    settings
}

async fn next(events: &mut Events, wanted: &QemuEvent) -> Event {
    let find = async {
        loop {
            let event = events.next().await;
            if event.meaning() == *wanted {
                return event;
            }
        }
    };
    tokio::time::timeout(SOON, find).await.expect("the event did not come")
}

#[tokio::test]
async fn a_background_snapshot_stops_the_guest_for_a_moment_and_leaves_all_settings_as_they_were() {
    let vm = Vm::prelaunch(&[DRIVE_RAW, BLOCKDEV_QCOW2]).await;
    vm.boot().await;
    let targets = [Target::start(&vm, "t0"), Target::start(&vm, "t1")];
    let mirrors = [attach(&vm, 0, &targets[0]).await, attach(&vm, 1, &targets[1]).await];
    let was = somebodys_settings(&vm).await;
    for _ in 0..3 {
        let socket = vm.path("stream");
        let _ = std::fs::remove_file(&socket);
        let reader = sink(UnixListener::bind(&socket).unwrap());
        let mut events = vm.qemu.events();
        assert_eq!(vm.qemu.check_snapshot(Background).await.unwrap(), was);
        vm.qemu.set_for_snapshot(&was, Background).await.unwrap();
        let set = vm.qemu.migration_settings().await.unwrap();
        assert_eq!(set, was.for_snapshot(Background));
        assert_eq!(set.parameters["max-bandwidth"], 0);
        let on: Vec<_> = set.capabilities.iter().filter(|c| *c.1).map(|c| c.0.as_str()).collect();
        assert_eq!(on, ["background-snapshot", "events"]);
        vm.qemu.migrate_to(&socket).await.unwrap();
        let stop = next(&mut events, &QemuEvent::Stop).await.timestamp.unix_us;
        let resume = next(&mut events, &QemuEvent::Resume).await.timestamp.unix_us;
        assert!(stop > 0 && resume > stop, "{stop} {resume}");
        next(&mut events, &QemuEvent::Migration { status: "completed".into() }).await;
        completed(&vm.qemu).await;
        vm.qemu.end_snapshot(&ours(&vm, &was, Background, false), SOON).await.unwrap();
        assert_eq!(vm.qemu.migration_settings().await.unwrap(), was);
        let bytes = reader.join().unwrap();
        assert!(bytes.starts_with(b"QEVM\0\0\0\x03") && bytes.len() > 100_000, "{}", bytes.len());
        vm.rounds(20).await;
    }
    for mirror in &mirrors {
        level_after_drain(&vm, &mirror.job).await;
    }
}

#[tokio::test]
async fn in_stop_mode_the_guest_stands_still_until_it_is_told_to_run_and_the_mirror_goes_on() {
    let mut vm = Vm::prelaunch(&[DRIVE_RAW]).await;
    vm.boot().await;
    let target = Target::start(&vm, "target");
    let mirror = attach(&vm, 0, &target).await;
    let first = vm.acknowledged().await + 2;
    let was = somebodys_settings(&vm).await;
    let socket = vm.path("stream");
    let reader = sink(UnixListener::bind(&socket).unwrap());
    vm.qemu.check_snapshot(Stop).await.unwrap();
    vm.qemu.set_for_snapshot(&was, Stop).await.unwrap();
    vm.qemu.stop().await.unwrap();
    vm.qemu.migrate_to(&socket).await.unwrap();
    completed(&vm.qemu).await;
    let stood = vm.acknowledged().await;
    assert_eq!(vm.qemu.run_state().await.unwrap(), RunState::PostMigrate);
    // Somebody else's guest that went to another host is not woken.
    vm.qemu.end_snapshot(&ours(&vm, &was, Background, true), SOON).await.unwrap();
    assert_eq!(vm.qemu.run_state().await.unwrap(), RunState::PostMigrate);
    assert_eq!(vm.acknowledged().await, stood);
    vm.qemu.end_snapshot(&ours(&vm, &was, Stop, true), SOON).await.unwrap();
    assert_eq!(vm.qemu.migration_settings().await.unwrap(), was);
    assert!(reader.join().unwrap().starts_with(b"QEVM"));
    vm.rounds(20).await;
    level_after_drain(&vm, &mirror.job).await;
    vm.qemu.stop().await.unwrap();
    level_after_drain(&vm, &mirror.job).await;
    let last = vm.acknowledged().await;
    vm.quit().await;
    // What was written after the snapshot reached both, by the mirror that was there before.
    let last_block = |content: &[u8]| {
        let at = (u64::from(last) % crate::guest::BLOCKS * crate::guest::BLOCK_BYTES) as usize;
        u32::from_le_bytes(*guest_area(content)[at..].first_chunk().unwrap())
    };
    assert!(last > first);
    assert_eq!([last_block(&vm.content(0)), last_block(&target.content())], [last, last]);
}

/// The reader takes the connection and then sleeps.
async fn stalled(vm: &Vm, was: &MigrationSettings) -> UnixStream {
    let socket = vm.path("stalled");
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).unwrap();
    vm.qemu.set_for_snapshot(was, Background).await.unwrap();
    vm.qemu.migrate_to(&socket).await.unwrap();
    listener.accept().unwrap().0
}

#[tokio::test]
async fn a_stalled_stream_is_ended_by_closing_it_and_the_guest_runs_on() {
    let vm = Vm::prelaunch(&[DRIVE_RAW]).await;
    vm.boot().await;
    let was = somebodys_settings(&vm).await;
    let told_ns = now_ns();
    let stream = stalled(&vm, &was).await;
    // QEMU hangs in it: what comes next is never heard.
    tokio::time::sleep(Duration::from_millis(300)).await;
    drop(stream);
    let undo = ours_since(told_ns, &vm, &was, Background, false);
    vm.qemu.end_snapshot(&undo, SOON).await.unwrap();
    assert_eq!(vm.qemu.migration().await.unwrap().phase, MigrationPhase::Failed);
    assert_eq!(vm.qemu.migration_settings().await.unwrap(), was);
    assert_eq!(vm.qemu.run_state().await.unwrap(), RunState::Running);
    vm.rounds(20).await;
    // And the next one works.
    let socket = vm.path("stream");
    let reader = sink(UnixListener::bind(&socket).unwrap());
    vm.qemu.set_for_snapshot(&was, Background).await.unwrap();
    vm.qemu.migrate_to(&socket).await.unwrap();
    completed(&vm.qemu).await;
    assert!(reader.join().unwrap().len() > 100_000);
    vm.qemu.end_snapshot(&ours(&vm, &was, Background, false), SOON).await.unwrap();
}

/// QEMU doesn't: the failure comes while it has stopped the guest.
#[tokio::test]
async fn a_guest_whose_mirror_dies_while_it_is_stopped_for_a_snapshot_is_let_run() {
    let vm = Vm::prelaunch(&[DRIVE_RAW]).await;
    // A server that takes writes, and from some moment on never answers a flush.
    let (socket, hangs) = (vm.path("server"), vm.path("hangs"));
    let mut command = std::process::Command::new("nbdkit");
    command.args(["-f", "-U"]).arg(&socket).arg("eval");
    command.arg(format!("get_size=echo {DISK_BYTES}")).args([
        "pread=head -c $3 /dev/zero",
        "pwrite=cat >/dev/null",
        "can_write=exit 0",
        "can_flush=exit 0",
    ]);
    command.arg(format!("flush=test ! -e {} || exec sleep 30", hangs.display()));
    let mut server = Process::start(&mut command);
    wait_for_socket(&socket);
    let spec =
        MirrorSpec { node: vm.node(0).await, socket, export: String::new(), names: names(0) };
    vm.qemu.attach(&spec).await.unwrap();
    vm.boot().await;
    let was = somebodys_settings(&vm).await;
    let stream = vm.path("stream");
    let reader = sink(UnixListener::bind(&stream).unwrap());
    let mut events = vm.qemu.events();
    vm.qemu.set_for_snapshot(&was, Background).await.unwrap();
    std::fs::write(&hangs, "").unwrap();
    let told_ns = now_ns();
    vm.qemu.migrate_to(&stream).await.unwrap();
    next(&mut events, &QemuEvent::Stop).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    server.kill();
    let undo = ours_since(told_ns, &vm, &was, Background, false);
    vm.qemu.end_snapshot(&undo, SOON).await.unwrap();
    assert_eq!(vm.qemu.run_state().await.unwrap(), RunState::Paused, "a later QEMU does better");
    vm.qemu.end_snapshot(&UndoSnapshot { resume: Some(Background), ..undo }, SOON).await.unwrap();
    assert_eq!(vm.qemu.run_state().await.unwrap(), RunState::Running);
    assert_eq!(vm.qemu.migration_settings().await.unwrap(), was);
    vm.rounds(20).await;
    let _ = reader.join();
}

#[tokio::test]
async fn another_process_undoes_a_snapshot_whose_owner_died() {
    let vm = Vm::prelaunch(&[DRIVE_RAW]).await;
    vm.boot().await;
    let was = somebodys_settings(&vm).await;
    let monitor = MonitorChannel::Socket(vm.path("qmp2"));
    for stopped in [false, true] {
        if stopped {
            vm.qemu.stop().await.unwrap();
        }
        let told_ns = now_ns();
        drop(stalled(&vm, &was).await);
        let undo = ours_since(told_ns, &vm, &was, Background, stopped);
        let undo = UndoSnapshot { monitor: monitor.clone(), ..undo };
        // As a note on disk has it.
        let note = serde_json::to_vec(&undo).unwrap();
        let undo: UndoSnapshot = serde_json::from_slice(&note).unwrap();
        undo_snapshot_blocking(&undo, SOON).unwrap();
        assert_eq!(vm.qemu.migration_settings().await.unwrap(), was);
        assert_eq!(vm.qemu.run_state().await.unwrap(), RunState::Running);
        vm.rounds(5).await;
    }
    // A QEMU that is gone took it along; one that does not answer is no success.
    let gone = MonitorChannel::Socket(vm.path("nosuch"));
    let undo = |monitor| UndoSnapshot { monitor, ..ours(&vm, &was, Stop, true) };
    undo_snapshot_blocking(&undo(gone), SOON).unwrap();
    let silent = UnixListener::bind(vm.path("silent")).unwrap();
    let undone = undo_snapshot_blocking(
        &undo(MonitorChannel::Socket(vm.path("silent"))),
        Duration::from_millis(300),
    );
    assert!(undone.is_err(), "{undone:?}");
    drop(silent);
}

/// What is left of a snapshot must not touch what an administrator has done to the guest since.
#[tokio::test]
async fn stale_note_leaves_the_pause_and_the_migration_of_somebody_else_alone() {
    let vm = Vm::prelaunch(&[DRIVE_RAW]).await;
    vm.boot().await;
    let was = somebodys_settings(&vm).await;
    vm.qemu.set_for_snapshot(&was, Background).await.unwrap();
    let began = now_ns() - 120_000_000_000;
    let stale = UndoSnapshot {
        begun_ns: Some(began),
        stopped_ns: Some(began),
        migrate_ns: Some(began),
        ..ours(&vm, &was, Background, true)
    };
    vm.rounds(5).await;
    vm.qemu.stop().await.unwrap();
    undo_snapshot_blocking(&stale, SOON).unwrap();
    assert_eq!(vm.qemu.run_state().await.unwrap(), RunState::Paused);
    assert_eq!(vm.qemu.migration_settings().await.unwrap(), was);
    vm.qemu.cont().await.unwrap();

    // QEMU divides it by ten, and takes zero for no limit.
    let slow = json!({ "max-bandwidth": 4096 });
    vm.qemu.monitor().execute("migrate-set-parameters", slow).await.unwrap();
    let socket = vm.path("theirs");
    let reader = sink(UnixListener::bind(&socket).unwrap());
    vm.qemu.migrate_to(&socket).await.unwrap();
    let under_way = async || vm.qemu.migration().await.unwrap();
    while under_way().await.total_ms.is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let refused = vm.qemu.end_snapshot(&stale, SOON).await.unwrap_err();
    assert!(matches!(&refused, Error::MigrationUnderWay { .. }), "{refused}");
    assert_eq!(under_way().await.phase, MigrationPhase::UnderWay, "{:?}", under_way().await);
    // The same note in another life of QEMU's owes nothing at all.
    let mut process = stale.process.unwrap();
    process.start_ticks -= 1;
    let other = UndoSnapshot { process: Some(process), ..stale };
    vm.qemu.end_snapshot(&other, SOON).await.unwrap();
    assert_eq!(under_way().await.phase, MigrationPhase::UnderWay);
    vm.qemu.monitor().execute("migrate_cancel", json!(null)).await.unwrap();
    drop(vm);
    let _ = UnixStream::connect(&socket);
    let _ = reader.join();
}

#[tokio::test]
async fn what_stands_in_the_way_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let vvfat = format!("file=fat:rw:{},if=none,id=v,format=raw", folder.path().display());
    let vm = Vm::with(&[DRIVE_RAW], &["-drive", &vvfat]).await;
    let refused = vm.qemu.check_snapshot(Background).await.unwrap_err();
    assert!(matches!(&refused, Error::NotRunning { state } if state == "prelaunch"), "{refused}");
    vm.boot().await;
    let refused = vm.qemu.check_snapshot(Stop).await.unwrap_err();
    assert!(matches!(&refused, Error::MigrationBlocked { reasons } if reasons.contains("vvfat")));

    let vm = Vm::prelaunch(&[DRIVE_RAW]).await;
    vm.boot().await;
    let was = vm.qemu.migration_settings().await.unwrap();
    let long = vm.path(&"x".repeat(120));
    assert!(matches!(vm.qemu.migrate_to(&long).await, Err(Error::BadName { .. })));
    // Nobody listens: QEMU says so, and runs on.
    vm.qemu.set_for_snapshot(&was, Background).await.unwrap();
    let _ = vm.qemu.migrate_to(&vm.path("nobody")).await;
    vm.qemu.end_snapshot(&ours(&vm, &was, Background, false), SOON).await.unwrap();
    assert_eq!(vm.qemu.migration_settings().await.unwrap(), was);
    // One that belongs to somebody else goes on, and is not touched.
    let slow = json!({ "max-bandwidth": 1 });
    vm.qemu.monitor().execute("migrate-set-parameters", slow).await.unwrap();
    let socket = vm.path("theirs");
    let reader = sink(UnixListener::bind(&socket).unwrap());
    vm.qemu.migrate_to(&socket).await.unwrap();
    let refused = vm.qemu.check_snapshot(Background).await.unwrap_err();
    assert!(matches!(&refused, Error::MigrationUnderWay { .. }), "{refused}");
    vm.qemu.monitor().execute("migrate_cancel", json!(null)).await.unwrap();
    // QEMU may have been told to cancel before it had connected: nobody waits for what it sends.
    drop((vm, reader));
}
