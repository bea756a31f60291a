//! Which VM a guest is: learned at its first attach, kept in its settings, and compared at each attach.
//!
//! What always holds: another VM is not attached to, nor touched, before a person has said that it is the
//! guest; then all that the journal has of the guest is compared with it. One QEMU process is held by one
//! name at a time.

use super::task::{Context, Task};
use crate::api::ApiError;
use crate::settings::GuestSettings;
use afterimage_journal::meta::CopyCause;
use afterimage_planted as planted;
use afterimage_qmp::Qemu;
use afterimage_qmp::qemu::{ProcessId, VmIdentity};
use anyhow::{Context as _, Result, bail};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Which running QEMU.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    /// Its process, and the VM: a parent that opened the monitors of several shows in place of each.
    Process(u32, u64, String),
    /// Its VM's UUID, where the process can't be told.
    Uuid(String),
}

/// The QEMU processes that guests of this agent are attached to.
#[derive(Debug, Default)]
pub struct Claims {
    held: Mutex<BTreeMap<Key, String>>,
}

impl Claims {
    fn held(&self) -> MutexGuard<'_, BTreeMap<Key, String>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims a QEMU for a guest; `None` where nothing tells it from others.
    fn claim(
        self: &Arc<Self>,
        guest: &str,
        process: Option<ProcessId>,
        vm: &VmIdentity,
    ) -> Result<Option<Claim>, ApiError> {
        let key = match (process, &vm.uuid) {
            (Some(id), _) => Key::Process(id.pid, id.start_ticks, vm.to_string()),
            (None, Some(uuid)) => Key::Uuid(uuid.clone()),
            (None, None) => return Ok(None),
        };
        let mut held = self.held();
        if let Some(other) = held.get(&key).filter(|_| !planted::is("two-names-for-one-qemu")) {
            let which = match &key {
                Key::Process(pid, ..) => format!("QEMU process {pid}"),
                Key::Uuid(uuid) => format!("the VM with UUID {uuid}"),
            };
            return Err(ApiError::usage(format!(
                "{which} is protected already, under the name {other}: unprotect one of the two names"
            )));
        }
        held.insert(key.clone(), guest.to_owned());
        Ok(Some(Claim { claims: Arc::clone(self), key }))
    }
}

/// A guest's hold of a QEMU, given up when it is dropped.
#[derive(Debug)]
pub(super) struct Claim {
    claims: Arc<Claims>,
    key: Key,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claims.held().remove(&self.key);
    }
}

/// Whether a QEMU runs the guest: `Err` with both identities if it is another VM.
pub(super) fn recognize(settings: &GuestSettings, found: &VmIdentity) -> Result<()> {
    let Some(known) = settings.vm.as_ref().filter(|known| !known.is_same(found)) else {
        return Ok(());
    };
    if planted::is("any-vm-is-the-guest") {
        return Ok(());
    }
    let monitor = settings.monitor();
    let (option, monitor) = match monitor.strip_prefix("libvirt:") {
        Some(domain) => ("--libvirt", domain),
        None => ("--qmp", monitor.as_str()),
    };
    let name = &settings.name;
    bail!(
        "another VM is at {monitor}: expected {known}; found {found}. If that is the guest from now on: \
         afterimage set {name} {option} {monitor}"
    )
}

impl Task {
    /// Admits a QEMU that was reached: it runs the guest, and no other name holds it. From then on it is
    /// this guest's until the claim is dropped.
    ///
    /// # Errors
    /// It is another VM, or another name's.
    pub(super) async fn admit(&mut self, qemu: &Qemu) -> Result<Option<Claim>> {
        let found = qemu.identity().await.context("ask QEMU which VM it runs")?;
        let process = qemu.process()?.map(|p| p.id());
        let context = &self.context;
        let claim = context.claims.claim(&context.settings.name, process, &found)?;
        if let Err(error) = recognize(&context.settings, &found) {
            if !context.settings.accept_vm {
                return Err(error);
            }
            tracing::warn!(guest = context.settings.name, %found, "another VM is the guest from now on");
            owe_everything(context).await?;
        }
        self.note(found)?;
        Ok(claim)
    }

    /// Notes which VM the guest is, durably; with the settings where these are not on disk yet.
    fn note(&mut self, found: VmIdentity) -> Result<()> {
        let settings = &mut self.context.settings;
        if settings.vm.as_ref() == Some(&found) && !settings.accept_vm {
            return Ok(());
        }
        let before = (settings.vm.replace(found), std::mem::take(&mut settings.accept_vm));
        let name = settings.name.clone();
        if GuestSettings::exist(&self.context.state, &name)
            && let Err(error) = self.context.settings.save(&self.context.state)
        {
            (self.context.settings.vm, self.context.settings.accept_vm) = before;
            return Err(error).context("note which VM the guest is");
        }
        Ok(())
    }
}

/// Notes, durably, that all disks of the guest have to be compared: maps and mirrors that are met may be
/// those of an image that was copied, and tell nothing of what the journal has.
async fn owe_everything(context: &Context) -> Result<()> {
    if planted::is("another-vm-owes-nothing") {
        return Ok(());
    }
    let (group, name) = (Arc::clone(&context.group), context.settings.name.clone());
    // A record may wait for a unit.
    let noted = tokio::task::spawn_blocking(move || {
        let disks: Vec<_> =
            group.config().disks().filter(|v| v.guest == name).map(|v| v.id).collect();
        disks.into_iter().try_for_each(|id| group.owe(id, CopyCause::Compare))?;
        group.journal()?.sync().map(drop)
    });
    Ok(tokio::time::timeout(super::marks::SYNC_LIMIT, noted).await???)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "6f1a0e2c-0000-0000-0000-000000000001";

    fn settings(vm: Option<VmIdentity>) -> GuestSettings {
        let json = serde_json::json!({
            "name": "web", "group": "web", "window_s": 1, "checkpoint_every_ms": 1000,
            "qmp": "/run/web.qmp",
        });
        let old: GuestSettings = serde_json::from_value(json).unwrap();
        assert!(old.vm.is_none() && !old.accept_vm);
        GuestSettings { vm, ..old }
    }

    #[test]
    fn another_vm_is_refused_by_both_names_and_with_the_way_out() {
        let web = VmIdentity::new(UUID, Some("web"));
        let db = VmIdentity::new("6f1a0e2c-0000-0000-0000-000000000002", Some("db"));
        assert!(recognize(&settings(None), &db).is_ok());
        assert!(recognize(&settings(Some(web.clone())), &web).is_ok());
        let refused = recognize(&settings(Some(web)), &db).unwrap_err().to_string();
        for part in [UUID, "\"web\"", "000000000002", "\"db\"", "set web --qmp /run/web.qmp"] {
            assert!(refused.contains(part), "{refused}");
        }
    }

    #[test]
    fn one_qemu_is_held_by_one_name_until_it_lets_go() {
        let claims = Arc::new(Claims::default());
        let process = Some(ProcessId { pid: 7, start_ticks: 1 });
        let vm = VmIdentity::new(UUID, None);
        let first = claims.claim("a", process, &vm).unwrap();
        let refused = claims.claim("b", process, &vm).unwrap_err();
        assert!(refused.message.contains("under the name a"), "{refused}");
        // The same number later is another process; a copy of a VM may have its UUID.
        let later = Some(ProcessId { pid: 7, start_ticks: 2 });
        let _later = claims.claim("c", later, &vm).unwrap().unwrap();
        let other = VmIdentity::new("6f1a0e2c-0000-0000-0000-000000000002", None);
        let _of_one_parent = claims.claim("g", process, &other).unwrap().unwrap();
        drop(first);
        let _second = claims.claim("b", process, &vm).unwrap().unwrap();
        // Where no process can be told, the UUID has to do.
        let _uuid = claims.claim("d", None, &vm).unwrap().unwrap();
        assert!(claims.claim("e", None, &vm).is_err());
        assert!(claims.claim("f", None, &VmIdentity::default()).unwrap().is_none());
    }
}
