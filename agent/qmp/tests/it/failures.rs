//! The server killed, hung, back again; QEMU gone. In no case may the guest see an error.

use std::time::{Duration, Instant};

use afterimage_qmp::{
    Error, QemuEvent,
    qemu::{IoStatus, RESUME_LIMIT, RunState},
};
use rustix::process::Signal;
use serde_json::json;

use crate::{guest, rig::*};

fn paused_by(job: &str) -> impl Fn(&QemuEvent) -> bool {
    let (job, operation, action) = (job.to_owned(), "write".to_owned(), "stop".to_owned());
    let wanted = QemuEvent::BlockJobError { job, operation, action };
    move |event| *event == wanted
}

#[tokio::test]
async fn a_killed_server_pauses_the_job_and_resume_makes_both_sides_level_again() {
    for style in [Style { iothread: true, ..DRIVE_RAW }, BLOCKDEV_QCOW2] {
        let mut vm = Vm::prelaunch(&[style]).await;
        let mut target = Target::start(&vm, "target");
        let attachment = attach(&vm, 0, &target).await;
        vm.boot().await;
        for _ in 0..3 {
            let mut events = vm.qemu.events();
            target.kill();
            event(&mut events, paused_by(&attachment.job)).await;
            // The guest writes on, and what it writes is missing over there.
            vm.rounds(50).await;
            let state = vm.qemu.job(&attachment.job).await.unwrap().unwrap();
            assert!(state.paused && !state.is_level() && !state.actively_synced, "{state:?}");
            assert_eq!((&*state.status, state.io_status), ("standby", IoStatus::Failed));
            target.start_again();
            let mut seen = Vec::new();
            let note = |s: &afterimage_qmp::qemu::JobState| seen.push(s.is_level());
            vm.qemu.resume(&attachment.job, RESUME_LIMIT, note).await.unwrap();
            assert_eq!((seen.first(), seen.last()), (Some(&false), Some(&true)));
            level_after_drain(&vm, &attachment.job).await;
            vm.rounds(20).await;
        }
        vm.qemu.stop().await.unwrap();
        level_after_drain(&vm, &attachment.job).await;
        vm.quit().await;
        let (source, target) = (vm.content(0), target.content());
        // The mirror was there from the first round on.
        assert!(guest_area(&source) == guest_area(&target), "{style:?}: source and target differ");
    }
}

#[tokio::test]
async fn resume_ends_when_the_last_dirty_chunk_has_arrived_and_not_before() {
    let vm = Vm::prelaunch(&[DRIVE_RAW]).await;
    let mut target = Target::start(&vm, "target");
    let attachment = attach(&vm, 0, &target).await;
    let mut events = vm.qemu.events();
    target.kill();
    vm.write(0, "write -P 3 1M 12M").await;
    event(&mut events, paused_by(&attachment.job)).await;
    target.start_again_with(&["--filter=delay", "--", "wdelay=200ms"]);
    vm.qemu.resume(&attachment.job, RESUME_LIMIT, |_| {}).await.unwrap();
    let arrived = target.content()[1 << 20..13 << 20].iter().all(|&b| b == 3);
    assert!(arrived, "resume returned before the target had everything");
}

/// The length of the gap hangs on it: without the held socket, QEMU's tries to connect come after
/// 1, 2, 4, ... seconds, so that the resume takes as long again as the outage did.
#[tokio::test]
async fn with_a_listening_socket_that_stays_open_the_resume_is_quick_after_any_outage() {
    let vm = Vm::prelaunch(&[DRIVE_RAW]).await;
    let held = HeldListener::bind(&vm, "target");
    let mut target = held.serve();
    let attachment = attach(&vm, 0, &target).await;
    vm.boot().await;
    let mut events = vm.qemu.events();
    target.process.kill();
    event(&mut events, paused_by(&attachment.job)).await;
    tokio::time::sleep(Duration::from_millis(3200)).await;
    vm.rounds(5).await;
    let _successor = held.serve();
    let begun = Instant::now();
    vm.qemu.resume(&attachment.job, RESUME_LIMIT, |_| {}).await.unwrap();
    // Without: at 7 s after the kill at the earliest, so 3.8 s from here.
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    level_after_drain(&vm, &attachment.job).await;
}

#[tokio::test]
async fn resume_without_a_server_gives_up_in_time_and_says_how_it_stands() {
    let vm = Vm::prelaunch(&[DRIVE_RAW]).await;
    let mut target = Target::start(&vm, "target");
    let attachment = attach(&vm, 0, &target).await;
    let mut events = vm.qemu.events();
    target.kill();
    vm.write(0, "write 1M 4k").await;
    event(&mut events, paused_by(&attachment.job)).await;
    let begun = Instant::now();
    let limit = Duration::from_secs(1);
    let error = vm.qemu.resume(&attachment.job, limit, |_| {}).await.unwrap_err();
    assert!(begun.elapsed() < limit * 3);
    assert!(matches!(&error, Error::JobStuck { job, .. } if *job == attachment.job), "{error}");
}

#[tokio::test]
async fn a_full_target_pauses_the_job_for_lack_of_space_and_the_guest_writes_on() {
    let vm = Vm::prelaunch(&[DRIVE_RAW]).await;
    let trigger = vm.path("full");
    let while_there = format!("error-file={}", trigger.display());
    let full = ["--filter=error", "--", "error-pwrite=ENOSPC", "error-pwrite-rate=100%"];
    let full = [&full[..], &[&while_there]].concat();
    let target = Target::with(&vm, "target", DISK_BYTES, &full);
    let attachment = attach(&vm, 0, &target).await;
    vm.boot().await;
    let mut events = vm.qemu.events();
    std::fs::write(&trigger, "").unwrap();
    event(&mut events, paused_by(&attachment.job)).await;
    let state = vm.qemu.job(&attachment.job).await.unwrap().unwrap();
    assert_eq!(state.io_status, IoStatus::NoSpace, "{state:?}");
    vm.rounds(50).await;
    std::fs::remove_file(&trigger).unwrap();
    vm.qemu.resume(&attachment.job, RESUME_LIMIT, |_| {}).await.unwrap();
}

/// The stall itself: the guest stands while the server hangs, the monitor still answers, and
/// the server's death ends it.
#[tokio::test]
async fn killing_a_hung_server_frees_the_guest() {
    let vm = Vm::prelaunch(&[Style { iothread: true, ..BLOCKDEV_RAW }]).await;
    let mut target = Target::start(&vm, "target");
    let attachment = attach(&vm, 0, &target).await;
    vm.boot().await;
    let mut events = vm.qemu.events();
    target.process.signal(Signal::STOP);
    let mut before = vm.acknowledged().await;
    let mut still = 0;
    while still < 20 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let now = vm.acknowledged().await;
        still = if now == before { still + 1 } else { 0 };
        before = now;
    }
    assert!(vm.qemu.job(&attachment.job).await.unwrap().unwrap().is_level());
    target.kill();
    event(&mut events, paused_by(&attachment.job)).await;
    vm.rounds(50).await;
    target.start_again();
    vm.qemu.resume(&attachment.job, RESUME_LIMIT, |_| {}).await.unwrap();
}

#[tokio::test]
async fn a_killed_qemu_is_told_at_once_to_all_who_wait() {
    let mut vm = Vm::prelaunch(&[DRIVE_RAW]).await;
    let mut events = vm.qemu.events();
    let process = vm.qemu.process().unwrap().unwrap();
    assert!(process.lives());
    vm.process.kill();
    let begun = Instant::now();
    let eof = tokio::time::timeout(SOON, async {
        loop {
            if let QemuEvent::Eof { reason } = events.next_meaning().await {
                return reason;
            }
        }
    });
    let reason = eof.await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert!(!reason.is_empty());
    assert!(matches!(vm.qemu.run_state().await, Err(Error::Closed { .. })));
    // Who asks later hears the same, for ever.
    let mut late = vm.qemu.events();
    assert!(matches!(late.next_meaning().await, QemuEvent::Eof { .. }));
    assert!(matches!(late.next_meaning().await, QemuEvent::Eof { .. }));
    assert!(!process.lives());
}

#[tokio::test]
async fn a_command_under_way_ends_with_qemu() {
    let mut vm = Vm::prelaunch(&[DRIVE_RAW]).await;
    let slow = ["--filter=delay", "--", "wdelay=30"];
    let target = Target::with(&vm, "target", DISK_BYTES, &slow);
    attach(&vm, 0, &target).await;
    vm.write(0, "aio_write 1M 4k").await;
    let monitor = vm.qemu.monitor().clone();
    let draining = tokio::spawn(async move {
        monitor.execute("transaction", json!({ "actions": [] })).await.map(drop)
    });
    // A command on the same connection goes out after it: once it waits too, both do.
    let qemu = vm.qemu.clone();
    let behind = tokio::spawn(async move { qemu.run_state().await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    vm.process.kill();
    for outcome in [draining.await.unwrap(), behind.await.unwrap().map(drop)] {
        assert!(matches!(outcome, Err(Error::Closed { .. })), "{outcome:?}");
    }
}

#[tokio::test]
async fn stopping_going_on_and_shutting_down_are_told() {
    let mut vm = Vm::prelaunch(&[DRIVE_RAW]).await;
    assert_eq!(vm.qemu.run_state().await.unwrap(), RunState::Prelaunch);
    let mut events = vm.qemu.events();
    vm.boot().await;
    assert_eq!(vm.qemu.run_state().await.unwrap(), RunState::Running);
    event(&mut events, |e| *e == QemuEvent::Resume).await;
    vm.qemu.stop().await.unwrap();
    event(&mut events, |e| *e == QemuEvent::Stop).await;
    assert_eq!(vm.qemu.run_state().await.unwrap(), RunState::Paused);
    vm.qemu.monitor().execute("system_reset", json!({})).await.unwrap();
    event(&mut events, |e| matches!(e, QemuEvent::Reset { .. })).await;
    assert_ne!(vm.acknowledged().await, guest::FAILED);
    vm.quit().await;
    let shutdown = event(&mut events, |e| matches!(e, QemuEvent::Shutdown { .. })).await;
    let reason = "host-qmp-quit".to_owned();
    assert_eq!(shutdown, QemuEvent::Shutdown { guest: false, reason });
}
