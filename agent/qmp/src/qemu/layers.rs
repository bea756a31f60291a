//! What lies below a disk's own image: backing images, as QEMU has them open.
//!
//! A changed-block map, and the times of the image itself, tell nothing of those.

use serde_json::{Value, json};

use super::{Qemu, graph::Graph};
use crate::Result;

/// Nodes below one disk that are looked at, at most.
const NODES_MAX: usize = 4096;

/// All block nodes at one moment.
#[derive(Debug)]
pub struct Layers {
    graph: Graph,
    nodes: Vec<Value>,
}

/// What lies below one disk's own image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Below {
    /// The nodes, from the top down, in an order that depends on nothing but the chain.
    pub nodes: Vec<Layer>,
    /// True if something of it is no backing image: another one may change it, or the guest does.
    pub is_partial: bool,
}

/// A node below a disk's own image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// What it is to the node above it: `backing`, `file`, ...
    pub role: String,
    /// How far below the disk's own node.
    pub depth: usize,
    /// Its driver: a format such as `qcow2`, or `file`, `nbd`, ...
    pub driver: String,
    /// Its size as the node above sees it, in bytes.
    pub bytes: u64,
    /// The file as QEMU names it, of a node that has nothing below.
    pub file: Option<String>,
}

impl Qemu {
    /// Reads which node stands on which.
    pub async fn layers(&self) -> Result<Layers> {
        let nodes = self.run_list("query-named-block-nodes", json!({ "flat": true })).await?;
        Ok(Layers { graph: self.graph().await?, nodes })
    }
}

impl Layers {
    /// What lies below a disk whose own node this is.
    pub fn below(&self, node: &str) -> Below {
        let mut below = Below::default();
        self.own(node, 0, &mut below);
        below
    }

    /// The disk's own storage: the guest changes it.
    fn own(&self, node: &str, depth: usize, below: &mut Below) {
        for (role, child) in self.graph.children(node) {
            match role {
                _ if depth > NODES_MAX => below.is_partial = true,
                "file" => self.own(child, depth + 1, below),
                "backing" => self.fixed(role, child, depth + 1, below),
                _ => below.is_partial = true,
            }
        }
    }

    /// What nobody may change while the disk is in use.
    fn fixed(&self, role: &str, node: &str, depth: usize, below: &mut Below) {
        let children = self.graph.children(node);
        let Some(info) = self.nodes.iter().find(|n| n["node-name"] == node) else {
            below.is_partial = true;
            return;
        };
        if below.nodes.len() >= NODES_MAX {
            below.is_partial = true;
            return;
        }
        let file = info["image"]["filename"].as_str().or(info["file"].as_str());
        below.nodes.push(Layer {
            role: role.to_owned(),
            depth,
            driver: info["drv"].as_str().unwrap_or_default().to_owned(),
            bytes: info["image"]["virtual-size"].as_u64().unwrap_or(0),
            file: file.filter(|_| children.is_empty()).map(str::to_owned),
        });
        for (role, child) in children {
            self.fixed(role, child, depth + 1, below);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nodes as (name, driver), edges as (parent, role, child), by place.
    fn layers(nodes: &[(&str, &str)], edges: &[(usize, &str, usize)]) -> Layers {
        let graph = json!({
            "nodes": nodes.iter().enumerate().map(|(id, (name, _))|
                json!({ "id": id, "name": name, "type": "block-driver" })).collect::<Vec<_>>(),
            "edges": edges.iter().map(|(parent, role, child)|
                json!({ "parent": parent, "child": child, "name": role })).collect::<Vec<_>>(),
        });
        let node = |(name, driver): &(&str, &str)| {
            let image = json!({ "filename": format!("/i/{name}"), "virtual-size": 4096 });
            json!({ "node-name": name, "drv": driver, "image": image })
        };
        Layers { graph: Graph::read(&graph).unwrap(), nodes: nodes.iter().map(node).collect() }
    }

    const NODES: [(&str, &str); 6] = [
        ("top", "qcow2"),
        ("topf", "file"),
        ("mid", "qcow2"),
        ("midf", "file"),
        ("base", "raw"),
        ("basef", "file"),
    ];
    const EDGES: [(usize, &str, usize); 5] =
        [(0, "file", 1), (0, "backing", 2), (2, "file", 3), (2, "backing", 4), (4, "file", 5)];

    #[test]
    fn all_layers_below_the_disks_own_are_told_in_their_order() {
        let below = layers(&NODES, &EDGES).below("top");
        assert!(!below.is_partial);
        let told: Vec<_> = below.nodes.iter().map(|l| (l.depth, l.file.as_deref())).collect();
        let files = [(1, None), (2, None), (3, Some("/i/basef")), (2, Some("/i/midf"))];
        assert_eq!(told, files);
        // However QEMU lists the edges.
        let mut turned = EDGES;
        turned.reverse();
        assert_eq!(layers(&NODES, &turned).below("top"), below);
        assert_eq!(layers(&NODES, &EDGES).below("base"), Below::default());
    }

    #[test]
    fn storage_that_is_no_backing_image_makes_it_partial() {
        let data = [(0, "file", 1), (0, "data-file", 3)];
        assert!(layers(&NODES, &data).below("top").is_partial);
        // A filter's own storage is the disk's.
        let filter = [(0, "file", 2), (2, "file", 3), (2, "backing", 4), (4, "file", 5)];
        let below = layers(&NODES, &filter).below("top");
        assert!(!below.is_partial && below.nodes.len() == 2, "{below:?}");
        let circle = [(0, "file", 1), (1, "file", 0)];
        assert!(layers(&NODES, &circle).below("top").is_partial);
    }
}
