//! What in a QEMU is a guest's own: by the volume that a name of ours carries.
//!
//! What always holds: of what another name of this agent, or another agent, has put into the same QEMU
//! nothing is removed, served or taken up.

use super::removal::names_of;
use super::sockets::run_path;
use super::task::Context;
use crate::group::Group;
use afterimage_planted as planted;
use afterimage_qmp::Qemu;
use afterimage_qmp::qemu::{LeftMirror, OURS};
use anyhow::Result;
use std::collections::BTreeSet;
use std::path::Path;

/// The volumes of a guest, as names in QEMU tell them.
#[derive(Debug, Clone, Default)]
pub(super) struct Owned {
    tokens: BTreeSet<String>,
}

impl Owned {
    /// What the guest's journal names.
    pub(super) fn by_journal(group: &Group, guest: &str) -> Self {
        let config = group.config();
        let volumes = config.disks().filter(|v| v.guest == guest);
        let jobs = volumes.filter_map(|v| names_of(v).ok()).map(|names| names.job());
        Self { tokens: jobs.filter_map(|job| token(&job).map(str::to_owned)).collect() }
    }

    /// The same, and what mirrors to the guest's own directory of sockets: a journal that was lost made
    /// those.
    pub(super) async fn by_journal_and_sockets(context: &Context, qemu: &Qemu) -> Result<Self> {
        let dir = run_path(&context.state, &context.settings.name);
        let mut owned = Self::by_journal(&context.group, &context.settings.name);
        let mirrors = qemu.left_mirrors(|name| owned.has(name)).await?;
        let lost = mirrors.into_iter().filter(|m| writes_below(m, &dir)).map(|m| m.token);
        owned.tokens.extend(lost.collect::<Vec<_>>());
        Ok(owned)
    }

    /// Whether a name in QEMU is the guest's.
    pub(super) fn has(&self, name: &str) -> bool {
        planted::is("any-name-of-ours-is-the-guests")
            || token(name).is_some_and(|token| self.tokens.contains(token))
    }
}

/// Whether a mirror's socket lies directly in this directory, however it is spelled.
fn writes_below(mirror: &LeftMirror, dir: &Path) -> bool {
    let Some(told) = mirror.socket.as_deref().and_then(Path::parent) else { return false };
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    told == dir || real(told).is_some_and(|told| real(dir) == Some(told))
}

/// The part of a name that tells the volume: `ai-TOKEN-job`, `ai-TOKEN-map-7`.
fn token(name: &str) -> Option<&str> {
    name.strip_prefix(OURS)?.split_once('-').map(|(token, _)| token)
}

/// Why a disk can't be attached to that somebody's job holds.
pub(super) fn held(job: &str, node: &str) -> String {
    match token(job) {
        Some(_) => format!(
            "disk {node} is protected by another agent, or under another name: its block job {job} is no \
             job of this guest. Detach or unprotect it there; if nobody uses it any more, stop the guest by \
             QMP, cancel the job, and let it go on"
        ),
        None => format!(
            "the block job {job:?} holds disk {node}: end it (or wait for its end), \
             then the agent attaches by itself"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use afterimage_journal::Options;
    use afterimage_journal::meta::{Guest, Volume, VolumeKind};
    use afterimage_qmp::qemu::{Attachment, Names};

    fn volume(guest: &str, disk: &str) -> Volume {
        Volume {
            id: 0,
            kind: VolumeKind::Disk,
            uuid: uuid::Uuid::nil(),
            guest: guest.into(),
            disk: disk.into(),
            node: "n".into(),
            bytes: 4096,
            format: "raw".into(),
            source: String::new(),
            active: true,
        }
    }

    fn guest(name: &str) -> Guest {
        let (command_line, qemu_version) = (Vec::new(), String::new());
        Guest { name: name.into(), command_line, libvirt_xml: None, qemu_version }
    }

    #[test]
    fn names_of_another_guest_or_agent_are_not_the_guests() {
        let dir = tempfile::tempdir().unwrap();
        let group =
            std::sync::Arc::new(Group::open(dir.path(), "g", Options::default(), None).unwrap());
        let mine = group.volume_of(&guest("a"), &volume("a", "d0")).unwrap();
        let others = group.volume_of(&guest("b"), &volume("b", "d0")).unwrap();
        let owned = Owned::by_journal(&group, "a");
        let names = names_of(&mine).unwrap();
        for name in [names.job(), names.target(), names.filter(), names.bitmap(7), names.export(1)]
        {
            assert!(owned.has(&name), "{name}");
        }
        let foreign = [names_of(&others).unwrap(), Names::new("0123456789ab").unwrap()];
        for name in foreign.iter().flat_map(|n| [n.job(), n.target(), n.bitmap(7)]) {
            assert!(!owned.has(&name), "{name}");
        }
        for name in ["ai-", "ai-drain", "drive0", "ai--job", ""] {
            assert!(!owned.has(name), "{name}");
        }
        group.close().unwrap();
    }

    #[test]
    fn mirror_of_a_lost_journal_is_known_by_its_socket_alone() {
        let state = tempfile::tempdir().unwrap();
        let dir = state.path().join("run/vm");
        let other = state.path().join("other/run/vm");
        for dir in [&dir, &other] {
            std::fs::create_dir_all(dir).unwrap();
        }
        let mirror = |socket: Option<std::path::PathBuf>| {
            let names = Names::new("0123456789ab").unwrap();
            let attachment = Attachment::of("", &names);
            LeftMirror { attachment, token: "0123456789ab".into(), socket, bytes: 0 }
        };
        let spelled = state.path().join("other/../run/vm/ai-0123456789ab-job.sock");
        assert!(writes_below(&mirror(Some(dir.join("x.sock"))), &dir));
        assert!(writes_below(&mirror(Some(spelled)), &dir));
        assert!(!writes_below(&mirror(Some(other.join("x.sock"))), &dir));
        assert!(!writes_below(&mirror(Some(dir.clone())), &dir));
        assert!(!writes_below(&mirror(None), &dir));
    }
}
