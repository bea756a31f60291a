//! What people want of a guest and its group, checked, and handed to the group's journal.

use super::Entry;
use crate::api::{ApiError, ProtectRequest, SetRequest};
use crate::settings::GuestSettings;
use afterimage_journal::Options;
use afterimage_journal::pool::Pool;
use afterimage_journal::window::limits::LIMIT_UNITS_MIN;
use afterimage_journal::window::{Keep, Limits};
use std::collections::BTreeMap;

/// Shortest time between checkpoints: guests are looked at once a second.
const CHECKPOINT_EVERY_MS_MIN: u64 = 1000;
/// Shortest time between checkpoints of memory.
const MEMORY_EVERY_MS_MIN: u64 = 10_000;
const SECOND_NS: u64 = 1_000_000_000;

/// The time between checkpoints, checked.
pub(super) fn checkpoint_every(ms: u64) -> Result<u64, ApiError> {
    if ms >= CHECKPOINT_EVERY_MS_MIN {
        return Ok(ms);
    }
    Err(ApiError::usage(format!(
        "a checkpoint every {ms} ms: the shortest time is {CHECKPOINT_EVERY_MS_MIN} ms \
         (every moment between checkpoints is restorable as well)"
    )))
}

/// The time between checkpoints of memory, checked; 0 and nothing at all mean that there are none.
pub(super) fn memory_every(ms: Option<u64>) -> Result<Option<u64>, ApiError> {
    match ms.filter(|ms| *ms > 0) {
        Some(ms) if ms < MEMORY_EVERY_MS_MIN => Err(ApiError::usage(format!(
            "a checkpoint of memory every {ms} ms: the shortest time is {MEMORY_EVERY_MS_MIN} ms"
        ))),
        every => Ok(every),
    }
}

/// What a journal may take; 0 and nothing at all mean that there is no limit.
pub(super) fn limit(bytes: Option<u64>, unit_bytes: u64) -> Result<Option<u64>, ApiError> {
    let ring_bytes = Options::default().ring_bytes_with(unit_bytes);
    let least = LIMIT_UNITS_MIN.saturating_mul(unit_bytes).saturating_add(ring_bytes);
    match bytes.filter(|b| *b > 0) {
        Some(bytes) if bytes < least => Err(ApiError::usage(format!(
            "a limit of {bytes} bytes is too low: the ring, the units in use and some history need \
             {ring_bytes} bytes and room for {LIMIT_UNITS_MIN} units, {least} bytes in all"
        ))),
        limit => Ok(limit),
    }
}

/// The steps of thinning, which begin with the window.
pub(super) fn steps(keep: Option<Keep>, window_s: u64) -> Result<Option<Keep>, ApiError> {
    let window = Keep::every_write(window_s.saturating_mul(SECOND_NS));
    match keep {
        Some(keep) if keep.every_write_ns() != window.every_write_ns() => {
            Err(ApiError::usage(format!("{keep} doesn't begin with the window, {window}")))
        }
        keep => Ok(keep.filter(Keep::thins)),
    }
}

/// Has a group's journal kept as its guests want it: the longest window and the finest steps behind it
/// that any of them asks for, the longest guarantee, the lowest limit.
pub(super) fn keep(pool: &Pool, guests: &BTreeMap<String, Entry>, group: &str) {
    let of_group = || guests.values().filter(|e| e.settings.group == group);
    let wanted = of_group().map(|e| e.settings.wanted()).reduce(|all, one| all.with(&one));
    let guarantee_s = of_group().filter_map(|e| e.settings.guarantee_s).max();
    let limit_bytes = of_group().filter_map(|e| e.settings.limit_bytes).min();
    if let (Some(entry), Some(wanted)) = (of_group().next(), wanted) {
        pool.set_limit(group, limit_bytes);
        let limits = Limits::thinned(wanted, limit_bytes);
        let guaranteed_ns = guarantee_s.map(|s| s.saturating_mul(SECOND_NS));
        entry.group.keep(guaranteed_ns.map_or(limits.clone(), |ns| limits.with_guarantee(ns)));
    }
}

/// The settings of a guest that is to be protected.
pub(super) fn settings_of(
    request: ProtectRequest,
    unit_bytes: u64,
) -> Result<GuestSettings, ApiError> {
    if request.qmp.is_some() == request.libvirt.is_some() {
        return Err(ApiError::usage("give either a QMP socket or a libvirt domain"));
    }
    Ok(GuestSettings {
        group: request.group.unwrap_or_else(|| request.name.clone()),
        name: request.name,
        qmp: request.qmp,
        libvirt: request.libvirt,
        disks: request.disks,
        shared_disks: request.shared_disks,
        window_s: request.window_s,
        keep: steps(request.keep, request.window_s)?,
        limit_bytes: limit(request.limit_bytes, unit_bytes)?,
        guarantee_s: request.guarantee_s,
        checkpoint_every_ms: checkpoint_every(request.checkpoint_every_ms)?,
        rate_bytes_per_s: request.rate_bytes_per_s,
        guest_agent: request.guest_agent,
        memory_every_ms: memory_every(request.memory_every_ms)?,
        memory_mode: request.memory_mode,
        key_file: request.key_file,
        detached: false,
        vm: None,
        accept_vm: false,
    })
}

/// A change of settings that was checked.
pub(super) struct Change {
    request: SetRequest,
    limit_bytes: Option<Option<u64>>,
    memory_every_ms: Option<Option<u64>>,
}

impl Change {
    /// Checks all of a wish.
    pub(super) fn of(request: SetRequest, unit_bytes: u64) -> Result<Self, ApiError> {
        if let (Some(window_s), Some(_)) = (request.window_s, &request.keep) {
            steps(request.keep.clone(), window_s)?;
        }
        if request.qmp.is_some() && request.libvirt.is_some() {
            return Err(ApiError::usage("give either a QMP socket or a libvirt domain"));
        }
        let limit_bytes = request.limit_bytes.map(|b| limit(Some(b), unit_bytes)).transpose()?;
        request.checkpoint_every_ms.map(checkpoint_every).transpose()?;
        let every = request.memory_every_ms.map(|ms| memory_every(Some(ms)));
        let memory_every_ms = every.transpose()?;
        Ok(Self { request, limit_bytes, memory_every_ms })
    }

    /// Checks what it takes back: none of these guests may have it.
    pub(super) fn check(
        &self,
        names: &[String],
        guests: &BTreeMap<String, Entry>,
    ) -> Result<(), ApiError> {
        let known = |disk: &String| {
            let mut entries = names.iter().filter_map(|name| guests.get(name));
            entries.any(|e| e.settings.shared_disks.contains(disk))
        };
        match self.request.no_shared_disks.iter().find(|disk| !known(disk)) {
            Some(disk) => Err(ApiError::usage(format!(
                "{disk} was not taken as a shared disk: `afterimage status` names those that were"
            ))),
            None => Ok(()),
        }
    }

    /// True if it says where the guest is found, and with that, which VM it is.
    pub(super) fn moves(&self) -> bool {
        self.request.qmp.is_some() || self.request.libvirt.is_some()
    }

    /// Makes it.
    pub(super) fn apply(&self, settings: &mut GuestSettings) {
        let request = &self.request;
        if let Some(wish) = &request.keep {
            settings.want(wish.clone());
        } else if let Some(window_s) = request.window_s {
            settings.window_s = window_s;
            settings.want(settings.wanted());
        }
        if let Some(limit_bytes) = self.limit_bytes {
            settings.limit_bytes = limit_bytes;
        }
        settings.shared_disks.retain(|disk| !request.no_shared_disks.contains(disk));
        for disk in &request.shared_disks {
            if !settings.shared_disks.contains(disk) {
                settings.shared_disks.push(disk.clone());
            }
        }
        if let Some(guarantee_s) = request.guarantee_s {
            settings.guarantee_s = Some(guarantee_s);
        }
        if let Some(every_ms) = request.checkpoint_every_ms {
            settings.checkpoint_every_ms = every_ms;
        }
        if let Some(rate) = request.rate_bytes_per_s {
            settings.rate_bytes_per_s = Some(rate).filter(|r| *r > 0);
        }
        if let Some(path) = &request.guest_agent {
            settings.guest_agent = Some(path.clone());
        }
        if let Some(every_ms) = self.memory_every_ms {
            settings.memory_every_ms = every_ms;
        }
        settings.memory_mode = request.memory_mode.unwrap_or(settings.memory_mode);
        if self.moves() {
            (settings.qmp, settings.libvirt) = (request.qmp.clone(), request.libvirt.clone());
            settings.accept_vm = true;
        }
    }
}

/// Refuses a change of where guests are found that can't be: of several at once, or to where another is.
pub(super) fn check_move(
    change: &Change,
    names: &[String],
    guests: &BTreeMap<String, Entry>,
) -> Result<(), ApiError> {
    if !change.moves() {
        return Ok(());
    }
    let [name] = names else {
        return Err(ApiError::usage(format!(
            "--qmp and --libvirt are of one guest, and that is a group of {}: name one of them",
            names.len()
        )));
    };
    let Some(entry) = guests.get(name) else { return Ok(()) };
    let mut settings = entry.settings.clone();
    change.apply(&mut settings);
    let monitor = settings.monitor();
    let other = guests.iter().find(|(n, e)| *n != name && e.settings.monitor() == monitor);
    match other {
        Some((other, _)) => {
            Err(ApiError::usage(format!("{monitor} is protected already, under the name {other}")))
        }
        None => Ok(()),
    }
}
