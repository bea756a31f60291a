//! A group of two guests: one checkpoint with memory is one instant for both, so whatever the first
//! one said before the second one heard of it is in the copy of the first.

use super::copy::{Counted, Warm, number_on};
use super::{PROGRAM, STATE_LIMIT};
use crate::kit::{Agent, Disk, Vm, VmBuilder, image};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tempfile::TempDir;

const MARKS: usize = 4;
const DISK_BYTES: u64 = 1 << 20;
const NAMES: [&str; 2] = ["first", "second"];

/// Gives each number to the first guest and, once that has answered, to the second. Each has it on
/// its disk before it has it in memory, and answers then.
fn converse(vms: &mut [Vm; 2], done: &AtomicBool) -> u64 {
    let mut number = 0;
    while !done.load(Ordering::Relaxed) {
        number += 1;
        for vm in vms.iter_mut() {
            vm.ask(&format!("counter raise to={number}"), &format!("counter raised ram={number}"));
        }
    }
    number
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
        // The file in memory is made; the numbers come from here.
        vm.ask("counter start tmpfs=4194304 rate=1", "counter started");
        vm.ask("counter pause", "counter paused");
        let qmp = vm.agent_qmp().display().to_string();
        agent.ok(&["protect", name, "--qmp", &qmp, "--group", "pair"]);
    }
    for name in NAMES {
        agent.wait_state(name, "protected", STATE_LIMIT);
    }
    let was = [Counted::of(&mut vms[0]), Counted::of(&mut vms[1])];
    let done = AtomicBool::new(false);
    let said = std::thread::scope(|threads| {
        let talk = threads.spawn(|| converse(&mut vms, &done));
        for round in 0..MARKS {
            std::thread::sleep(Duration::from_millis(300 + 170 * round as u64));
            let tag = format!("m{round}");
            let made = agent.run(&["mark", "pair", "--tag", &tag, "--memory"]);
            println!("{made:?}");
            if made.code != 0 {
                done.store(true, Ordering::Relaxed);
            }
            assert_eq!(made.code, 0, "{made:?}");
        }
        done.store(true, Ordering::Relaxed);
        talk.join().unwrap()
    });
    println!("{said} numbers; {}", agent.json(&["status", "first"])["memory"]);
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
        for (a, b) in [(on_disk[0], on_disk[1]), (now[0].ram, now[1].ram)] {
            assert!(b <= a && a <= b + 1, "the second has heard {b}, the first is at {a}");
        }
        for (now, was) in now.iter().zip(&was) {
            assert_eq!((&now.boot, &now.tmpfs), (&was.boot, &was.tmpfs));
        }
        assert!(on_disk[1] >= before, "{on_disk:?} before {before}");
        before = on_disk[1];
        // Both go on; each looks first whether its disk is of its memory's instant.
        let next = now[0].ram + 1;
        for copy in &mut copies {
            let answer = format!("counter raised ram={next}");
            copy.ask(&format!("counter raise to={next}"), &answer);
        }
    }
    assert!(before > 0, "no number was given in time");
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
