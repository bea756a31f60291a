//! A stream that is built anew from parts and pages is loaded by a real QEMU, which goes on.

use afterimage_migration::{Block, PAGE_BYTES, Parts, Writer};

use crate::made::{Calls, read};
use crate::rig::{RAM_BYTES, Vm};

/// What a restore has: the parts, and each block's content in the order of addresses.
fn rebuilt(calls: &Calls, parts: &Parts) -> Vec<u8> {
    let memory = calls.memory();
    let mut writer = Writer::new(Vec::new(), &parts.head, &parts.blocks).unwrap();
    for (index, block) in parts.blocks.iter().enumerate() {
        let content = &memory.0[&block.id];
        // Large pieces as they are, and zeroes as such.
        for (piece, data) in content.chunks(8 * PAGE_BYTES).enumerate() {
            let at = (piece * 8 * PAGE_BYTES) as u64;
            if data.iter().any(|b| *b != 0) {
                writer.pages(index, at, data).unwrap();
            } else {
                for page in 0..data.len() / PAGE_BYTES {
                    writer.zero(index, at + (page * PAGE_BYTES) as u64).unwrap();
                }
            }
        }
    }
    writer.finish(&parts.tail).unwrap()
}

fn resumes(machine: &str, source: &[&str], capabilities: &[&str], plugged: bool) {
    let mut vm = Vm::boot(machine, source);
    if plugged {
        vm.plug("mem0", None);
    }
    vm.stop();
    vm.set(capabilities);
    let (low, high) = (vm.memory(0, 0xa_0000), vm.memory(1 << 20, RAM_BYTES - (1 << 20)));
    let count = vm.count();
    let (calls, parts) = read(&vm.stream(), 1 << 16).unwrap();
    let stream = rebuilt(&calls, &parts);
    let again = read(&stream, 1 << 16).unwrap();
    assert_eq!(again.1, parts);
    drop(vm);

    let mut more = source.to_vec();
    if plugged {
        let object = "memory-backend-ram,id=mem0,size=32M";
        more.extend(["-object", object, "-device", "pc-dimm,id=dimm-mem0,memdev=mem0"]);
    }
    let mut loaded = Vm::load(machine, &more, &stream);
    assert_eq!(loaded.status(), "paused");
    assert_eq!(loaded.count(), count);
    assert!(loaded.memory(0, 0xa_0000) == low, "memory below the hole differs");
    assert!(loaded.memory(1 << 20, RAM_BYTES - (1 << 20)) == high, "memory above it differs");
    loaded.runs_on();
}

#[test]
fn a_rebuilt_q35_goes_on() {
    resumes("q35", &[], &[], false);
}

#[test]
fn a_rebuilt_pc_goes_on() {
    resumes("pc", &[], &[], false);
}

#[test]
fn a_rebuilt_background_snapshot_goes_on() {
    resumes("q35", &["-device", "VGA"], &["background-snapshot"], false);
}

#[test]
fn a_rebuilt_guest_with_hot_plugged_memory_goes_on() {
    resumes("pc", &[], &[], true);
}

#[test]
fn what_a_writer_is_given_is_checked() {
    let (calls, parts) = read(&crate::made::Made::whole().bytes, 100).unwrap();
    assert_eq!(read(&rebuilt(&calls, &parts), 7).unwrap().0.memory().0, calls.memory().0);
    let begin = || Writer::new(Vec::new(), &parts.head, &parts.blocks).unwrap();
    let page = [1; PAGE_BYTES];
    assert!(begin().page(0, 4096, &page).is_ok());
    assert!(begin().page(0, 4096, &page[1..]).is_err(), "a short page");
    assert!(begin().pages(0, 0, &page[1..]).is_err(), "no multiple of a page");
    assert!(begin().page(0, 8192, &page).is_err(), "behind the block");
    assert!(begin().zero(0, 4095).is_err(), "within a page");
    assert!(begin().zero(2, 0).is_err(), "no such block");
    assert!(begin().finish(&parts.tail[1..]).is_err(), "a tail that begins with nothing");
    assert!(begin().finish(&parts.tail[..parts.tail.len() - 1]).is_err(), "a tail cut short");
    for cut in 0..parts.head.len() {
        // Without the footer it is a head without footers.
        let is_head = cut == parts.head.len() - 5;
        let writer = Writer::new(Vec::new(), &parts.head[..cut], &parts.blocks);
        assert_eq!(writer.is_ok(), is_head, "a head of {cut} bytes");
    }
    let block = |id: &str, bytes| Block { id: id.into(), bytes };
    for blocks in [
        vec![],
        vec![block("a", 4095)],
        vec![block("a", 0)],
        vec![block("", 4096)],
        vec![block(&"x".repeat(256), 4096)],
        vec![block("a", 4096), block("a", 4096)],
        vec![block("a", !4095), block("b", 4096)],
    ] {
        assert!(Writer::new(Vec::new(), &parts.head, &blocks).is_err(), "{blocks:?}");
    }
}
