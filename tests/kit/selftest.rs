//! The kit is what everything else is judged by, so it is tried first.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::record::{SLOT_BYTES, SLOTS, encode, newest_at, place};
use super::{Disk, SmallFs, VmBuilder, image, poll, prefix};

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn newest_at_agrees_with_a_replay() {
    let (disks, slots) = (3, 4);
    let mut replayed = vec![0; (disks * slots) as usize];
    for last in 1..200 {
        let there = place(last, disks, slots);
        replayed[(there.disk * slots + there.slot) as usize] = last;
        for disk in 0..disks {
            for slot in 0..slots {
                let wanted = replayed[(disk * slots + slot) as usize];
                let there = super::record::Place { disk, slot };
                assert_eq!(newest_at(there, last, disks, slots), wanted, "{there:?} at {last}");
            }
        }
    }
}

#[test]
fn guest_leaves_an_exact_prefix_and_the_judge_sees_a_lost_write() {
    let dir = tempfile::tempdir().unwrap();
    let paths = [dir.path().join("a.raw"), dir.path().join("b.raw")];
    let builder = paths.iter().fold(VmBuilder::new("writer"), |builder, path| {
        image::raw(path, 64 << 20);
        builder.disk(Disk::raw(path))
    });
    let mut vm = builder.boot();
    vm.ask("writer start until=3000", "writer started");
    vm.wait_line("writer done last=3000", LIMIT);
    let stats = vm.stats("writer");
    assert_eq!((stats.last, stats.errors, stats.count), (3000, 0, 3000), "{stats:?}");
    eprintln!("boot {:?}, {stats:?}", vm.boot_time());
    vm.kill();
    let disks = [paths[0].as_path(), paths[1].as_path()];
    assert_eq!(prefix::last(&disks), Ok(3000));

    // A second run on the same disks goes on where the first one stopped.
    let vm = builder.boot();
    assert!(vm.ready().contains("last=3000"), "{}", vm.ready());
    vm.power_off();

    // Record 2999 lost: its slot still holds what was there a round before.
    let lost = place(2999, 2, SLOTS);
    let mut block = [0; SLOT_BYTES];
    encode(&mut block, 2999 - 2 * SLOTS, lost);
    let file = File::options().write(true).open(&paths[lost.disk as usize]).unwrap();
    file.write_all_at(&block, lost.slot * SLOT_BYTES as u64).unwrap();
    let verdict = prefix::last(&disks).unwrap_err();
    assert!(verdict.contains("holds 951, not 2999"), "{verdict}");
}

#[test]
fn load_demo_and_guest_agent_work_on_every_kind_of_disk() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    image::ext4(&path("fs.raw"), 128 << 20);
    image::qcow2(&path("load.qcow2"), 64 << 20);
    image::raw(&path("load.raw"), 64 << 20);
    let mut vm = VmBuilder::new("demo,load")
        .disk(Disk::raw(path("fs.raw")).blockdev().iothread())
        .disk(Disk::qcow2(path("load.qcow2")).blockdev())
        .disk(Disk::raw(path("load.raw")).writeback().iothread())
        .append("ai.demo=vda ai.load=vdb,vdc")
        .guest_agent()
        .boot();
    assert_eq!(vm.nodes()[0], "disk0");
    vm.ask("load start threads=4 seed=7 rate=400", "load started");
    vm.ask("demo start", "demo started last=0");
    vm.send("demo grant to=50");
    vm.wait_line("demo ack id=50", LIMIT);

    let frozen = vm.guest_agent("guest-fsfreeze-freeze", json!({})).unwrap();
    assert_eq!(frozen, 1, "one file system can be frozen");
    assert_eq!(vm.guest_agent("guest-fsfreeze-thaw", json!({})).unwrap(), 1);

    vm.send("demo grant to=60");
    vm.wait_line("demo ack id=60", LIMIT);
    vm.ask("load pause", "load paused");
    let load = vm.stats("load");
    assert!(load.errors == 0 && load.count > 0, "{load:?}");
    let checked = vm.ask("demo check", "demo checked");
    assert_eq!(checked, "demo checked integrity=ok rows=60 min=1 max=60 bad=0 holes=0");
    vm.ask("demo destroy", "demo destroyed");
    let checked = vm.ask("demo check", "demo checked");
    assert!(checked.contains("integrity=missing"), "{checked}");
    eprintln!("boot {:?}, {load:?}", vm.boot_time());
    vm.quit();
}

#[test]
fn small_file_system_fills_refuses_and_forgets_what_was_not_synced() {
    let Some(mut fs) = SmallFs::new(32 << 20) else { return };
    let (synced, unsynced) = (fs.path().join("synced"), fs.path().join("unsynced"));
    std::fs::write(&synced, b"stays").unwrap();
    File::open(&synced).unwrap().sync_all().unwrap();
    File::open(fs.path()).unwrap().sync_all().unwrap();
    std::fs::write(&unsynced, b"goes").unwrap();
    fs.power_cut();
    assert!(std::fs::write(fs.path().join("late"), b"x").is_err());
    fs.power_on();
    assert_eq!(std::fs::read(&synced).unwrap(), b"stays");
    assert!(!unsynced.exists());

    let filler = fs.fill(64 << 10);
    assert!(std::fs::write(fs.path().join("big"), vec![1; 1 << 20]).is_err());
    std::fs::remove_file(filler).unwrap();
    fs.read_only(true);
    assert!(std::fs::write(fs.path().join("small"), b"x").is_err());
    fs.read_only(false);
    std::fs::write(fs.path().join("small"), b"x").unwrap();
}

#[test]
fn guest_moves_to_another_qemu_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let image_path = dir.path().join("a.raw");
    image::raw(&image_path, 16 << 20);
    let builder = VmBuilder::new("writer").disk(Disk::raw(&image_path));
    let mut source = builder.boot();
    source.ask("writer start rate=200", "writer started");
    let socket = dir.path().join("migrate.sock");
    let mut target = builder.clone().incoming(&socket).boot();
    let uri = format!("unix:{}", socket.display());
    source.qmp().execute("migrate", json!({"uri": uri}));
    target.qmp().wait_event("RESUME", LIMIT).unwrap();
    target.wait_line("writer ack", LIMIT);
    let last = target.ask_last("writer pause", "writer paused");
    source.kill();
    target.kill();
    assert_eq!(prefix::last(&[&image_path]), Ok(last));
}

#[test]
fn a_guest_that_stood_still_says_for_how_long() {
    let mut vm = VmBuilder::new("pulse").boot();
    vm.ask("pulse start mib=16 rate=1000", "pulse started");
    assert!(poll(LIMIT, || (vm.stats("pulse").count > 10).then_some(())).is_some(), "no beat");
    vm.ask("pulse reset", "pulse reset");
    // Not by QMP: while QEMU itself has stopped a guest, the guest's clocks stand still too.
    let pid = Pid::from_raw(i32::try_from(vm.pid()).unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    std::thread::sleep(Duration::from_millis(400));
    kill_process(pid, Signal::CONT).unwrap();
    let seen = poll(LIMIT, || Some(vm.stats("pulse")).filter(|s| s.worst_us >= 350_000));
    assert!(seen.is_some(), "{:?}", vm.stats("pulse"));
}

#[test]
fn counter_is_on_the_disks_before_it_is_in_memory_and_says_when_not() {
    let dir = tempfile::tempdir().unwrap();
    let paths = [dir.path().join("a.raw"), dir.path().join("b.raw")];
    let builder = paths.iter().fold(VmBuilder::new("counter"), |builder, path| {
        image::raw(path, 1 << 20);
        builder.disk(Disk::raw(path))
    });
    let mut vm = builder.boot();
    vm.ask("counter start tmpfs=1048576", "counter started from=1");
    let first = vm.ask("counter stats", "counter stats ram=");
    std::thread::sleep(Duration::from_millis(500));
    let stats = vm.ask("counter stats", "counter stats ram=");
    let field = |line: &str, name: &str| {
        let word = line.split_whitespace().find_map(|w| w.strip_prefix(name)).unwrap();
        word.to_owned()
    };
    assert_eq!(field(&first, "tmpfs="), field(&stats, "tmpfs="));
    assert_ne!(field(&stats, "tmpfs="), "0000000000000000");
    let ram: u64 = field(&stats, "ram=").parse().unwrap();
    let disks: Vec<u64> = field(&stats, "disk=").split(',').map(|n| n.parse().unwrap()).collect();
    assert!(ram > 1 && disks.len() == 2 && disks.iter().all(|d| *d >= ram), "{stats}");
    let paused = vm.ask("counter pause", "counter paused ram=");
    let ram: u64 = field(&paused, "ram=").parse().unwrap();
    // One of the disks put back by one: behind the memory. Each number has one of 64 slots.
    let file = File::options().write(true).open(&paths[1]).unwrap();
    file.write_all_at(&(ram - 1).to_le_bytes(), ram % 64 * 4096).unwrap();
    vm.ask("counter start", "counter started");
    vm.wait_line("counter error op=count", LIMIT);
    vm.kill();
}
