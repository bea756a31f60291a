//! QEMU's arguments as options with their values, and the fields of a value. Pure text.

use serde_json::Value;

/// Options without a value.
const FLAGS: &[&str] = &[
    "S",
    "daemonize",
    "no-reboot",
    "no-shutdown",
    "nographic",
    "nodefaults",
    "no-user-config",
    "snapshot",
    "enable-kvm",
    "no-acpi",
    "no-hpet",
    "no-fd-bootchk",
    "full-screen",
    "preconfig",
    "enable-sync-profile",
    "only-migratable",
    "mem-prealloc",
    "usb",
    "singlestep",
    "s",
    "version",
];

/// Groups arguments into options with their values; the program comes first.
pub(super) fn split(args: &[String]) -> Vec<Vec<String>> {
    let mut options: Vec<Vec<String>> = Vec::new();
    let mut args = args.iter().peekable();
    match args.peek() {
        Some(first) if !first.starts_with('-') => {
            options.push(args.next().into_iter().cloned().collect());
        }
        _ => options.push(vec!["qemu-system-x86_64".into()]),
    }
    while let Some(arg) = args.next() {
        let mut option = vec![arg.clone()];
        // An option that isn't known to take none: what looks like an option is no value.
        if name(arg).is_some_and(|n| !FLAGS.contains(&n))
            && let Some(value) = args.next_if(|v| name(v).is_none())
        {
            option.push(value.clone());
        }
        options.push(option);
    }
    options
}

pub(super) fn name(arg: &str) -> Option<&str> {
    arg.strip_prefix('-').map(|n| n.strip_prefix('-').unwrap_or(n)).filter(|n| !n.is_empty())
}

/// The fields of a value: JSON, or `a,b=c` where a doubled comma is a comma.
pub(crate) fn fields(value: &str) -> Vec<(String, String)> {
    if let Ok(Value::Object(object)) = serde_json::from_str(value) {
        let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
        return object.iter().map(|(k, v)| (k.clone(), text(v))).collect();
    }
    let part = |p: String| match p.split_once('=') {
        Some((k, v)) => (k.to_owned(), v.to_owned()),
        None => (p, String::new()),
    };
    parts(value).into_iter().map(part).collect()
}

pub(crate) fn field(fields: &[(String, String)], key: &str) -> Option<String> {
    fields.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone())
}

pub(super) fn parts(value: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = value.chars().peekable();
    while let Some(c) = chars.next() {
        if c == ',' && chars.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(last) = parts.last_mut() {
            last.push(c);
        }
    }
    parts
}

/// Parts as one value, commas in them doubled.
pub(super) fn joined(parts: &[String]) -> String {
    parts.iter().map(|p| p.replace(',', ",,")).collect::<Vec<_>>().join(",")
}
