//! Sites of a real guest's journal: what a site acknowledged comes back from there alone.

use super::evidence::{RAW, SOME_WRITES, history, identical, point_monitor_at, prefix_of};
use super::{PROGRAM, STATE_LIMIT, Scene, restore};
use crate::kit::s3::Server;
use crate::kit::{Agent, Cli, Site};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Data in each image that is there before anybody writes, behind the writer's slots.
const OLD_BYTES: u64 = 40 << 20;
const OLD_AT: u64 = 20 << 20;

fn site_dir(scene: &Scene, name: &str) -> PathBuf {
    scene.dir.path().join(name)
}

/// The status of one site of the guest.
fn site(status: &Value, name: impl AsRef<Path>) -> &Value {
    let name = name.as_ref().display().to_string();
    let sites = status["sites"].as_array().unwrap();
    sites.iter().find(|s| s["site"] == name.as_str()).unwrap_or_else(|| panic!("{name}: {status}"))
}

/// Waits until a site has every record up to a position, and all that lies before.
#[track_caller]
fn wait_level(cli: &Cli, dir: impl AsRef<Path>, seq: u64) -> Value {
    cli.wait_status("vm", STATE_LIMIT, |status| {
        let site = site(status, &dir);
        site["state"] == "shipping" && site["watermark"].as_u64().is_some_and(|w| w >= seq)
    })
}

#[track_caller]
fn wait_site(cli: &Cli, dir: impl AsRef<Path>, state: &str) -> Value {
    cli.wait_status("vm", STATE_LIMIT, |status| site(status, &dir)["state"] == state)
}

/// The newest record of the group.
fn head(cli: &Cli) -> u64 {
    cli.json(&["status", "vm"])["head_seq"].as_u64().unwrap()
}

/// Data that is only in the first full copy.
fn fill(image: &Path, seed: u64) {
    let file = std::fs::OpenOptions::new().write(true).open(image).unwrap();
    let mut state = seed | 1;
    let mut block = vec![0; 1 << 20];
    for at in (0..OLD_BYTES).step_by(block.len()) {
        for byte in block.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            byte.copy_from_slice(&state.to_le_bytes());
        }
        file.write_all_at(&block, OLD_AT + at).unwrap();
    }
}

#[test]
fn what_a_site_acknowledged_comes_back_from_there_when_the_source_is_gone() {
    let mut scene = Scene::new();
    let dir = site_dir(&scene, "site");
    scene.vm.ask("writer start", "writer started");
    scene.protect(&["--site", &dir.display().to_string()]);
    scene.agent.wait_state("vm", "protected", STATE_LIMIT);
    scene.agent.ok(&["mark", "vm", "--tag", "middle"]);
    std::thread::sleep(SOME_WRITES);
    let last = scene.vm.ask_last("writer pause", "writer paused");
    let status = wait_level(&scene.agent, &dir, head(&scene.agent));
    let shown = site(&status, &dir);
    assert!(shown["rpo_ms"].as_u64().unwrap() < 5000, "{shown}");
    assert!(shown["alarm"].is_null() && shown["error"].is_null(), "{shown}");
    let text = scene.agent.ok(&["status", "vm"]);
    assert!(text.contains(&format!("site {}: shipping", dir.display())), "{text}");

    // The source is gone with its host.
    let Scene { dir: all, vm, agent, images, .. } = scene;
    let state = agent.state().to_owned();
    agent.kill();
    std::fs::remove_dir_all(&state).unwrap();
    vm.quit();
    let there = Cli::new(PROGRAM, &dir);
    let latest = restore(&there, "latest", all.path());
    assert_eq!(prefix_of(&latest), last);
    identical(&images, &RAW, &latest);
    let middle = prefix_of(&restore(&there, "tag:middle", all.path()));
    assert!(middle <= last, "{middle} of {last}");
    let checkpoints = there.json(&["checkpoints", "vm"]);
    assert!(checkpoints.as_array().unwrap().iter().any(|c| c["tag"] == "middle"), "{checkpoints}");
    there.ok(&["verify", "vm"]);
    there.ok(&["verify", "vm", "--at", "latest"]);
}

#[test]
fn an_agent_that_is_killed_midway_in_the_first_copy_goes_on_where_it_was() {
    let Scene { dir: all, builder, vm, agent, images } = Scene::new();
    vm.quit();
    for (image, seed) in images.iter().zip([11, 12]) {
        fill(image, seed);
    }
    let vm = builder.boot();
    let mut scene = Scene { dir: all, builder, vm, agent, images };
    let dir = site_dir(&scene, "site");
    scene.vm.ask("writer start rate=200", "writer started");
    scene.protected();
    scene.agent.ok(&["set", "vm", "--site", &dir.display().to_string(), "--rate", "4M"]);
    let half = |status: &Value| site(status, &dir)["sent_bytes"].as_u64() > Some(OLD_BYTES);
    let status = scene.agent.wait_status("vm", STATE_LIMIT, half);
    let shown = site(&status, &dir);
    assert_eq!((&shown["state"], &shown["rpo_ms"]), (&"copying".into(), &Value::Null), "{shown}");
    let before_bytes = shown["sent_bytes"].as_u64().unwrap();
    let left_bytes = shown["background_bytes"].as_u64().unwrap();
    assert!(left_bytes > OLD_BYTES / 4, "{shown}");
    // Nothing is restorable there before all is there.
    let there = Cli::new(PROGRAM, &dir);
    let early = there.run(&["restore", "vm", "--at", "latest", "--to", "/nonexistent/x"]);
    assert_eq!(early.code, 3, "{early:?}");

    let old = scene.agent.kill_worker();
    scene.agent.wait_other_worker(old, STATE_LIMIT);
    scene.agent.wait_state("vm", "protected", STATE_LIMIT);
    scene.agent.ok(&["set", "vm", "--rate", "0"]);
    let last = scene.vm.ask_last("writer pause", "writer paused");
    let status = wait_level(&scene.agent, &dir, head(&scene.agent));
    let after_bytes = site(&status, &dir)["sent_bytes"].as_u64().unwrap();
    // What was not durable yet comes twice, and what the guest wrote meanwhile once.
    let most = left_bytes + (24 << 20);
    assert!(after_bytes < most, "{before_bytes} before, {left_bytes} left, {after_bytes} after");
    let latest = restore(&there, "latest", scene.dir.path());
    assert_eq!(prefix_of(&latest), last);
    scene.vm.quit();
    identical(&scene.images, &RAW, &latest);
}

#[test]
fn a_site_that_is_away_catches_up_and_nothing_is_made_in_its_place() {
    let mut scene = Scene::new();
    let dir = site_dir(&scene, "site");
    let other = site_dir(&scene, "other");
    scene.vm.ask("writer start", "writer started");
    let sites = [&dir, &other].map(|d| d.display().to_string());
    scene.protect(&["--site", &sites[0], "--site", &sites[1], "--rpo-alarm", "2s"]);
    scene.agent.wait_state("vm", "protected", STATE_LIMIT);
    wait_level(&scene.agent, &dir, head(&scene.agent));

    let away = site_dir(&scene, "elsewhere");
    std::fs::rename(&dir, &away).unwrap();
    let status = wait_site(&scene.agent, &dir, "away");
    let watermark = site(&status, &dir)["watermark"].as_u64().unwrap();
    let status = scene.agent.wait_status("vm", STATE_LIMIT, |s| !site(s, &dir)["alarm"].is_null());
    let shown = site(&status, &dir);
    assert!(shown["rpo_ms"].as_u64().unwrap() > 2000, "{shown}");
    assert_eq!(shown["watermark"].as_u64(), Some(watermark), "{shown}");
    assert!(shown["error"].as_str().unwrap().contains("mounted"), "{shown}");
    // The other one knows nothing of it.
    let status = wait_level(&scene.agent, &other, head(&scene.agent));
    assert!(site(&status, &other)["alarm"].is_null(), "{status}");
    assert_eq!(status["state"], "protected");
    assert!(!dir.exists(), "something was made at its mount point");

    std::fs::rename(&away, &dir).unwrap();
    let last = scene.vm.ask_last("writer pause", "writer paused");
    let now = head(&scene.agent);
    let status = wait_level(&scene.agent, &dir, now);
    assert!(site(&status, &dir)["alarm"].is_null(), "{status}");
    wait_level(&scene.agent, &other, now);

    // One is given up, with no resync; what it has stays.
    let sessions = history(&scene.agent).sessions.len();
    scene.agent.ok(&["set", "vm", "--no-site", &sites[1]]);
    let status = scene.agent.json(&["status", "vm"]);
    assert_eq!(status["sites"].as_array().unwrap().len(), 1, "{status}");
    let unknown = scene.agent.run(&["set", "vm", "--no-site", &sites[1]]);
    assert_eq!(unknown.code, 2, "{unknown:?}");
    assert_eq!(history(&scene.agent).sessions.len(), sessions);
    // The agent's next run knows the one that is left, and ends what it ships when it ends.
    let state = scene.agent.state().to_owned();
    scene.agent.stop();
    scene.agent = Agent::start(PROGRAM, &state);
    scene.agent.wait_state("vm", "protected", STATE_LIMIT);
    let status = wait_level(&scene.agent, &dir, head(&scene.agent));
    assert_eq!(status["sites"].as_array().unwrap().len(), 1, "{status}");

    scene.vm.quit();
    for site in [&dir, &other] {
        let latest = restore(&Cli::new(PROGRAM, site), "latest", scene.dir.path());
        assert_eq!(prefix_of(&latest), last, "{}", site.display());
        identical(&scene.images, &RAW, &latest);
    }
}

#[test]
fn a_site_that_cannot_be_one_is_refused_before_anything_is_attached() {
    let dir = tempfile::TempDir::with_prefix("ai-").unwrap();
    let agent = Agent::start(PROGRAM, dir.path().join("state"));
    let inside = dir.path().join("state/site").display().to_string();
    let parentless = dir.path().join("no/such").display().to_string();
    let full = dir.path().join("full");
    std::fs::create_dir(&full).unwrap();
    std::fs::write(full.join("letter"), "mine").unwrap();
    let full = full.display().to_string();
    for (site, word) in [
        ("tls://host:7420#sesame", "not an invitation"),
        ("tls://host:7420", "was let in"),
        ("s3://bucket/prefix?colour=sesame", "unknown setting"),
        ("s3://bucket?endpoint=https://me:sesame@host", "credentials"),
        ("ftp://host", "no sites of the kind"),
        (inside.as_str(), "in each other"),
        (parentless.as_str(), "make the directory"),
        (full.as_str(), "neither empty nor a site"),
    ] {
        let refused = agent.run(&["protect", "vm", "--qmp", "/nonexistent", "--site", site]);
        assert_eq!(refused.code, 2, "{site}: {refused:?}");
        assert!(refused.stderr.contains(word), "{site}: {refused:?}");
        assert!(!refused.stderr.contains("sesame"), "{refused:?}");
    }
    assert_eq!(std::fs::read_dir(&full).unwrap().count(), 1);
}

#[test]
fn a_server_a_bucket_and_a_directory_have_the_same_each_at_its_own_pace() {
    let server = Server::start();
    // Sets the credentials in the environment of all that is started here.
    drop(server.bucket());
    let mut scene = Scene::new();
    let far = Site::start(PROGRAM, site_dir(&scene, "far"), None);
    let dir = site_dir(&scene, "near");
    let (tls, addr) = (format!("tls://{}", far.addr), far.addr.clone());
    let invited = format!("{tls}#{}", invitation(&far));
    let names = [tls.clone(), server.place(), dir.display().to_string()];
    scene.vm.ask("writer start", "writer started");
    scene.protect(&["--site", &invited, "--site", &names[1], "--site", &names[2]]);
    scene.agent.wait_state("vm", "protected", STATE_LIMIT);
    for name in &names {
        wait_level(&scene.agent, name, head(&scene.agent));
    }
    let told = scene.agent.ok(&["status", "vm", "--json"]);
    let kept = std::fs::read_to_string(scene.agent.state().join("groups/vm.json")).unwrap();
    let secret = invited.split_once('#').unwrap().1;
    assert!(!told.contains(secret) && !kept.contains(secret), "the invitation is told");

    // One ends, and comes back where it was.
    let state = far.state().to_owned();
    far.kill();
    wait_site(&scene.agent, &tls, "away");
    let near = head(&scene.agent);
    wait_level(&scene.agent, &names[2], near);
    wait_level(&scene.agent, &names[1], near);
    let far = Site::start(PROGRAM, &state, Some(&addr));
    let last = scene.vm.ask_last("writer pause", "writer paused");
    let now = head(&scene.agent);
    for name in &names {
        wait_level(&scene.agent, name, now);
    }

    let Scene { dir: all, vm, agent, images, .. } = scene;
    let source = agent.state().to_owned();
    agent.kill();
    std::fs::remove_dir_all(&source).unwrap();
    vm.quit();
    let bucket = server.place();
    for place in [far.state(), Path::new(&bucket), dir.as_path()] {
        let latest = restore(&Cli::new(PROGRAM, place), "latest", all.path());
        assert_eq!(prefix_of(&latest), last, "{}", place.display());
        identical(&images, &RAW, &latest);
    }
}

/// What lets the group in.
fn invitation(site: &Site) -> String {
    let line = site.invite("vm");
    line.split_once('#').map_or(line.clone(), |(_, invitation)| invitation.to_owned())
}

#[test]
fn an_agent_whose_epoch_is_over_is_refused_everywhere_its_deletes_too() {
    let server = Server::start();
    drop(server.bucket());
    let mut scene = Scene::new();
    let far = Site::start(PROGRAM, site_dir(&scene, "far"), None);
    let invited = format!("tls://{}#{}", far.addr, invitation(&far));
    // (A directory has a lock, which the old one would hold.)
    let names = [format!("tls://{}", far.addr), server.place()];
    scene.vm.ask("writer start", "writer started");
    let monitor = scene.dir.path().join("monitor");
    point_monitor_at(&monitor, &scene.vm.agent_qmp());
    let mut words = vec!["protect", "vm", "--checkpoint-every", "1s", "--qmp"];
    let qmp = monitor.display().to_string();
    words.extend([&qmp, "--site", &invited, "--site", &names[1]]);
    scene.agent.ok(&words);
    scene.agent.wait_state("vm", "protected", STATE_LIMIT);
    scene.agent.ok(&["mark", "vm", "--tag", "before"]);
    let before = scene.vm.ask_last("writer pause", "writer paused");
    let first = head(&scene.agent);
    for name in &names {
        wait_level(&scene.agent, name, first);
    }

    // Its host hangs, and the guest is started elsewhere, under a second agent over a copy of the state.
    let old = [scene.agent.guard_pid(), scene.agent.worker_pid().expect("a worker")];
    let signal = |what| {
        for pid in old {
            kill_process(Pid::from_raw(pid as i32).unwrap(), what).unwrap();
        }
    };
    signal(Signal::STOP);
    let state = site_dir(&scene, "second");
    scene.vm.kill();
    let copied = Command::new("cp").arg("-a").args([scene.agent.state(), &state]).status();
    assert!(copied.unwrap().success());
    scene.vm = scene.builder.boot();
    point_monitor_at(&monitor, &scene.vm.agent_qmp());
    let second = Agent::start(PROGRAM, &state);
    second.wait_state("vm", "protected", STATE_LIMIT);
    scene.vm.ask("writer start", "writer started");
    std::thread::sleep(SOME_WRITES);
    let last = scene.vm.ask_last("writer pause", "writer paused");
    assert!(last > before, "{before}, then {last}");
    let now = head(&second);
    for name in &names {
        wait_level(&second, name, now);
    }

    // It comes back, and wants to have forgotten all but a second.
    signal(Signal::CONT);
    for name in &names {
        let status = wait_site(&scene.agent, name, "refused");
        let why = site(&status, name)["error"].as_str().unwrap().to_owned();
        assert!(why.contains("epoch"), "{name}: {why}");
    }
    scene.agent.ok(&["set", "vm", "--window", "1s"]);
    std::thread::sleep(SOME_WRITES);
    for name in &names {
        assert_eq!(site(&wait_site(&scene.agent, name, "refused"), name)["state"], "refused");
        wait_level(&second, name, now);
    }
    let Scene { dir: all, vm, agent, images, .. } = scene;
    agent.kill();
    second.stop();
    vm.quit();
    let bucket = server.place();
    for place in [far.state(), Path::new(&bucket)] {
        let there = Cli::new(PROGRAM, place);
        let latest = restore(&there, "latest", all.path());
        assert_eq!(prefix_of(&latest), last, "{}", place.display());
        identical(&images, &RAW, &latest);
        let marked = prefix_of(&restore(&there, "tag:before", all.path()));
        assert!(marked <= before, "{}: {marked} of {before}", place.display());
    }
}
