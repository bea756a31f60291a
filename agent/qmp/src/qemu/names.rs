//! Names of what we put into a running QEMU: jobs, nodes, bitmaps, exports.
//!
//! All begin with [`OURS`], so that leftovers of a killed agent can be told from what belongs
//! to the guest or to libvirt. QEMU wants a letter first, then letters, digits, `-`, `.`, `_`,
//! and node names of at most 31 bytes.

use crate::{Error, Result};

/// What every name of ours begins with.
pub const OURS: &str = "ai-";

/// QEMU's limit for a node name, in bytes.
const NODE_NAME_BYTES_MAX: usize = 31;

/// The names for one disk of one guest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Names {
    token: String,
}

impl Names {
    /// Names that hold `token`: short (at most 20 bytes), unique among the disks of the QEMU, and
    /// the same for the same disk across restarts of the agent, for instance `d0`.
    pub fn new(token: &str) -> Result<Names> {
        let bad = |why| Error::BadName { name: token.to_owned(), what: "disk's jobs", why };
        let room = NODE_NAME_BYTES_MAX - OURS.len() - "-filter".len() - 1;
        if token.is_empty() || token.len() > room {
            return Err(bad("it must have 1 to 20 bytes"));
        }
        if !token.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) {
            return Err(bad("letters, digits, `-`, `.` and `_` are allowed"));
        }
        Ok(Names { token: token.to_owned() })
    }

    /// The mirror job.
    pub fn job(&self) -> String {
        format!("{OURS}{}-job", self.token)
    }

    /// The NBD node that the job writes to.
    pub fn target(&self) -> String {
        format!("{OURS}{}-nbd", self.token)
    }

    /// The filter that the job puts above the source.
    pub fn filter(&self) -> String {
        format!("{OURS}{}-filter", self.token)
    }

    /// A dirty bitmap on the source, by generation.
    pub fn bitmap(&self, generation: u64) -> String {
        format!("{OURS}{}-map-{generation}", self.token)
    }

    /// An export for pulling; `serial` tells one pull from another.
    pub fn export(&self, serial: u64) -> String {
        format!("{OURS}{}-pull-{serial}", self.token)
    }
}
