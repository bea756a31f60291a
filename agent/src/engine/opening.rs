//! Opening the journal of a guest that is protected.

use super::api;
use crate::api::ApiError;
use crate::group::Group;
use crate::settings::GuestSettings;
use afterimage_journal::{Error, Options};
use std::path::Path;

/// What becomes of a guest whose journal can't be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opening {
    /// It is refused; where there is no journal yet, one is made.
    Now,
    /// It was protected before. Its task shows why, and tries again: the disk may only be full, or not be
    /// mounted, for a while.
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
        if self == Self::Now {
            return Group::open(state, name, options, key_file);
        }
        // One that is not there is not made anew: its pool may not be mounted yet.
        let group = Group::unopened(state, name, options, key_file)?;
        if let Err(error) = group.ensure_open() {
            tracing::error!(group = name, %error, "its journal can't be opened now");
        }
        Ok(group)
    }

    /// A guest's settings follow the key file of a group that it joins, so that the group can be opened
    /// whoever of it is left.
    pub(super) fn join(self, group: &Group, settings: &mut GuestSettings) -> Result<(), ApiError> {
        if let (Self::Now, Some(file)) = (self, &settings.key_file) {
            group.check_key_file(file).map_err(|e| api(&e))?;
        }
        settings.key_file = group.key_file().map(Path::to_owned);
        Ok(())
    }
}

/// Why a journal can't be opened, to who wants it to be.
pub(super) fn refusal(error: &Error) -> ApiError {
    match error {
        Error::KeyMissing { journal } => ApiError::usage(format!(
            "the journal {} is there and encrypted: give its key file with --encrypt",
            journal.display()
        )),
        other => api(other),
    }
}
