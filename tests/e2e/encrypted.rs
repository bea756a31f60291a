//! A guest whose journal is encrypted, from protecting to restoring; its key file gone in between.

use super::evidence::prefix_of;
use super::{PROGRAM, STATE_LIMIT, Scene};
use crate::kit::Agent;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Bytes of the guest's blocks that are looked for.
const PATTERN_BYTES: usize = 24;

/// The files below a directory that hold any of these patterns.
fn telling(dir: &Path, patterns: &BTreeSet<Vec<u8>>) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for path in fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
        if path.is_dir() {
            found.extend(telling(&path, patterns));
            continue;
        }
        // A draft may be gone meanwhile. Blocks lie on multiples of 64 in whatever holds them.
        let all = fs::read(&path).unwrap_or_default();
        let parts = all.chunks(64).filter_map(|line| line.get(..PATTERN_BYTES));
        if parts.into_iter().any(|part| patterns.contains(part)) {
            found.push(path);
        }
    }
    found
}

/// The beginnings of the blocks that the guest wrote.
fn patterns(image: &Path) -> BTreeSet<Vec<u8>> {
    let all = fs::read(image).unwrap();
    let begins = all.chunks(4096).map(|block| block[..PATTERN_BYTES].to_vec());
    begins.filter(|part| part.iter().any(|b| *b != 0)).take(500).collect()
}

#[test]
fn an_encrypted_guest_is_restored_with_its_key_and_waits_for_a_key_file_that_is_gone() {
    let mut scene = Scene::new();
    let file = scene.dir.path().join("key");
    let hex: String = (0..32).map(|i| format!("{:02x}", i * 5)).collect();
    fs::write(&file, hex + "\n").unwrap();
    let key = file.display().to_string();
    let qmp = scene.vm.agent_qmp().display().to_string();
    let words = ["protect", "vm", "--qmp", &qmp, "--encrypt", &key];
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    let refused = scene.agent.run(&words);
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.stderr.contains("chmod 600"), "{refused:?}");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();

    scene.vm.ask("writer start", "writer started");
    scene.protect(&["--encrypt", &key]);
    let status = scene.agent.wait_state("vm", "protected", STATE_LIMIT);
    assert_eq!(status["encrypted"], true, "{status}");
    std::thread::sleep(super::evidence::SOME_WRITES);

    // Another start of the agent, without the file: a gap that says why, and is over with it.
    let state = scene.agent.state().to_owned();
    scene.agent.stop();
    let away = scene.dir.path().join("away");
    fs::rename(&file, &away).unwrap();
    scene.agent = Agent::start(PROGRAM, &state);
    let without = |status: &serde_json::Value| {
        status["reason"].as_str().is_some_and(|reason| reason.contains("key file"))
    };
    let status = scene.agent.wait_status("vm", STATE_LIMIT, without);
    assert_eq!(status["state"], "gap", "{status}");
    fs::rename(&away, &file).unwrap();
    scene.agent.wait_state("vm", "protected", STATE_LIMIT);

    let last = scene.vm.ask_last("writer pause", "writer paused");
    let to = scene.dir.path().join("restored");
    let words = ["restore", "vm", "--at", "latest", "--to", to.to_str().unwrap()];
    assert_eq!(scene.agent.run(&words).code, 1, "without its key");
    let report = scene.agent.json(&[&words[..], &["--key-file", &key]].concat());
    let mut images: Vec<_> = report["disks"].as_array().unwrap().iter().collect();
    images.sort_by_key(|d| (d["node"].as_str().unwrap().len(), d["node"].as_str()));
    let images: Vec<_> =
        images.iter().map(|d| PathBuf::from(d["path"].as_str().unwrap())).collect();
    assert_eq!(prefix_of(&images), last);

    let patterns = patterns(&images[0]);
    assert!(patterns.len() > 20, "{} blocks", patterns.len());
    assert!(!telling(&to, &patterns).is_empty(), "the search finds what is there");
    assert_eq!(telling(&state, &patterns), [""; 0].map(PathBuf::from));
    let settings = fs::read_to_string(state.join("guests/vm.json")).unwrap();
    assert!(settings.contains(&key), "{settings}");

    // Protected anew it needs the key again, and no other.
    scene.agent.ok(&["unprotect", "vm"]);
    let words = ["protect", "vm", "--qmp", &qmp];
    let refused = scene.agent.run(&words);
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.stderr.contains("--encrypt"), "{refused:?}");
    let other = scene.dir.path().join("other");
    fs::write(&other, [9; 32]).unwrap();
    fs::set_permissions(&other, fs::Permissions::from_mode(0o600)).unwrap();
    let with_other = ["--encrypt", other.to_str().unwrap()];
    let refused = scene.agent.run(&[&words[..], &with_other].concat());
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.stderr.contains("another one"), "{refused:?}");
    scene.protect(&["--encrypt", &key]);
    scene.agent.wait_state("vm", "protected", STATE_LIMIT);
}
