//! The agent, and the way to each protected guest.
//!
//! A QMP socket serves one client: while the agent runs it is asked, and only without one are the
//! sockets tried.

use super::Finding;
use afterimage_agent::api::{AgentInfo, Client, ErrorKind, GuestState, GuestStatus};
use afterimage_agent::settings::GuestSettings;
use afterimage_qmp::Qemu;
use afterimage_qmp::libvirt::{Libvirt, Target};
use std::path::Path;
use std::time::Duration;

/// How long a guest's monitor may take to answer.
const PROBE_LIMIT: Duration = Duration::from_secs(8);

pub(super) fn check(state: &Path) -> Vec<Finding> {
    let settings = match GuestSettings::load_all(state) {
        Ok(settings) => settings,
        Err(e) => {
            return vec![Finding::fail("settings", e.to_string(), "see the text")];
        }
    };
    let client = Client::new(state);
    let mut findings = Vec::new();
    match client.info() {
        Ok(info) => {
            findings.push(agent(&info));
            match client.status(None) {
                Ok(guests) => {
                    findings.extend(guests.iter().map(guest));
                    findings.extend(guests.iter().filter_map(memory));
                }
                Err(e) => findings.push(Finding::fail("guests", e.message, "see the agent's log")),
            }
        }
        Err(e) => {
            findings.push(no_agent(state, &settings, e.kind, e.message));
            findings.extend(settings.iter().map(probe));
        }
    }
    if !settings.is_empty() {
        findings.push(Finding::warn(
            "trim",
            "a guest's TRIM frees nothing on its image while it is attached: QEMU drops it",
            "to free space: `afterimage detach NAME`, fstrim in the guest, then `attach` again",
        ));
    }
    findings
}

fn agent(info: &AgentInfo) -> Finding {
    let own = env!("CARGO_PKG_VERSION");
    let what = format!(
        "version {} runs (worker {}, guard {}), stall limit {} ms",
        info.version, info.worker_pid, info.guard_pid, info.stall_limit_ms
    );
    if info.version == own {
        return Finding::ok("agent", what);
    }
    Finding::warn("agent", format!("{what}; this command is {own}"), "restart the agent")
}

fn no_agent(state: &Path, settings: &[GuestSettings], kind: ErrorKind, message: String) -> Finding {
    let start = format!("start it with `afterimage agent --state {}`", state.display());
    if kind != ErrorKind::NotReachable {
        return Finding::fail("agent", message, "see the agent's log");
    }
    let waiting = settings.iter().filter(|s| !s.detached).count();
    if waiting == 0 {
        return Finding::warn("agent", "it does not run; no guest waits for it", start);
    }
    let what = format!("it does not run: what {waiting} protected guests write is not captured");
    Finding::fail("agent", what, start)
}

fn guest(guest: &GuestStatus) -> Finding {
    let check = format!("guest {}", guest.guest);
    let reason = guest.reason.clone().unwrap_or_default();
    match guest.state {
        GuestState::Protected => Finding::ok(check, "protected"),
        GuestState::InitialSync => Finding::ok(check, "initial sync goes on"),
        GuestState::Resync => Finding::warn(
            check,
            format!("resync goes on: a gap until it ends ({reason})"),
            "wait for it: `afterimage status --watch`",
        ),
        GuestState::Detached => Finding::warn(
            check,
            format!("detached: its writes are not captured ({reason})"),
            format!("`afterimage attach {}` when it runs", guest.guest),
        ),
        GuestState::Gap => Finding::fail(
            check,
            format!("its writes are not captured ({reason})"),
            "see the reason; the agent goes on trying, its log says more",
        ),
    }
}

fn memory(guest: &GuestStatus) -> Option<Finding> {
    let error = guest.memory.as_ref()?.error.as_ref()?;
    Some(Finding::warn(
        format!("memory of {}", guest.guest),
        format!("the last checkpoint of memory was not made: {error}"),
        "see the text; checkpoints of its disks are made all the same",
    ))
}

fn probe(settings: &GuestSettings) -> Finding {
    let check = format!("guest {}", settings.name);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(e) => return Finding::fail(check, format!("could not be tried: {e}"), "see the text"),
    };
    let found = runtime.block_on(async {
        tokio::time::timeout(PROBE_LIMIT, reach(settings))
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {} s", PROBE_LIMIT.as_secs())))
    });
    match found {
        Ok(what) => Finding::ok(check, what),
        Err(e) => Finding::fail(
            check,
            format!("{}: {e}", settings.monitor()),
            format!(
                "start the guest, correct its socket's permissions, or end its protection with \
                 `afterimage unprotect {}`",
                settings.name
            ),
        ),
    }
}

async fn reach(settings: &GuestSettings) -> Result<String, String> {
    match (&settings.qmp, &settings.libvirt) {
        (Some(path), _) => {
            let qemu = Qemu::connect(path).await.map_err(|e| e.to_string())?;
            Ok(format!("QEMU {} answers on {}", qemu.version(), path.display()))
        }
        (None, Some(domain)) => {
            let libvirt = Libvirt::open(Target::new(domain)).await.map_err(|e| e.to_string())?;
            let state = libvirt.state().await.map_err(|e| e.to_string())?;
            Ok(format!("libvirt domain {domain} is {state}"))
        }
        (None, None) => Err("its settings name neither a QMP socket nor a domain".into()),
    }
}
