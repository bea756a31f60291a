//! A resync that is cut off is owed: nobody may take the guest for level before it was made.

use super::evidence::{history, identical, scene_of, wait_session_behind};
use super::{STATE_LIMIT, Scene};
use crate::kit::{Agent, Disk, Format};
use serde_json::json;

/// What is written past the mirror: several of the copy's windows, so that it can be cut off.
const CHANGED: &str = "write -P 7 16M 40M";
/// Slow enough that the first window is copied and the last is not.
const SLOW: &str = "2M";

fn write_in_qemu(scene: &mut Scene, command: &str) {
    let block = scene.vm.qmp().execute("query-block", json!({}));
    let qdev = block[0]["qdev"].as_str().unwrap().to_owned();
    let line = format!("qemu-io -d {qdev} \"{command}\"");
    scene.vm.qmp().execute("human-monitor-command", json!({ "command-line": line }));
}

/// Cuts the resync that goes on off in its middle, and waits for the next session.
fn cut_off(scene: &Scene) {
    scene.agent.wait_status("vm", STATE_LIMIT, |s| {
        s["state"] == "resync" && s["copy"]["done_bytes"].as_u64().is_some_and(|b| b > 0)
    });
    let head = history(&scene.agent).head;
    scene.agent.kill_worker();
    wait_running(scene);
    scene.agent.ok(&["set", "vm", "--rate", "0"]);
    wait_session_behind(&scene.agent, head);
}

fn wait_running(scene: &Scene) {
    let up = crate::kit::poll(STATE_LIMIT, || {
        (scene.agent.run(&["status", "vm", "--json"]).code == 0).then_some(())
    });
    assert!(up.is_some(), "{}", scene.agent.last_words());
}

fn expect_identical(scene: Scene) {
    let latest = scene.restore("latest");
    let images = scene.images.clone();
    scene.vm.quit();
    identical(&images, &[Format::Raw], &latest);
}

#[test]
fn a_pull_of_maps_that_was_cut_off_is_made_by_the_next_agent() {
    let mut scene = scene_of(&[|path| Disk::raw(path)], |b| b);
    scene.protected();
    scene.agent.ok(&["set", "vm", "--rate", SLOW]);
    scene.agent.ok(&["detach", "vm"]);
    write_in_qemu(&mut scene, CHANGED);
    scene.agent.ok(&["attach", "vm"]);
    cut_off(&scene);
    expect_identical(scene);
}

#[test]
fn a_comparison_that_was_cut_off_is_made_by_the_next_agent() {
    let mut scene = scene_of(&[|path| Disk::raw(path)], |b| b);
    scene.protected();
    scene.agent.ok(&["set", "vm", "--rate", SLOW]);
    let state = scene.agent.state().to_owned();
    let program = super::PROGRAM;
    let other = placeholder(&scene);
    let old = std::mem::replace(&mut scene.agent, other);
    old.stop();
    // Without mirror and maps nothing tells what changed.
    end_mirror(&mut scene);
    let nodes = scene.vm.nodes();
    for bitmap in bitmaps(&mut scene) {
        let arguments = json!({ "node": nodes[0], "name": bitmap });
        scene.vm.qmp().execute("block-dirty-bitmap-remove", arguments);
    }
    write_in_qemu(&mut scene, CHANGED);
    scene.agent = Agent::start(program, state);
    cut_off(&scene);
    expect_identical(scene);
}

/// An agent over another state directory, to stand in while the scene's own is away.
fn placeholder(scene: &Scene) -> Agent {
    Agent::start(super::PROGRAM, scene.dir.path().join("other"))
}

fn end_mirror(scene: &mut Scene) {
    let jobs = scene.vm.qmp().execute("query-block-jobs", json!({}));
    for job in jobs.as_array().unwrap() {
        // By force: its server is gone. Nothing is written meanwhile.
        let arguments = json!({ "device": job["device"], "force": true });
        scene.vm.qmp().execute("block-job-cancel", arguments);
        scene.vm.qmp().wait_event("BLOCK_JOB_CANCELLED", STATE_LIMIT).unwrap();
    }
}

fn bitmaps(scene: &mut Scene) -> Vec<String> {
    let nodes = scene.vm.qmp().execute("query-named-block-nodes", json!({ "flat": true }));
    let all = nodes.as_array().unwrap().iter();
    let bitmaps = all.flat_map(|n| n["dirty-bitmaps"].as_array().into_iter().flatten());
    bitmaps
        .filter_map(|b| b["name"].as_str())
        .filter(|name| name.starts_with("ai-"))
        .map(str::to_owned)
        .collect()
}
