//! Attaches that come to nothing, one after the other.

use super::evidence::{scene_of, scribble};
use super::{DISK_BYTES, STATE_LIMIT};
use crate::kit::{Disk, Qmp, REPLY_LIMIT, image, poll};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Attaches to wait for: each has a map of its own.
const ATTACHES: usize = 6;
/// The map that records, what was recorded before, and one in between.
const MAPS_MAX: usize = 3;

/// Our maps on the guest's only disk.
fn maps(qmp: &mut Qmp) -> BTreeSet<String> {
    let nodes = qmp.execute("query-named-block-nodes", json!({}));
    let bitmaps = nodes.as_array().unwrap().iter().filter_map(|n| n["dirty-bitmaps"].as_array());
    let names = bitmaps.flatten().filter_map(|b| b["name"].as_str());
    let is_map = |name: &&str| name.contains("-map-") && !name.ends_with("-map-end");
    names.filter(is_map).map(str::to_owned).collect()
}

/// A disk of which there is something to copy.
fn filled(path: PathBuf) -> Disk {
    image::raw(&path, DISK_BYTES);
    scribble(&path, 0);
    Disk::raw(path)
}

#[test]
fn attaches_that_come_to_nothing_leave_no_more_maps_each_time() {
    let mut scene = scene_of(&[filled], |b| b);
    // Somebody's server: QEMU has one, and what the first copy reads comes through it.
    let addr = json!({ "type": "inet", "data": { "host": "127.0.0.1", "port": "0" } });
    scene.vm.qmp().execute("nbd-server-start", json!({ "addr": addr }));
    scene.protect(&[]);
    let mut seen = BTreeSet::new();
    let many = poll(STATE_LIMIT, || {
        let now = maps(scene.vm.qmp());
        assert!(now.len() <= MAPS_MAX, "{now:?}");
        seen.extend(now);
        (seen.len() > ATTACHES).then_some(())
    });
    assert!(many.is_some(), "it did not try again: {seen:?}");
    scene.agent.wait_status("vm", STATE_LIMIT, |status| {
        status["reason"].as_str().is_some_and(|reason| reason.contains("NBD server"))
    });

    scene.vm.qmp().execute("nbd-server-stop", json!({}));
    scene.agent.wait_state("vm", "protected", STATE_LIMIT);
    let left = poll(REPLY_LIMIT, || (maps(scene.vm.qmp()).len() == 1).then_some(()));
    assert!(left.is_some(), "{:?}", maps(scene.vm.qmp()));
    let restored = scene.restore("latest");
    image::compare((&scene.images[0], "raw"), (&restored[0], "raw")).unwrap();
}
