//! Dirty bitmaps: what they hold, when they change, what survives.

use afterimage_qmp::qemu::{ExportSpec, GRANULARITY_BYTES, NewBitmap, Rotation};

use crate::rig::*;

fn map(node: &str, name: &str, persistent: bool) -> NewBitmap {
    let (node, name) = (node.to_owned(), name.to_owned());
    NewBitmap { node, name, persistent, granularity_bytes: GRANULARITY_BYTES }
}

/// The dirty extents of a bitmap as (offset, bytes), told by another client than ours.
pub async fn dirty_extents(vm: &Vm, node: &str, bitmap: &str) -> Vec<(u64, u64)> {
    let socket = vm.path("pull.sock");
    let server = vm.qemu.start_nbd_server(&socket).await.unwrap();
    let id = "ai-x-pull-1".to_owned();
    let bitmaps = vec![bitmap.to_owned()];
    let spec = ExportSpec { name: id.clone(), id: id.clone(), node: node.to_owned(), bitmaps };
    vm.qemu.add_export(&spec).await.unwrap();
    let map = format!("--map=qemu:dirty-bitmap:{bitmap}");
    let uri = format!("nbd+unix:///{id}?socket={}", socket.display());
    let out = std::process::Command::new("nbdinfo").args([&map, &uri]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    vm.qemu.remove_export(&id).await.unwrap();
    assert!(vm.qemu.stop_nbd_server(&server).await.unwrap());
    let text = String::from_utf8(out.stdout).unwrap();
    let read = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        (words[3] == "dirty").then(|| (words[0].parse().unwrap(), words[1].parse().unwrap()))
    };
    text.lines().filter_map(read).collect()
}

#[tokio::test]
async fn a_rotated_bitmap_holds_what_was_written_between_the_rotations_and_no_more() {
    for style in [Style { iothread: true, ..DRIVE_RAW }, BLOCKDEV_QCOW2] {
        let vm = Vm::prelaunch(&[style]).await;
        let target = Target::start(&vm, "target");
        attach(&vm, 0, &target).await;
        let node = vm.node(0).await;
        let qemu = &vm.qemu;
        vm.write(0, "write 1M 64k").await;
        qemu.add_bitmap(&map(&node, "ai-1", style.qcow2)).await.unwrap();
        vm.write(0, "write 2M 128k").await;
        vm.write(0, "write -z 3M 64k").await;
        let new = map(&node, "ai-2", style.qcow2);
        qemu.rotate_bitmaps(&[Rotation { old: "ai-1".into(), new }]).await.unwrap();
        vm.write(0, "write 5M 4k").await;
        let found = qemu.bitmaps(&node).await.unwrap();
        let [one, two] = &found[..] else { panic!("{found:?}") };
        assert_eq!((one.recording, two.recording), (false, true));
        assert_eq!((one.dirty_bytes, two.dirty_bytes), (3 << 16, 1 << 16));
        assert_eq!((one.persistent, one.busy, one.inconsistent), (style.qcow2, false, false));
        let k64 = 1 << 16;
        assert_eq!(dirty_extents(&vm, &node, "ai-1").await, [(2 << 20, 2 * k64), (3 << 20, k64)]);
        qemu.merge_bitmaps(&node, "ai-2", &["ai-1"]).await.unwrap();
        let found = qemu.bitmaps(&node).await.unwrap();
        assert_eq!(found[1].dirty_bytes, 4 * k64);
        for _ in 0..2 {
            qemu.remove_bitmap(&node, "ai-1").await.unwrap();
        }
        assert_eq!(qemu.bitmaps(&node).await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn a_rotation_of_several_disks_is_done_for_all_or_for_none() {
    let vm = Vm::prelaunch(&[DRIVE_RAW, BLOCKDEV_RAW]).await;
    let nodes = [vm.node(0).await, vm.node(1).await];
    let first = nodes.each_ref().map(|n| map(n, "ai-1", false));
    vm.qemu.add_bitmaps(&first).await.unwrap();
    let rotation =
        |node: &str, old: &str| Rotation { old: old.to_owned(), new: map(node, "ai-2", false) };
    let bad = [rotation(&nodes[0], "ai-1"), rotation(&nodes[1], "nosuch")];
    let error = vm.qemu.rotate_bitmaps(&bad).await.unwrap_err().to_string();
    assert!(error.contains("nosuch"), "{error}");
    for node in &nodes {
        let found = vm.qemu.bitmaps(node).await.unwrap();
        assert!(found.len() == 1 && found[0].recording, "{found:?}");
    }
    let good = nodes.each_ref().map(|n| rotation(n, "ai-1"));
    vm.qemu.rotate_bitmaps(&good).await.unwrap();
}

#[tokio::test]
async fn qcow2_keeps_a_persistent_bitmap_over_an_orderly_end_and_raw_does_not() {
    let vm = Vm::prelaunch(&[BLOCKDEV_QCOW2, DRIVE_RAW]).await;
    let (kept, lost) = (vm.qemu.find_disk("disk0").await.unwrap(), vm.node(1).await);
    assert!(kept.keeps_bitmaps());
    assert!(!vm.qemu.find_disk("disk1").await.unwrap().keeps_bitmaps());
    vm.qemu.add_bitmap(&map(&kept.node, "ai-1", true)).await.unwrap();
    vm.qemu.add_bitmap(&map(&lost, "ai-1", false)).await.unwrap();
    assert!(vm.qemu.add_bitmap(&map(&lost, "ai-2", true)).await.is_err());
    vm.write(0, "write 2M 64k").await;
    let vm = vm.boot_again().await;
    let disks = vm.qemu.disks().await.unwrap();
    let found = &disks.find("disk0").unwrap().bitmaps;
    let [kept] = &found[..] else { panic!("{found:?}") };
    assert!(kept.persistent && kept.recording && !kept.inconsistent, "{kept:?}");
    assert_eq!(kept.dirty_bytes, 1 << 16);
    assert_eq!(disks.find("disk1").unwrap().bitmaps, []);
}

#[tokio::test]
async fn a_persistent_bitmap_of_a_killed_qemu_is_inconsistent_and_can_be_removed() {
    let mut vm = Vm::prelaunch(&[BLOCKDEV_QCOW2]).await;
    let node = vm.node(0).await;
    vm.qemu.add_bitmap(&map(&node, "ai-1", true)).await.unwrap();
    vm.boot().await;
    vm.rounds(20).await;
    // Only what has once been stored in the image can be found there in disorder.
    let vm2 = vm.boot_again().await;
    vm = vm2;
    vm.boot().await;
    vm.rounds(20).await;
    vm.process.kill();
    let vm = vm.boot_again().await;
    let node = vm.node(0).await;
    let found = vm.qemu.bitmaps(&node).await.unwrap();
    assert!(found.len() == 1 && found[0].inconsistent, "{found:?}");
    let removed = vm.qemu.remove_leftovers(LEFT_LIMIT, |_| false).await.unwrap();
    assert_eq!(removed.names, ["ai-1"]);
    assert_eq!(vm.qemu.bitmaps(&node).await.unwrap(), []);
}
