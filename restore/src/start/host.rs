//! What a copy would use of the host that it is started on, because the journal says so. A journal may
//! come from anywhere; what it names is run by root.
//!
//! | of the journal | of the copy |
//! |---|---|
//! | scripts, helpers and commands of networks | none: a network of its own, which nothing attaches |
//! | options that run code, read options or write files (`-plugin`, `-readconfig`, `-D`, ..) | left out |
//! | pipes and host devices behind serial ports | nothing is behind them |
//! | firmware of the system; files that every user may read, opened to be read | as they were, and shown |
//! | any other file, directory or device; options that are not known here | the script refuses to run |
//!
//! What always holds: an option that is kept names no file but the copy's own and those two kinds, or the
//! script stops before QEMU is started and says what it would have used.

use super::devices::Place;
use super::option::{field, fields, joined, name, parts};
use std::collections::BTreeSet;
use std::path::{Component, Path};

/// What becomes of an option, by what it uses of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Use {
    /// Nothing.
    None,
    /// Files that are read, which anybody may read.
    Shown(Vec<String>),
    /// It is another one.
    Changed(Vec<String>),
    /// It is left out.
    Dropped,
    /// Nobody but the operator can tell whether the copy may have it.
    Asked(Vec<String>),
}

/// Options that run code, take options from files, write files, or share what is the host's.
const LEFT_OUT: &[&str] = &[
    "plugin",
    "readconfig",
    "writeconfig",
    "D",
    "d",
    "dfilter",
    "trace",
    "dump-vmstate",
    "perfmap",
    "jitdump",
    "virtfs",
    "virtfs_synth",
    "fsdev",
    "tpmdev",
    "incoming",
    "iscsi",
    "xen-attach",
    "xen-domid",
];

/// Options whose values name nothing of the host.
const HARMLESS: &[&str] = &[
    "action",
    "append",
    "boot",
    "compat",
    "cpu",
    "display",
    "echr",
    "enable-kvm",
    "full-screen",
    "h",
    "help",
    "icount",
    "k",
    "m",
    "mem-prealloc",
    "msg",
    "name",
    "no-acpi",
    "no-fd-bootchk",
    "no-hpet",
    "no-reboot",
    "no-shutdown",
    "no-user-config",
    "nodefaults",
    "nographic",
    "numa",
    "only-migratable",
    "overcommit",
    "realtime",
    "rtc",
    "run-with",
    "runas",
    "S",
    "sandbox",
    "seed",
    "singlestep",
    "smp",
    "usb",
    "uuid",
    "version",
    "vga",
    "watchdog",
    "watchdog-action",
    "win2k-hack",
    "balloon",
    "snapshot",
    "enable-sync-profile",
    "preconfig",
    "daemonize",
    "s",
    "spice",
    "vnc",
    "g",
    "no-quit",
    "alt-grab",
    "ctrl-grab",
];

/// Options whose values may name files, looked through field by field.
const WITH_FIELDS: &[&str] = &[
    "drive",
    "blockdev",
    "device",
    "object",
    "machine",
    "M",
    "netdev",
    "nic",
    "net",
    "chardev",
    "serial",
    "parallel",
    "debugcon",
    "audio",
    "audiodev",
    "smbios",
    "fw_cfg",
    "acpitable",
    "add-fd",
    "mon",
    "accel",
    "global",
];

/// Options whose whole value is a file that is read.
const READ: &[&str] = &["kernel", "initrd", "dtb", "shim", "bios", "cdrom", "L", "option-rom"];
/// Options whose whole value is a file that is written, too.
const WRITTEN: &[&str] =
    &["hda", "hdb", "hdc", "hdd", "fda", "fdb", "pflash", "mtdblock", "sd", "mem-path"];

/// Fields that name files, directories or devices, whatever is in them.
const PATHS: &[&str] = &[
    "file",
    "filename",
    "path",
    "romfile",
    "rootdir",
    "evdev",
    "hidraw",
    "dir",
    "logfile",
    "sock",
    "splash",
    "kernel",
    "initrd",
    "dtb",
    "firmware",
    "dumpdtb",
    "data-file",
    "shm",
    "chroot",
    "host_device",
    "sysfsdev",
    "hostdevice",
];

/// Where the system's packages keep what guests boot from.
const FIRMWARE_DIRS: &[&str] = &["/usr/share", "/usr/lib", "/usr/lib64", "/usr/local/share"];
/// Devices that any guest may have.
const DEVICES: &[&str] =
    &["/dev/urandom", "/dev/random", "/dev/kvm", "/dev/vhost-net", "/dev/vhost-vsock"];

/// Looks at the options of a copy.
pub(super) struct Look<'a> {
    place: &'a Place<'a>,
    /// Nodes that are only read: those that lie below a read-only node.
    read_only: BTreeSet<String>,
}

impl<'a> Look<'a> {
    pub(super) fn new(place: &'a Place<'a>, options: &[Vec<String>]) -> Self {
        let blockdevs =
            options.iter().filter(|o| o.first().and_then(|f| name(f)) == Some("blockdev"));
        let read_only = blockdevs
            .filter_map(|o| Some(flat(o.get(1)?)))
            .filter(|f| is_read_only(f))
            .filter_map(|f| field(&f, "file"))
            .collect();
        Self { place, read_only }
    }

    /// Whether a file is the copy's: an image, a socket or a log that was made for it.
    fn is_own(&self, path: &Path) -> bool {
        let file = path.file_name().and_then(|f| f.to_str()).unwrap_or_default();
        let is_named =
            file.strip_prefix(self.place.name).is_some_and(|f| f.starts_with(['-', '.']));
        path.parent() == Some(self.place.dir) && is_named
    }

    /// What an option uses.
    pub(super) fn of(&self, option: &[String]) -> Use {
        let Some(flag) = option.first() else { return Use::None };
        let Some(name) = name(flag) else {
            // A plain argument is an image.
            return self.asked_for(&[(true, flag.clone())]);
        };
        let value = option.get(1).map_or("", String::as_str);
        let fields = flat(value);
        match name {
            _ if LEFT_OUT.contains(&name) => Use::Dropped,
            "boot" => self.asked_for(&self.named(name, &fields)),
            "append" | "name" => Use::None,
            _ if HARMLESS.contains(&name) && value.starts_with('/') => {
                self.asked_for(&[(true, value.to_owned())])
            }
            _ if HARMLESS.contains(&name) => Use::None,
            _ if READ.contains(&name) => self.asked_for(&[(false, value.to_owned())]),
            _ if WRITTEN.contains(&name) => self.asked_for(&[(true, value.to_owned())]),
            "netdev" | "nic" | "net" => match network(name, value) {
                Some(new) => Use::Changed(new),
                None => self.asked_for(&self.named(name, &fields)),
            },
            "chardev" if is_host_line(&fields) => {
                let id = field(&fields, "id").unwrap_or_default();
                Use::Changed(vec![flag.clone(), joined(&["null".to_owned(), format!("id={id}")])])
            }
            "serial" | "parallel" | "debugcon" => self.line(flag, value),
            "device" if is_of_host(&fields) => Use::Asked(vec![format!("-device {value}")]),
            _ if WITH_FIELDS.contains(&name) => self.asked_for(&self.named(name, &fields)),
            _ => Use::Asked(vec![format!("the option {}", option.join(" "))]),
        }
    }

    /// A serial or parallel line without a chardev of its own.
    fn line(&self, flag: &str, value: &str) -> Use {
        let bare = value.strip_prefix("mon:").unwrap_or(value);
        if bare.starts_with('/') || bare.starts_with("pipe:") {
            return Use::Changed(vec![flag.to_owned(), "null".to_owned()]);
        }
        let path = bare.strip_prefix("file:").or_else(|| bare.strip_prefix("unix:"));
        let path = path.map(|p| parts(p).swap_remove(0));
        path.map_or(Use::None, |path| self.asked_for(&[(true, path)]))
    }

    /// The files that some fields name, and whether they are written.
    fn named(&self, flag: &str, fields: &[(String, String)]) -> Vec<(bool, String)> {
        let is_read = match flag {
            "fw_cfg" | "smbios" | "acpitable" | "boot" | "machine" | "M" => true,
            "device" => field(fields, "rootdir").is_none(),
            "drive" => is_read_only(fields) || field(fields, "media").as_deref() == Some("cdrom"),
            "blockdev" => {
                let node = field(fields, "node-name");
                is_read_only(fields) || node.is_some_and(|node| self.read_only.contains(&node))
            }
            _ => false,
        };
        let mut found = Vec::new();
        for (key, value) in fields {
            let last = key.rsplit('.').next().unwrap_or(key);
            let is_node = flag == "blockdev" && ["file", "data-file"].contains(&last);
            let by_name = PATHS.contains(&last) && !is_node;
            let is_id = ["/objects/", "/machine/"].iter().any(|p| value.starts_with(p));
            if (by_name && !value.is_empty()) || (value.starts_with('/') && !is_id) {
                let writes = !is_read || ["dumpdtb", "logfile"].contains(&last);
                found.push((writes, value.clone()));
            }
        }
        let driver = |(key, _): &&(String, String)| key.rsplit('.').next() == Some("driver");
        let far = fields.iter().filter(driver).map(|(_, v)| v.as_str()).find(|d| is_far(d));
        if flag == "blockdev" || flag == "drive" {
            // What is over a network is nobody's file.
            let own = fields.iter().any(|(_, v)| self.is_own(Path::new(v)));
            found.extend(far.filter(|_| !own).map(|d| (true, format!("{d}:"))));
        }
        found
    }

    /// What is to be said of files, each with whether it is written.
    fn asked_for(&self, files: &[(bool, String)]) -> Use {
        let (mut asked, mut shown) = (Vec::new(), Vec::new());
        for (writes, file) in files {
            let bare = file.strip_prefix("file:").unwrap_or(file);
            let path = Path::new(bare);
            let is_plain =
                path.is_absolute() && !path.components().any(|c| c == Component::ParentDir);
            let is_firmware = FIRMWARE_DIRS.iter().any(|dir| path.starts_with(dir));
            if is_plain && (self.is_own(path) || DEVICES.contains(&bare)) {
                continue;
            }
            match is_plain && !writes && (is_firmware || (self.place.is_public)(path)) {
                true => shown.push(bare.to_owned()),
                false => asked.push(bare.to_owned()),
            }
        }
        match (asked.is_empty(), shown.is_empty()) {
            (false, _) => Use::Asked(asked),
            (true, false) => Use::Shown(shown),
            (true, true) => Use::None,
        }
    }
}

/// Fields of a value, those of nested objects with dots.
fn flat(value: &str) -> Vec<(String, String)> {
    fn add(prefix: &str, json: &serde_json::Value, out: &mut Vec<(String, String)>) {
        match json {
            serde_json::Value::Object(object) => {
                for (key, value) in object {
                    let dot = if prefix.is_empty() { "" } else { "." };
                    add(&format!("{prefix}{dot}{key}"), value, out);
                }
            }
            serde_json::Value::Array(all) => all.iter().for_each(|v| add(prefix, v, out)),
            serde_json::Value::String(text) => out.push((prefix.to_owned(), text.clone())),
            other => out.push((prefix.to_owned(), other.to_string())),
        }
    }
    match serde_json::from_str::<serde_json::Value>(value) {
        Ok(json @ serde_json::Value::Object(_)) => {
            let mut out = Vec::new();
            add("", &json, &mut out);
            out
        }
        _ => fields(value),
    }
}

fn is_on(value: &str) -> bool {
    ["on", "true", "yes"].contains(&value)
}

fn is_read_only(fields: &[(String, String)]) -> bool {
    let keys = ["read-only", "readonly"];
    keys.iter().any(|key| field(fields, key).is_some_and(|v| is_on(&v)))
}

/// Whether a block driver gets its data from somewhere else, or from a directory.
fn is_far(driver: &str) -> bool {
    [
        "nbd", "ssh", "http", "https", "ftp", "ftps", "iscsi", "rbd", "nfs", "gluster", "vvfat",
        "nvme", "sheepdog",
    ]
    .contains(&driver)
        || driver.starts_with("virtio-blk-")
}

/// Whether a chardev is a pipe or a line of the host.
fn is_host_line(fields: &[(String, String)]) -> bool {
    let kind = field(fields, "backend").or_else(|| fields.first().map(|(k, _)| k.clone()));
    ["pipe", "serial", "tty", "parallel", "parport"].contains(&kind.as_deref().unwrap_or_default())
}

/// Whether a device is one of the host's.
fn is_of_host(fields: &[(String, String)]) -> bool {
    let driver = field(fields, "driver").or_else(|| fields.first().map(|(k, _)| k.clone()));
    let driver = driver.unwrap_or_default();
    [
        "vfio-",
        "usb-host",
        "pci-assign",
        "u2f-passthru",
        "ccid-card-passthru",
        "vhost-vdpa",
        "scsi-generic",
        "scsi-block",
    ]
    .iter()
    .any(|kind| driver.starts_with(kind))
}

/// A network without what it runs or shares; `None`: it has nothing of that.
fn network(flag: &str, value: &str) -> Option<Vec<String>> {
    let fields = fields(value);
    let runs =
        ["script", "downscript", "helper", "guestfwd", "smb", "smbserver", "bootfile", "tftp"];
    let harmless = |(key, value): &(String, String)| {
        let key = key.split('.').next().unwrap_or(key);
        !runs.contains(&key) || (["script", "downscript"].contains(&key) && value == "no")
    };
    if fields.iter().all(harmless) {
        return None;
    }
    let kind = field(&fields, "type").or_else(|| fields.first().map(|(k, _)| k.clone()));
    if let Ok(serde_json::Value::Object(mut object)) = serde_json::from_str(value) {
        object.retain(|key, _| !runs.contains(&key.as_str()));
        if kind.as_deref() == Some("tap") {
            object.insert("script".into(), "no".into());
            object.insert("downscript".into(), "no".into());
        }
        return Some(vec![format!("-{flag}"), serde_json::Value::Object(object).to_string()]);
    }
    let text =
        |(k, v): &(String, String)| if v.is_empty() { k.clone() } else { format!("{k}={v}") };
    let kept = fields.iter().filter(|(k, _)| !runs.contains(&k.as_str())).map(text);
    let mut kept: Vec<String> = kept.collect();
    if kind.as_deref() == Some("tap") {
        kept.extend(["script=no".to_owned(), "downscript=no".to_owned()]);
    }
    Some(vec![format!("-{flag}"), joined(&kept)])
}

#[cfg(test)]
#[path = "host_tests.rs"]
mod tests;
