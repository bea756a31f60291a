//! What the journal itself says of a test's run: which copies were made, why, and of how much.

use super::Scene;
use crate::kit::{Cli, Disk, Format, Vm, VmBuilder, image, prefix};
use afterimage_journal::History;
use afterimage_journal::format::record::FLAG_COPIED;
use afterimage_journal::history::{CopyState, Entry};
use afterimage_journal::meta::CopyCause;
use serde_json::Value;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// As long as it takes a guest to write some thousand records.
pub const SOME_WRITES: Duration = Duration::from_millis(700);

/// The journal of the group `vm`.
#[track_caller]
pub fn history(cli: &Cli) -> History {
    History::load(&cli.state().join("pool/vm")).unwrap()
}

/// The copies that began behind a position, in their order.
pub fn copies_since(history: &History, seq: u64) -> Vec<&CopyState> {
    let mut copies: Vec<_> = history.copies.values().filter(|c| c.as_of > seq).collect();
    copies.sort_by_key(|c| c.as_of);
    copies
}

/// Why copies were made behind a position, each cause once.
pub fn causes_since(history: &History, seq: u64) -> Vec<CopyCause> {
    let mut causes: Vec<_> = copies_since(history, seq).iter().map(|c| c.cause).collect();
    causes.dedup();
    causes
}

/// All records, by number.
pub fn entries(history: &History) -> Vec<Entry> {
    history.entries().collect::<Result<_, _>>().unwrap()
}

/// Bytes that copies brought in behind a position.
pub fn copied_bytes_since(history: &History, seq: u64) -> u64 {
    let all = entries(history);
    let copied = all.iter().map(|e| &e.record);
    let copied = copied.filter(|r| r.seq > seq && r.flags & FLAG_COPIED != 0);
    copied.map(|r| u64::from(r.len)).sum()
}

/// The last record of the prefix that restored images hold.
#[track_caller]
pub fn prefix_of(images: &[PathBuf]) -> u64 {
    let paths: Vec<&Path> = images.iter().map(PathBuf::as_path).collect();
    prefix::last(&paths).unwrap()
}

/// Whether restored raw images are the guest's, which nobody has open any more.
#[track_caller]
pub fn identical(scene_images: &[PathBuf], formats: &[Format], restored: &[PathBuf]) {
    assert_eq!(scene_images.len(), restored.len());
    for ((source, format), copy) in scene_images.iter().zip(formats).zip(restored) {
        image::compare((source, format.name()), (copy, "raw")).unwrap();
    }
}

/// The formats of two disks.
pub const RAW: [Format; 2] = [Format::Raw, Format::Raw];

/// The status of `vm` once it is protected in a session behind a position.
#[track_caller]
pub fn wait_session_behind(cli: &Cli, seq: u64) -> Value {
    cli.wait_status("vm", super::STATE_LIMIT, |status| {
        status["state"] == "protected" && history(cli).sessions.last().is_some_and(|s| s.from > seq)
    })
}

/// A socket name that leads to the guest's monitor, whichever QEMU runs it.
pub fn point_monitor_at(link: &Path, qmp: &Path) {
    let _ = std::fs::remove_file(link);
    std::os::unix::fs::symlink(qmp, link).unwrap();
}

/// The newest point holds all that the guest wrote, on all disks, and nothing else. The guest's writer
/// stands still meanwhile.
#[track_caller]
pub fn expect_level(vm: &mut Vm, agent: &Cli, images: &[PathBuf], dir: &Path, case: &str) {
    let last = vm.ask_last("writer pause", "writer paused");
    let restored = super::restore(agent, "latest", dir);
    for (source, copy) in images.iter().zip(&restored) {
        let differ = differing_blocks(source, copy);
        assert!(differ.is_empty(), "{case}: {} blocks differ: {differ:?}", differ.len());
    }
    assert_eq!(prefix_of(&restored), last, "{case}");
    let verified = agent.run(&["verify", "vm", "--at", "latest"]);
    assert_eq!(verified.code, 0, "{case}: {verified:?}");
    for path in restored {
        std::fs::remove_file(path).unwrap();
    }
    vm.ask("writer start", "writer started");
}

/// The 4 KiB blocks in which two files differ.
fn differing_blocks(a: &Path, b: &Path) -> Vec<u64> {
    let (a, b) = (File::open(a).unwrap(), File::open(b).unwrap());
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut found = Vec::new();
    for at in (0..super::DISK_BYTES).step_by(1 << 20) {
        a.read_exact_at(&mut left, at).unwrap();
        b.read_exact_at(&mut right, at).unwrap();
        let blocks = left.chunks(4096).zip(right.chunks(4096)).enumerate();
        let differ = blocks.filter(|(_, (x, y))| x != y);
        found.extend(differ.map(|(i, _)| at / 4096 + i as u64));
    }
    found
}

/// What of ours is in QEMU: jobs, nodes, bitmaps, exports.
#[track_caller]
pub fn ours_in(qmp: &mut crate::kit::Qmp) -> Vec<String> {
    let mut names = Vec::new();
    for (command, key) in [
        ("query-block-jobs", "device"),
        ("query-block-exports", "id"),
        ("query-named-block-nodes", "node-name"),
    ] {
        let list = qmp.execute(command, serde_json::json!({}));
        for one in list.as_array().unwrap() {
            names.push(one[key].as_str().unwrap_or_default().to_owned());
            let bitmaps = one["dirty-bitmaps"].as_array().into_iter().flatten();
            names.extend(bitmaps.filter_map(|b| Some(b["name"].as_str()?.to_owned())));
        }
    }
    names.retain(|name| name.starts_with("ai-"));
    names
}

/// Writes a block of ones to a raw image that no guest has open, behind the writer's slots.
pub fn scribble(image: &Path, at: u64) {
    let file = std::fs::OpenOptions::new().write(true).open(image).unwrap();
    file.write_all_at(&[1; 4096], at).unwrap();
}

/// A scene with disks of different makes, empty where they are not there yet.
pub fn scene_of(disks: &[fn(PathBuf) -> Disk], more: impl FnOnce(VmBuilder) -> VmBuilder) -> Scene {
    scene_with_roles("writer", disks, more)
}

/// The same for a guest of other roles.
pub fn scene_with_roles(
    roles: &str,
    disks: &[fn(PathBuf) -> Disk],
    more: impl FnOnce(VmBuilder) -> VmBuilder,
) -> Scene {
    let dir = tempfile::TempDir::with_prefix("ai-").unwrap();
    let mut builder = VmBuilder::new(roles);
    let mut images = Vec::new();
    for (name, disk) in ["a", "b", "c"].into_iter().zip(disks) {
        let path = dir.path().join(name);
        let disk = disk(path.clone());
        match disk.format {
            _ if path.exists() => {}
            Format::Raw => image::raw(&path, super::DISK_BYTES),
            Format::Qcow2 => image::qcow2(&path, super::DISK_BYTES),
        }
        builder = builder.disk(disk);
        images.push(path);
    }
    let builder = more(builder);
    let vm = builder.boot();
    let agent = crate::kit::Agent::start(super::PROGRAM, dir.path().join("state"));
    Scene { dir, builder, vm, agent, images }
}
