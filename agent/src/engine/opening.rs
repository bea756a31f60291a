//! Opening the journal of a guest that is protected.

use crate::group::Group;
use afterimage_journal::Options;
use std::path::Path;

/// What becomes of a guest whose journal is there but can't be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opening {
    /// It is refused.
    Now,
    /// Its task shows why, and tries again: the disk may only be full for a while.
    OrLater,
}

impl Opening {
    pub(super) fn open(
        self,
        state: &Path,
        name: &str,
        options: Options,
        key_file: Option<&Path>,
    ) -> afterimage_journal::Result<Group> {
        match Group::open(state, name, options.clone(), key_file) {
            Err(error) if self == Self::OrLater => {
                let group = Group::unopened(state, name, options, key_file)?;
                tracing::error!(group = name, %error, "its journal can't be opened now");
                if group.exists() { Ok(group) } else { Err(error) }
            }
            opened => opened,
        }
    }
}
