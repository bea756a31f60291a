//! What is read from a real QEMU is what that QEMU says of its memory while it stands still.

use std::fs;
use std::io::Read;

use afterimage_migration::{Head, Parts};
use serde_json::json;

use crate::made::{Calls, Memory, read};
use crate::rig::{RAM_BYTES, Vm};

/// Migrations of a running guest until a page comes twice.
const TRIES: usize = 20;

/// Where x86 keeps its display and firmware, which `pmemsave` shows instead of RAM.
const HOLE: std::ops::Range<u64> = 0xa_0000..0x10_0000;

/// Compares every block whose place in the guest's memory is known.
fn compare(vm: &mut Vm, memory: &Memory, ram: &str) {
    let pc_ram = &memory.0[ram];
    let mut compared = 0;
    for (from, to) in [(0, HOLE.start), (HOLE.end, RAM_BYTES)] {
        let is = vm.memory(from, to - from);
        assert!(is == pc_ram[from as usize..to as usize], "{ram} differs in {from:#x}..{to:#x}");
        compared += is.iter().filter(|b| **b != 0).count();
    }
    assert!(compared > 1000, "there was nothing to compare");
    let bios = &memory.0["pc.bios"];
    let is = vm.memory((1 << 32) - bios.len() as u64, bios.len() as u64);
    assert!(is == *bios, "pc.bios differs");
    for (name, address, bytes) in vm.dimms() {
        let ids = [name.clone(), format!("/objects/{name}")];
        let block = ids.iter().find_map(|id| memory.0.get(id)).unwrap();
        assert!(vm.memory(address, bytes) == *block, "{name} differs");
    }
}

fn check_parts(calls: &Calls, parts: &Parts, machine: &str) {
    assert_eq!(calls.blocks, parts.blocks);
    let head = Head::parse(&parts.head).unwrap();
    assert!(head.has_footers);
    assert!(head.machine.unwrap().starts_with(machine));
    assert!(parts.tail.len() > 10_000 && parts.tail.len() < 4 << 20, "{}", parts.tail.len());
}

fn stopped(machine: &str, type_name: &str) {
    let mut vm = Vm::boot(machine, &[]);
    vm.stop();
    let stream = vm.stream();
    let (calls, parts) = read(&stream, 1 << 16).unwrap();
    check_parts(&calls, &parts, type_name);
    compare(&mut vm, &calls.memory(), "pc.ram");
    // QEMU sends each page of a guest that stands still once.
    let pages: u64 = parts.blocks.iter().map(|b| b.bytes / 4096).sum();
    assert_eq!(calls.pages.len() as u64, pages);
}

#[test]
fn a_stopped_q35_is_read_as_it_is() {
    stopped("q35", "pc-q35-");
}

#[test]
fn a_stopped_pc_is_read_as_it_is() {
    stopped("pc", "pc-i440fx-");
}

/// A guest that runs again while its memory is sent, and overwrites it.
fn background(machine: &str, type_name: &str) {
    let mut vm = Vm::boot(machine, &[]);
    vm.stop();
    vm.set(&["background-snapshot"]);
    vm.ask("migrate-set-parameters", json!({ "max-bandwidth": 8 << 20 }));
    let low = vm.memory(0, HOLE.start);
    let high = vm.memory(HOLE.end, RAM_BYTES - HOLE.end);
    let (mut connection, _) = vm.migrate().accept().unwrap();
    // Pages, thus past what QEMU sends before it tracks writes: a guest that runs earlier changes the
    // instant.
    let mut stream = vec![0; 64 << 10];
    connection.read_exact(&mut stream).unwrap();
    // Read on beside it: a guest waits for the pages that it writes to.
    let reading = std::thread::spawn(move || connection.read_to_end(&mut stream).map(|_| stream));
    vm.runs_on();
    let stream = reading.join().unwrap().unwrap();
    let (calls, parts) = read(&stream, 1 << 16).unwrap();
    check_parts(&calls, &parts, type_name);
    let memory = calls.memory();
    let ram = &memory.0["pc.ram"];
    assert!(ram[..low.len()] == low, "memory below the hole is not that of the instant");
    assert!(ram[HOLE.end as usize..] == high, "memory above it is not that of the instant");
    assert!(vm.memory(0, HOLE.start) != low, "the guest did not write meanwhile");
}

#[test]
fn a_background_snapshot_of_q35_is_the_memory_of_its_instant() {
    background("q35", "pc-q35-");
}

#[test]
fn a_background_snapshot_of_pc_is_the_memory_of_its_instant() {
    background("pc", "pc-i440fx-");
}

#[test]
fn hot_plugged_memory_is_blocks_of_its_own() {
    let backend = ["-object", "memory-backend-ram,id=ram0,size=48M"];
    let mut vm = Vm::boot("q35,memory-backend=ram0", &backend);
    let file = vm.path("dimm");
    let content: Vec<u8> =
        (0..8_u32 << 20).flat_map(|n| n.wrapping_mul(40503).to_le_bytes()).collect();
    fs::write(&file, &content).unwrap();
    vm.plug("mem0", None);
    vm.plug("mem1", Some(&file));
    vm.stop();
    let (calls, parts) = read(&vm.stream(), 4097).unwrap();
    let sizes: Vec<_> = parts.blocks.iter().filter(|b| b.id.contains("mem")).collect();
    assert_eq!(sizes.len(), 2, "{:?}", parts.blocks);
    let memory = calls.memory();
    let ram = parts.blocks.iter().find(|b| b.id.contains("ram0")).unwrap().id.clone();
    compare(&mut vm, &memory, &ram);
    assert!(memory.0.values().any(|block| *block == content), "the file's content is in no block");
}

#[test]
fn pages_of_a_running_guest_come_again_and_the_last_one_counts() {
    // A quick migration may find nothing written meanwhile: then another guest is asked.
    let came_again = (0..TRIES).any(|_| {
        let mut vm = Vm::boot("q35", &[]);
        let (calls, parts) = read(&vm.stream(), 1 << 20).unwrap();
        // The migration has stopped it.
        assert_eq!(vm.status(), "postmigrate");
        let pages: u64 = parts.blocks.iter().map(|b| b.bytes / 4096).sum();
        compare(&mut vm, &calls.memory(), "pc.ram");
        calls.pages.len() as u64 > pages
    });
    assert!(came_again, "no page came twice, in {TRIES} migrations");
}
