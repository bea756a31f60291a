//! Disk images, made and compared with QEMU's and e2fsprogs' own tools.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Output};

/// Makes a sparse raw image of `bytes` bytes.
pub fn raw(path: &Path, bytes: u64) {
    let file = File::create(path).unwrap_or_else(|e| panic!("create {path:?}: {e}"));
    file.set_len(bytes).unwrap_or_else(|e| panic!("size {path:?}: {e}"));
}

/// Makes a qcow2 image of `bytes` bytes.
pub fn qcow2(path: &Path, bytes: u64) {
    let size = bytes.to_string();
    run(Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(path).arg(size));
}

/// Makes a raw image of `bytes` bytes with an empty ext4 file system, nothing of it reserved for
/// root.
pub fn ext4(path: &Path, bytes: u64) {
    raw(path, bytes);
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()));
    run(mke2fs
        .args(["-q", "-F", "-t", "ext4", "-m", "0", "-E", "nodiscard,lazy_itable_init=0"])
        .arg(path));
}

/// A raw copy of the image at `from`, whatever its format.
pub fn to_raw(from: &Path, to: &Path) {
    run(Command::new("qemu-img").args(["convert", "-O", "raw"]).arg(from).arg(to));
}

/// Whether two images, each `(path, format)`, hold the same bytes: `qemu-img compare`. The error
/// says where they differ. Neither may be open for writing.
pub fn compare(one: (&Path, &str), other: (&Path, &str)) -> Result<(), String> {
    let output = Command::new("qemu-img")
        .args(["compare", "-f", one.1, "-F", other.1])
        .args([one.0, other.0])
        .output()
        .map_err(|e| format!("qemu-img compare: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{} and {}: {}{}",
        one.0.display(),
        other.0.display(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    ))
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    output
}
