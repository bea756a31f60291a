//! The disks of a guest.
//!
//! What is told here of a disk is told of its own node, even while a job's filter stands on it.
//! Node names like `#block123` are new at each boot, so a disk's identity is the qdev path of its
//! device, which stays as long as the machine is put together the same way.

use std::fmt;

use serde_json::{Value, json};

use super::{Bitmap, Qemu};
use crate::{Error, Result};

/// What a disk is recognised by when its guest is started again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DiskIdentity {
    /// The path of its device, such as `/machine/peripheral/va/virtio-backend`.
    Qdev(String),
    /// The name given by `-drive id=`.
    Device(String),
    /// The name given by `-blockdev node-name=`.
    Node(String),
}

impl fmt::Display for DiskIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DiskIdentity::Qdev(path) => write!(f, "qdev:{path}"),
            DiskIdentity::Device(id) => write!(f, "device:{id}"),
            DiskIdentity::Node(name) => write!(f, "node:{name}"),
        }
    }
}

impl std::str::FromStr for DiskIdentity {
    type Err = Error;

    fn from_str(text: &str) -> Result<DiskIdentity> {
        match text.split_once(':') {
            Some(("qdev", path)) => Ok(DiskIdentity::Qdev(path.to_owned())),
            Some(("device", id)) => Ok(DiskIdentity::Device(id.to_owned())),
            Some(("node", name)) => Ok(DiskIdentity::Node(name.to_owned())),
            _ => Err(Error::BadName {
                name: text.to_owned(),
                what: "disk",
                why: "it must begin with qdev:, device: or node:",
            }),
        }
    }
}

/// One disk of a running guest.
#[derive(Debug, Clone, PartialEq)]
pub struct Disk {
    /// What it is recognised by at the next boot.
    pub identity: DiskIdentity,
    /// The path of its device, where it is plugged into one.
    pub qdev: Option<String>,
    /// The name given by `-drive id=`, where it has one.
    pub device: Option<String>,
    /// Its node, the one to mirror, export and put bitmaps on. `#block123` is new at each boot.
    pub node: String,
    /// The filter that a job has put above its node, when one has.
    pub filter: Option<String>,
    /// The job that mirrors or copies it, when one does. While there is one, no other can start.
    pub job: Option<String>,
    /// Its image file as QEMU names it.
    pub file: String,
    /// Its format: `raw`, `qcow2`, ...
    pub driver: String,
    /// Its size as the guest sees it, in bytes.
    pub bytes: u64,
    /// The guest can't write to it.
    pub read_only: bool,
    /// Others may write to its image as well: its device has `share-rw=on`.
    pub shared: bool,
    /// Its image is encrypted (what the guest writes reaches us in the clear).
    pub encrypted: bool,
    /// The named dirty bitmaps of its node.
    pub bitmaps: Vec<Bitmap>,
}

impl Disk {
    /// Whether a bitmap on it survives the end of QEMU.
    pub fn keeps_bitmaps(&self) -> bool {
        self.driver == "qcow2" && !self.read_only
    }

    /// Its name for people: one that a selector can be.
    pub fn name(&self) -> &str {
        let named =
            self.device.as_deref().or(self.qdev_id().filter(|_| self.node.starts_with('#')));
        named.unwrap_or(&self.node)
    }

    /// The device's own name: the last part of its qdev path that somebody chose.
    fn qdev_id(&self) -> Option<&str> {
        let path = self.qdev.as_deref()?;
        let path = path.strip_suffix("/virtio-backend").unwrap_or(path);
        path.rsplit('/').next()
    }

    fn answers_to(&self, selector: &str) -> bool {
        let names = [Some(self.node.as_str()), self.device.as_deref(), self.qdev.as_deref()];
        names.contains(&Some(selector))
            || self.qdev_id() == Some(selector)
            || self.identity.to_string() == selector
    }
}

/// The disks of a guest, and what does not count as one.
#[derive(Debug, Clone, PartialEq)]
pub struct Disks {
    /// In the order of `query-block`.
    pub disks: Vec<Disk>,
    /// Drives that can't be protected.
    pub skipped: Vec<Skipped>,
}

/// A drive that can't be protected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Its best name.
    pub name: String,
    /// Why, in words.
    pub reason: &'static str,
}

impl Disks {
    /// The disk of that node name, `-drive` id, qdev path or id, or [`DiskIdentity`].
    pub fn find(&self, selector: &str) -> Result<&Disk> {
        let matching: Vec<_> = self.disks.iter().filter(|d| d.answers_to(selector)).collect();
        match matching[..] {
            [disk] => Ok(disk),
            [] => {
                let mut have = in_words(self.disks.iter());
                if let Some(s) = self.skipped.iter().find(|s| s.name == selector) {
                    have = format!("{have} ({} is left out: {})", s.name, s.reason);
                }
                Err(Error::NoSuchDisk { selector: selector.to_owned(), have })
            }
            _ => Err(Error::AmbiguousDisk {
                selector: selector.to_owned(),
                have: in_words(matching.into_iter()),
            }),
        }
    }

    /// The disk that `identity` meant at an earlier boot, if it is there.
    pub fn recognise(&self, identity: &DiskIdentity) -> Option<&Disk> {
        self.disks.iter().find(|d| d.identity == *identity)
    }
}

/// Disks by the names that a person can use for them.
fn in_words<'a>(disks: impl Iterator<Item = &'a Disk>) -> String {
    let words: Vec<_> =
        disks.map(|d| format!("{} ({}, {} bytes)", d.name(), d.file, d.bytes)).collect();
    if words.is_empty() { "no disks".to_owned() } else { words.join(", ") }
}

impl Qemu {
    /// The guest's disks.
    ///
    /// Disks served by vhost-user are not among them: QEMU doesn't know them as block nodes.
    pub async fn disks(&self) -> Result<Disks> {
        let blocks = self.run_list("query-block", Value::Null).await?;
        let nodes = self.run_list("query-named-block-nodes", json!({ "flat": true })).await?;
        let mut found = Disks { disks: Vec::new(), skipped: Vec::new() };
        for block in &blocks {
            let inserted = &block["inserted"];
            if let Some(reason) = not_a_disk(block) {
                found.skipped.push(Skipped { name: best_name(block), reason });
                continue;
            }
            let top = text(inserted, "node-name")
                .ok_or_else(|| Error::shape("query-block", "a drive without `node-name`"))?;
            if let Some(reason) = self.passes_commands(block).await? {
                found.skipped.push(Skipped { name: best_name(block), reason });
                continue;
            }
            let (node, filter, job) = self.own_node(&top, &nodes).await?;
            let info = nodes.iter().find(|n| n["node-name"] == node.as_str()).unwrap_or(inserted);
            let mut disk = read_disk(block, info, node, filter, job)?;
            disk.shared = self.is_shared(block).await?;
            found.disks.push(disk);
        }
        Ok(found)
    }

    /// The disk that `selector` names: see [`Disks::find`].
    pub async fn find_disk(&self, selector: &str) -> Result<Disk> {
        self.disks().await?.find(selector).cloned()
    }

    /// The disk's own node below filters of jobs, the topmost of these, and the job.
    async fn own_node(
        &self,
        top: &str,
        nodes: &[Value],
    ) -> Result<(String, Option<String>, Option<String>)> {
        let is_filter = |name: &str| {
            let node = nodes.iter().find(|n| n["node-name"] == name);
            let driver = node.and_then(|n| n["drv"].as_str()).unwrap_or_default();
            matches!(driver, "mirror_top" | "commit_top" | "copy-before-write")
        };
        if !is_filter(top) {
            return Ok((top.to_owned(), None, None));
        }
        let graph = self.graph().await?;
        let mut at = top;
        // A graph has no circles; one that changes meanwhile is at its end soon.
        for _ in 0..nodes.len() {
            if !is_filter(at) {
                break;
            }
            at = graph.below(at).ok_or_else(|| {
                Error::shape("x-debug-query-block-graph", format!("nothing below the filter {at}"))
            })?;
        }
        let job = graph.job_on(at).map(str::to_owned);
        Ok((at.to_owned(), Some(top.to_owned()), job))
    }

    /// Why a device can't be mirrored that hands SCSI commands to a device of the host: a mirror would
    /// not see them, and its filter, which passes none on, would fail every one of the guest's.
    async fn passes_commands(&self, block: &Value) -> Result<Option<&'static str>> {
        // A virtio disk is none of them, and a question is a process where libvirt has the monitor.
        if text(block, "qdev").is_some_and(|path| path.ends_with("/virtio-backend")) {
            return Ok(None);
        }
        let kind = self.property(block, "type").await?;
        let passes = matches!(kind.as_str(), Some("scsi-block" | "scsi-generic"));
        Ok(passes.then_some("it passes SCSI commands to a device of the host: use scsi-hd"))
    }

    /// Whether a device lets others write to its image. What they write passes no mirror.
    async fn is_shared(&self, block: &Value) -> Result<bool> {
        Ok(self.property(block, "share-rw").await? == Value::Bool(true))
    }

    /// A property of a drive's device; null where it has none of that name, or there is no device.
    async fn property(&self, block: &Value, name: &str) -> Result<Value> {
        let Some(path) = text(block, "qdev") else { return Ok(Value::Null) };
        match self.run("qom-get", json!({ "path": path, "property": name })).await {
            // It was unplugged meanwhile, or has no path of its own.
            Err(Error::Command { .. }) => Ok(Value::Null),
            answer => answer,
        }
    }
}

fn text(of: &Value, key: &str) -> Option<String> {
    of[key].as_str().filter(|s| !s.is_empty()).map(str::to_owned)
}

fn best_name(block: &Value) -> String {
    let named = text(block, "device").or_else(|| text(block, "qdev"));
    named.or_else(|| text(&block["inserted"], "node-name")).unwrap_or_else(|| "?".to_owned())
}

/// Why a drive of `query-block` can't be protected.
fn not_a_disk(block: &Value) -> Option<&'static str> {
    let driver = block["inserted"]["drv"].as_str();
    if !block["inserted"].is_object() {
        Some("nothing is inserted")
    } else if block["removable"] == true {
        Some("its medium can be changed")
    } else if driver == Some("vvfat") {
        Some("it is a folder of the host")
    } else {
        None
    }
}

fn read_disk(
    block: &Value,
    info: &Value,
    node: String,
    filter: Option<String>,
    job: Option<String>,
) -> Result<Disk> {
    let odd = |what: &str| Error::shape("query-block", format!("{node}: {what}"));
    let qdev = text(block, "qdev");
    let device = text(block, "device");
    let identity = match (&qdev, &device) {
        (Some(path), _) => DiskIdentity::Qdev(path.clone()),
        (None, Some(id)) => DiskIdentity::Device(id.clone()),
        (None, None) => DiskIdentity::Node(node.clone()),
    };
    let bytes = info["image"]["virtual-size"].as_u64().ok_or_else(|| odd("no `virtual-size`"))?;
    let driver = text(info, "drv").ok_or_else(|| odd("no `drv`"))?;
    Ok(Disk {
        identity,
        qdev,
        device,
        filter,
        job,
        file: text(info, "file").unwrap_or_default(),
        driver,
        bytes,
        // The filter asks for what the device may do; the node itself tells the truth.
        read_only: info["ro"].as_bool().unwrap_or(false),
        shared: false,
        encrypted: info["encrypted"].as_bool().unwrap_or(false),
        bitmaps: Bitmap::read_all(info),
        node,
    })
}
