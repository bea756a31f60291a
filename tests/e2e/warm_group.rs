//! A group of two guests: one checkpoint with memory is one instant for both, so whatever the second
//! one has heard of the first is in the copy of the first.

use super::copy::{Counted, Warm, number_on};
use super::{PROGRAM, STATE_LIMIT};
use crate::kit::{Agent, Disk, Vm, VmBuilder, image};
use rustix::process::{Pid, Signal, kill_process};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tempfile::TempDir;

const MARKS: usize = 4;
const DISK_BYTES: u64 = 1 << 20;
const NAMES: [&str; 2] = ["first", "second"];

/// The first guest counts by itself; what it says, the second one is told, which has it on its disk
/// and in memory before it answers. Gives the last of these numbers.
fn tell(vms: &mut [Vm; 2], done: &AtomicBool) -> u64 {
    let mut said = 0;
    while !done.load(Ordering::Relaxed) {
        said = Counted::of(&mut vms[0]).ram;
        vms[1].ask(&format!("counter raise to={said}"), &format!("counter raised ram={said}"));
    }
    said
}

/// Lets a process run for a quarter of the time only. Its guest stops later than the other one, which
/// has to wait for it.
fn slow_down(pid: u32, done: &AtomicBool) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).unwrap();
    let beat = |signal, ms| {
        kill_process(pid, signal).unwrap();
        std::thread::sleep(Duration::from_millis(ms));
    };
    while !done.load(Ordering::Relaxed) {
        beat(Signal::STOP, 45);
        beat(Signal::CONT, 15);
    }
}

#[test]
fn two_guests_that_hear_of_each_other_go_on_from_one_instant() {
    let dir = TempDir::with_prefix("ai-").unwrap();
    let boot = |name: &str| {
        let path = dir.path().join(name);
        image::raw(&path, DISK_BYTES);
        VmBuilder::new("counter").memory_mib(160).disk(Disk::raw(path)).boot()
    };
    let mut vms = NAMES.map(boot);
    let agent = Agent::start(PROGRAM, dir.path().join("state"));
    for (name, vm) in NAMES.iter().zip(&mut vms) {
        // The file in memory is made.
        vm.ask("counter start tmpfs=1048576 rate=100", "counter started");
        let qmp = vm.agent_qmp().display().to_string();
        agent.ok(&["protect", name, "--qmp", &qmp, "--group", "pair"]);
    }
    for name in NAMES {
        agent.wait_state(name, "protected", STATE_LIMIT);
    }
    // Its numbers come from the first one, from now on.
    vms[1].ask("counter pause", "counter paused");
    let was = [Counted::of(&mut vms[0]), Counted::of(&mut vms[1])];
    let done = AtomicBool::new(false);
    let slow = vms[1].pid();
    let mut in_band = 0;
    let said = std::thread::scope(|threads| {
        threads.spawn(|| slow_down(slow, &done));
        let talk = threads.spawn(|| tell(&mut vms, &done));
        for round in 0..MARKS {
            std::thread::sleep(Duration::from_millis(300 + 170 * round as u64));
            let tag = format!("m{round}");
            let made = agent.run(&["mark", "pair", "--tag", &tag, "--memory"]);
            let memory = agent.json(&["status", "first"])["memory"].clone();
            println!("{made:?} {memory}");
            in_band += usize::from(memory["last"]["order"] == "in-band");
            if made.code != 0 {
                done.store(true, Ordering::Relaxed);
            }
            assert_eq!(made.code, 0, "{made:?}");
        }
        done.store(true, Ordering::Relaxed);
        talk.join().unwrap()
    });
    assert!(said > 0 && in_band > 0, "{said} numbers, {in_band} held together");
    drop(vms);
    agent.stop();
    let cli = crate::kit::Cli::new(PROGRAM, dir.path().join("state"));
    let mut before = 0;
    for round in 0..MARKS {
        let warm = Warm::restore(&cli, "pair", &format!("tag:m{round}"));
        let images = images_of(&warm);
        let on_disk = NAMES.map(|name| number_on(&images[name]));
        let mut copies = NAMES.map(|name| warm.start(name));
        let now = [copies[0].counted(), copies[1].counted()];
        println!("m{round}: disks {on_disk:?}, then {now:?}");
        for (first, second) in [(on_disk[0], on_disk[1]), (now[0].ram, now[1].ram)] {
            assert!(second <= first, "the second has heard {second}, the first is at {first}");
        }
        assert!(on_disk[1] > before, "{on_disk:?} before {before}");
        before = on_disk[1];
        // Both go on, and look first whether their disks are of their memory's instant.
        copies[0].goes_on(&was[0], on_disk[0] - 1);
        let next = now[1].ram + 1;
        copies[1].ask(&format!("counter raise to={next}"), &format!("counter raised ram={next}"));
        assert_eq!((&now[1].boot, &now[1].tmpfs), (&was[1].boot, &was[1].tmpfs));
    }
}

/// The image of each guest, which is named as its original's.
fn images_of(warm: &Warm) -> std::collections::BTreeMap<String, std::path::PathBuf> {
    let images = warm.images();
    let named = NAMES.map(|name| {
        let of_guest = |path: &&std::path::PathBuf| {
            path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name))
        };
        let path = images.iter().find(of_guest).unwrap_or_else(|| panic!("{name}: {images:?}"));
        (name.to_owned(), path.clone())
    });
    named.into()
}
