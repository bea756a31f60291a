//! A guest's protection from its beginning to its end, and an agent's.

use super::evidence::{
    RAW, SOME_WRITES, causes_since, history, identical, ours_in, point_monitor_at, prefix_of,
    wait_session_behind,
};
use super::{DISK_BYTES, PROGRAM, STATE_LIMIT, Scene};
use crate::kit::{Agent, Cli, REPLY_LIMIT, Vm, poll};
use afterimage_journal::meta::CopyCause;
use serde_json::json;
use std::time::Duration;

#[test]
fn a_guest_is_protected_changed_let_go_and_nothing_of_ours_stays_in_it() {
    let mut scene = Scene::new();
    let nodes = scene.vm.nodes();
    scene.vm.ask("writer start", "writer started");
    scene.protect(&["--window", "2h", "--rate", "40M"]);
    let twice = scene.agent.run(&["protect", "vm", "--qmp", "/nonexistent"]);
    assert_eq!(twice.code, 2, "{twice:?}");
    assert!(twice.stderr.contains("protected already"), "{twice:?}");
    let status = scene.agent.wait_state("vm", "initial-sync", STATE_LIMIT);
    assert!(status["rpo_ms"].is_null() && status["window"].is_null(), "{status}");
    let early = scene.agent.run(&["mark", "vm", "--tag", "early"]);
    assert_eq!(early.code, 1, "{early:?}");
    let status = scene.agent.wait_state("vm", "protected", STATE_LIMIT);
    check_status(&status, &nodes);

    let head = history(&scene.agent).head;
    scene.agent.ok(&["set", "vm", "--window", "3h", "--checkpoint-every", "2s", "--rate", "0"]);
    // Of a wish that is refused nothing is taken, or the next one would shorten the window by it.
    let refused = scene.agent.run(&["set", "vm", "--window", "1s", "--limit", "1"]);
    assert_eq!(refused.code, 2, "{refused:?}");
    let status = scene.agent.json(&["status", "vm"]);
    assert_eq!(
        (&status["window_s"], &status["checkpoint_every_ms"]),
        (&json!(10800), &json!(2000))
    );
    assert_eq!(status["state"], "protected");
    assert!(causes_since(&history(&scene.agent), head).is_empty());

    scene.agent.ok(&["detach", "vm"]);
    let status = scene.agent.json(&["status", "vm"]);
    assert_eq!(status["state"], "detached");
    assert!(status["reason"].as_str().unwrap().contains("detached by the operator"), "{status}");
    let maps = ours_in(scene.vm.qmp());
    assert!(maps.iter().all(|name| name.contains("-map-")), "{maps:?}");
    // It stays so across a restart of the agent.
    let state = scene.agent.state().to_owned();
    scene.agent.stop();
    scene.agent = Agent::start(PROGRAM, &state);
    assert_eq!(scene.agent.json(&["status", "vm"])["state"], "detached");
    scene.agent.ok(&["attach", "vm"]);
    scene.agent.wait_state("vm", "protected", STATE_LIMIT);

    let last = scene.vm.ask_last("writer pause", "writer paused");
    scene.agent.ok(&["unprotect", "vm"]);
    assert_eq!(ours_in(scene.vm.qmp()), [""; 0]);
    assert_eq!(scene.agent.json(&["status"]), json!([]));
    assert_eq!(prefix_of(&scene.restore("latest")), last);
    let gone = scene.agent.run(&["mark", "vm", "--tag", "late"]);
    assert_eq!(gone.code, 2, "{gone:?}");

    // Protected anew: the journal is known, and nobody knows what was written meanwhile.
    let head = history(&scene.agent).head;
    scene.vm.ask("writer start", "writer started");
    scene.protected();
    assert_eq!(causes_since(&history(&scene.agent), head), [CopyCause::Compare]);
    scene.agent.ok(&["unprotect", "vm", "--purge"]);
    assert_eq!(ours_in(scene.vm.qmp()), [""; 0]);
    assert!(!state.join("pool/vm").exists());
    let nothing = scene.agent.run(&["restore", "vm", "--at", "latest", "--to", "/nonexistent/x"]);
    assert_eq!(nothing.code, 2, "{nothing:?}");
    assert_eq!(scene.vm.stats("writer").errors, 0);
}

fn check_status(status: &serde_json::Value, nodes: &[String]) {
    let text = |key: &str| status[key].as_str().unwrap().to_owned();
    assert_eq!((text("guest"), text("group")), ("vm".into(), "vm".into()));
    assert!(status["rpo_ms"].as_u64().unwrap() < 5000, "{status}");
    let (head, durable) = (&status["head_seq"], &status["durable_seq"]);
    assert!(0 < durable.as_u64().unwrap() && durable.as_u64() <= head.as_u64(), "{status}");
    let (from, to) = (&status["window"]["from"], &status["window"]["to"]);
    let time = |value: &serde_json::Value| value.as_str().unwrap().parse::<jiff::Timestamp>();
    assert!(time(from).unwrap() <= time(to).unwrap(), "{status}");
    assert_eq!(status["gaps"], json!([]));
    assert!(status["journal"]["units"].as_u64().unwrap() >= 1, "{status}");
    assert!(status["journal"]["bytes"].as_u64().unwrap() > 4096, "{status}");
    assert!(status["stall_ms_max"].is_u64(), "{status}");
    for (disk, node) in status["disks"].as_array().unwrap().iter().zip(nodes) {
        assert_eq!((&disk["guest"], &disk["node"]), (&json!("vm"), &json!(node)), "{status}");
        assert_eq!(
            (&disk["bytes"], &disk["synced_bytes"]),
            (&json!(DISK_BYTES), &json!(DISK_BYTES))
        );
        assert!(disk["id"].as_str().unwrap().contains("virtio"), "{status}");
    }
    assert_eq!(status["disks"].as_array().unwrap().len(), nodes.len());
}

#[test]
fn an_agent_ends_and_starts_again_and_never_twice() {
    let mut scene = Scene::new();
    scene.vm.ask("writer start", "writer started");
    scene.protected();
    let state = scene.agent.state().to_owned();

    // A second one, whose guard and worker must not disturb the first.
    let second = scene.agent.run(&["agent"]);
    assert_ne!(second.code, 0, "{second:?}");
    assert!(second.stderr.contains("lock") || second.stderr.contains("in use"), "{second:?}");
    assert_eq!(scene.agent.json(&["status", "vm"])["state"], "protected");

    let head = history(&scene.agent).head;
    scene.agent.stop();
    let offline = Cli::new(PROGRAM, &state);
    let status = offline.json(&["status", "vm"]);
    assert_eq!((&status["state"], &status["offline"]), (&json!("gap"), &json!(true)), "{status}");
    assert!(history(&offline).closed);
    scene.agent = Agent::start(PROGRAM, &state);
    wait_session_behind(&scene.agent, head);
    let journal = history(&scene.agent);
    assert!(causes_since(&journal, head).is_empty(), "{:?}", journal.copies);
    assert!(journal.gaps.last().unwrap().reason.contains("the agent was stopped"));

    // The guard alone is killed: its worker must not go on without one.
    let head = journal.head;
    let worker = scene.agent.worker_pid().unwrap();
    kill(scene.agent.guard_pid());
    let ended = poll(REPLY_LIMIT, || (!runs(worker)).then_some(()));
    assert!(ended.is_some(), "the worker goes on without its guard");
    scene.agent = Agent::start(PROGRAM, &state);
    wait_session_behind(&scene.agent, head);
    assert!(causes_since(&history(&scene.agent), head).is_empty());

    let last = scene.vm.ask_last("writer pause", "writer paused");
    let latest = scene.restore("latest");
    assert_eq!(prefix_of(&latest), last);
    let stats = scene.vm.stats("writer");
    assert_eq!(stats.errors, 0, "{stats:?}");
    scene.vm.quit();
    identical(&scene.images, &RAW, &latest);
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

#[test]
fn a_guest_that_moves_to_another_qemu_ends_in_a_gap_that_says_so() {
    let mut scene = Scene::new();
    let monitor = scene.dir.path().join("monitor");
    point_monitor_at(&monitor, &scene.vm.agent_qmp());
    let name = monitor.display().to_string();
    scene.agent.ok(&["protect", "vm", "--qmp", &name, "--checkpoint-every", "1s"]);
    scene.agent.wait_state("vm", "protected", STATE_LIMIT);
    scene.vm.ask("writer start rate=200", "writer started");
    std::thread::sleep(SOME_WRITES);
    let head = history(&scene.agent).head;
    let socket = scene.dir.path().join("migrate.sock");
    let mut target = scene.builder.clone().incoming(&socket).boot();
    let uri = format!("unix:{}", socket.display());
    scene.vm.qmp().execute("migrate", json!({"uri": uri}));
    target.qmp().wait_event("RESUME", STATE_LIMIT).unwrap();
    let status = scene.agent.wait_status("vm", STATE_LIMIT, |s| s["state"] == "gap");
    let reason = status["reason"].as_str().unwrap();
    assert!(reason.contains("live-migrated away"), "{status}");
    assert!(status["gaps"].to_string().contains("live-migrated away"), "{status}");
    let journal = history(&scene.agent);
    assert!(journal.level.last().unwrap().to >= head, "{:?}", journal.level);
    prefix_of(&scene.restore("latest"));
    // It stays a gap: nothing is captured from a QEMU that runs no guest.
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(scene.agent.json(&["status", "vm"])["state"], "gap");

    // Where it runs now, under the same name, it is taken up again.
    point_monitor_at(&monitor, &target.agent_qmp());
    let old = std::mem::replace(&mut scene.vm, target);
    old.kill();
    let head = history(&scene.agent).head;
    wait_session_behind(&scene.agent, head);
    assert_eq!(causes_since(&history(&scene.agent), head), [CopyCause::Compare]);
    let last = scene.vm.ask_last("writer pause", "writer paused");
    let latest = scene.restore("latest");
    assert_eq!(prefix_of(&latest), last);
    scene.vm.quit();
    identical(&scene.images, &RAW, &latest);
}

#[test]
fn a_guest_that_ends_midway_in_its_initial_sync_leaves_nothing_that_claims_to_be_restorable() {
    let mut scene = Scene::new();
    let monitor = scene.dir.path().join("monitor");
    point_monitor_at(&monitor, &scene.vm.agent_qmp());
    scene.vm.ask("writer start", "writer started");
    let name = monitor.display().to_string();
    scene.agent.ok(&["protect", "vm", "--qmp", &name, "--rate", "10M"]);
    scene.agent.wait_status("vm", STATE_LIMIT, |s| {
        s["copy"]["done_bytes"].as_u64().is_some_and(|done| done > 0)
    });
    let Scene { dir, builder, vm, agent, images } = scene;
    vm.quit();
    let status = agent.wait_state("vm", "detached", STATE_LIMIT);
    let reason = status["reason"].as_str().unwrap();
    // The next try to reach it finds no monitor, and says that instead.
    let known = ["shut down", "QEMU ended", "no socket"];
    assert!(known.iter().any(|word| reason.contains(word)), "{status}");
    assert!(status["window"].is_null(), "{status}");
    let to = dir.path().join("early");
    let refused = agent.restore("vm", "latest", &to, &[]).unwrap_err();
    assert_eq!(refused.code, 3, "{refused:?}");
    assert!(refused.stderr.contains("no recovery point"), "{refused:?}");
    assert_eq!(agent.json(&["checkpoints", "vm"]), json!([]));
    assert!(!to.exists() || std::fs::read_dir(&to).unwrap().next().is_none());

    agent.ok(&["set", "vm", "--rate", "1G"]);
    let vm: Vm = builder.boot();
    point_monitor_at(&monitor, &vm.agent_qmp());
    agent.wait_state("vm", "protected", STATE_LIMIT);
    let mut scene = Scene { dir, builder, vm, agent, images };
    scene.vm.ask("writer start", "writer started");
    std::thread::sleep(SOME_WRITES);
    let last = scene.vm.ask_last("writer pause", "writer paused");
    let latest = scene.restore("latest");
    assert_eq!(prefix_of(&latest), last);
    scene.vm.quit();
    identical(&scene.images, &RAW, &latest);
}
