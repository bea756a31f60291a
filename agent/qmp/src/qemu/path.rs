//! Which nodes each device's I/O passes, from the device down: one stable, cheap command.
//!
//! `query-blockstats` names, for each device, the node that it is plugged into and the nodes below. A
//! filter has one child, which stands there twice, as its `parent` (the file) and as its `backing`; a
//! format has two different ones, or a file alone. So the walk down goes on for as long as a node is a
//! filter: what the device writes reaches every node of the walk.

use serde_json::{Value, json};

use super::{Disk, DiskIdentity, Qemu};
use crate::Result;

/// Nodes of a walk at most: QEMU's graphs are a few nodes deep.
const NODES_MAX: usize = 64;

/// A device, and what it writes through.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DevicePath {
    /// The path of the device, where it is plugged into one.
    pub qdev: Option<String>,
    /// The name given by `-drive id=`, where it has one.
    pub device: Option<String>,
    /// The nodes that its writes pass, from the device down to the first that is no filter. Empty: no
    /// medium.
    pub nodes: Vec<String>,
}

impl DevicePath {
    fn read(entry: &Value) -> DevicePath {
        let text =
            |of: &Value, key: &str| of[key].as_str().filter(|s| !s.is_empty()).map(str::to_owned);
        let mut nodes = Vec::new();
        let mut at = entry;
        while let Some(name) = text(at, "node-name").filter(|_| nodes.len() < NODES_MAX) {
            nodes.push(name);
            let below = ["parent", "backing"].map(|child| at[child]["node-name"].as_str());
            if below[0].is_none() || below[0] != below[1] {
                break;
            }
            at = &at["parent"];
        }
        DevicePath { qdev: text(entry, "qdev"), device: text(entry, "device"), nodes }
    }

    /// Whether this is the device that `identity` means.
    pub fn is(&self, identity: &DiskIdentity) -> bool {
        match identity {
            DiskIdentity::Qdev(path) => self.qdev.as_ref() == Some(path),
            DiskIdentity::Device(id) => self.qdev.is_none() && self.device.as_ref() == Some(id),
            DiskIdentity::Node(name) => self.nodes.contains(name),
        }
    }

    /// Whether all that the device writes passes `node`.
    pub fn passes(&self, node: &str) -> bool {
        self.nodes.iter().any(|n| n == node)
    }

    /// Whether `disk` is this device's.
    pub fn is_of(&self, disk: &Disk) -> bool {
        self.is(&disk.identity)
    }
}

impl Qemu {
    /// The guest's devices and what they write through.
    pub async fn device_paths(&self) -> Result<Vec<DevicePath>> {
        let devices = self.run_list("query-blockstats", json!({})).await?;
        Ok(devices.iter().map(DevicePath::read).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(entry: Value) -> DevicePath {
        DevicePath::read(&entry)
    }

    #[test]
    fn a_walk_goes_through_filters_and_ends_at_the_first_format() {
        let file = json!({ "node-name": "file0" });
        let disk =
            json!({ "node-name": "disk0", "parent": file, "backing": { "node-name": "base" } });
        let ours = json!({ "node-name": "ai-x-filter", "parent": disk, "backing": disk });
        let above = json!({
            "qdev": "/machine/peripheral/va/virtio-backend", "device": "",
            "node-name": "throttle0", "parent": ours, "backing": ours,
        });
        let path = read(above);
        assert_eq!(path.nodes, ["throttle0", "ai-x-filter", "disk0"]);
        assert_eq!(path.device, None);
        assert!(path.passes("ai-x-filter") && !path.passes("base") && !path.passes("file0"));
    }

    #[test]
    fn an_overlay_over_our_filter_does_not_pass_it() {
        let ours = json!({ "node-name": "ai-x-filter" });
        let overlay =
            json!({ "node-name": "top", "parent": { "node-name": "f" }, "backing": ours });
        assert_eq!(read(overlay).nodes, ["top"]);
        assert_eq!(read(json!({ "device": "cd0" })).nodes, [""; 0]);
    }

    #[test]
    fn a_device_is_known_by_the_best_name_that_it_has() {
        let path = DevicePath {
            qdev: Some("/machine/a".into()),
            device: Some("disk0".into()),
            nodes: vec!["n".into()],
        };
        assert!(path.is(&DiskIdentity::Qdev("/machine/a".into())));
        assert!(!path.is(&DiskIdentity::Qdev("/machine/b".into())));
        assert!(!path.is(&DiskIdentity::Device("disk0".into())), "it is plugged into a device now");
    }
}
