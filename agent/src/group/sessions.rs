//! Sessions of a group's guests (I-4): opened durably when a guest is level, confirmed by looks,
//! closed at what was proved.

use super::{Group, LastSession, OpenSession};
use afterimage_journal::format::record::Kind;
use afterimage_journal::history::Point;
use afterimage_journal::log::{Draft, Loss};
use afterimage_journal::meta::{ImageIdentity, Meta, Session, SessionEvent};
use afterimage_journal::{Journal, Result, Seq, VolumeId};
use std::sync::Arc;
use std::time::{Duration, Instant};

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
        let opened = journal.append_meta_stamped(&Meta::Session(Session {
            id,
            guest: guest.to_owned(),
            event: SessionEvent::Open,
            reason: String::new(),
            upto: None,
            full,
            images: Vec::new(),
            maps: Vec::new(),
        }))?;
        let Point { seq, wall_ns } = opened;
        // Checkpoints behind it are listed once more than this is confirmed.
        journal.append(&Draft { addr: seq, scope: id, ..Draft::of(Kind::Tick) }, &[])?;
        journal.sync()?;
        let session = OpenSession {
            id,
            from: seq,
            confirmed: seq,
            confirmed_ns: wall_ns,
            confirmed_at: Instant::now(),
        };
        let mut state = self.lock();
        let volumes: Vec<_> =
            state.config.disks().filter(|v| v.guest == guest).map(|v| v.id).collect();
        for volume in volumes {
            let known = state.volumes.entry(volume).or_default();
            (known.owes_compare, known.owes_maps) = (false, false);
        }
        state.sessions.insert(guest.to_owned(), session);
        state.timelines.entry(guest.to_owned()).or_default().opened(opened);
        state.images.remove(guest);
        if full {
            // Units that were given up behind the copy's beginning are found by the next look.
            state.damaged.remove(guest);
        }
        state.records_lost.remove(guest);
        Ok(session)
    }

    /// As [`Self::open_session`], on a thread of its own and for a limited time: one that opens
    /// later than that is closed at once, at its beginning.
    ///
    /// # Errors
    /// Why it isn't open.
    pub async fn open_session_within(
        self: &Arc<Self>,
        limit: Duration,
        guest: &str,
        full: bool,
    ) -> std::result::Result<OpenSession, String> {
        let (group, name) = (Arc::clone(self), guest.to_owned());
        let mut opening = tokio::task::spawn_blocking(move || group.open_session(&name, full));
        match tokio::time::timeout(limit, &mut opening).await {
            Ok(Ok(opened)) => opened.map_err(|e| e.to_string()),
            Ok(Err(e)) => Err(e.to_string()),
            Err(_) => {
                let (group, name) = (Arc::clone(self), guest.to_owned());
                tokio::spawn(async move {
                    if let Ok(Ok(late)) = opening.await {
                        let upto = Some(late.from.saturating_sub(1));
                        group.close_session_if(&name, late.id, "never proved", upto);
                    }
                });
                Err("the journal's disk does not answer".into())
            }
        }
    }

    /// Closes a guest's session. `upto` is the last position that was proved level, if it isn't
    /// the journal's end.
    pub fn close_session(&self, guest: &str, reason: &str, upto: Option<Seq>) {
        if let Some(session) = self.session(guest) {
            self.close_session_if(guest, session.id, reason, upto);
        }
    }

    /// As [`Self::close_session`], unless it is another one by now.
    fn close_session_if(&self, guest: &str, id: u32, reason: &str, upto: Option<Seq>) {
        let mut state = self.lock();
        let Some(session) = state.sessions.get(guest).copied().filter(|s| s.id == id) else {
            drop(state);
            self.write_close(guest, id, reason, upto, Vec::new());
            return;
        };
        state.sessions.remove(guest);
        let end_ns = if upto.is_some() { session.confirmed_ns } else { self.wall_ns() };
        state.timelines.entry(guest.to_owned()).or_default().closed(end_ns, upto, reason);
        // From here on everybody sees the gap; the record may have to wait for the disk.
        drop(state);
        let written = self.write_close(guest, session.id, reason, upto, Vec::new());
        if let (Some(at), None) = (written, upto) {
            // The session ends with that record.
            let mut state = self.lock();
            if !state.sessions.contains_key(guest) {
                let timeline = state.timelines.entry(guest.to_owned()).or_default();
                timeline.closed(at.wall_ns, Some(at.seq), reason);
            }
        }
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
    ) -> Option<Point> {
        let session = Session {
            id,
            guest: guest.to_owned(),
            event: SessionEvent::Close,
            reason: reason.to_owned(),
            upto,
            full: false,
            images,
            maps: Vec::new(),
        };
        // A journal that stopped takes no close: its next epoch closes every session, and then
        // this one says why.
        let meta = Meta::Session(session.clone());
        let written = self.journal().and_then(|j| j.append_meta_stamped(&meta));
        if let Err(error) = &written {
            tracing::warn!(guest, %error, "the end of the session is left to the next epoch");
            let mut state = self.lock();
            if state.unwritten.len() < UNWRITTEN_MAX {
                state.unwritten.push(session);
            }
        }
        written.ok()
    }

    /// Says in the journal, which was opened anew, why sessions ended that it could not close. How the
    /// images lay then tells nothing: what was written before may be missing here.
    pub(super) fn write_unwritten(&self) {
        let unwritten = std::mem::take(&mut self.lock().unwritten);
        for session in unwritten {
            let Session { guest, id, reason, upto, .. } = session;
            self.amend_close(&guest, id, &reason, upto, Vec::new());
        }
    }

    /// Says of the sessions that ended with an opening that lost records why they did: each gap begins
    /// at the last position that is certain.
    pub(super) fn write_loss(&self, loss: &Loss) {
        let ended: Vec<(String, LastSession)> = {
            let state = self.lock();
            let open = state.last_sessions.iter().filter(|(_, last)| !last.closed);
            open.map(|(guest, last)| (guest.clone(), *last)).collect()
        };
        let reason = format!("records were lost: {}", loss.why);
        for (guest, last) in ended {
            let certain = last.to.min(loss.certain);
            self.amend_close(&guest, last.id, &reason, Some(certain), Vec::new());
        }
    }

    /// A guest's open session.
    #[must_use]
    pub fn session(&self, guest: &str) -> Option<OpenSession> {
        self.lock().sessions.get(guest).copied()
    }

    /// How the guest's session before this opening of the journal ended; told once, to the first
    /// attach behind it.
    #[must_use]
    pub fn take_last_session(&self, guest: &str) -> Option<LastSession> {
        self.lock().last_sessions.remove(guest)
    }

    /// Notes which changed-block map of a volume may be trusted from now on.
    ///
    /// # Errors
    /// The journal stopped.
    pub fn note_maps(&self, guest: &str, maps: Vec<(VolumeId, String)>) -> Result<()> {
        self.journal()?.append_meta(&Meta::Session(Session {
            id: 0,
            guest: guest.to_owned(),
            event: SessionEvent::Maps,
            reason: String::new(),
            upto: None,
            full: false,
            images: Vec::new(),
            maps: maps.clone(),
        }))?;
        self.lock().maps.extend(maps);
        Ok(())
    }

    /// The guest's images as they lay when it had ended.
    #[must_use]
    pub fn images(&self, guest: &str) -> Vec<ImageIdentity> {
        self.lock().images.get(guest).cloned().unwrap_or_default()
    }

    /// The journal's newest position; its time is kept for [`Self::confirm`].
    #[must_use]
    pub fn newest(&self, journal: &Journal) -> Seq {
        self.lock().seen(journal.newest()).seq
    }

    /// Notes that a guest was found level at `position`, with a tick record.
    ///
    /// # Errors
    /// The journal stopped.
    pub fn confirm(&self, guest: &str, position: Seq) -> Result<()> {
        let id = {
            let mut state = self.lock();
            let wall_ns = state.wall_ns_of(position);
            let Some(session) = state.sessions.get_mut(guest) else { return Ok(()) };
            if position >= session.confirmed {
                session.confirmed = position;
                session.confirmed_ns = wall_ns.unwrap_or_else(|| self.wall_ns());
                session.confirmed_at = Instant::now();
            }
            session.id
        };
        let mut draft = Draft::of(Kind::Tick);
        draft.addr = position;
        draft.scope = id;
        self.journal()?.append(&draft, &[]).map(drop)
    }
}
