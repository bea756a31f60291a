//! Detaching, and cleaning up after an agent that was killed.

use std::time::Duration;

use afterimage_qmp::{
    Error, QemuEvent,
    qemu::{Attachment, ExportSpec, NewBitmap, RESUME_LIMIT},
};
use serde_json::json;

use crate::rig::*;

#[tokio::test]
async fn detach_leaves_nothing_in_qemu_and_everything_on_both_sides() {
    let mut vm = Vm::prelaunch(&[BLOCKDEV_QCOW2, DRIVE_RAW]).await;
    let target = Target::start(&vm, "target");
    let other = Target::start(&vm, "other");
    let attachment = attach(&vm, 0, &target).await;
    let second = attach(&vm, 1, &other).await;
    vm.boot().await;
    vm.rounds(100).await;
    vm.qemu.detach(&attachment).await.unwrap();
    vm.qemu.detach(&second).await.unwrap();
    assert_eq!(vm.qemu.ours().await.unwrap(), [""; 0]);
    let disk = vm.qemu.find_disk("disk0").await.unwrap();
    assert_eq!((disk.filter, disk.job), (None, None));
    let arrived = target.content();
    vm.rounds(50).await;
    assert!(arrived == target.content(), "the mirror goes on after the detach");
    vm.quit().await;
}

/// Stopped in between, so that source and target can be compared at the very end of the mirror.
#[tokio::test]
async fn an_orderly_detach_ends_level() {
    let mut vm = Vm::prelaunch(&[DRIVE_RAW]).await;
    let target = Target::start(&vm, "target");
    let attachment = attach(&vm, 0, &target).await;
    vm.boot().await;
    vm.rounds(100).await;
    vm.qemu.stop().await.unwrap();
    vm.qemu.detach(&attachment).await.unwrap();
    vm.quit().await;
    assert!(guest_area(&vm.content(0)) == guest_area(&target.content()));
}

/// A mirror that its server left ends once somebody takes its writes again, and not by force before.
#[tokio::test]
async fn detach_waits_for_a_server_that_takes_writes_and_the_guest_writes_on() {
    for style in [Style { iothread: true, ..DRIVE_RAW }, BLOCKDEV_QCOW2] {
        let vm = Vm::prelaunch(&[style]).await;
        let mut target = Target::start(&vm, "target");
        let attachment = attach(&vm, 0, &target).await;
        vm.boot().await;
        let mut events = vm.qemu.events();
        target.kill();
        event(&mut events, |e| matches!(e, QemuEvent::BlockJobError { .. })).await;
        let short = Duration::from_millis(300);
        let mut heard = 0;
        let early = vm.qemu.end_mirrors(&[&attachment], short, |_| heard += 1).await.unwrap_err();
        assert!(matches!(early, Error::JobStuck { .. }) && heard > 0, "{early}");
        assert!(vm.qemu.job(&attachment.job).await.unwrap().is_some(), "ended without a server");
        vm.rounds(20).await;
        let left = vm.qemu.left_mirrors(|_| false).await.unwrap();
        assert_eq!(left.len(), 1);
        assert_eq!((&left[0].socket, left[0].bytes), (&Some(target.socket.clone()), DISK_BYTES));
        assert_eq!((&*left[0].token, &left[0].attachment.job), ("d0", &attachment.job));
        target.start_again();
        vm.qemu.end_mirrors(&[&attachment], RESUME_LIMIT, |_| {}).await.unwrap();
        vm.rounds(20).await;
        assert_eq!(vm.qemu.ours().await.unwrap(), [""; 0]);
        // And it can be attached again under the same names.
        attach(&vm, 0, &target).await;
    }
}

/// Two mirrors end together: no server's client goes while the other mirror still has to end.
#[tokio::test]
async fn nodes_go_only_after_the_last_job_of_the_guest() {
    let vm = Vm::prelaunch(&[BLOCKDEV_QCOW2, DRIVE_RAW]).await;
    let (one, two) = (Target::start(&vm, "one"), Target::start(&vm, "two"));
    let (one, two) = (attach(&vm, 0, &one).await, attach(&vm, 1, &two).await);
    vm.boot().await;
    let mut events = vm.qemu.events();
    vm.qemu.end_mirrors(&[&one, &two], RESUME_LIMIT, |job| panic!("{job:?}")).await.unwrap();
    assert_eq!(vm.qemu.ours().await.unwrap(), [""; 0]);
    // As completed, not as cancelled: each was level at its end.
    for _ in 0..2 {
        let ended = |e: &QemuEvent| matches!(e, QemuEvent::BlockJobCompleted { .. });
        let ended = event(&mut events, ended).await;
        assert!(matches!(ended, QemuEvent::BlockJobCompleted { error: None, .. }), "{ended:?}");
    }
}

#[tokio::test]
async fn detach_is_content_with_what_is_half_gone_or_never_was() {
    let vm = Vm::prelaunch(&[DRIVE_RAW]).await;
    let node = vm.node(0).await;
    let absent = Attachment::of(&node, &names(0));
    vm.qemu.detach(&absent).await.unwrap();
    let target = Target::start(&vm, "target");
    let attachment = attach(&vm, 0, &target).await;
    assert_eq!(attachment, absent);
    let mut events = vm.qemu.events();
    let cancel = json!({ "device": attachment.job, "force": true });
    vm.qemu.monitor().execute("block-job-cancel", cancel).await.unwrap();
    event(&mut events, |e| matches!(e, QemuEvent::BlockJobCancelled { .. })).await;
    vm.qemu.detach(&attachment).await.unwrap();
    assert_eq!(vm.qemu.ours().await.unwrap(), [""; 0]);
}

#[tokio::test]
async fn leftovers_of_a_killed_agent_go_but_what_is_wanted_stays() {
    let vm = Vm::prelaunch(&[BLOCKDEV_QCOW2, DRIVE_RAW]).await;
    let (target, other) = (Target::start(&vm, "target"), Target::start(&vm, "other"));
    let kept = attach(&vm, 0, &target).await;
    let lost = attach(&vm, 1, &other).await;
    let qemu = &vm.qemu;
    qemu.start_nbd_server(&vm.path("pull.sock")).await.unwrap();
    let map = |index: usize, node: &str| NewBitmap {
        node: node.to_owned(),
        name: names(index).bitmap(1),
        persistent: false,
        granularity_bytes: 65536,
    };
    qemu.add_bitmaps(&[map(0, &kept.node), map(1, &lost.node)]).await.unwrap();
    let foreign = NewBitmap { name: "backup-1".into(), ..map(1, &lost.node) };
    qemu.add_bitmap(&foreign).await.unwrap();
    let id = names(1).export(1);
    let node = lost.node.clone();
    let export = ExportSpec { name: id.clone(), id, node, bitmaps: vec![] };
    qemu.add_export(&export).await.unwrap();
    let removed = qemu.remove_leftovers(LEFT_LIMIT, |n| n.starts_with("ai-d0-")).await.unwrap();
    assert!(removed.failed.is_empty(), "{removed:?}");
    let mut gone = removed.names;
    gone.sort();
    assert_eq!(gone, ["ai-d1-job", "ai-d1-map-1", "ai-d1-nbd", "ai-d1-pull-1"].map(String::from));
    assert!(qemu.job(&kept.job).await.unwrap().unwrap().is_level());
    let mut ours = qemu.ours().await.unwrap();
    ours.sort();
    assert_eq!(ours, ["ai-d0-filter", "ai-d0-job", "ai-d0-map-1", "ai-d0-nbd"].map(String::from));
    let bitmaps = qemu.bitmaps(&lost.node).await.unwrap();
    assert_eq!(bitmaps.iter().map(|b| &*b.name).collect::<Vec<_>>(), ["backup-1"]);
    assert!(matches!(qemu.bitmaps("nosuch").await, Err(Error::NoSuchDisk { .. })));
}
