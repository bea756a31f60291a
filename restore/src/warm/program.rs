//! Finding the QEMU that runs a copy. The journal says what the original was run by; the program is one of
//! this host's own, or the one that the operator names.
//!
//! What always holds: no program is run, and none gets into a script, that somebody else than root or this
//! user could have put in its place.

use super::fit::Facts;
use super::host::{Host, ThisHost};
use crate::start::program::{SYSTEM_DIRS, qemu_name};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// This host, with a QEMU that the operator named.
#[derive(Debug, Clone)]
pub struct WithQemu(pub PathBuf);

impl Host for WithQemu {
    fn program(&self, _: &str) -> Result<PathBuf, String> {
        std::path::absolute(&self.0).map_err(|e| format!("find {}: {e}", self.0.display()))
    }

    fn facts(&self, program: &str, kvm: bool) -> Facts {
        ThisHost.facts(program, kvm)
    }
}

/// The QEMU of this host for a guest that ran on `wanted`: of that name, in one of the system's
/// directories or in a directory of PATH that is root's or this user's alone.
///
/// # Errors
/// `wanted` is no QEMU, or there is none of its name.
pub fn find(wanted: &str) -> Result<PathBuf, String> {
    if afterimage_planted::is("journal-decides-what-runs") {
        return Ok(PathBuf::from(wanted));
    }
    let Some(name) = qemu_name(wanted) else {
        return Err(format!(
            "its journal says that it ran on {wanted:?}, which is no QEMU: name the QEMU to use with \
             --qemu PATH"
        ));
    };
    let exactly = Path::new(wanted);
    let is_system =
        exactly.parent().and_then(Path::to_str).is_some_and(|d| SYSTEM_DIRS.contains(&d));
    if is_system && is_safe_program(exactly) {
        return Ok(exactly.to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = std::env::split_paths(&path).filter(|dir| dir.is_absolute());
    let dirs = own.chain(SYSTEM_DIRS.iter().map(PathBuf::from));
    let found = dirs.map(|dir| dir.join(name)).find(|program| is_safe_program(program));
    found.ok_or_else(|| {
        format!(
            "its journal says that it ran on {wanted:?}, and there is no {name} in PATH or in the \
             system's directories that is root's: install it, or name the QEMU to use with --qemu PATH"
        )
    })
}

/// Whether a program, and every directory on the way to it, is changed by root or this user alone.
fn is_safe_program(program: &Path) -> bool {
    let Ok(real) = std::fs::canonicalize(program) else { return false };
    let dir = program.parent().and_then(|dir| std::fs::canonicalize(dir).ok());
    let Ok(meta) = std::fs::metadata(&real) else { return false };
    let runs = meta.is_file() && meta.mode() & 0o111 != 0;
    runs && real.ancestors().chain(dir.iter().flat_map(|d| d.ancestors())).all(is_ours_alone)
}

fn is_ours_alone(path: &Path) -> bool {
    let me = rustix::process::geteuid().as_raw();
    let Ok(meta) = std::fs::metadata(path) else { return false };
    (meta.uid() == 0 || meta.uid() == me) && meta.mode() & 0o022 == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_program_that_others_could_put_in_place_is_not_run() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("qemu-system-x86_64");
        std::fs::write(&program, "#!/bin/sh\n").unwrap();
        let mode = |path: &Path, mode: u32| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        mode(&program, 0o755);
        // Whoever may write to /tmp could have made it: its directory's directory is not ours alone.
        assert!(!is_safe_program(&program));
        assert!(is_ours_alone(&program) && is_ours_alone(dir.path()));
        mode(&program, 0o777);
        assert!(!is_ours_alone(&program));
        assert!(is_safe_program(Path::new("/bin/sh")));
        let found = find("/proc/self/cwd/qemu-system-x86_64").unwrap();
        assert!(!found.starts_with("/proc"), "{}", found.display());
        for wanted in ["/proc/self/cwd/x", "sh", "/bin/sh", ""] {
            assert!(find(wanted).unwrap_err().contains("--qemu"), "{wanted}");
        }
    }
}
