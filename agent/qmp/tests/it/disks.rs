//! What is told of a guest and its disks.

use afterimage_qmp::{
    Error, Qemu,
    qemu::{DiskIdentity, NewBitmap, Version},
};

use serde_json::json;

use crate::fakes::{Fake, returns};
use crate::rig::*;

#[tokio::test]
async fn each_style_of_disk_is_described_and_found_by_all_its_names() {
    let cd = ["-device", "virtio-scsi-pci", "-device", "scsi-cd,id=cd"];
    let vm = Vm::with(&all_styles(), &cd).await;
    let disks = vm.qemu.disks().await.unwrap();
    assert_eq!(disks.disks.len(), vm.styles.len());
    for (index, style) in vm.styles.iter().enumerate() {
        let disk = disks.find(&format!("disk{index}")).unwrap();
        let qdev = format!("/machine/peripheral/disk{index}/virtio-backend");
        assert_eq!(disk.identity, DiskIdentity::Qdev(qdev.clone()));
        assert_eq!(disk.identity.to_string().parse::<DiskIdentity>().unwrap(), disk.identity);
        assert_eq!(disk.bytes, DISK_BYTES);
        assert_eq!(disk.driver, if style.qcow2 { "qcow2" } else { "raw" });
        assert_eq!(disk.file, vm.path(&format!("disk{index}")).to_str().unwrap());
        assert!(!disk.read_only && !disk.encrypted && disk.filter.is_none() && disk.job.is_none());
        let own = if style.blockdev { format!("node{index}") } else { format!("drive{index}") };
        for name in [&own, &qdev, &disk.node, &disk.identity.to_string()] {
            assert_eq!(disks.find(name).unwrap(), disk, "{name}");
        }
    }
    assert_eq!(disks.skipped.len(), 1);
    assert_eq!((&*disks.skipped[0].name, disks.skipped[0].reason), ("cd", "nothing is inserted"));
    let error = disks.find("cd").unwrap_err().to_string();
    assert!(error.contains("cd is left out: nothing is inserted"), "{error}");
    let error = disks.find("vda").unwrap_err().to_string();
    assert!(error.contains("\"vda\"") && error.contains("drive0"), "{error}");
    assert!(error.contains("node4"), "{error}");
}

#[tokio::test]
async fn a_mirrored_disk_still_shows_its_own_node_and_who_works_on_it() {
    let vm = Vm::prelaunch(&[DRIVE_RAW, BLOCKDEV_QCOW2]).await;
    for index in 0..2 {
        let before = vm.qemu.find_disk(&format!("disk{index}")).await.unwrap();
        let name = names(index).bitmap(1);
        let map = NewBitmap {
            node: before.node.clone(),
            name: name.clone(),
            persistent: false,
            granularity_bytes: 65536,
        };
        vm.qemu.add_bitmap(&map).await.unwrap();
        let target = Target::start(&vm, &format!("target{index}"));
        let attachment = attach(&vm, index, &target).await;
        let after = vm.qemu.find_disk(&format!("disk{index}")).await.unwrap();
        assert_eq!(after.filter.as_deref(), Some(&*attachment.filter));
        assert_eq!(after.job.as_deref(), Some(&*attachment.job));
        assert_eq!(after.bitmaps.iter().map(|b| &b.name).collect::<Vec<_>>(), [&name]);
        let mut same = after;
        (same.filter, same.job, same.bitmaps) = (None, None, vec![]);
        assert_eq!(same, before);
        vm.qemu.detach(&attachment).await.unwrap();
    }
}

#[tokio::test]
async fn a_disk_is_recognised_at_the_next_boot_though_its_node_has_another_name() {
    let vm = Vm::prelaunch(&[DRIVE_RAW]).await;
    let before = vm.qemu.find_disk("disk0").await.unwrap();
    let first = vm.qemu.process().unwrap().unwrap();
    let vm = vm.boot_again().await;
    let disks = vm.qemu.disks().await.unwrap();
    let after = disks.recognise(&before.identity).unwrap();
    assert_ne!(after.node, before.node);
    assert_eq!((&after.file, after.bytes), (&before.file, before.bytes));
    let second = vm.qemu.process().unwrap().unwrap();
    assert!(second != first && second.lives() && !first.lives());
}

#[tokio::test]
async fn the_guest_is_known_by_its_name_uuid_process_and_command_line() {
    let uuid = "6f1ee4a2-0d1f-4a3e-9a6b-9a5d7f3f8c01";
    let vm = Vm::with(&[DRIVE_RAW], &["-name", "web one", "-uuid", uuid]).await;
    assert!(vm.qemu.version() >= Version { major: 8, minor: 2, micro: 0 });
    assert_eq!(vm.qemu.uuid().await.unwrap(), uuid);
    assert_eq!(vm.qemu.name().await.unwrap().as_deref(), Some("web one"));
    let process = vm.qemu.process().unwrap().unwrap();
    assert_eq!(process.pid, vm.process.pid());
    assert_eq!(process.command_line[0], "qemu-system-x86_64");
    // Clock ticks are hundredths of a second on Linux, whatever the kernel's own rate.
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
    let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
    let age = uptime - process.start_ticks as f64 / 100.0;
    assert!((-1.0..60.0).contains(&age), "{age} seconds old");
    assert!(process.command_line.windows(2).any(|w| w == ["-name", "web one"]));
    assert!(process.lives());
}

#[tokio::test]
async fn a_read_only_disk_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("extra");
    std::fs::File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let drive = format!("id=x,if=none,format=raw,readonly=on,file={}", image.display());
    let vm = Vm::with(&[DRIVE_RAW], &["-drive", &drive, "-device", "virtio-blk-pci,drive=x"]).await;
    assert!(vm.qemu.find_disk("x").await.unwrap().read_only);
    assert!(!vm.qemu.find_disk("drive0").await.unwrap().read_only);
    assert!(matches!(vm.qemu.find_disk("y").await, Err(Error::NoSuchDisk { .. })));
}

/// Such a device hands the guest's commands to a device of the host, past every filter.
#[tokio::test]
async fn a_device_that_passes_scsi_commands_is_left_out() {
    let block = |id: &str| {
        json!({
            "device": "", "qdev": format!("/machine/peripheral/{id}"), "removable": false,
            "inserted": { "node-name": id, "drv": "raw", "image": { "virtual-size": 1 << 20 } },
        })
    };
    let fake = Fake::qmp(move |request| {
        let answer = match request["execute"].as_str().unwrap() {
            "query-version" => json!({ "qemu": { "major": 10, "minor": 0, "micro": 2 } }),
            "query-block" => json!([block("plain"), block("passed")]),
            "query-named-block-nodes" => json!([]),
            "qom-get" if request["arguments"]["path"] == "/machine/peripheral/passed" => {
                json!("scsi-block")
            }
            "qom-get" => json!("scsi-hd"),
            other => panic!("{other}"),
        };
        returns(request, answer)
    });
    let disks = Qemu::connect(&fake.path).await.unwrap().disks().await.unwrap();
    assert_eq!(disks.disks.iter().map(|d| &*d.node).collect::<Vec<_>>(), ["plain"]);
    assert!(disks.skipped[0].reason.contains("scsi-hd"), "{:?}", disks.skipped);
    let named = disks.find("/machine/peripheral/passed").unwrap_err().to_string();
    assert!(named.contains("SCSI commands"), "{named}");
}
