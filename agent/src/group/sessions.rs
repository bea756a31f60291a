//! Sessions of a group's guests (I-4): opened durably when a guest is level, confirmed by looks,
//! closed at what was proved.

use super::{Group, LastSession, OpenSession};
use afterimage_journal::format::record::Kind;
use afterimage_journal::log::Draft;
use afterimage_journal::meta::{ImageIdentity, Meta, Session, SessionEvent};
use afterimage_journal::{Result, Seq};

/// Ends of sessions that wait for the journal to be opened anew.
const UNWRITTEN_MAX: usize = 256;

impl Group {
    /// Opens a session: the guest is level now. Durable when this returns. Blocking.
    ///
    /// # Errors
    /// The journal stopped.
    pub fn open_session(&self, guest: &str, full: bool) -> Result<OpenSession> {
        let journal = self.journal()?;
        let id = {
            let mut state = self.lock();
            let id = state.next_session;
            state.next_session += 1;
            id
        };
        let seq = journal.append_meta(&Meta::Session(Session {
            id,
            guest: guest.to_owned(),
            event: SessionEvent::Open,
            reason: String::new(),
            upto: None,
            full,
            images: Vec::new(),
        }))?;
        journal.sync()?;
        let session = OpenSession { id, from: seq, confirmed: seq };
        let mut state = self.lock();
        state.sessions.insert(guest.to_owned(), session);
        state.timelines.entry(guest.to_owned()).or_default().opened(self.wall_ns());
        state.images.remove(guest);
        if full {
            state.damaged = false;
        }
        state.records_lost = false;
        Ok(session)
    }

    /// Closes a guest's session. `upto` is the last position that was proved level, if it isn't
    /// the journal's end.
    pub fn close_session(&self, guest: &str, reason: &str, upto: Option<Seq>) {
        let Some(session) = self.lock().sessions.remove(guest) else { return };
        self.lock().timelines.entry(guest.to_owned()).or_default().closed(self.wall_ns(), reason);
        self.write_close(guest, session.id, reason, upto, Vec::new());
    }

    /// Says more of a session that is closed: better evidence of its end, and the images as they
    /// lie now that the guest has ended.
    pub fn amend_close(
        &self,
        guest: &str,
        id: u32,
        reason: &str,
        upto: Option<Seq>,
        images: Vec<ImageIdentity>,
    ) {
        {
            let mut state = self.lock();
            state.timelines.entry(guest.to_owned()).or_default().reworded(reason);
            if images.is_empty() {
                state.images.remove(guest);
            } else {
                state.images.insert(guest.to_owned(), images.clone());
            }
        }
        self.write_close(guest, id, reason, upto, images);
    }

    fn write_close(
        &self,
        guest: &str,
        id: u32,
        reason: &str,
        upto: Option<Seq>,
        images: Vec<ImageIdentity>,
    ) {
        let session = Session {
            id,
            guest: guest.to_owned(),
            event: SessionEvent::Close,
            reason: reason.to_owned(),
            upto,
            full: false,
            images,
        };
        // A journal that stopped takes no close: its next epoch closes every session, and then
        // this one says why.
        let written = self.journal().and_then(|j| j.append_meta(&Meta::Session(session.clone())));
        if let Err(error) = written {
            tracing::warn!(guest, %error, "the end of the session is left to the next epoch");
            let mut state = self.lock();
            if state.unwritten.len() < UNWRITTEN_MAX {
                state.unwritten.push(session);
            }
        }
    }

    /// Says in the journal, which was opened anew, why sessions ended that it could not close.
    pub(super) fn write_unwritten(&self) {
        let unwritten = std::mem::take(&mut self.lock().unwritten);
        for session in unwritten {
            let Session { guest, id, reason, upto, images, .. } = session;
            self.amend_close(&guest, id, &reason, upto, images);
        }
    }

    /// A guest's open session.
    #[must_use]
    pub fn session(&self, guest: &str) -> Option<OpenSession> {
        self.lock().sessions.get(guest).copied()
    }

    /// How the guest's session before this opening of the journal ended.
    #[must_use]
    pub fn last_session(&self, guest: &str) -> Option<LastSession> {
        self.lock().last_sessions.get(guest).copied()
    }

    /// The guest's images as they lay when it had ended.
    #[must_use]
    pub fn images(&self, guest: &str) -> Vec<ImageIdentity> {
        self.lock().images.get(guest).cloned().unwrap_or_default()
    }

    /// Notes that a guest was found level at `position`, with a tick record.
    ///
    /// # Errors
    /// The journal stopped.
    pub fn confirm(&self, guest: &str, position: Seq) -> Result<()> {
        let id = {
            let mut state = self.lock();
            let Some(session) = state.sessions.get_mut(guest) else { return Ok(()) };
            session.confirmed = session.confirmed.max(position);
            session.id
        };
        let mut draft = Draft::of(Kind::Tick);
        draft.addr = position;
        draft.scope = id;
        self.journal()?.append(&draft, &[]).map(drop)
    }
}
