//! The state directory and the file system under it.

use super::Finding;
use crate::show;
use afterimage_agent::api::socket_path;
use afterimage_agent::settings::GuestSettings;
use afterimage_journal::pool::{StrayFile, stray_files};
use afterimage_journal::storage::RealStorage;
use afterimage_journal::{History, layout};
use rustix::fs::Access;
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Less free space than this is a matter of minutes.
const FREE_BYTES_MIN: u64 = 256 << 20;
/// Less free space than this share of the file system, in percent, calls for a look.
const FREE_PERCENT_MIN: u64 = 10;
/// A socket's path with its final NUL must fit into `sockaddr_un`.
const SOCKET_PATH_BYTES_MAX: usize = 107;

pub(super) fn check(state: &Path) -> Vec<Finding> {
    let mut findings = vec![directory(state)];
    let socket = socket_path(state);
    if socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        findings.push(Finding::fail(
            "api socket",
            format!("{} is too long for a socket's path", socket.display()),
            "use a state directory with a shorter path",
        ));
    }
    let existing = nearest_existing(state);
    findings.push(file_system(&existing));
    findings.push(space(&existing));
    findings.extend(journals(state));
    findings
}

fn directory(state: &Path) -> Finding {
    const CHECK: &str = "state";
    let shown = state.display();
    let meta = match std::fs::metadata(state) {
        Ok(meta) if meta.is_dir() => meta,
        Ok(_) => {
            return Finding::fail(
                CHECK,
                format!("{shown} is no directory"),
                "give another --state",
            );
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Finding::warn(
                CHECK,
                format!("{shown} is not there yet"),
                "`afterimage agent` makes it; or give the right one with --state",
            );
        }
        Err(e) => {
            return Finding::fail(
                CHECK,
                format!("{shown}: {e}"),
                "run as the agent's user or root",
            );
        }
    };
    if let Err(e) = layout::check_state(state, false) {
        let fresh = std::fs::read_dir(state).is_ok_and(|mut entries| entries.next().is_none());
        if !fresh {
            return Finding::fail(CHECK, e.to_string(), "give the right directory with --state");
        }
    }
    let access = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
    if let Err(e) = rustix::fs::access(state, access) {
        return Finding::fail(
            CHECK,
            format!("{shown} can't be written: {e}"),
            "run as its owner or root; on a read-only file system only restores work",
        );
    }
    if rustix::fs::statvfs(state)
        .is_ok_and(|v| v.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY))
    {
        return Finding::fail(
            CHECK,
            format!("{shown} lies on a read-only file system"),
            "the agent can't write there; restore, checkpoints and verify work",
        );
    }
    if meta.mode() & 0o077 != 0 {
        return Finding::warn(
            CHECK,
            format!("others may look into {shown} (mode {:03o})", meta.mode() & 0o777),
            format!("it holds the guests' data: chmod 700 {shown}"),
        );
    }
    Finding::ok(CHECK, format!("{shown}, mode 700, can be written"))
}

fn nearest_existing(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let pool = layout::pool_dir(&path);
    let found = pool.ancestors().find(|p| p.is_dir()).unwrap_or(Path::new("/"));
    found.to_owned()
}

fn file_system(dir: &Path) -> Finding {
    const CHECK: &str = "file system";
    let shown = dir.display();
    let magic = match rustix::fs::statfs(dir) {
        Ok(stat) => stat.f_type as u64 & 0xffff_ffff,
        Err(e) => return Finding::warn(CHECK, format!("{shown}: {e}"), "see that it is mounted"),
    };
    let warn = |what: &str, todo: &str| Finding::warn(CHECK, format!("{shown}: {what}"), todo);
    match magic {
        0xef53 => Finding::ok(CHECK, format!("{shown}: ext4 (or ext2, ext3)")),
        0x5846_5342 => Finding::ok(CHECK, format!("{shown}: xfs")),
        0x9123_683e => warn(
            "btrfs copies on write: units fragment, and a full file system fails late",
            "chattr +C the pool's directory while it is empty, or use ext4 or xfs",
        ),
        0x2fc1_2fc1 => warn(
            "zfs copies on write: preallocated units hold no space back",
            "set a reservation on its dataset, or use ext4 or xfs",
        ),
        0x0102_1994 | 0x8584_58f6 => warn(
            "it lies in memory: the journal is lost with the power",
            "use a directory on a disk",
        ),
        0x6969 | 0xff53_4d42 | 0xfe53_4d42 | 0x0102_1997 => warn(
            "a network file system: a slow or absent server ends in a gap",
            "use a local disk for the journal",
        ),
        0x6573_5546 => warn(
            "FUSE: its speed and its promises of durability are those of a program",
            "use a local disk with ext4 or xfs, unless you know better",
        ),
        0x794c_7630 => warn(
            "overlayfs (a container's own layer): the journal goes with the container",
            "mount a volume there",
        ),
        other => warn(
            &format!("a file system of a kind that was not tried (0x{other:x})"),
            "ext4 and xfs are known to work",
        ),
    }
}

fn space(dir: &Path) -> Finding {
    const CHECK: &str = "disk space";
    let shown = dir.display();
    let stat = match rustix::fs::statvfs(dir) {
        Ok(stat) => stat,
        Err(e) => return Finding::fail(CHECK, format!("{shown}: {e}"), "see that it is mounted"),
    };
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let total = stat.f_blocks.saturating_mul(stat.f_frsize).max(1);
    let percent = free.saturating_mul(100) / total;
    let what = format!("{} free of {} at {shown}", show::bytes(free), show::bytes(total));
    let means = "a full disk stops the capture: the guests run on, and a gap begins; the journal \
                 keeps all its history so far, so give it a larger disk or unprotect --purge";
    match free {
        0..FREE_BYTES_MIN => Finding::fail(CHECK, what, means),
        _ if percent < FREE_PERCENT_MIN => Finding::warn(CHECK, what, means),
        _ => Finding::ok(CHECK, what),
    }
}

fn journals(state: &Path) -> Vec<Finding> {
    let names = layout::journals(state).unwrap_or_default();
    let mut findings = absent(state, &names);
    for name in names {
        let check = format!("journal {name}");
        let loaded = layout::journal_dir(state, &name).and_then(|dir| History::load(&dir));
        findings.push(match loaded {
            Ok(history) => match history.damage.first() {
                None => Finding::ok(
                    check,
                    format!("{} units, records up to {}", history.units.len(), history.head),
                ),
                Some(damage) => Finding::fail(
                    check,
                    format!("damaged: {}", damage.what),
                    format!("`afterimage verify {name}` tells which points can't be restored"),
                ),
            },
            Err(e) => Finding::fail(check, e.to_string(), "put it back from a copy of the pool"),
        });
        findings.extend(strays(state, &name));
    }
    findings
}

/// Journals of protected guests that are not there.
fn absent(state: &Path, there: &[String]) -> Vec<Finding> {
    // Settings that can't be read are found by the look at the guests.
    let settings = GuestSettings::load_all(state).unwrap_or_default();
    let groups: BTreeSet<_> = settings.into_iter().map(|s| s.group).collect();
    let absent = groups.into_iter().filter(|group| !there.contains(group));
    let fail = |group: String| {
        let dir = layout::pool_dir(state).join(&group);
        Finding::fail(
            format!("journal {group}"),
            format!("{} is not there, or something is mounted over it", dir.display()),
            "put it back, or unprotect its guests and protect them again: nothing of them is captured now",
        )
    };
    absent.map(fail).collect()
}

/// Files among a journal's units that are none.
fn strays(state: &Path, name: &str) -> Vec<Finding> {
    let dir = layout::journal_dir(state, name);
    let found = dir.and_then(|dir| stray_files(&RealStorage::shared(), &dir));
    let warn = |stray: StrayFile| {
        let what = format!("{stray}");
        Finding::warn(format!("journal {name}"), what, "delete it if nothing of it is missed")
    };
    found.unwrap_or_default().into_iter().map(warn).collect()
}
