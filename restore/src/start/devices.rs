//! The options of a copy that resumes: a stream fits only the devices that it was made on, so each
//! stays, and what ties it to the original's surroundings is replaced behind it. Pure text.
//!
//! | of the original | of the copy |
//! |---|---|
//! | monitors, and sockets of nothing else | none: no device of the guest |
//! | sockets and descriptors behind serial ports, guest agent, display | sockets beside the images |
//! | files that serial ports are written to | files beside the images |
//! | descriptors of a network | a tap of its own, or a hub: both on no network |
//! | memory in a file, which a copy would share | memory of its own |
//! | an alias of a machine type (`q35`) | the type in the stream (`pc-q35-10.0`) |
//!
//! What always holds: what is in another process or in hardware (vfio, vhost-user, TPM) is refused
//! by name; no option of the original is used that names a file of its memory.

use super::command_line::TIED;
use super::option::{field, fields, joined, name, parts};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Longest path of a socket that QEMU takes, in bytes.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Hubs are numbered from here on, so that none is the original's.
const HUB_FIRST: usize = 4000;

/// Where a copy comes to stand.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    /// The directory of its images, absolute.
    pub dir: &'a Path,
    /// The guest's name, as it is in file names.
    pub name: &'a str,
    /// The machine type that the stream was made on.
    pub machine: Option<&'a str>,
    /// Whether any user of the host may read a file.
    pub is_public: fn(&Path) -> bool,
}

/// What becomes of an option.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Adapted {
    Kept,
    Dropped,
    Changed(Vec<String>),
    /// Why no copy can have it.
    Refused(String),
}

/// The options of a command line, while they are adapted one by one.
pub(super) struct Devices<'a> {
    place: &'a Place<'a>,
    /// Chardevs that nothing but monitors uses.
    monitors: BTreeSet<String>,
    is_machine_named: bool,
    /// How often each kind of option that has no id was replaced.
    replaced: BTreeMap<String, usize>,
}

impl<'a> Devices<'a> {
    pub(super) fn of(options: &[Vec<String>], place: &'a Place<'a>) -> Self {
        let users = |is_monitor: bool| {
            let of = options.iter().filter(move |o| {
                let named = o.first().and_then(|n| name(n));
                named != Some("chardev") && (named == Some("mon")) == is_monitor
            });
            of.filter_map(|o| o.get(1)).flat_map(|value| chardevs(value)).collect::<BTreeSet<_>>()
        };
        let monitors = users(true).difference(&users(false)).cloned().collect();
        Self { place, monitors, is_machine_named: false, replaced: BTreeMap::new() }
    }

    /// The machine type, when no option named one.
    pub(super) fn unnamed_machine(&self) -> Option<String> {
        self.place.machine.filter(|_| !self.is_machine_named).map(str::to_owned)
    }

    /// What becomes of an option.
    pub(super) fn adapt(&mut self, option: &[String]) -> Adapted {
        let Some(flag) = option.first().and_then(|o| name(o)) else { return Adapted::Kept };
        let value = option.get(1).map_or("", String::as_str);
        if (TIED.contains(&flag) && value != "none")
            || ["snapshot", "mem-path", "loadvm"].contains(&flag)
        {
            return Adapted::Dropped;
        }
        let fields = fields(value);
        match flag {
            "machine" | "M" => self.machine(flag, value, &fields),
            "chardev" => self.chardev(value, &fields),
            "serial" | "parallel" | "debugcon" => self.line(flag, value),
            "vnc" if value != "none" => match self.socket("vnc") {
                Some(path) => changed(flag, &[format!("unix:{path}")]),
                None => changed("display", &["none".into()]),
            },
            "spice" => self.spice(),
            "object" => object(value, &fields),
            "netdev" | "nic" | "net" => self.network(flag, &fields),
            "device" => device(value, &fields),
            "tpmdev" => Adapted::Refused(format!(
                "its TPM ({value}) keeps its state in another process, which no checkpoint holds"
            )),
            _ => Adapted::Kept,
        }
    }

    /// What becomes of an option of a copy that boots: files that it would share with the original are
    /// replaced, the rest stays.
    pub(super) fn adapt_files(&mut self, option: &[String]) -> Adapted {
        let Some(flag) = option.first().and_then(|o| name(o)) else { return Adapted::Kept };
        let value = option.get(1).map_or("", String::as_str);
        let fields = fields(value);
        match flag {
            "mem-path" => Adapted::Dropped,
            "object" => object(value, &fields),
            "serial" | "parallel" | "debugcon" => self.line(flag, value),
            // A monitor's is left out with its monitor, not here.
            "chardev" => match self.chardev(value, &fields) {
                Adapted::Dropped => Adapted::Kept,
                adapted => adapted,
            },
            _ => Adapted::Kept,
        }
    }

    /// The path of a socket of the copy's own, if QEMU can take one so long.
    fn socket(&self, what: &str) -> Option<String> {
        let name = format!("{}.{}.sock", self.place.name, crate::names::sanitised(what));
        let path = self.place.dir.join(name).to_str()?.to_owned();
        (path.len() <= SOCKET_PATH_BYTES_MAX).then_some(path)
    }

    /// The path of a file of the copy's own.
    fn log(&self, what: &str) -> String {
        let name = format!("{}.{}.log", self.place.name, crate::names::sanitised(what));
        self.place.dir.join(name).display().to_string()
    }

    /// The next number of an option of this kind.
    fn next(&mut self, kind: &str) -> usize {
        let count = self.replaced.entry(kind.to_owned()).or_default();
        *count += 1;
        *count - 1
    }

    fn machine(&mut self, flag: &str, value: &str, fields: &[(String, String)]) -> Adapted {
        let first = fields.first().filter(|(_, v)| v.is_empty()).map(|(k, _)| k.clone());
        let (Some(old), Some(new)) = (field(fields, "type").or(first), self.place.machine) else {
            return Adapted::Kept;
        };
        self.is_machine_named = true;
        if old == new {
            return Adapted::Kept;
        }
        if let Ok(serde_json::Value::Object(mut object)) = serde_json::from_str(value) {
            object.insert("type".into(), new.into());
            return changed_to(flag, serde_json::Value::Object(object).to_string());
        }
        let others = parts(value).into_iter().filter(|p| *p != old && !p.starts_with("type="));
        changed(flag, &[vec![new.to_owned()], others.collect()].concat())
    }

    fn chardev(&self, value: &str, fields: &[(String, String)]) -> Adapted {
        let Some(id) = field(fields, "id") else { return Adapted::Kept };
        if self.monitors.contains(&id) {
            return Adapted::Dropped;
        }
        let kind = field(fields, "backend").or_else(|| fields.first().map(|(k, _)| k.clone()));
        match kind.as_deref() {
            Some("socket" | "udp" | "dbus") => {}
            Some("file") => {
                let path = ("path=", format!("path={}", self.log(&id)));
                return changed("chardev", &with(value, &[path]));
            }
            _ if value.contains("logfile=") => {
                let path = ("logfile=", format!("logfile={}", self.log(&id)));
                return changed("chardev", &with(value, &[path]));
            }
            _ => return Adapted::Kept,
        }
        let mut new = match self.socket(&id) {
            Some(path) => vec![
                "socket".to_owned(),
                format!("id={id}"),
                format!("path={path}"),
                "server=on".to_owned(),
                "wait=off".to_owned(),
            ],
            None => vec!["null".to_owned(), format!("id={id}")],
        };
        new.extend(parts(value).into_iter().filter(|p| p.starts_with("mux=")));
        changed("chardev", &new)
    }

    /// A serial or parallel line without a chardev of its own.
    fn line(&mut self, flag: &str, value: &str) -> Adapted {
        let bare = value.strip_prefix("mon:").unwrap_or(value);
        if bare.starts_with("file:") {
            let number = self.next(flag);
            return changed(flag, &[format!("file:{}", self.log(&format!("{flag}{number}")))]);
        }
        let is_socket = ["unix:", "tcp:", "telnet:", "udp:", "websocket:"];
        if !is_socket.iter().any(|p| bare.starts_with(p)) {
            return Adapted::Kept;
        }
        let number = self.next(flag);
        match self.socket(&format!("{flag}{number}")) {
            Some(path) => changed(
                flag,
                &[format!("unix:{path}"), "server=on".to_owned(), "wait=off".to_owned()],
            ),
            None => changed(flag, &["null".into()]),
        }
    }

    fn spice(&self) -> Adapted {
        let Some(path) = self.socket("spice") else { return Adapted::Kept };
        let address = format!("addr={path}");
        changed("spice", &["unix=on".to_owned(), address, "disable-ticketing=on".to_owned()])
    }

    fn network(&mut self, flag: &str, fields: &[(String, String)]) -> Adapted {
        let kind = field(fields, "type").or_else(|| fields.first().map(|(k, _)| k.clone()));
        let kind = kind.unwrap_or_default();
        if kind == "vhost-user" || kind == "vhost-vdpa" {
            let id = field(fields, "id").unwrap_or_default();
            return Adapted::Refused(format!(
                "its network {id} ({kind}) is in another process or in hardware, whose state no \
                 checkpoint holds"
            ));
        }
        let descriptors = |key: &str| field(fields, key).map(|v| v.split(':').count());
        let Some(queues) = descriptors("fds").or_else(|| descriptors("fd")) else {
            return Adapted::Kept;
        };
        if kind != "tap" {
            if flag != "netdev" {
                return Adapted::Refused(format!(
                    "its network (-{flag} {kind}) is on a descriptor that it was given at its start"
                ));
            }
            let hub = HUB_FIRST + self.next("hub");
            let id = format!("id={}", field(fields, "id").unwrap_or_default());
            return changed(flag, &["hubport".to_owned(), id, format!("hubid={hub}")]);
        }
        // What the guest was told that its card can do is what a tap can do: no other kind fits.
        let mut new = vec!["tap".to_owned()];
        let own = |key: &str| {
            !["tap", "type", "fd", "fds", "vhost", "vhostfd", "vhostfds", "queues"].contains(&key)
                && !["script", "downscript", "ifname", "br", "helper"].contains(&key)
        };
        new.extend(
            fields.iter().filter(|(k, _)| own(k)).map(|(k, v)| format!("{k}={}", on_off(v))),
        );
        new.extend(["script=no".to_owned(), "downscript=no".to_owned()]);
        let queues = field(fields, "queues").or((queues > 1).then(|| queues.to_string()));
        new.extend(queues.map(|queues| format!("queues={queues}")));
        changed(flag, &new)
    }
}

fn changed(flag: &str, parts: &[String]) -> Adapted {
    changed_to(flag, joined(parts))
}

fn changed_to(flag: &str, value: String) -> Adapted {
    Adapted::Changed(vec![format!("-{flag}"), value])
}

/// The parts of a value, those that begin in some way replaced.
fn with(value: &str, replaced: &[(&str, String)]) -> Vec<String> {
    let new = |part: String| {
        let found = replaced.iter().find(|(begin, _)| part.starts_with(begin));
        found.map_or(part, |(_, new)| new.clone())
    };
    parts(value).into_iter().map(new).collect()
}

/// The chardevs that a value names.
fn chardevs(value: &str) -> Vec<String> {
    let named = |(key, value): (String, String)| (key == "chardev").then_some(value);
    let mut found: Vec<String> = fields(value).into_iter().filter_map(named).collect();
    found.extend(value.strip_prefix("chardev:").map(str::to_owned));
    found.extend(value.strip_prefix("mon:chardev:").map(str::to_owned));
    // `-mon NAME` and `-mon NAME,mode=control`.
    found.extend(parts(value).into_iter().next().filter(|p| !p.contains('=')));
    found
}

/// What a memory backend in a file has that one of its own has not.
const OF_FILE: &[&str] = &[
    "mem-path",
    "discard-data",
    "align",
    "offset",
    "pmem",
    "readonly",
    "rom",
    "share",
    "qom-type",
    "memory-backend-file",
];

fn object(value: &str, fields: &[(String, String)]) -> Adapted {
    const RAM: &str = "memory-backend-ram";
    let kind = field(fields, "qom-type").or_else(|| fields.first().map(|(k, _)| k.clone()));
    match kind.as_deref() {
        Some("secret") if field(fields, "file").is_some() => Adapted::Dropped,
        Some("memory-backend-file") => {
            if let Ok(serde_json::Value::Object(mut object)) = serde_json::from_str(value) {
                object.retain(|key, _| !OF_FILE.contains(&key.as_str()));
                object.insert("qom-type".into(), RAM.into());
                return changed_to("object", serde_json::Value::Object(object).to_string());
            }
            let kept = fields.iter().filter(|(k, _)| !OF_FILE.contains(&k.as_str()));
            let kept = kept.map(|(k, v)| format!("{k}={v}"));
            changed("object", &[RAM.to_owned()].into_iter().chain(kept).collect::<Vec<_>>())
        }
        _ => Adapted::Kept,
    }
}

/// A JSON value as QEMU's text form has it.
fn on_off(value: &str) -> &str {
    match value {
        "true" => "on",
        "false" => "off",
        other => other,
    }
}

fn device(value: &str, fields: &[(String, String)]) -> Adapted {
    let driver = field(fields, "driver").or_else(|| fields.first().map(|(k, _)| k.clone()));
    let driver = driver.unwrap_or_default();
    let elsewhere = ["vfio-", "vhost-user-", "vhost-scsi", "vhost-vdpa"];
    if elsewhere.iter().any(|p| driver.starts_with(p)) {
        let id = field(fields, "id").map_or(String::new(), |id| format!(" {id}"));
        return Adapted::Refused(format!(
            "its device{id} ({driver}) keeps its state in another process or in hardware, which \
             no checkpoint holds"
        ));
    }
    if field(fields, "vhostfd").is_none() {
        return Adapted::Kept;
    }
    // A vsock whose descriptor was opened by somebody else: QEMU opens one itself.
    match serde_json::from_str(value) {
        Ok(serde_json::Value::Object(mut object)) => {
            object.remove("vhostfd");
            changed_to("device", serde_json::Value::Object(object).to_string())
        }
        _ => {
            let kept = parts(value).into_iter().filter(|p| !p.starts_with("vhostfd="));
            changed("device", &kept.collect::<Vec<_>>())
        }
    }
}

#[cfg(test)]
#[path = "devices_tests.rs"]
mod tests;
