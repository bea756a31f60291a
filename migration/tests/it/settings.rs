//! Settings of a real QEMU that change its stream are refused by name.

use std::fs;
use std::io::Read;

use afterimage_migration::{Error, Kind, Limits, Reader};
use serde_json::json;

use crate::made::Calls;
use crate::rig::Vm;

/// Reads until the stream is refused.
fn refusal(mut from: impl Read) -> Error {
    let (mut reader, mut calls) = (Reader::new(Limits::default()), Calls::default());
    let mut piece = vec![0; 1 << 16];
    loop {
        match from.read(&mut piece).unwrap() {
            0 => return reader.finish().expect_err("it was taken"),
            read => match reader.feed(&piece[..read], &mut calls) {
                Ok(()) => {}
                Err(error) => return error,
            },
        }
        // Only the refusal counts.
        calls.pages.clear();
    }
}

#[track_caller]
fn names(error: &Error, words: &[&str]) {
    let text = error.to_string();
    assert_eq!(error.kind(), Kind::Unsupported, "{text}");
    for word in words {
        assert!(text.contains(word), "{text:?} does not say {word:?}");
    }
}

#[test]
fn xbzrle_is_refused_by_name() {
    let mut vm = Vm::boot("q35", &[]);
    vm.set(&["xbzrle"]);
    // Round after round, so that pages come again.
    let slow = json!({ "max-bandwidth": 2 << 20, "downtime-limit": 1 });
    vm.ask("migrate-set-parameters", slow);
    names(&refusal(vm.migrate().accept().unwrap().0), &["XBZRLE", "xbzrle"]);
}

#[test]
fn multifd_is_refused_by_name() {
    let mut vm = Vm::boot("q35", &[]);
    vm.stop();
    vm.set(&["multifd"]);
    let listener = vm.migrate();
    let main = listener.accept().unwrap().0;
    let others = std::thread::spawn(move || {
        for _ in 0..2 {
            let mut other = listener.accept().unwrap().0;
            std::thread::spawn(move || std::io::copy(&mut other, &mut std::io::sink()));
        }
    });
    names(&refusal(main), &["multifd"]);
    drop(vm);
    others.join().unwrap();
}

#[test]
fn mapped_ram_is_refused_by_name() {
    let mut vm = Vm::boot("pc", &[]);
    vm.stop();
    vm.set(&["mapped-ram"]);
    let path = vm.path("file");
    vm.ask("migrate", json!({ "uri": format!("file:{}", path.display()) }));
    while vm.ask("query-migrate", json!({}))["status"] != "completed" {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    names(&refusal(fs::File::open(path).unwrap()), &["mapped-ram"]);
}

#[test]
fn capabilities_are_refused_by_name() {
    for (capability, word) in [
        ("postcopy-ram", "return-path, postcopy-ram"),
        ("return-path", "return-path, postcopy-ram"),
        ("x-ignore-shared", "x-ignore-shared"),
    ] {
        let mut vm = Vm::boot("q35", &[]);
        vm.stop();
        vm.set(&[capability]);
        names(&refusal(vm.migrate().accept().unwrap().0), &[word]);
    }
}

#[test]
fn dirty_bitmaps_are_refused_by_name() {
    let mut vm = Vm::boot("q35", &[]);
    vm.ask("block-dirty-bitmap-add", json!({ "node": "boot", "name": "b0" }));
    vm.stop();
    vm.set(&["dirty-bitmaps"]);
    names(&refusal(vm.migrate().accept().unwrap().0), &["dirty-bitmap", "dirty-bitmaps"]);
}

#[test]
fn virtio_mem_is_refused_by_name() {
    let more = [
        "-object",
        "memory-backend-ram,id=vmem,size=64M",
        "-device",
        "virtio-mem-pci,memdev=vmem,id=vm0",
    ];
    let mut vm = Vm::boot("q35", &more);
    vm.stop();
    names(&refusal(vm.migrate().accept().unwrap().0), &["virtio-mem"]);
}

#[test]
fn a_guest_without_description_of_its_devices_is_refused_by_name() {
    let mut vm = Vm::boot("q35,suppress-vmdesc=on", &[]);
    vm.stop();
    let error = refusal(vm.migrate().accept().unwrap().0);
    assert_eq!(error.kind(), Kind::Cut);
    assert!(error.to_string().contains("suppress-vmdesc=on"), "{error}");
}
