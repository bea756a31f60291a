//! QEMU's arguments with the disk images replaced, and without what ties them to the original's
//! surroundings: monitors, sockets, inherited file descriptors.

use super::RestoredDisk;
use super::devices::{self, Adapted, Place};
use super::host::{Look, Use};
use super::option::{field, fields, joined, name, parts, split};
use super::program;
use crate::plan::Format;
use afterimage_planted as planted;
use serde_json::Value;
use std::collections::BTreeSet;

/// A command line for a copy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CommandLine {
    /// The program and its arguments, an option and its value together.
    pub kept: Vec<Vec<String>>,
    /// Options that a copy can't use.
    pub dropped: Vec<Vec<String>>,
    /// Options that were given another backend, as they were and as they are.
    pub changed: Vec<(Vec<String>, Vec<String>)>,
    /// What of it can't be in a copy that resumes, and why.
    pub refused: Vec<String>,
    /// Images of the guest that are still named in it, or whose place was not found.
    pub unreplaced: Vec<String>,
    /// Files of the host that it reads, and anybody may read.
    pub shown: Vec<String>,
    /// What else it uses of the host: the operator has to decide.
    pub asked: Vec<String>,
}

/// What runs a copy whose original was run by no QEMU.
pub(crate) const DEFAULT_PROGRAM: &str = "qemu-system-x86_64";

/// Options that mean nothing for a copy, or that would take what is the original's.
pub(super) const TIED: &[&str] = &[
    "S",
    "daemonize",
    "pidfile",
    "qmp",
    "qmp-pretty",
    "monitor",
    "mon",
    "incoming",
    "add-fd",
    "gdb",
    "s",
    "preconfig",
];

/// Rewrites a command line for a copy that boots: what it wrote to files and the memory that it had in
/// one are the original's, which may run.
pub(crate) fn rewrite(
    args: &[String],
    disks: &[RestoredDisk<'_>],
    format: Format,
    place: &Place<'_>,
) -> CommandLine {
    let options = split(args);
    let mut devices = devices::Devices::of(&options, place);
    let gone: BTreeSet<(String, String)> = options.iter().filter_map(|o| backend(o)).collect();
    let adapt = |option: &[String]| match is_tied(option) || uses(option, &gone) {
        true => Adapted::Dropped,
        false => devices.adapt_files(option),
    };
    let mut line = replaced(options, adapt, disks, format);
    confine(&mut line, place);
    line
}

/// Rewrites a command line for a copy that resumes: it keeps every device, whatever is behind it,
/// and gets the machine type that the stream was made on.
pub(crate) fn rewrite_to_resume(
    args: &[String],
    disks: &[RestoredDisk<'_>],
    format: Format,
    place: &Place<'_>,
) -> CommandLine {
    let options = split(args);
    let mut devices = devices::Devices::of(&options, place);
    let mut line = replaced(options, |option| devices.adapt(option), disks, format);
    if let Some(machine) = devices.unnamed_machine() {
        let option = vec!["-machine".to_owned(), machine];
        line.changed.push((Vec::new(), option.clone()));
        line.kept.push(option);
    }
    confine(&mut line, place);
    line
}

/// Takes out what a journal may not decide, and notes what only the operator can.
fn confine(line: &mut CommandLine, place: &Place<'_>) {
    if planted::is("journal-decides-what-runs") {
        return;
    }
    let kept = std::mem::take(&mut line.kept);
    let look = Look::new(place, &kept);
    for (i, option) in kept.into_iter().enumerate() {
        if i == 0 {
            line.kept.push(confined_program(option, &mut line.changed, &mut line.asked));
            continue;
        }
        match look.of(&option) {
            Use::Dropped => {
                line.dropped.push(option);
                continue;
            }
            Use::Changed(new) => {
                line.changed.push((option, new.clone()));
                line.kept.push(new);
                continue;
            }
            Use::Shown(files) => line.shown.extend(files),
            Use::Asked(what) => line.asked.extend(what),
            Use::None => {}
        }
        line.kept.push(option);
    }
}

fn confined_program(
    option: Vec<String>,
    changed: &mut Vec<(Vec<String>, Vec<String>)>,
    asked: &mut Vec<String>,
) -> Vec<String> {
    let named = option.first().map(String::as_str).unwrap_or_default();
    let runs = program::in_script(named).unwrap_or_else(|what| {
        asked.push(what);
        DEFAULT_PROGRAM.to_owned()
    });
    if runs == named {
        return option;
    }
    let new = vec![runs];
    changed.push((option, new.clone()));
    new
}

/// The options that `adapt` leaves, with the disks' images replaced.
fn replaced(
    options: Vec<Vec<String>>,
    mut adapt: impl FnMut(&[String]) -> Adapted,
    disks: &[RestoredDisk<'_>],
    format: Format,
) -> CommandLine {
    let mut line = CommandLine::default();
    let mut replaced = BTreeSet::new();
    let mut files = BTreeSet::new();
    let mut kept = Vec::new();
    for option in options {
        let option = match adapt(&option) {
            Adapted::Kept => option,
            Adapted::Dropped => {
                line.dropped.push(option);
                continue;
            }
            Adapted::Changed(new) => {
                line.changed.push((option, new.clone()));
                new
            }
            Adapted::Refused(why) => {
                line.refused.push(why);
                option
            }
        };
        kept.push(replace(option, disks, format, &mut replaced, &mut files));
    }
    // A format node that names the file's node is another option, before or behind it.
    line.kept = kept.into_iter().map(|o| adapt_format_node(o, &files, format)).collect();
    for disk in disks {
        let source = &disk.volume.source;
        if disk.replacement().is_none() || !replaced.contains(source) {
            let named = if source.is_empty() { &disk.volume.node } else { source };
            line.unreplaced.push(named.clone());
        }
    }
    line
}

/// Whether the value of a `-chardev` describes a socket.
fn is_socket(value: &str) -> bool {
    let fields = fields(value);
    let kind = field(&fields, "backend").or_else(|| fields.first().map(|(k, _)| k.clone()));
    kind.as_deref() == Some("socket")
}

fn is_tied(option: &[String]) -> bool {
    let Some(name) = option.first().and_then(|o| name(o)) else { return false };
    let value = option.get(1).map_or("", String::as_str);
    let socket = |v: &str| ["unix:", "tcp:", "telnet:"].iter().any(|p| v.starts_with(p));
    TIED.contains(&name)
        || (name == "chardev" && is_socket(value))
        || (["serial", "parallel", "vnc"].contains(&name) && socket(value))
        || (name == "spice" && value.contains("unix"))
        || (name == "object" && value.contains("secret") && value.contains("file"))
        || (name == "netdev" && fields(value).iter().any(|(k, _)| k == "fd" || k == "fds"))
}

/// The kind and id of a backend that is left out.
fn backend(option: &[String]) -> Option<(String, String)> {
    let [flag, value] = option else { return None };
    let kind = name(flag).filter(|n| ["chardev", "netdev"].contains(n) && is_tied(option))?;
    Some((kind.to_owned(), field(&fields(value), "id")?))
}

/// Whether an option is about a backend that is left out.
fn uses(option: &[String], gone: &BTreeSet<(String, String)>) -> bool {
    let Some(value) = option.get(1) else { return false };
    let mut used: Vec<(String, String)> = fields(value);
    used.extend(value.strip_prefix("chardev:").map(|id| ("chardev".into(), id.to_owned())));
    used.iter().any(|use_of| gone.contains(use_of))
}

/// Replaces a disk's image in an option. `replaced` gets the images found, `files` the names of
/// the file nodes that were replaced.
fn replace(
    mut option: Vec<String>,
    disks: &[RestoredDisk<'_>],
    format: Format,
    replaced: &mut BTreeSet<String>,
    files: &mut BTreeSet<String>,
) -> Vec<String> {
    let Some(value) = option.get(1).cloned() else {
        // The image as QEMU's only plain argument.
        if let Some(new) = option.first().and_then(|v| find(disks, v)) {
            replaced.insert(option[0].clone());
            let file = new.replace(',', ",,");
            return vec!["-drive".into(), format!("file={file},format={}", format.as_str())];
        }
        return option;
    };
    if let Ok(mut json @ Value::Object(_)) = serde_json::from_str::<Value>(&value) {
        replace_json(&mut json, disks, format, replaced, files);
        option[1] = json.to_string();
        return option;
    }
    if let Some(new) = find(disks, &value) {
        replaced.insert(value);
        option[1] = new;
        return option;
    }
    let mut all = parts(&value);
    let mut found = false;
    for part in &mut all {
        let Some((key, file)) = part.split_once('=') else { continue };
        if !(key == "file" || key == "filename" || key.ends_with(".filename")) {
            continue;
        }
        if let Some(new) = find(disks, file) {
            found = true;
            replaced.insert(file.to_owned());
            *part = format!("{key}={new}");
        }
    }
    if found {
        adapt_parts(&mut all, name(&option[0]) == Some("drive"), format, files);
        option[1] = joined(&all);
    }
    option
}

fn find(disks: &[RestoredDisk<'_>], file: &str) -> Option<String> {
    let file = file.strip_prefix("file:").unwrap_or(file);
    disks.iter().filter_map(RestoredDisk::replacement).find(|(s, _)| *s == file).map(|(_, n)| n)
}

const FORMATS: &[&str] = &["raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vhdx", "vpc"];

fn adapt_parts(
    parts: &mut Vec<String>,
    is_drive: bool,
    format: Format,
    files: &mut BTreeSet<String>,
) {
    let key = |p: &str| p.split_once('=').map_or(p.to_owned(), |(k, _)| k.to_owned());
    let is_format = |p: &String| {
        p.split_once('=').is_some_and(|(k, v)| {
            (k == "format" && is_drive) || (k == "driver" && FORMATS.contains(&v))
        })
    };
    let mut has = false;
    for part in parts.iter_mut().filter(|p| is_format(p)) {
        has = true;
        *part = format!("{}={}", key(part), format.as_str());
    }
    if is_drive && !has {
        parts.push(format!("format={}", format.as_str()));
    }
    if !has && let Some(node) = parts.iter().find_map(|p| p.strip_prefix("node-name=")) {
        files.insert(node.to_owned());
    }
    if format == Format::Raw {
        parts.retain(|p| !is_qcow2_only(&key(p)));
    }
    parts.retain(|p| !key(p).starts_with("backing"));
}

fn is_qcow2_only(key: &str) -> bool {
    let key = key.strip_prefix("file.").map_or(key, |_| "");
    [
        "lazy-refcounts",
        "pass-discard",
        "overlap-check",
        "l2-cache",
        "refcount-cache",
        "cache-size",
        "cache-clean",
        "discard-no-unref",
        "encrypt",
        "data-file",
    ]
    .iter()
    .any(|p| key.starts_with(p))
}

fn replace_json(
    json: &mut Value,
    disks: &[RestoredDisk<'_>],
    format: Format,
    replaced: &mut BTreeSet<String>,
    files: &mut BTreeSet<String>,
) -> bool {
    let Value::Object(object) = json else { return false };
    let mut below = false;
    for (_, value) in object.iter_mut() {
        below |= replace_json(value, disks, format, replaced, files);
    }
    if below && is_format_node(object) {
        set_format(object, format);
    }
    let old = object.get("filename").and_then(Value::as_str).map(str::to_owned);
    let Some((old, new)) = old.and_then(|old| Some((old.clone(), find(disks, &old)?))) else {
        return false;
    };
    replaced.insert(old);
    object.insert("filename".into(), new.into());
    if let Some(node) = object.get("node-name").and_then(Value::as_str) {
        files.insert(node.to_owned());
    }
    true
}

fn is_format_node(object: &serde_json::Map<String, Value>) -> bool {
    object.get("driver").and_then(Value::as_str).is_some_and(|d| FORMATS.contains(&d))
}

fn set_format(object: &mut serde_json::Map<String, Value>, format: Format) {
    object.insert("driver".into(), format.as_str().into());
    object.remove("backing");
    if format == Format::Raw {
        object.retain(|key, _| !is_qcow2_only(key));
    }
}

fn adapt_format_node(
    mut option: Vec<String>,
    files: &BTreeSet<String>,
    format: Format,
) -> Vec<String> {
    let [flag, value] = &mut option[..] else { return option };
    if name(flag) != Some("blockdev") {
        return option;
    }
    if let Ok(Value::Object(mut object)) = serde_json::from_str::<Value>(value) {
        let names = object.get("file").and_then(Value::as_str).is_some_and(|f| files.contains(f));
        if names && is_format_node(&object) {
            set_format(&mut object, format);
            *value = Value::Object(object).to_string();
        }
        return option;
    }
    let mut all = parts(value);
    let names = all.iter().any(|p| p.strip_prefix("file=").is_some_and(|f| files.contains(f)));
    if names {
        adapt_parts(&mut all, false, format, &mut BTreeSet::new());
        *value = joined(&all);
    }
    option
}
