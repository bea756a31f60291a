//! Thinned history of a writing guest whose agent dies: what is listed restores to an exact prefix.

use super::evidence::{history, prefix_of};
use super::{STATE_LIMIT, window};
use crate::kit::poll;
use serde_json::Value;
use std::time::{Duration, Instant};

const LASTS: Duration = Duration::from_secs(24);
const KILLED_AT: Duration = Duration::from_secs(12);

#[test]
fn single_checkpoints_before_the_window_are_exact_prefixes_and_the_wish_changes_at_any_time() {
    let mut scene = window::scene("1MiB");
    scene.protect(&["--keep", "4s,2s:10m"]);
    scene.agent.wait_state("vm", "protected", STATE_LIMIT);
    scene.agent.ok(&["mark", "vm", "--tag", "begin"]);
    scene.vm.ask("writer start", "writer started");
    let begun = Instant::now();
    let mut is_killed = false;
    while begun.elapsed() < LASTS {
        std::thread::sleep(Duration::from_millis(200));
        if !is_killed && begun.elapsed() >= KILLED_AT {
            is_killed = true;
            scene.agent.kill_worker();
        }
    }
    scene.agent.wait_state("vm", "protected", STATE_LIMIT);
    let acknowledged = scene.vm.ask_last("writer pause", "writer paused");
    let thinned = poll(STATE_LIMIT, || {
        let status = scene.agent.json(&["status", "vm"]);
        (status["thinned"]["checkpoints"].as_u64()? >= 3).then_some(status)
    });
    let status = thinned.expect("nothing was thinned");
    assert_eq!(status["keep"], "4s,2s:10m");

    let journal = history(&scene.agent);
    assert!(journal.damage.is_empty(), "{:?}", journal.damage);
    let list = scene.agent.json(&["checkpoints", "vm"]);
    let old: Vec<&Value> = (list.as_array().unwrap().iter())
        .filter(|c| c["seq"].as_u64().unwrap() < journal.edge)
        .collect();
    assert!(old.iter().any(|c| c["tag"] == "begin"), "{old:?}");
    let mut before = 0;
    for checkpoint in &old {
        let images = scene.restore(&format!("#{}", checkpoint["id"]));
        let last = prefix_of(&images);
        assert!(last >= before && last <= acknowledged, "{before} {last} {acknowledged}");
        before = last;
        images.iter().for_each(|i| std::fs::remove_file(i).unwrap());
    }
    let between = old[1]["seq"].as_u64().unwrap() + 1;
    let at = format!("seq:{between}");
    let refused = scene.agent.run(&["restore", "vm", "--at", &at, "--to", "/nonexistent/x"]);
    assert_eq!(refused.code, 3, "{refused:?}");

    // No resync: the session that is open stays.
    let session = journal.sessions.last().map(|s| s.id);
    scene.agent.ok(&["set", "vm", "--keep", "4s"]);
    let gone = poll(STATE_LIMIT, || {
        scene.agent.json(&["status", "vm"])["thinned"].is_null().then_some(())
    });
    assert!(gone.is_some(), "what nobody wants any more is still listed");
    assert_eq!(history(&scene.agent).sessions.last().map(|s| s.id), session);
    assert_eq!(prefix_of(&scene.restore("latest")), acknowledged);
    let sound = scene.agent.json(&["verify", "vm"]);
    assert_eq!(sound["damage"].as_array().map_or(0, Vec::len), 0, "{sound}");
    scene.vm.quit();
}
