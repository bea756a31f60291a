//! Checkpoints with memory of running guests: disks and memory of one instant, and what is left of
//! one that is cut short.

use super::evidence::{SOME_WRITES, history, identical, prefix_of};
use super::{STATE_LIMIT, Scene};
use crate::kit::record::{SLOT_BYTES, checksum};
use crate::kit::{Cli, Disk, Outcome, Qmp, REPLY_LIMIT, VmBuilder, poll};
use afterimage_journal::History;
use afterimage_journal::meta::GuestMemory;
use afterimage_journal::view::Blocks;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn mark(cli: &Cli, tag: &str) -> Outcome {
    cli.run(&["mark", "vm", "--tag", tag, "--memory"])
}

#[track_caller]
fn marked(cli: &Cli, tag: &str) {
    let made = mark(cli, tag);
    assert_eq!(made.code, 0, "{made:?}");
    assert!(made.stdout.contains("with memory"), "{made:?}");
}

/// The checkpoint with a tag, as it is listed.
fn listed(cli: &Cli, tag: &str) -> Option<Value> {
    let list = cli.json(&["checkpoints", "vm"]);
    list.as_array().unwrap().iter().find(|c| c["tag"] == tag).cloned()
}

fn memory_of(cli: &Cli) -> Value {
    cli.json(&["status", "vm"])["memory"].clone()
}

/// Nothing that a snapshot needs is left in QEMU, and the guest runs.
#[track_caller]
pub(super) fn as_before(qmp: &mut Qmp) {
    let on = |qmp: &mut Qmp| {
        let all = qmp.execute("query-migrate-capabilities", json!({}));
        let on = all.as_array().unwrap().iter().filter(|c| c["state"] == true);
        on.map(|c| c["capability"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let settled = poll(REPLY_LIMIT, || {
        let running = qmp.execute("query-status", json!({}))["status"] == "running";
        let parameters = qmp.execute("query-migrate-parameters", json!({}));
        let bandwidth = parameters["max-bandwidth"] == 134_217_728;
        (running && bandwidth && on(qmp).is_empty()).then_some(())
    });
    let status = qmp.execute("query-status", json!({}));
    assert!(settled.is_some(), "{status} {:?}", on(qmp));
}

#[track_caller]
pub(super) fn no_intents(cli: &Cli) {
    let dir = cli.state().join("intents");
    let none = poll(REPLY_LIMIT, || {
        // Made with the first intent: an agent that died early had none.
        let left = std::fs::read_dir(&dir).into_iter().flatten().next();
        left.is_none().then_some(())
    });
    assert!(none.is_some(), "intents are left");
}

/// The memory of the guests at a checkpoint.
#[track_caller]
fn memory_at(history: &History, tag: &str) -> (u64, Vec<GuestMemory>) {
    let tagged =
        |c: &&afterimage_journal::history::CheckpointAt| c.checkpoint.tag.as_deref() == Some(tag);
    let found = history.checkpoints.iter().find(tagged).unwrap();
    let memory = found.checkpoint.memory.clone().unwrap();
    assert_eq!(memory.instant, found.seq);
    (found.committed, memory.guests)
}

/// The newest whole record of the guest's writer that is in its memory: it encodes each in the one
/// buffer that it then writes. 0: it was caught while it encoded one.
fn newest_in_memory(history: &History, committed: u64, memory: &GuestMemory) -> u64 {
    let ram = memory.blocks.iter().find(|b| b.id.ends_with("pc.ram")).unwrap();
    let blocks = Blocks::at(history, ram.volume, committed).unwrap();
    assert_eq!(blocks.bytes(), ram.bytes);
    let mut window = vec![0; 1 << 20];
    let mut newest = 0;
    for at in (0..ram.bytes).step_by(window.len()) {
        blocks.read(history, at, &mut window).unwrap();
        for page in window.chunks(SLOT_BYTES) {
            let word = |at: usize| u64::from_le_bytes(page[at..at + 8].try_into().unwrap());
            let is_record = page.starts_with(b"AI-block");
            if is_record && word(SLOT_BYTES - 8) == checksum(&page[..SLOT_BYTES - 8]) {
                newest = newest.max(word(8));
            }
        }
    }
    newest
}

/// The device state is what QEMU sent: its stream begins there.
#[track_caller]
fn has_device_state(history: &History, committed: u64, memory: &GuestMemory) {
    let blocks = Blocks::at(history, memory.state, committed).unwrap();
    let mut begin = [0; 8];
    blocks.read(history, 0, &mut begin).unwrap();
    assert_eq!(&begin, b"QEVM\0\0\0\x03");
    assert!(memory.tail_bytes > 10_000, "{memory:?}");
}

#[test]
fn memory_and_disks_of_a_writing_guest_are_of_one_instant_in_every_mode() {
    let mut scene = Scene::new();
    scene.vm.ask("writer start", "writer started");
    scene.protected();
    let mut caught = 0;
    let mut changed = Vec::new();
    for (round, mode) in ["auto", "background", "auto", "stop"].into_iter().enumerate() {
        std::thread::sleep(SOME_WRITES);
        scene.agent.ok(&["set", "vm", "--memory-mode", mode]);
        let tag = format!("m{round}");
        marked(&scene.agent, &tag);
        let status = memory_of(&scene.agent);
        let order = if mode == "stop" { "stop" } else { "in-band" };
        assert_eq!(status["last"]["order"], order, "{status}");
        assert_eq!(status["state"], "idle");
        assert!(status["last"]["pause_us"].as_u64().unwrap() > 0, "{status}");
        changed.push(status["last"]["changed_bytes"].as_u64().unwrap());
        as_before(scene.vm.qmp());
        no_intents(&scene.agent);
        let found = listed(&scene.agent, &tag).unwrap();
        assert_eq!(found["memory"], true, "{found}");
        let last = prefix_of(&scene.restore(&format!("tag:{tag}")));
        let history = history(&scene.agent);
        let (committed, guests) = memory_at(&history, &tag);
        assert_eq!(guests.len(), 1);
        has_device_state(&history, committed, &guests[0]);
        let newest = newest_in_memory(&history, committed, &guests[0]);
        println!("{mode}: disks {last}, memory {newest}, {status}");
        match newest {
            0 => caught += 1,
            newest => assert!((last..=last + 1).contains(&newest), "{last} {newest}"),
        }
    }
    assert!(caught < 3, "the writer's buffer was never found");
    assert!(changed[1] < changed[0] / 2, "only changed pages are stored: {changed:?}");
    let list = scene.agent.json(&["checkpoints", "vm"]);
    assert!(list.as_array().unwrap().iter().any(|c| c["memory"] == false), "{list}");
    scene.agent.wait_state("vm", "protected", STATE_LIMIT);
    let acknowledged = scene.vm.ask_last("writer pause", "writer paused");
    assert_eq!(scene.vm.stats("writer").errors, 0);
    marked(&scene.agent, "still");
    let latest = scene.restore("tag:still");
    assert_eq!(prefix_of(&latest), acknowledged);
    scene.vm.quit();
    identical(&scene.images, &super::evidence::RAW, &latest);
}

#[test]
fn an_agent_that_dies_while_memory_is_taken_leaves_the_guest_running_and_nothing_half_listed() {
    let mut scene = Scene::new();
    scene.vm.ask("writer start", "writer started");
    scene.protected();
    // QEMU has the guest stopped some milliseconds behind the command.
    let soon = [15, 22, 30, 40].map(|after_ms| ("auto", after_ms));
    let later = [("stop", 60), ("auto", 250), ("stop", 250), ("auto", 900)];
    for (mode, after_ms) in soon.into_iter().chain(later) {
        let head = history(&scene.agent).head;
        let tag = format!("{mode}-{after_ms}");
        scene.agent.ok(&["set", "vm", "--memory-mode", mode]);
        std::thread::scope(|threads| {
            let cli: &Cli = &scene.agent;
            let marking = threads.spawn(|| mark(cli, &tag));
            std::thread::sleep(Duration::from_millis(after_ms));
            let old = scene.agent.kill_worker();
            scene.agent.wait_other_worker(old, STATE_LIMIT);
            drop(marking.join());
        });
        as_before(scene.vm.qmp());
        no_intents(&scene.agent);
        super::evidence::wait_session_behind(&scene.agent, head);
        // Whole, if it was done before the end; never half.
        if let Some(found) = listed(&scene.agent, &tag) {
            assert_eq!(found["memory"], true, "{found}");
        }
    }
    scene.agent.ok(&["set", "vm", "--memory-mode", "auto"]);
    marked(&scene.agent, "after");
    let history = history(&scene.agent);
    let (committed, guests) = memory_at(&history, "after");
    has_device_state(&history, committed, &guests[0]);
    let last = prefix_of(&scene.restore("tag:after"));
    let newest = newest_in_memory(&history, committed, &guests[0]);
    assert!(newest == 0 || (last..=last + 1).contains(&newest), "{last} {newest}");
    assert_eq!(scene.vm.stats("writer").errors, 0);
}

#[test]
fn a_checkpoint_is_given_up_when_its_guest_is_let_go_of_or_dies_and_the_next_one_works() {
    let mut scene = Scene::new();
    scene.vm.ask("writer start", "writer started");
    scene.protected();
    std::thread::scope(|threads| {
        let cli: &Cli = &scene.agent;
        let marking = threads.spawn(|| mark(cli, "detached"));
        std::thread::sleep(Duration::from_millis(200));
        let second = mark(cli, "second");
        assert_eq!(second.code, 1, "{second:?}");
        assert!(second.stderr.contains("already"), "{second:?}");
        cli.ok(&["detach", "vm"]);
        let given_up = marking.join().unwrap();
        assert_eq!(given_up.code, 1, "{given_up:?}");
        assert!(given_up.stderr.contains("lets go"), "{given_up:?}");
    });
    as_before(scene.vm.qmp());
    no_intents(&scene.agent);
    assert!(listed(&scene.agent, "detached").is_none());
    let refused = mark(&scene.agent, "unprotected");
    assert!(refused.code != 0 && refused.stderr.contains("not protected"), "{refused:?}");
    let error = memory_of(&scene.agent)["error"].clone();
    assert!(error.as_str().unwrap().contains("not protected"), "{error}");
    scene.agent.ok(&["attach", "vm"]);
    scene.agent.wait_state("vm", "protected", STATE_LIMIT);
    marked(&scene.agent, "attached");

    for (round, after_ms) in [50, 400].into_iter().enumerate() {
        let tag = format!("died{round}");
        let vm = scene.vm;
        let died = std::thread::scope(|threads| {
            let cli: &Cli = &scene.agent;
            let marking = threads.spawn(|| mark(cli, &tag));
            std::thread::sleep(Duration::from_millis(after_ms));
            vm.kill();
            marking.join().unwrap()
        });
        assert!(died.code != 0 || listed(&scene.agent, &tag).is_some(), "{died:?}");
        if died.code != 0 {
            assert!(listed(&scene.agent, &tag).is_none(), "{died:?}");
        }
        scene.vm = scene.builder.boot();
        scene.vm.ask("writer start", "writer started");
        let qmp = scene.vm.agent_qmp().display().to_string();
        scene.agent.ok(&["unprotect", "vm"]);
        scene.agent.ok(&["protect", "vm", "--qmp", &qmp]);
        scene.agent.wait_state("vm", "protected", STATE_LIMIT);
        let tag = format!("lives{round}");
        marked(&scene.agent, &tag);
        assert_eq!(listed(&scene.agent, &tag).unwrap()["memory"], true);
        as_before(scene.vm.qmp());
    }
    assert_eq!(listed(&scene.agent, "attached").unwrap()["memory"], true, "older ones stay");
}

/// Flushes of somebody else's to the guest's mirrors, as quick as they go, until it is told to end.
fn flush_all_the_time(monitor: &Path, end: &AtomicBool) {
    let mut qmp = Qmp::connect(monitor).unwrap();
    let nodes = qmp.execute("query-named-block-nodes", json!({ "flat": true }));
    let targets = nodes.as_array().unwrap().iter();
    let targets = targets.filter_map(|n| n["node-name"].as_str().filter(|n| n.ends_with("-nbd")));
    let lines: Vec<_> = targets.map(|n| format!("qemu-io {n} \"flush\"")).collect();
    assert_eq!(lines.len(), 2);
    while !end.load(Ordering::Relaxed) {
        for line in &lines {
            qmp.execute("human-monitor-command", json!({ "command-line": line }));
        }
    }
}

#[test]
fn an_instant_that_the_flushes_do_not_prove_is_taken_by_command_or_not_at_all() {
    let dir = tempfile::TempDir::with_prefix("ai-").unwrap();
    let monitor = dir.path().join("monitor");
    let words = format!("unix:{},server=on,wait=off", monitor.display());
    let mut scene = Scene::with(Disk::raw, |builder| builder.arg("-qmp").arg(&words));
    scene.vm.ask("writer start", "writer started");
    scene.protected();
    let end = AtomicBool::new(false);
    std::thread::scope(|threads| {
        let flushing = threads.spawn(|| flush_all_the_time(&monitor, &end));
        scene.agent.ok(&["set", "vm", "--memory-mode", "background"]);
        let refused = mark(&scene.agent, "unproved");
        scene.agent.ok(&["set", "vm", "--memory-mode", "auto"]);
        let by_command = mark(&scene.agent, "proved");
        end.store(true, Ordering::Relaxed);
        flushing.join().unwrap();
        assert_eq!(refused.code, 1, "{refused:?}");
        assert!(refused.stderr.contains("no instant"), "{refused:?}");
        assert_eq!(by_command.code, 0, "{by_command:?}");
    });
    let status = memory_of(&scene.agent);
    assert_eq!(status["last"]["order"], "explicit", "{status}");
    println!("{status}");
    assert!(listed(&scene.agent, "unproved").is_none());
    as_before(scene.vm.qmp());
    no_intents(&scene.agent);
    let history = history(&scene.agent);
    let (committed, guests) = memory_at(&history, "proved");
    let last = prefix_of(&scene.restore("tag:proved"));
    let newest = newest_in_memory(&history, committed, &guests[0]);
    assert!(newest == 0 || (last..=last + 1).contains(&newest), "{last} {newest}");
    assert_eq!(scene.vm.stats("writer").errors, 0);
    scene.agent.wait_state("vm", "protected", STATE_LIMIT);
}

#[test]
fn two_guests_of_a_group_share_one_instant_by_the_clock_and_on_request() {
    let mut scene = Scene::new();
    scene.vm.ask("writer start", "writer started");
    let second = VmBuilder::new("writer");
    let path = scene.dir.path().join("second");
    crate::kit::image::raw(&path, super::DISK_BYTES);
    let mut other = second.disk(crate::kit::Disk::raw(&path)).boot();
    other.ask("writer start", "writer started");
    scene.protect(&["--group", "vm", "--memory-every", "10s"]);
    let qmp = other.agent_qmp().display().to_string();
    scene.agent.ok(&["protect", "two", "--qmp", &qmp, "--group", "vm"]);
    for name in ["vm", "two"] {
        scene.agent.wait_state(name, "protected", STATE_LIMIT);
    }
    let by_clock = scene.agent.wait_status("vm", STATE_LIMIT, |s| s["memory"]["last"].is_object());
    println!("{}", by_clock["memory"]);
    poll(STATE_LIMIT, || (memory_of(&scene.agent)["state"] == "idle").then_some(())).unwrap();
    marked(&scene.agent, "both");
    let history = history(&scene.agent);
    let (committed, guests) = memory_at(&history, "both");
    let names: Vec<_> = guests.iter().map(|g| g.guest.as_str()).collect();
    assert!(names.contains(&"vm") && names.contains(&"two"), "{names:?}");
    for memory in &guests {
        has_device_state(&history, committed, memory);
    }
    println!("{}", memory_of(&scene.agent));
    let images = scene.restore("tag:both");
    assert_eq!(images.len(), 3);
    for vm in [&mut scene.vm, &mut other] {
        assert_eq!(vm.stats("writer").errors, 0);
        as_before(vm.qmp());
    }
    no_intents(&scene.agent);
    scene.agent.stop();
}

/// A checkpoint of memory, with something that an administrator does at an event of it.
fn meddled(scene: &mut Scene, tag: &str, event: &str, commands: &[&str]) -> Outcome {
    scene.vm.qmp().drop_events();
    let (cli, vm): (&Cli, _) = (&scene.agent, &mut scene.vm);
    std::thread::scope(|threads| {
        let marking = threads.spawn(|| mark(cli, tag));
        vm.qmp().wait_event(event, REPLY_LIMIT).unwrap();
        for command in commands {
            vm.qmp().execute(command, json!({}));
        }
        marking.join().unwrap()
    })
}

fn run_state(scene: &mut Scene) -> Value {
    scene.vm.qmp().execute("query-status", json!({}))["status"].clone()
}

#[test]
fn memory_of_a_guest_that_somebody_lets_run_in_between_is_refused_and_a_pause_of_theirs_stays() {
    let mut scene = Scene::new();
    scene.vm.ask("writer start", "writer started");
    scene.protected();
    scene.agent.ok(&["set", "vm", "--memory-mode", "stop"]);
    let refused = meddled(&mut scene, "let-run", "STOP", &["cont"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("somebody else"), "{refused:?}");
    assert!(listed(&scene.agent, "let-run").is_none());
    as_before(scene.vm.qmp());
    no_intents(&scene.agent);

    scene.agent.ok(&["set", "vm", "--memory-mode", "background"]);
    for round in 0..3 {
        let tag = format!("round{round}");
        // Before the migration's own stop, or behind it: then it is as good as any.
        let made = meddled(&mut scene, &tag, "MIGRATION", &["stop", "cont"]);
        as_before(scene.vm.qmp());
        println!("stop and cont: {made:?}");
        if made.code == 0 {
            let history = history(&scene.agent);
            let (committed, guests) = memory_at(&history, &tag);
            let last = prefix_of(&scene.restore(&format!("tag:{tag}")));
            let newest = newest_in_memory(&history, committed, &guests[0]);
            assert!(newest == 0 || (last..=last + 1).contains(&newest), "{last} {newest}");
        }
    }
    // Behind the instant: the checkpoint is as good as any, and the guest stays paused.
    let made = meddled(&mut scene, "paused", "RESUME", &["stop"]);
    println!("stop: {made:?}");
    assert_eq!(run_state(&mut scene), "paused", "{made:?}");
    no_intents(&scene.agent);
    scene.vm.qmp().execute("cont", json!({}));
    as_before(scene.vm.qmp());
    marked(&scene.agent, "undisturbed");
    assert_eq!(scene.vm.stats("writer").errors, 0);
}

#[test]
fn stale_intent_of_memory_leaves_a_paused_guest_paused() {
    let mut scene = Scene::new();
    scene.vm.ask("writer start", "writer started");
    scene.protected();
    scene.agent.ok(&["set", "vm", "--memory-mode", "stop"]);
    let path = scene.agent.state().join("intents/vm@memory.json");
    let mut note = None;
    std::thread::scope(|threads| {
        let cli: &Cli = &scene.agent;
        let marking = threads.spawn(|| mark(cli, "whole"));
        let found = poll(REPLY_LIMIT, || {
            let text = std::fs::read_to_string(&path).ok()?;
            text.contains("stopped_ns").then_some(text)
        });
        note = found;
        assert_eq!(marking.join().unwrap().code, 0);
    });
    // It ran on, was paused by somebody, and then the note of an agent that died turns up.
    std::thread::sleep(Duration::from_secs(2));
    scene.vm.qmp().execute("stop", json!({}));
    std::fs::write(&path, note.expect("the note was there while the guest stood still")).unwrap();
    let old = scene.agent.kill_worker();
    scene.agent.wait_other_worker(old, STATE_LIMIT);
    no_intents(&scene.agent);
    scene.agent.wait_state("vm", "protected", STATE_LIMIT);
    assert_eq!(run_state(&mut scene), "paused");
    scene.vm.qmp().execute("cont", json!({}));
    as_before(scene.vm.qmp());
    assert_eq!(scene.vm.stats("writer").errors, 0);
}
