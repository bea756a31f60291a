//! Opening a group's journal, again and again as long as the group lives.
//!
//! What always holds: a journal that stopped is opened anew, never resumed; what an opening may have lost
//! is known before any guest is attached to behind it.

use super::Group;
use afterimage_journal::{Error, ErrorKind, Journal, Result};

impl Group {
    /// Opens the journal anew if it stopped. Blocking: it reads the journal's units.
    ///
    /// # Errors
    /// As [`Journal::open`]; [`Error::Locked`] as long as somebody of us still writes to the old
    /// one.
    pub fn ensure_open(&self) -> Result<()> {
        let full = {
            let state = self.lock();
            if state.journal.as_ref().is_some_and(|j| j.stopped().is_none()) {
                return Ok(());
            }
            state.journal.clone().filter(Journal::is_out_of_space)
        };
        if let Some(full) = full {
            self.check_room(&full)?;
        }
        if matches!(self.dir.join("journal.json").try_exists(), Ok(false)) {
            self.stop_keeper();
            let why = "the journal is not there any more: put its directory back (unmount what lies over \
                       it), or unprotect the guest and protect it again"
                .into();
            return Err(Error::Unusable { path: self.dir.clone(), why });
        }
        let options = self.secret.options(&self.options)?;
        self.stop_keeper();
        let old = {
            let mut state = self.lock();
            if state.journal.as_ref().is_some_and(|j| j.stopped().is_none()) {
                return Ok(());
            }
            state.journal.take()
        };
        // Not under the lock, which status and ticks take: this reads the whole journal. Of two
        // guests that come here at once, one finds the journal's own lock taken and tries again.
        drop(old);
        let (journal, history) = match Journal::open(&self.dir, options.clone()) {
            Err(e) if e.kind() == ErrorKind::FreeSpace => {
                self.make_room()?;
                Journal::open(&self.dir, options)?
            }
            opened => opened?,
        };
        let mut state = self.lock();
        state.take_history(&history);
        state.journal = Some(journal.clone());
        drop(state);
        self.start_keeper(&journal);
        // Of two closes of a session the later one tells why.
        self.write_unwritten();
        if let Some(loss) = &history.loss {
            tracing::error!(
                group = self.name,
                certain = loss.certain,
                why = loss.why,
                "records lost"
            );
            self.write_loss(loss);
        }
        Ok(())
    }
}
