//! Attaching to a running guest, and what then arrives.

use afterimage_qmp::{Error, qemu::IoStatus};

use crate::{guest, rig::*};

/// All eight ways to give a disk to QEMU at once, mirrored while the guest writes.
#[tokio::test]
async fn every_style_of_disk_is_mirrored_write_for_write_while_the_guest_runs() {
    let mut vm = Vm::prelaunch(&all_styles()).await;
    vm.boot().await;
    let mut targets = Vec::new();
    let mut attached = Vec::new();
    for index in 0..vm.styles.len() {
        let target = Target::start(&vm, &format!("target{index}"));
        attached.push(attach(&vm, index, &target).await);
        targets.push(target);
    }
    // The round under way may have passed a disk before it was attached.
    let first = vm.acknowledged().await + 2;
    vm.rounds(60).await;
    vm.qemu.stop().await.unwrap();
    for attachment in &attached {
        let state = level_after_drain(&vm, &attachment.job).await;
        assert_eq!((state.io_status, state.error), (IoStatus::Ok, None));
    }
    let last = vm.acknowledged().await;
    vm.quit().await;
    for (index, target) in targets.iter().enumerate() {
        let (source, target) = (vm.content(index), target.content());
        for round in first..=last {
            let found = [&source, &target].map(|content| counter(content, round));
            assert_eq!(found, [round, round], "{:?}: source, target", vm.styles[index]);
        }
        // The round that was cut off: on both sides or on none.
        assert_eq!(counter(&source, last + 1), counter(&target, last + 1));
    }
}

/// What the block of a round holds: the round itself, unless 256 later ones were done.
fn counter(content: &[u8], round: u32) -> u32 {
    let at = u64::from(round) % guest::BLOCKS * guest::BLOCK_BYTES;
    let block = &guest_area(content)[at as usize..];
    u32::from_le_bytes(*block.first_chunk().unwrap())
}

#[tokio::test]
async fn nothing_is_copied_that_was_written_before() {
    let vm = Vm::prelaunch(&[DRIVE_RAW]).await;
    vm.write(0, "write -P 7 4M 64k").await;
    let target = Target::start(&vm, "target");
    let attachment = attach(&vm, 0, &target).await;
    vm.write(0, "write -P 9 8M 4k").await;
    level_after_drain(&vm, &attachment.job).await;
    let content = target.content();
    assert!(content[4 << 20..][..65536].iter().all(|&b| b == 0));
    assert!(content[8 << 20..][..4096].iter().all(|&b| b == 9));
}

/// QEMU calls a mirror synced while a guest's write is still on its way: only a drain tells.
#[tokio::test]
async fn drain_waits_for_the_writes_in_flight() {
    for style in [DRIVE_RAW, BLOCKDEV_QCOW2] {
        let vm = Vm::prelaunch(&[style]).await;
        let slow = ["--filter=delay", "--", "wdelay=1"];
        let target = Target::with(&vm, "target", DISK_BYTES, &slow);
        let attachment = attach(&vm, 0, &target).await;
        vm.write(0, "aio_write -P 5 1M 4k").await;
        let state = vm.qemu.job(&attachment.job).await.unwrap().unwrap();
        assert!(state.is_level(), "{state:?}");
        assert_eq!(target.content()[1 << 20], 0, "the write was not in flight: no test");
        level_after_drain(&vm, &attachment.job).await;
        assert_eq!(target.content()[1 << 20], 5, "the drain did not wait");
    }
}

/// The same with a guest that writes from an iothread, which a drain has to stop as well.
#[tokio::test]
async fn drain_waits_for_a_running_guest_in_an_iothread() {
    let vm = Vm::prelaunch(&[Style { iothread: true, ..DRIVE_RAW }]).await;
    let slow = ["--filter=delay", "--", "wdelay=500ms"];
    let target = Target::with(&vm, "target", DISK_BYTES, &slow);
    attach(&vm, 0, &target).await;
    vm.qemu.cont().await.unwrap();
    for _ in 0..3 {
        // A round that is in the source and not in the target: in flight.
        let round = loop {
            let round = vm.word(guest::ROUND_ADDRESS).await;
            let source = std::fs::read(vm.path("disk0")).unwrap();
            let on_both = [&source, &target.content()].map(|c| counter(c, round) == round);
            if round > 0 && on_both == [true, false] {
                break round;
            }
        };
        vm.qemu.drain().await.unwrap();
        assert_eq!(counter(&target.content(), round), round, "the drain did not wait");
    }
    assert_eq!(vm.qemu.bitmaps(&vm.node(0).await).await.unwrap(), []);
}

#[tokio::test]
async fn a_target_that_is_too_small_is_refused_and_leaves_nothing() {
    let vm = Vm::prelaunch(&[BLOCKDEV_RAW]).await;
    let target = Target::with(&vm, "target", DISK_BYTES / 2, &[]);
    let error = vm.qemu.attach(&spec(&vm, 0, &target).await).await.unwrap_err();
    // QEMU starts the job before it looks at the sizes, and says why only as the job ends.
    assert!(matches!(error, Error::JobGone { .. }), "{error}");
    assert!(error.to_string().contains("different sizes"), "{error}");
    assert_eq!(vm.qemu.ours().await.unwrap(), [""; 0]);
}

#[tokio::test]
async fn a_missing_server_or_disk_is_refused_and_leaves_nothing() {
    let vm = Vm::prelaunch(&[BLOCKDEV_RAW]).await;
    let mut target = Target::start(&vm, "target");
    let good = spec(&vm, 0, &target).await;
    let wrong = afterimage_qmp::qemu::MirrorSpec { node: "nosuch".into(), ..good.clone() };
    let error = vm.qemu.attach(&wrong).await.unwrap_err().to_string();
    assert!(error.contains("nosuch"), "{error}");
    target.kill();
    let error = vm.qemu.attach(&good).await.unwrap_err().to_string();
    assert!(error.contains("blockdev-add"), "{error}");
    assert_eq!(vm.qemu.ours().await.unwrap(), [""; 0]);
}
