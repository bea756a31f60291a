//! A small file system of its own, ext4 on a loop device or a tmpfs: to be filled, and, if it is ext4,
//! made read-only or cut off as if power had gone. Needs root and loop devices; where they are missing
//! a test does without, but never under `CI=true`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::ioctl::{Setter, ioctl, opcode};
use tempfile::TempDir;

use super::image;

/// `EXT4_IOC_SHUTDOWN`, and its argument for: write nothing more, not even the journal.
const SHUTDOWN: rustix::ioctl::Opcode = opcode::read::<u32>(b'X', 125);
const SHUTDOWN_NO_LOG_FLUSH: u32 = 2;

/// A mounted file system. Dropping it unmounts and removes it.
pub struct SmallFs {
    dir: TempDir,
    mounted: bool,
}

impl SmallFs {
    /// Makes one of `bytes` bytes. `None` where this machine does not let us mount.
    #[track_caller]
    pub fn new(bytes: u64) -> Option<Self> {
        let dir = TempDir::with_prefix("fs-").expect("a temporary directory");
        image::ext4(&dir.path().join("image"), bytes);
        std::fs::create_dir(dir.path().join("mount")).expect("a mount point");
        let mut fs = Self { dir, mounted: false };
        match fs.mount("loop") {
            Ok(()) => Some(fs),
            Err(e) if std::env::var("CI").as_deref() == Ok("true") => {
                panic!("CI must be able to mount a loop device: {e}")
            }
            Err(e) => {
                eprintln!("not tried, no loop mount here: {e}");
                None
            }
        }
    }

    /// Makes one in memory. `None` where this machine does not let us mount.
    #[track_caller]
    pub fn tmpfs(bytes: u64) -> Option<Self> {
        let dir = TempDir::with_prefix("fs-").expect("a temporary directory");
        std::fs::create_dir(dir.path().join("mount")).expect("a mount point");
        let mut fs = Self { dir, mounted: false };
        let size = format!("size={bytes}");
        match run("mount", &["-t", "tmpfs", "-o", &size, "afterimage", text(&fs.path())]) {
            Ok(()) => {
                fs.mounted = true;
                Some(fs)
            }
            Err(e) if std::env::var("CI").as_deref() == Ok("true") => {
                panic!("CI must be able to mount a tmpfs: {e}")
            }
            Err(e) => {
                eprintln!("not tried, no mount here: {e}");
                None
            }
        }
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mount")
    }

    /// Fills it until less than `rest_bytes` are free, by a file of its own that it gives back.
    #[track_caller]
    pub fn fill(&self, rest_bytes: u64) -> PathBuf {
        let path = self.path().join("filler");
        let stat = rustix::fs::statvfs(self.path()).expect("statvfs");
        let length = (stat.f_bavail * stat.f_frsize).saturating_sub(rest_bytes);
        let file = File::create(&path).expect("make the filler");
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, length.max(1))
            .expect("fill the file system");
        path
    }

    /// Lets it be written no more (`true`), or again.
    #[track_caller]
    pub fn read_only(&self, on: bool) {
        let option = if on { "remount,ro" } else { "remount,rw" };
        run("mount", &["-o", option, text(&self.path())]).unwrap_or_else(|e| panic!("{e}"));
    }

    /// What was not synced is lost, every further write fails: until [`SmallFs::power_on`].
    #[track_caller]
    pub fn power_cut(&self) {
        let root = File::open(self.path()).expect("open the mount point");
        // SAFETY: the opcode is ext4's, it reads one u32, which `Setter` passes by pointer.
        let done = unsafe { ioctl(&root, Setter::<SHUTDOWN, u32>::new(SHUTDOWN_NO_LOG_FLUSH)) };
        done.expect("shut the file system down");
    }

    /// Mounts it anew after a [`SmallFs::power_cut`]. No process may still have a file of it open; what
    /// the kernel holds for one that was killed a moment ago is waited for.
    #[track_caller]
    pub fn power_on(&mut self) {
        let mut last = String::new();
        let unmounted = super::poll(super::REPLY_LIMIT, || match self.unmount() {
            Ok(()) => Some(()),
            Err(e) => {
                last = e;
                None
            }
        });
        assert!(unmounted.is_some(), "{last}");
        self.mount("loop").unwrap_or_else(|e| panic!("{e}"));
    }

    fn mount(&mut self, options: &str) -> Result<(), String> {
        let image = self.dir.path().join("image");
        run("mount", &["-t", "ext4", "-o", options, text(&image), text(&self.path())])?;
        self.mounted = true;
        Ok(())
    }

    fn unmount(&mut self) -> Result<(), String> {
        if self.mounted {
            run("umount", &[text(&self.path())])?;
            self.mounted = false;
        }
        Ok(())
    }
}

impl Drop for SmallFs {
    fn drop(&mut self) {
        if self.unmount().is_err() {
            // Something still holds it open: it goes when that does.
            let _ = run("umount", &["-l", text(&self.path())]);
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary directories have UTF-8 names")
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output =
        Command::new(program).args(arguments).output().map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {}: {}", arguments.join(" "), said.trim()))
}
