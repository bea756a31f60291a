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
    below: String,
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
        Ok(Names { token: token.to_owned(), below: String::new() })
    }

    /// The same with maps that are told apart by what lies below the disk's own image: an identity of it,
    /// in letters and digits; empty if nothing does.
    #[must_use]
    pub fn above(&self, below: &str) -> Names {
        Names { token: self.token.clone(), below: below.to_owned() }
    }

    /// The identity of what lies below the disk's own image.
    pub fn below(&self) -> &str {
        &self.below
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

    /// A dirty bitmap on the source, by generation: `ai-TOKEN-map-GENERATION[-BELOW]`.
    pub fn bitmap(&self, generation: u64) -> String {
        match self.below.as_str() {
            "" => format!("{OURS}{}-map-{generation}", self.token),
            below => format!("{OURS}{}-map-{generation}-{below}", self.token),
        }
    }

    /// What lay below the disk's own image when a bitmap was made; `None`: the name is none of this disk's
    /// bitmaps.
    pub fn below_of<'a>(&self, bitmap: &'a str) -> Option<&'a str> {
        let rest = bitmap.strip_prefix(OURS)?.strip_prefix(&self.token)?.strip_prefix("-map-")?;
        let (generation, below) = rest.split_once('-').unwrap_or((rest, ""));
        generation.parse::<u64>().is_ok().then_some(below)
    }

    /// The bitmap that marks the disk's end.
    pub fn end_mark(&self) -> String {
        format!("{OURS}{}-map-end", self.token)
    }

    /// The node that is there for a moment while [`Names::end_mark`] is made.
    pub(crate) fn end_helper(&self) -> String {
        format!("{OURS}{}-end", self.token)
    }

    /// An export for pulling; `serial` tells one pull from another.
    pub fn export(&self, serial: u64) -> String {
        format!("{OURS}{}-pull-{serial}", self.token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bitmap_tells_what_lay_below_and_whose_it_is() {
        let names = Names::new("0123456789ab").unwrap();
        let above = names.above("c0ffee");
        assert_eq!(names.bitmap(7), "ai-0123456789ab-map-7");
        assert_eq!(above.bitmap(7), "ai-0123456789ab-map-7-c0ffee");
        for reader in [&names, &above] {
            assert_eq!(reader.below_of(&names.bitmap(u64::MAX)), Some(""));
            assert_eq!(reader.below_of(&above.bitmap(0)), Some("c0ffee"));
            for other in [names.end_mark(), names.job(), "ai-0123456789ac-map-7".into()] {
                assert_eq!(reader.below_of(&other), None, "{other}");
            }
        }
    }
}
