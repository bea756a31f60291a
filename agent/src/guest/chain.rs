//! The identity of all that lies below a disk's own image.
//!
//! What always holds: a changed-block map, and an image that was not touched, tell what changed only while
//! everything below is what it was when they were noted: each layer's file (device, inode, size, times),
//! format, size and place. So the identity is part of a map's name, which the journal notes; what has no
//! plain file here has no identity, and only the QEMU that had it open all the time is believed.

use afterimage_planted as planted;
use afterimage_qmp::qemu::{Below, Layer};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What stands for a chain of which nothing can be told once its QEMU has ended.
pub(super) const UNKNOWN: &str = "unknown";
/// Digits of an identity: 128 bits.
const DIGITS: usize = 32;

/// The identity of what lies below; empty if nothing does.
pub(super) fn identity(below: &Below) -> String {
    if planted::is("backing-images-are-not-looked-at") {
        return String::new();
    }
    if below.is_partial {
        return UNKNOWN.to_owned();
    }
    if below.nodes.is_empty() {
        return String::new();
    }
    let mut hasher = blake3::Hasher::new();
    for layer in &below.nodes {
        let Some(part) = part(layer) else { return UNKNOWN.to_owned() };
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    let mut digits = hasher.finalize().to_hex().to_string();
    digits.truncate(DIGITS);
    digits
}

/// What tells one layer; `None` if its contents may change unseen.
fn part(layer: &Layer) -> Option<String> {
    let Layer { role, depth, driver, bytes, file } = layer;
    let place = format!("{depth} {role} {driver} {bytes}");
    let Some(file) = file else { return Some(place) };
    let path = Path::new(file);
    if driver != "file" || !path.is_absolute() {
        return None;
    }
    let meta = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
    Some(format!(
        "{place} {}:{} {} {}.{} {}.{} {file}",
        meta.dev(),
        meta.ino(),
        meta.len(),
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(depth: usize, driver: &str, file: Option<&Path>) -> Layer {
        let file = file.map(|f| f.display().to_string());
        Layer { role: "file".into(), depth, driver: driver.into(), bytes: 4096, file }
    }

    fn of(nodes: Vec<Layer>) -> String {
        identity(&Below { nodes, is_partial: false })
    }

    #[test]
    fn identity_changes_with_each_part_of_each_layer() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (dir.path().join("one"), dir.path().join("other"));
        std::fs::write(&one, [1; 4096]).unwrap();
        std::fs::write(&other, [1; 4096]).unwrap();
        let chain = || vec![layer(1, "qcow2", None), layer(2, "file", Some(&one))];
        let known = of(chain());
        assert_eq!((known.len(), &known), (DIGITS, &of(chain())));
        let with = |change: fn(&mut Vec<Layer>)| {
            let mut changed = chain();
            change(&mut changed);
            of(changed)
        };
        let mut seen = vec![
            known,
            with(|c| c[0].driver = "raw".into()),
            with(|c| c[0].bytes = 8192),
            with(|c| c[1].depth = 1),
            with(|c| c.reverse()),
            of(vec![layer(1, "qcow2", None), layer(2, "file", Some(&other))]),
        ];
        // Of the same size, and with its old time of change.
        let mtime = std::fs::metadata(&one).unwrap().modified().unwrap();
        std::fs::write(&one, [2; 4096]).unwrap();
        std::fs::File::options().write(true).open(&one).unwrap().set_modified(mtime).unwrap();
        seen.push(of(chain()));
        let all: std::collections::BTreeSet<_> = seen.iter().collect();
        assert_eq!(all.len(), seen.len(), "{seen:?}");
        assert!(!seen.iter().any(|s| s == UNKNOWN));
    }

    #[test]
    fn what_has_no_plain_file_here_is_unknown() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(of(Vec::new()), "");
        for file in [dir.path().to_owned(), dir.path().join("gone"), "relative".into()] {
            assert_eq!(of(vec![layer(1, "file", Some(&file))]), UNKNOWN);
        }
        assert_eq!(of(vec![layer(1, "nbd", Some(Path::new("/dev/null")))]), UNKNOWN);
        assert_eq!(identity(&Below { nodes: Vec::new(), is_partial: true }), UNKNOWN);
    }
}
