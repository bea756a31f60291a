//! Whether a guest can be resumed by its own command line on a machine: a decision from facts. Pure.
//!
//! What always holds: a *refusal* is what QEMU would surely fail on; what only may go wrong, or
//! works in another way than before, is a *warning*. Neither is for the resuming of another guest.

use super::host::version;
use crate::start::{CommandLine, field, fields};
use afterimage_journal::meta::RamBlock;
use std::collections::BTreeMap;

/// What QEMU is on a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// It can't be started, and why.
    Missing(String),
    /// It is there.
    Found {
        /// Its version, when it says one.
        version: Option<[u32; 3]>,
        /// Its machine types; empty: it doesn't say.
        machines: Vec<String>,
    },
}

/// Whether KVM runs guests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kvm {
    /// Nobody wanted to know.
    NotAsked,
    /// A guest ran on it.
    Works,
    /// None does, and why.
    Unusable(String),
}

/// What a machine is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The QEMU of the guest's command line.
    pub program: Program,
    /// Its accelerator.
    pub kvm: Kvm,
    /// Memory that can be had without swapping, in bytes.
    pub memory_available_bytes: Option<u64>,
    /// Whether networks may be made.
    pub is_root: bool,
    /// Whether QEMU can wait for pages that a guest touches (`userfaultfd`).
    pub has_userfault: bool,
}

/// What a guest needs.
#[derive(Debug)]
pub(crate) struct Needs<'a> {
    /// The version of the QEMU that it ran on; empty: not known.
    pub qemu_version: &'a str,
    /// The machine type in its stream.
    pub machine: Option<&'a str>,
    /// Its memory.
    pub blocks: &'a [RamBlock],
    /// Its command line, adapted.
    pub line: &'a CommandLine,
}

/// What doesn't fit.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Fit {
    pub refusals: Vec<String>,
    pub warnings: Vec<String>,
}

/// How a guest wants to be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Accel {
    /// With KVM or not at all.
    Kvm,
    /// With KVM where that can be had.
    KvmFirst,
    /// Without.
    Other,
}

impl Needs<'_> {
    /// QEMU's program.
    pub(crate) fn program(&self) -> &str {
        self.line.kept.first().and_then(|o| o.first()).map_or("qemu-system-x86_64", String::as_str)
    }

    /// Values of an option, in order.
    fn values<'n>(&'n self, flag: &'n str) -> impl Iterator<Item = &'n str> {
        let options = self.line.kept.iter().skip(1);
        options.filter_map(move |option| {
            let named = option.first()?.trim_start_matches('-');
            (named == flag).then(|| option.get(1).map_or("", String::as_str))
        })
    }

    /// The accelerators that it may use.
    pub(crate) fn accel(&self) -> Accel {
        let mut wanted: Vec<String> = Vec::new();
        for value in self.values("accel") {
            let fields = fields(value);
            let first = fields.first().map(|(k, _)| k.clone());
            wanted.extend(field(&fields, "accel").or(first));
        }
        for value in self.values("machine").chain(self.values("M")) {
            let accel = field(&fields(value), "accel").unwrap_or_default();
            wanted.extend(accel.split(':').filter(|a| !a.is_empty()).map(str::to_owned));
        }
        if self.values("enable-kvm").next().is_some() {
            wanted.insert(0, "kvm".into());
        }
        match wanted.first().map(String::as_str) {
            Some("kvm") if wanted.len() == 1 => Accel::Kvm,
            Some("kvm") => Accel::KvmFirst,
            _ => Accel::Other,
        }
    }
}

/// Decides.
pub(crate) fn fit(needs: &Needs<'_>, facts: &Facts) -> Fit {
    let mut fit = Fit { refusals: needs.line.refused.clone(), warnings: Vec::new() };
    fit.program(needs, facts);
    fit.accel(needs, facts);
    fit.memory(needs);
    let total: u64 = needs.blocks.iter().map(|b| b.bytes).sum();
    if let Some(available) = facts.memory_available_bytes.filter(|a| *a < total) {
        fit.warnings.push(format!(
            "the guest has {} MiB of memory, {} MiB are available here",
            total >> 20,
            available >> 20
        ));
    }
    let is_tap = |(_, new): &(Vec<String>, Vec<String>)| {
        new.get(1).is_some_and(|value| value.starts_with("tap,"))
    };
    if needs.line.changed.iter().any(is_tap) && !facts.is_root {
        fit.warnings.push(
            "its network becomes a tap of its own, which only root can make: start it as root"
                .into(),
        );
    }
    fit
}

/// Why a copy can't run before its memory is there; `None`: it can. Its pages must be of the usual
/// size, and nobody else's.
pub(crate) fn unlive(needs: &Needs<'_>, facts: &Facts) -> Option<String> {
    let special = needs.values("object").find(|value| {
        let fields = fields(value);
        let kind = object_kind(&fields);
        let shared = field(&fields, "share").is_some_and(|v| v != "off" && v != "false");
        kind.starts_with("memory-backend-") && (kind != "memory-backend-ram" || shared)
    });
    if let Some(special) = special {
        return Some(format!("part of it is `-object {special}`"));
    }
    if needs.values("mem-path").next().is_some() {
        return Some("it is in a file (-mem-path)".into());
    }
    (!facts.has_userfault).then(|| {
        "this user can't have userfaultfd, by which QEMU would wait for pages (root can; or \
         /dev/userfaultfd, or sysctl vm.unprivileged_userfaultfd=1)"
            .into()
    })
}

/// The type of an object.
fn object_kind(fields: &[(String, String)]) -> String {
    let first = || fields.first().map(|(key, _)| key.clone());
    field(fields, "qom-type").or_else(first).unwrap_or_default()
}

impl Fit {
    fn program(&mut self, needs: &Needs<'_>, facts: &Facts) {
        let program = needs.program();
        let (found, machines) = match &facts.program {
            Program::Missing(why) => {
                self.refusals.push(format!("{program} can't be run here: {why}"));
                return;
            }
            Program::Found { version, machines } => (version, machines),
        };
        let shown = |v: &[u32; 3]| format!("{}.{}.{}", v[0], v[1], v[2]);
        if let (Some(found), Some(source)) = (found, version(needs.qemu_version)) {
            if found[..2] < source[..2] {
                self.refusals.push(format!(
                    "{program} is version {} here and the guest ran on {}: no older one can load \
                     its devices",
                    shown(found),
                    shown(&source)
                ));
            } else if *found < source {
                self.warnings.push(format!(
                    "{program} is version {} here and the guest ran on {}",
                    shown(found),
                    shown(&source)
                ));
            }
        }
        if let Some(machine) = needs.machine
            && !machines.is_empty()
            && !machines.iter().any(|m| m == machine)
        {
            self.refusals
                .push(format!("{program} has no machine type {machine} here, on which it ran"));
        }
    }

    fn accel(&mut self, needs: &Needs<'_>, facts: &Facts) {
        let accel = needs.accel();
        if let Kvm::Unusable(why) = &facts.kvm {
            match accel {
                Accel::Kvm => self.refusals.push(format!(
                    "the guest ran with KVM, and no other accelerator can load that; here {why}"
                )),
                Accel::KvmFirst => self.warnings.push(format!(
                    "if the guest ran with KVM, it can be resumed with nothing else; here {why}"
                )),
                Accel::Other => {}
            }
        }
        let cpu = needs.values("cpu").last().unwrap_or_default();
        let model = cpu.split(',').next().unwrap_or_default();
        if model == "host" || (model == "max" && accel != Accel::Other) {
            self.warnings.push(format!(
                "with -cpu {model} the guest saw its host's own processor: this machine has to \
                 have the same model"
            ));
        }
    }

    /// The RAM blocks that the command line has to make.
    fn memory(&mut self, needs: &Needs<'_>) {
        let mut backends = BTreeMap::new();
        for value in needs.values("object") {
            let fields = fields(value);
            if object_kind(&fields).starts_with("memory-backend-") {
                let bytes = field(&fields, "size").and_then(|s| size(&s, 1));
                backends.insert(field(&fields, "id").unwrap_or_default(), bytes);
            }
        }
        let main = needs.values("m").last().map_or(Some(128 << 20), |value| {
            let fields = fields(value);
            let first = fields.first().filter(|(_, v)| v.is_empty()).map(|(k, _)| k.clone());
            size(&field(&fields, "size").or(first)?, 1 << 20)
        });
        for block in needs.blocks {
            let id = block.id.strip_prefix("/objects/").unwrap_or(&block.id);
            let (option, bytes) = match backends.get(id) {
                Some(bytes) => (format!("-object id={id}"), *bytes),
                None if block.id.starts_with("/objects/") => {
                    self.missing(id, block.bytes);
                    continue;
                }
                None if block.id == "pc.ram" => ("-m".to_owned(), main),
                None => continue,
            };
            if bytes.is_some_and(|bytes| bytes != block.bytes) {
                self.refusals.push(format!(
                    "its RAM block {} has {} bytes and {option} makes another size: the command \
                     line is not the one that it ran with then",
                    block.id, block.bytes
                ));
            }
        }
    }

    fn missing(&mut self, id: &str, bytes: u64) {
        self.refusals.push(format!(
            "its RAM block {id} was plugged in while it ran: its command line lacks `-object \
             memory-backend-ram,id={id},size={bytes} -device pc-dimm,memdev={id}`, and `slots` \
             and `maxmem` of -m to hold it"
        ));
    }
}

/// A size as QEMU reads it, in bytes: a number, perhaps a fraction, and a unit.
fn size(text: &str, unit: u64) -> Option<u64> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let unit = match suffix.to_ascii_uppercase().as_str() {
        "" => unit,
        "B" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        "T" => 1 << 40,
        _ => return None,
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(unit);
    }
    let bytes = number.parse::<f64>().ok()? * unit as f64;
    (bytes >= 0.0 && bytes < u64::MAX as f64).then_some(bytes as u64)
}

#[cfg(test)]
#[path = "fit_tests.rs"]
mod tests;
