//! Targets: nothing is overwritten, nothing half-made keeps its name.

use crate::bed::{Bed, names, restore_at, restore_to};
use afterimage_restore::{Format, Kind, Recovery, RestoreOptions, When, restore};
use rustix::fs::{FlockOperation, flock};
use std::fs;
use std::path::Path;
use std::process::Command;

fn bed() -> (Bed, Recovery, u64) {
    let mut bed = Bed::new(1, &[1 << 20, 4 << 20]);
    bed.open_session();
    let mut bytes = vec![0; 128 << 10];
    let mut last = 0;
    for i in 0..32 {
        bed.dice.fill(&mut bytes);
        last = bed.write_at(1, i * bytes.len(), &bytes);
    }
    let recovery = bed.open();
    (bed, recovery, last)
}

#[test]
fn an_existing_target_is_left_as_it_is() {
    let (_bed, recovery, last) = bed();
    for format in [Format::Raw, Format::Qcow2] {
        let out = tempfile::tempdir().unwrap();
        let taken = out.path().join(format!("web-d1.{}", format.as_str()));
        fs::write(&taken, "mine").unwrap();
        let error = restore_to(&recovery, last, out.path(), format, &[]).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        assert!(error.to_string().contains("exists and is left as it is"), "{error}");
        assert_eq!(fs::read_to_string(&taken).unwrap(), "mine");
        assert_eq!(names(out.path()).len(), 1, "{:?}", names(out.path()));
    }
}

#[test]
fn a_target_that_appears_meanwhile_is_left_as_it_is() {
    let (_bed, recovery, last) = bed();
    let out = tempfile::tempdir().unwrap();
    let taken = out.path().join("web-d1.raw");
    let point = recovery.resolve(&When::Seq(last)).unwrap();
    let options = RestoreOptions { to: out.path().to_owned(), disks: vec![], format: Format::Raw };
    let mut appear = |_| fs::write(&taken, "mine").unwrap();
    let error = restore(&recovery, point, &options, &mut appear).unwrap_err();
    assert!(error.to_string().contains("exists and is left as it is"), "{error}");
    assert_eq!(names(out.path()), ["web-d1.raw"], "all or none get their names");
    assert_eq!(fs::read_to_string(&taken).unwrap(), "mine");
}

#[test]
fn an_image_has_no_final_name_before_it_is_whole() {
    let (_bed, recovery, last) = bed();
    let out = tempfile::tempdir().unwrap();
    let point = recovery.resolve(&When::Seq(last)).unwrap();
    let options =
        RestoreOptions { to: out.path().to_owned(), disks: vec![], format: Format::Qcow2 };
    let mut look = |_| {
        assert!(names(out.path()).iter().all(|n| n.ends_with(".partial")));
    };
    restore(&recovery, point, &options, &mut look).unwrap();
    assert_eq!(names(out.path()), ["web-d0.qcow2", "web-d1.qcow2"]);
}

#[test]
fn a_dangling_link_is_not_followed() {
    let (_bed, recovery, last) = bed();
    let out = tempfile::tempdir().unwrap();
    let elsewhere = out.path().join("elsewhere");
    std::os::unix::fs::symlink(&elsewhere, out.path().join("web-d0.raw")).unwrap();
    let error = restore_to(&recovery, last, out.path(), Format::Raw, &[]).unwrap_err();
    assert_eq!(error.kind(), Kind::Usage);
    assert!(!elsewhere.exists());
}

#[test]
fn what_an_ended_restore_left_is_replaced_and_a_running_one_is_respected() {
    let (bed, recovery, last) = bed();
    let out = tempfile::tempdir().unwrap();
    let partial = out.path().join("web-d0.raw.partial");
    fs::write(&partial, vec![7; 2 << 20]).unwrap();
    let running = fs::File::open(&partial).unwrap();
    flock(&running, FlockOperation::LockExclusive).unwrap();
    let error = restore_to(&recovery, last, out.path(), Format::Raw, &[]).unwrap_err();
    assert!(error.to_string().contains("another restore is writing"), "{error}");
    assert_eq!(fs::metadata(&partial).unwrap().len(), 2 << 20);
    drop(running);
    restore_to(&recovery, last, out.path(), Format::Raw, &[]).unwrap();
    assert_eq!(names(out.path()), ["web-d0.raw", "web-d1.raw"]);
    assert!(fs::read(out.path().join("web-d0.raw")).unwrap() == bed.disks[0]);
}

#[test]
fn a_file_as_target_directory_is_refused() {
    let (_bed, recovery, last) = bed();
    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("f");
    fs::write(&file, "x").unwrap();
    let error = restore_to(&recovery, last, &file, Format::Raw, &[]).unwrap_err();
    assert!(error.to_string().contains("is a file"), "{error}");
    let error = restore_at(&recovery, last, &file, Format::Raw).unwrap_err();
    assert!(error.to_string().contains("create directory"), "{error}");
}

/// A small file system of its own, unmounted when dropped. `None` without the right to mount.
struct Mount<'a>(&'a Path);

impl<'a> Mount<'a> {
    fn new(at: &'a Path, options: &str) -> Option<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", options, "none"]).arg(at);
        match mount.output() {
            Ok(out) if out.status.success() => Some(Self(at)),
            _ => {
                eprintln!("left out: mounting a small file system needs root");
                None
            }
        }
    }

    fn remount(&self, options: &str) {
        let status =
            Command::new("mount").args(["-o", &format!("remount,{options}")]).arg(self.0).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[test]
fn a_full_target_is_said_to_be_full_and_keeps_nothing() {
    let (_bed, recovery, last) = bed();
    let out = tempfile::tempdir().unwrap();
    let Some(_mount) = Mount::new(out.path(), "size=2m") else { return };
    for format in [Format::Raw, Format::Qcow2] {
        let to = out.path().join(format.as_str());
        let error = restore_to(&recovery, last, &to, format, &[]).unwrap_err();
        let said = error.to_string();
        assert!(said.contains("No space left") && said.contains("free space there"), "{said}");
        assert!(said.contains("web-d1"), "{said}");
        assert_eq!(names(&to), [""; 0]);
    }
}

#[test]
fn a_target_that_cannot_be_written_is_said_to_be_one() {
    let (_bed, recovery, last) = bed();
    let out = tempfile::tempdir().unwrap();
    let Some(mount) = Mount::new(out.path(), "size=8m") else { return };
    mount.remount("ro");
    let error = restore_at(&recovery, last, out.path(), Format::Raw).unwrap_err();
    let said = error.to_string();
    assert!(said.contains("Read-only") && said.contains("you can write to"), "{said}");
}

#[test]
fn a_journal_on_a_medium_that_cannot_be_written_is_restored() {
    let (mut bed, recovery, last) = bed();
    drop(recovery);
    bed.stop_agent();
    let medium = tempfile::tempdir().unwrap();
    let Some(mount) = Mount::new(medium.path(), "size=64m") else { return };
    let to = medium.path().join("pool/shop");
    fs::create_dir_all(&to).unwrap();
    for name in names(&bed.journal_dir()).iter().filter(|n| *n != "pin") {
        fs::copy(bed.journal_dir().join(name), to.join(name)).unwrap();
    }
    mount.remount("ro");
    let recovery = afterimage_restore::open(medium.path(), "shop").unwrap();
    let out = tempfile::tempdir().unwrap();
    let report = restore_at(&recovery, last, out.path(), Format::Raw).unwrap();
    assert!(fs::read(&report.disks[1].path).unwrap() == bed.disks[1]);
}

#[test]
fn a_draft_that_is_no_regular_file_is_refused_at_once() {
    let (_bed, recovery, last) = bed();
    for kind in ["fifo", "directory", "link", "device"] {
        let out = tempfile::tempdir().unwrap();
        let partial = out.path().join("web-d1.raw.partial");
        let elsewhere = out.path().join("elsewhere");
        match kind {
            "fifo" => assert!(Command::new("mkfifo").arg(&partial).status().unwrap().success()),
            "directory" => fs::create_dir(&partial).unwrap(),
            "link" => std::os::unix::fs::symlink(&elsewhere, &partial).unwrap(),
            _ => std::os::unix::fs::symlink("/dev/null", &partial).unwrap(),
        }
        let error = restore_to(&recovery, last, out.path(), Format::Raw, &[]).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage, "{kind}: {error}");
        assert!(error.to_string().contains("web-d1.raw.partial is no regular file"), "{error}");
        assert!(fs::symlink_metadata(&partial).is_ok() && !elsewhere.exists(), "{kind}");
    }
}

#[test]
fn directory_that_is_replaced_by_a_link_midway_leads_nowhere_else() {
    let (bed, recovery, last) = bed();
    for format in [Format::Raw, Format::Qcow2] {
        let out = tempfile::tempdir().unwrap();
        let (to, moved, elsewhere) =
            (out.path().join("to"), out.path().join("moved"), out.path().join("elsewhere"));
        fs::create_dir(&elsewhere).unwrap();
        // What another restore is writing there has the name of a draft of this one.
        let theirs = elsewhere.join(format!("web-d0.{}.partial", format.as_str()));
        fs::write(&theirs, "theirs").unwrap();
        let mut is_swapped = false;
        let mut swap = |_| {
            if !std::mem::replace(&mut is_swapped, true) {
                fs::rename(&to, &moved).unwrap();
                std::os::unix::fs::symlink(&elsewhere, &to).unwrap();
            }
        };
        let point = recovery.resolve(&When::Seq(last)).unwrap();
        let options = RestoreOptions { to: to.clone(), disks: vec![], format };
        restore(&recovery, point, &options, &mut swap).unwrap();
        assert_eq!(names(&elsewhere), [theirs.file_name().unwrap().to_str().unwrap()]);
        assert_eq!(fs::read_to_string(&theirs).unwrap(), "theirs");
        assert_eq!(names(&moved).len(), 2);
        if format == Format::Raw {
            assert!(fs::read(moved.join("web-d1.raw")).unwrap() == bed.disks[1]);
        }
    }
}

#[test]
fn directory_of_another_user_is_told_and_a_link_of_theirs_is_refused() {
    let (_bed, recovery, last) = bed();
    let out = tempfile::tempdir().unwrap();
    let (open, mine, link) =
        (out.path().join("open"), out.path().join("mine"), out.path().join("link"));
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let report = restore_to(&recovery, last, &open, Format::Raw, &[]).unwrap();
    assert!(report.warnings.iter().any(|w| w.contains("every user")), "{:?}", report.warnings);
    let report = restore_to(&recovery, last, &mine, Format::Raw, &[]).unwrap();
    assert!(!report.warnings.iter().any(|w| w.contains("can be changed")), "{:?}", report.warnings);
    std::os::unix::fs::symlink(&mine, &link).unwrap();
    if !rustix::process::geteuid().is_root() {
        eprintln!("left out: only root can make a link of another user");
        return;
    }
    fs::remove_file(mine.join("web-d0.raw")).unwrap();
    fs::remove_file(mine.join("web-d1.raw")).unwrap();
    restore_to(&recovery, last, &link, Format::Raw, &[]).unwrap();
    std::os::unix::fs::lchown(&link, Some(65_534), Some(65_534)).unwrap();
    for link in [link.clone(), link.join("")] {
        let refused =
            restore_to(&recovery, last, &link, Format::Qcow2, &[]).unwrap_err().to_string();
        assert!(refused.contains("symbolic link of user 65534"), "{refused}");
    }
    std::os::unix::fs::chown(&open, Some(65_534), None).unwrap();
    let report = restore_to(&recovery, last, &open, Format::Qcow2, &[]).unwrap();
    assert!(report.warnings.iter().any(|w| w.contains("user 65534")), "{:?}", report.warnings);
}
