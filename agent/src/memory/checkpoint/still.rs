//! Who stopped a guest and who let it run, while its memory is taken: what its monitor tells.
//!
//! ```text
//! in-band     migration active ─► STOP ─► one FLUSH a disk ─► RESUME ─► pages
//! explicit    our `stop`: STOP ─► migrate: pages ─► our `cont`: RESUME
//! ```
//!
//! Pure. What always holds: an instant counts only if nobody else stopped the guest or let it run
//! between the position of the disks and the state of memory and devices; a guest that somebody else
//! paused is not taken for one that stands still for us. (A `stop` of a guest that stands still already
//! is answered by QEMU and told to nobody: that one alone can't be seen.)

use super::instant::Order;
use afterimage_planted as planted;
use afterimage_qmp::{Event, QemuEvent};

/// Words that are kept of one checkpoint: two stops and starts a second for its whole length.
const WORDS_MAX: usize = 256;

/// What an event says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    /// The migration has begun: its own stop comes next.
    Active,
    /// The guest was stopped.
    Stop,
    /// The guest runs again.
    Resume,
    /// Events were lost.
    Lost,
}

/// An event with QEMU's own stamp, microseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) said: Said,
    pub(super) us: u64,
}

/// All that was said since the checkpoint began.
#[derive(Debug, Default)]
pub(super) struct Words(Vec<Word>);

impl Words {
    /// Takes an event in. One that was concluded from polling has no place in the order of things.
    pub(super) fn hear(&mut self, event: &Event) {
        let said = match event.meaning() {
            QemuEvent::Overflow { .. } => Said::Lost,
            _ if event.concluded => return,
            QemuEvent::Stop => Said::Stop,
            QemuEvent::Resume => Said::Resume,
            QemuEvent::Migration { status } if status == "active" => Said::Active,
            _ => return,
        };
        let us = u64::try_from(event.timestamp.unix_us).unwrap_or(0);
        self.say(said, us);
    }

    fn say(&mut self, said: Said, us: u64) {
        match self.0.len() < WORDS_MAX {
            true => self.0.push(Word { said, us }),
            false => self.0[WORDS_MAX - 1] = Word { said: Said::Lost, us },
        }
    }

    /// The migration's own stop and start, in microseconds, once both came. To be believed only when it was
    /// asked once more behind the first page: a stop of somebody else's can come before the migration's.
    ///
    /// # Errors
    /// Somebody else stopped the guest, or let it run; or events were lost.
    pub(super) fn of_migration(&self) -> Result<Option<(u64, u64)>, &'static str> {
        let (mut active, mut stop_us, mut stamps) = (false, None, None);
        for word in &self.0 {
            match (word.said, stop_us, stamps) {
                (Said::Active, _, _) => active = true,
                (Said::Stop, None, _) if active => stop_us = Some(word.us),
                (Said::Resume, Some(stop_us), None) => stamps = Some((stop_us, word.us)),
                (Said::Stop | Said::Resume, _, _) => return Err(MEDDLED),
                (Said::Lost, _, _) => return Err("events of its monitor were lost"),
            }
        }
        Ok(stamps)
    }

    /// Whether all that was said is that the guest was stopped once, or, of a monitor that may be late,
    /// nothing.
    pub(super) fn is_stopped_once(&self, may_be_late: bool) -> Result<(), &'static str> {
        let runs = |w: &&Word| matches!(w.said, Said::Stop | Said::Resume | Said::Lost);
        let said: Vec<Said> = self.0.iter().filter(runs).map(|w| w.said).collect();
        match &said[..] {
            [Said::Stop] => Ok(()),
            [] if may_be_late => Ok(()),
            _ => Err(MEDDLED),
        }
    }

    /// Whether anybody stopped the guest or let it run.
    pub(super) fn is_silent(&self) -> bool {
        !self.0.iter().any(|w| matches!(w.said, Said::Stop | Said::Resume | Said::Lost))
    }

    /// From the first stop to the last start, in microseconds, once both came.
    pub(super) fn stood_us(&self) -> Option<u64> {
        let stop = self.0.iter().find(|w| w.said == Said::Stop)?;
        let resume = self.0.iter().rfind(|w| w.said == Said::Resume)?;
        resume.us.checked_sub(stop.us)
    }

    /// Whether a guest that stands still does so for us. `sent` says that all of its memory was sent in
    /// stop mode; `pages`, that some of it was sent: then QEMU lets a guest run by itself that it stopped;
    /// `may_be_late`, that the monitor's events may come after its answers.
    pub(super) fn stands_for_us(
        &self,
        order: Order,
        (sent, pages): (bool, bool),
        may_be_late: bool,
    ) -> bool {
        if planted::is("memory-resumes-whoever-paused") {
            return true;
        }
        let words: Vec<Said> = self.0.iter().map(|w| w.said).filter(|s| *s != Said::Lost).collect();
        let run = words.iter().rposition(|said| *said == Said::Resume);
        let since = run.map_or(&words[..], |at| &words[at + 1..]);
        let at = |said| since.iter().position(|s| *s == said);
        // The first stop behind `active` is the migration's own.
        let by_migration = at(Said::Active).zip(at(Said::Stop)).is_some_and(|(a, s)| a < s);
        match (order, run, at(Said::Stop)) {
            // In stop mode it comes to a guest that somebody let run, or to one that stands.
            (Order::Explicit, _, _) if sent => true,
            (Order::InBand, _, _) if pages => false,
            // It was paused before we began, unless the monitor is behind.
            (_, _, None) => may_be_late && run.is_none(),
            (Order::Explicit, None, Some(_)) => true,
            (Order::InBand, None, Some(_)) | (Order::Explicit, Some(_), Some(_)) => by_migration,
            (Order::InBand, Some(_), Some(_)) => false,
        }
    }
}

/// Why an instant does not count.
pub(super) const MEDDLED: &str =
    "somebody else stopped the guest or let it run while its memory was being taken";

#[cfg(test)]
mod tests {
    use super::*;
    use Said::{Active, Lost, Resume, Stop};

    fn words(said: &[Said]) -> Words {
        let mut words = Words::default();
        said.iter().zip(1..).for_each(|(said, at)| words.say(*said, at * 10));
        words
    }

    #[test]
    fn only_the_stop_and_start_of_the_migration_itself_are_an_instant() {
        assert_eq!(words(&[]).of_migration(), Ok(None));
        assert_eq!(words(&[Active]).of_migration(), Ok(None));
        assert_eq!(words(&[Active, Stop]).of_migration(), Ok(None));
        assert_eq!(words(&[Active, Stop, Resume]).of_migration(), Ok(Some((20, 30))));
        for meddled in [
            &[Stop, Resume, Active, Stop, Resume][..],
            &[Stop, Active],
            &[Resume],
            &[Active, Resume],
            &[Active, Stop, Stop],
            &[Active, Stop, Resume, Stop, Resume],
            &[Active, Lost, Stop, Resume],
        ] {
            assert!(words(meddled).of_migration().is_err(), "{meddled:?}");
        }
    }

    #[test]
    fn guest_stopped_by_command_was_stopped_once_and_never_ran() {
        assert!(words(&[Stop]).is_stopped_once(false).is_ok());
        assert!(words(&[Stop, Active]).is_stopped_once(false).is_ok());
        assert!(words(&[]).is_stopped_once(false).is_err(), "it was paused already");
        assert!(words(&[]).is_stopped_once(true).is_ok());
        for meddled in [&[Stop, Resume][..], &[Stop, Resume, Stop], &[Stop, Lost]] {
            assert!(words(meddled).is_stopped_once(true).is_err(), "{meddled:?}");
        }
        assert!(words(&[Active]).is_silent() && !words(&[Stop]).is_silent());
    }

    #[test]
    fn pause_of_an_administrator_is_told_from_ours() {
        let in_band =
            |said: &[Said]| words(said).stands_for_us(Order::InBand, (false, false), false);
        assert!(in_band(&[Active, Stop]), "the migration failed while it had the guest stopped");
        assert!(!in_band(&[Stop]), "before the migration's stop");
        assert!(!in_band(&[Stop, Active]), "paused, then migrated");
        assert!(!in_band(&[Active, Stop, Resume, Stop]), "behind the instant");
        assert!(!in_band(&[]), "before we began");

        let paused = words(&[Active, Stop]);
        assert!(
            !paused.stands_for_us(Order::InBand, (false, true), false),
            "QEMU lets its own run"
        );

        let explicit =
            |said: &[Said], sent| words(said).stands_for_us(Order::Explicit, (sent, false), false);
        assert!(explicit(&[Stop], false));
        assert!(explicit(&[Stop, Active], true));
        assert!(!explicit(&[], false), "paused before our own `stop`");
        assert!(explicit(&[Stop, Resume, Active, Stop], true), "`cont`, then our migration's end");
        assert!(
            explicit(&[Stop, Resume, Active, Stop], false),
            "`cont`, then our migration's stop"
        );
        assert!(!explicit(&[Stop, Active, Resume, Stop], false), "`cont`, then `stop`");
        assert!(
            words(&[]).stands_for_us(Order::InBand, (false, false), true),
            "a monitor that is late"
        );
    }
}
