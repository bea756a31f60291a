//! Who sits on whom among QEMU's block nodes.
//!
//! Needed for one question: which node does a job's filter stand on? `query-block` shows the
//! filter in the disk's place, and tells nothing of what lies beneath.

use serde_json::Value;

use super::Qemu;
use crate::{Error, Result};

/// QEMU's block graph at one moment.
#[derive(Debug)]
pub(crate) struct Graph {
    nodes: Vec<Node>,
    edges: Vec<Edge>,
}

#[derive(Debug)]
struct Node {
    id: u64,
    name: String,
    is_job: bool,
}

#[derive(Debug)]
struct Edge {
    parent: u64,
    child: u64,
    role: String,
}

impl Graph {
    pub(super) fn read(answer: &Value) -> Option<Graph> {
        let nodes = answer["nodes"].as_array()?.iter().map(|n| {
            Some(Node {
                id: n["id"].as_u64()?,
                name: n["name"].as_str()?.to_owned(),
                is_job: n["type"] == "block-job",
            })
        });
        let edges = answer["edges"].as_array()?.iter().map(|e| {
            Some(Edge {
                parent: e["parent"].as_u64()?,
                child: e["child"].as_u64()?,
                role: e["name"].as_str()?.to_owned(),
            })
        });
        Some(Graph { nodes: nodes.collect::<Option<_>>()?, edges: edges.collect::<Option<_>>()? })
    }

    fn name(&self, id: u64) -> Option<&str> {
        self.nodes.iter().find(|n| n.id == id).map(|n| n.name.as_str())
    }

    /// The node that the filter `node` stands on.
    pub(crate) fn below(&self, node: &str) -> Option<&str> {
        let id = self.nodes.iter().find(|n| !n.is_job && n.name == node)?.id;
        let mut below =
            self.edges.iter().filter(|e| e.parent == id && matches!(&*e.role, "backing" | "file"));
        self.name(below.next()?.child)
    }

    /// The nodes below `node` with what they are to it, in the order of these roles.
    pub(crate) fn children(&self, node: &str) -> Vec<(&str, &str)> {
        let id = self.nodes.iter().find(|n| !n.is_job && n.name == node).map(|n| n.id);
        let edges = self.edges.iter().filter(|e| Some(e.parent) == id);
        let mut found: Vec<(&str, &str)> =
            edges.filter_map(|e| Some((e.role.as_str(), self.name(e.child)?))).collect();
        found.sort_unstable();
        found
    }

    /// The nodes that jobs read from.
    pub(crate) fn mirrored(&self) -> impl Iterator<Item = &str> {
        self.edges.iter().filter(|e| e.role == "source").filter_map(|e| self.name(e.child))
    }

    /// The job that reads from `node`, if one does.
    pub(crate) fn job_on(&self, node: &str) -> Option<&str> {
        let ours = |e: &&Edge| e.role == "source" && self.name(e.child) == Some(node);
        let job = self.edges.iter().find(ours)?.parent;
        self.nodes.iter().find(|n| n.is_job && n.id == job).map(|n| n.name.as_str())
    }
}

impl Qemu {
    /// Reads the graph. The command is one of QEMU's debugging aids, in the range of versions
    /// that we support throughout; nothing stable tells the same before 10.1.
    pub(crate) async fn graph(&self) -> Result<Graph> {
        let command = "x-debug-query-block-graph";
        let answer = self.run(command, Value::Null).await?;
        Graph::read(&answer).ok_or_else(|| Error::shape(command, "no nodes and edges"))
    }
}
