use super::{STATE_LIMIT, Scene};
use crate::kit::{image, prefix};
use std::path::Path;

fn as_paths(images: &[std::path::PathBuf]) -> Vec<&Path> {
    images.iter().map(std::path::PathBuf::as_path).collect()
}

#[test]
fn a_running_guest_is_protected_and_every_checkpoint_is_an_exact_prefix() {
    let mut scene = Scene::new();
    scene.vm.ask("writer start", "writer started");
    scene.protected();
    std::thread::sleep(std::time::Duration::from_secs(4));
    let acknowledged = scene.vm.ask_last("writer pause", "writer paused");
    scene.agent.ok(&["mark", "vm", "--tag", "done"]);
    let checkpoints = scene.agent.json(&["checkpoints", "vm"]);
    let list = checkpoints.as_array().unwrap();
    assert!(list.len() >= 3, "{checkpoints}");
    let mut before = 0;
    for checkpoint in list {
        let images = scene.restore(&format!("#{}", checkpoint["id"]));
        let last = prefix::last(&as_paths(&images)).unwrap();
        assert!(last >= before, "{last} after {before}");
        before = last;
    }
    assert_eq!(before, acknowledged);
    let latest = scene.restore("latest");
    scene.vm.quit();
    for (source, copy) in scene.images.iter().zip(&latest) {
        image::compare((source, "raw"), (copy, "raw")).unwrap();
    }
    scene.agent.wait_state("vm", "detached", STATE_LIMIT);
}
