//! QEMU's own NBD server: pulling the base below a running mirror.

use std::process::Command;

use afterimage_qmp::qemu::ExportSpec;
use serde_json::json;

use crate::{guest, rig::*};

fn export(id: &str, node: &str) -> ExportSpec {
    let (id, node) = (id.to_owned(), node.to_owned());
    ExportSpec { name: id.clone(), id, node, bitmaps: vec![] }
}

fn pull(socket: &std::path::Path, name: &str, to: &std::path::Path) -> Vec<u8> {
    let uri = format!("nbd+unix:///{name}?socket={}", socket.display());
    let mut command = Command::new("nbdcopy");
    assert!(command.arg(&uri).arg(to).status().unwrap().success(), "{command:?}");
    std::fs::read(to).unwrap()
}

#[tokio::test]
async fn a_disk_is_pulled_below_its_mirror_and_what_comes_later_is_in_the_mirror() {
    for style in [Style { iothread: true, ..DRIVE_RAW }, BLOCKDEV_QCOW2] {
        let mut vm = Vm::prelaunch(&[style]).await;
        let target = Target::start(&vm, "target");
        vm.boot().await;
        vm.rounds(30).await;
        attach(&vm, 0, &target).await;
        let before = vm.acknowledged().await;
        let server = vm.qemu.start_nbd_server(&vm.path("pull.sock")).await.unwrap();
        assert!(server.ours);
        let id = names(0).export(1);
        vm.qemu.add_export(&export(&id, &vm.node(0).await)).await.unwrap();
        let base = pull(&server.socket, &id, &vm.path("base"));
        vm.qemu.remove_export(&id).await.unwrap();
        vm.qemu.remove_export(&id).await.unwrap();
        assert!(vm.qemu.stop_nbd_server(&server).await.unwrap());
        assert!(vm.qemu.stop_nbd_server(&server).await.unwrap());
        assert_eq!(base.len() as u64, DISK_BYTES);
        assert_eq!(base[..510], guest::boot_sector(1)[..510]);
        // Whatever was acknowledged before the pull began is in it: round N lies in block N % 256.
        assert!(before < guest::BLOCKS as u32, "the guest was too quick for this test");
        for round in 1..=before as usize {
            let block = &guest_area(&base)[round * guest::BLOCK_BYTES as usize..];
            let found = u32::from_le_bytes(block[..4].try_into().unwrap());
            assert_eq!(found as usize, round, "{style:?}");
        }
        vm.qemu.stop().await.unwrap();
        vm.quit().await;
        // Base and mirror together are the disk: the newer of the two at each block.
        let (source, mirrored) = (vm.content(0), target.content());
        for (at, block) in guest_area(&source).chunks(guest::BLOCK_BYTES as usize).enumerate() {
            let at = at * guest::BLOCK_BYTES as usize;
            let newer = [&base, &mirrored].map(|c| guest_area(c)[at..].first_chunk::<4>().unwrap());
            let newer = newer.map(|b| u32::from_le_bytes(*b)).into_iter().max();
            assert_eq!(block.first_chunk().copied().map(u32::from_le_bytes), newer);
        }
    }
}

#[tokio::test]
async fn a_server_left_by_a_killed_agent_is_taken_over() {
    let vm = Vm::prelaunch(&[DRIVE_RAW]).await;
    let socket = vm.path("pull here.sock");
    let first = vm.qemu.start_nbd_server(&socket).await.unwrap();
    let again = vm.qemu.start_nbd_server(&socket).await.unwrap();
    assert_eq!(again, first);
    assert!(vm.qemu.stop_nbd_server(&again).await.unwrap());
}

#[tokio::test]
async fn somebody_elses_server_is_found_used_and_left_running() {
    let vm = Vm::prelaunch(&[DRIVE_RAW]).await;
    let theirs = vm.path("backup.sock");
    let address = json!({ "addr": { "type": "unix", "data": { "path": theirs } } });
    vm.qemu.monitor().execute("nbd-server-start", address).await.unwrap();
    let server = vm.qemu.start_nbd_server(&vm.path("ours.sock")).await.unwrap();
    assert_eq!((server.ours, &server.socket), (false, &theirs));
    let node = vm.node(0).await;
    vm.qemu.add_export(&export("ai-x-pull-1", &node)).await.unwrap();
    let base = pull(&server.socket, "ai-x-pull-1", &vm.path("base"));
    assert_eq!(base[510..512], [0x55, 0xaa]);
    vm.qemu.remove_export("ai-x-pull-1").await.unwrap();
    assert!(!vm.qemu.stop_nbd_server(&server).await.unwrap());
    wait_for_socket(&theirs);
}

#[tokio::test]
async fn a_server_of_ours_that_others_export_from_is_left_running() {
    let vm = Vm::prelaunch(&[DRIVE_RAW]).await;
    let server = vm.qemu.start_nbd_server(&vm.path("pull.sock")).await.unwrap();
    let node = vm.node(0).await;
    vm.qemu.add_export(&export("backup", &node)).await.unwrap();
    assert!(!vm.qemu.stop_nbd_server(&server).await.unwrap());
    vm.qemu.remove_export("backup").await.unwrap();
    assert!(vm.qemu.stop_nbd_server(&server).await.unwrap());
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_an_error_that_says_so() {
    let vm = Vm::prelaunch(&[DRIVE_RAW]).await;
    let address = json!({ "host": "127.0.0.1", "port": "0" });
    let address = json!({ "addr": { "type": "inet", "data": address } });
    vm.qemu.monitor().execute("nbd-server-start", address).await.unwrap();
    let error = vm.qemu.start_nbd_server(&vm.path("ours.sock")).await.unwrap_err().to_string();
    assert!(error.contains("in use by somebody else"), "{error}");
}
