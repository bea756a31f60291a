//! An encrypted journal on the command line, without an agent.

use super::shop::{Shop, head_of};
use crate::kit::Outcome;
use afterimage_journal::key;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

fn key_file(dir: &Path, name: &str, byte: u8, mode: u32) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, [byte; 32]).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    path
}

struct Locked {
    keys: tempfile::TempDir,
    shop: Shop,
    key: String,
}

impl Locked {
    fn new() -> Self {
        let keys = tempfile::tempdir().unwrap();
        let path = key_file(keys.path(), "key", 7, 0o600);
        let shop = Shop::encrypted(key::read(&path).unwrap());
        Self { keys, shop, key: path.display().to_string() }
    }

    fn restore(&self, to: &str, more: &[&str]) -> Outcome {
        let to = self.shop.path(to).display().to_string();
        let words = ["restore", "web", "--at", "latest", "--to", &to, "--json"];
        self.shop.cli.run(&[&words, more].concat())
    }
}

#[test]
fn with_its_key_file_it_restores_as_any_other() {
    let locked = Locked::new();
    let restored = locked.restore("with", &["--key-file", &locked.key]);
    assert_eq!(restored.code, 0, "{restored:?}");
    assert_eq!(head_of(&restored.json(), "system")[0], b'D', "{restored:?}");
    for disk in restored.json()["disks"].as_array().unwrap() {
        let image = std::fs::metadata(disk["path"].as_str().unwrap()).unwrap();
        assert_eq!(image.permissions().mode() & 0o777, 0o600, "for nobody else's eyes");
    }
    let to = locked.shop.path("by-environment");
    let by_environment = Command::new(locked.shop.cli.program())
        .args(["restore", "web", "--at", "latest", "--to", to.to_str().unwrap()])
        .args(["--state", locked.shop.cli.state().to_str().unwrap()])
        .env("AFTERIMAGE_KEY_FILE", &locked.key)
        .output()
        .unwrap();
    assert!(by_environment.status.success(), "{by_environment:?}");
    locked.shop.cli.ok(&["verify", "web", "--key-file", &locked.key]);
    locked.shop.cli.ok(&["verify", "web", "--at", "latest", "--key-file", &locked.key]);
}

#[test]
fn without_its_key_it_lists_its_points_and_gives_out_nothing() {
    let locked = Locked::new();
    let cli = &locked.shop.cli;
    let points = cli.json(&["checkpoints", "web"]);
    assert_eq!(points.as_array().unwrap().len(), 3, "{points}");
    assert_eq!(cli.json(&["status", "web"])["encrypted"], true);
    let socket = locked.shop.path("s").display().to_string();
    let to = locked.shop.path("without").display().to_string();
    let commands: [&[&str]; 4] = [
        &["restore", "web", "--at", "latest", "--to", &to],
        &["export", "web", "--at", "latest", "--socket", &socket],
        &["verify", "web"],
        &["verify", "web", "--at", "latest"],
    ];
    for words in commands {
        let refused = cli.run(words);
        assert_eq!(refused.code, 1, "{words:?}: {refused:?}");
        assert!(refused.stderr.contains("encrypted"), "{refused:?}");
        assert!(refused.stderr.contains("--key-file or AFTERIMAGE_KEY_FILE"), "{refused:?}");
    }
    assert!(!locked.shop.path("without").exists() && !locked.shop.path("s").exists());
}

#[test]
fn another_key_or_one_that_others_can_read_is_refused_by_name() {
    let locked = Locked::new();
    let other = key_file(locked.keys.path(), "other", 8, 0o600).display().to_string();
    let open = key_file(locked.keys.path(), "open", 7, 0o644).display().to_string();
    let gone = locked.keys.path().join("gone").display().to_string();
    let cases = [(&other, "another one"), (&open, "644"), (&gone, "open key file")];
    for (file, why) in cases {
        let refused = locked.restore("refused", &["--key-file", file]);
        assert_eq!(refused.code, 1, "{refused:?}");
        assert!(refused.stderr.contains(why), "{refused:?}");
        assert!(!locked.shop.path("refused").exists());
    }
    // One that is not encrypted needs none, and is given none.
    let plain = Shop::new();
    let to = plain.path("plain").display().to_string();
    let words = ["restore", "web", "--at", "latest", "--to", &to, "--key-file", &locked.key];
    assert_eq!(plain.cli.run(&words).code, 0);
    assert_eq!(plain.cli.json(&["status", "web"])["encrypted"], false);
}
