//! A guest that counts on two disks and in memory, beside load on a third disk and on memory, goes
//! on from whichever of its checkpoints with memory is restored.

use super::copy::{Counted, Warm, number_on};
use super::evidence::scene_with_roles;
use super::{STATE_LIMIT, Scene};
use crate::kit::{Cli, Disk, poll};
use jiff::Timestamp;
use serde_json::Value;
use std::time::Duration;

/// What is asked of a run.
struct Trial {
    marks: usize,
    by_the_clock: usize,
    restores: usize,
}

#[test]
fn a_loaded_guest_goes_on_from_random_checkpoints_with_memory() {
    run(&Trial { marks: 3, by_the_clock: 1, restores: 3 });
}

#[test]
#[ignore = "long: fifty restores, some minutes (`make test-long`)"]
fn a_loaded_guest_goes_on_from_fifty_random_checkpoints_with_memory() {
    run(&Trial { marks: 40, by_the_clock: 3, restores: 50 });
}

/// A random number below a bound; the seed is in the test's output.
struct Random(u64);

impl Random {
    fn seeded() -> Self {
        let given = std::env::var("AFTERIMAGE_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| Timestamp::now().as_microsecond() as u64);
        println!("AFTERIMAGE_SEED={seed}");
        Self(seed | 1)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

/// What the original said, and when: between being asked and having answered.
struct Seen {
    asked: Timestamp,
    answered: Timestamp,
    ram: u64,
}

fn look(scene: &mut Scene, seen: &mut Vec<Seen>) -> Counted {
    let asked = Timestamp::now();
    let counted = Counted::of(&mut scene.vm);
    seen.push(Seen { asked, answered: Timestamp::now(), ram: counted.ram });
    counted
}

fn with_memory(scene: &Scene) -> Vec<Value> {
    let list = scene.agent.json(&["checkpoints", "vm"]);
    list.as_array().unwrap().iter().filter(|c| c["memory"] == true).cloned().collect()
}

fn run(trial: &Trial) {
    let mut random = Random::seeded();
    let disks: [fn(std::path::PathBuf) -> Disk; 3] = [Disk::raw, Disk::raw, Disk::raw];
    let mut scene = scene_with_roles("counter,load,pulse", &disks, |builder| {
        builder.memory_mib(192).append("ai.counter=vda,vdb").append("ai.load=vdc")
    });
    scene.vm.ask("counter start tmpfs=8388608", "counter started");
    scene.vm.ask("load start threads=2 rate=200", "load started");
    scene.vm.ask("pulse start mib=24 rate=1000", "pulse started");
    scene.protect(&["--memory-every", "10s"]);
    scene.agent.wait_state("vm", "protected", STATE_LIMIT);

    let mut seen = Vec::new();
    let was = look(&mut scene, &mut seen);
    let mut marked = 0;
    let wanted = trial.marks + trial.by_the_clock;
    let taken = poll(10 * STATE_LIMIT, || {
        std::thread::sleep(Duration::from_millis(random.below(800)));
        look(&mut scene, &mut seen);
        if marked < trial.marks {
            let tag = format!("m{marked}");
            let made = scene.agent.run(&["mark", "vm", "--tag", &tag, "--memory"]);
            // The clock may have begun one.
            assert!(made.code == 0 || made.stderr.contains("already"), "{made:?}");
            marked += usize::from(made.code == 0);
            look(&mut scene, &mut seen);
        }
        let by_the_clock = || with_memory(&scene).iter().filter(|c| c["tag"].is_null()).count();
        (marked == trial.marks && by_the_clock() >= trial.by_the_clock).then_some(())
    });
    assert!(taken.is_some(), "{wanted} checkpoints did not come");
    look(&mut scene, &mut seen);
    for role in ["load", "pulse"] {
        assert_eq!(scene.vm.stats(role).errors, 0);
    }
    println!("{}", scene.agent.json(&["status", "vm"])["memory"]);
    // Whoever needs them restores them with neither the guest nor the agent there.
    let mut listed = with_memory(&scene);
    assert!(listed.len() >= wanted, "{listed:?}");
    let cli = Cli::clone(&scene.agent);
    let Scene { vm, agent, dir, .. } = scene;
    vm.quit();
    agent.stop();
    // In random order; more than once only where there are fewer.
    for at in (1..listed.len()).rev() {
        listed.swap(at, random.below(at as u64 + 1) as usize);
    }
    for checkpoint in listed.iter().cycle().take(trial.restores) {
        let at = format!("#{}", checkpoint["id"]);
        let warm = Warm::restore(&cli, "vm", &at);
        assert_eq!(warm.report["seq"], checkpoint["seq"]);
        let numbers: Vec<u64> = warm.images()[..2].iter().map(|i| number_on(i)).collect();
        println!("{at} {}: {numbers:?}", checkpoint["tag"]);
        let (least, most) = around(&seen, checkpoint["time"].as_str().unwrap());
        assert!(numbers[1] >= least && numbers[0] <= most + 1, "{least} {numbers:?} {most}");
        warm.start("vm").goes_on(&was, numbers[1].saturating_sub(1));
    }
    drop(dir);
}

/// What the number in memory was at least and at most at a time.
fn around(seen: &[Seen], time: &str) -> (u64, u64) {
    let time: Timestamp = time.parse().unwrap();
    let least = seen.iter().filter(|s| s.answered <= time).map(|s| s.ram).max().unwrap_or(0);
    let most = seen.iter().filter(|s| s.asked >= time).map(|s| s.ram).min().unwrap_or(u64::MAX - 1);
    (least, most)
}
