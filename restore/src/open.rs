//! Finding a journal by the name of a guest or group. It is held for as long as it is open (I-7).

use crate::error::{Error, Nearest, Result};
use crate::refusal;
use afterimage_journal::history::{Damage, NotRestorable, Point, When};
use afterimage_journal::meta::LevelRange;
use afterimage_journal::pool::Places;
use afterimage_journal::storage::{RealStorage, Storage};
use afterimage_journal::{History, Seq, layout};
use std::path::Path;
use std::sync::Arc;

/// A journal open for reading, with what was asked for by name. While it lives, nothing that it
/// lists is deleted.
#[derive(Debug)]
pub struct Recovery {
    /// What the journal holds, as of the opening.
    pub history: History,
    /// The guest, when the name was a guest's; `None`: the whole group.
    pub guest: Option<String>,
}

/// Opens the journal of a guest or group below a state directory, or below a directory that
/// holds a copy of its `pool`. A name that is both means the group.
///
/// # Errors
/// There is no such directory, it is not a state directory, a newer program wrote it, it can't be
/// read, or no journal knows the name (the names that there are get listed).
pub fn open(state: &Path, name: &str) -> Result<Recovery> {
    check_state(state)?;
    open_in(&RealStorage::shared(), state, name)
}

/// As [`open`], on any storage: `state` is what a state directory is there.
///
/// # Errors
/// It can't be read, or no journal knows the name (the names that there are get listed).
pub fn open_in(storage: &Arc<dyn Storage>, state: &Path, name: &str) -> Result<Recovery> {
    if layout::is_journal(&**storage, state, name)? {
        let history = History::load_in(storage, &layout::journal_dir(state, name)?)?;
        return Ok(Recovery { history, guest: None });
    }
    let journals = layout::journals_in(&**storage, state)?;
    find_guest(storage, state, name, &journals)
}

fn check_state(state: &Path) -> Result<()> {
    let shown = state.display();
    match std::fs::metadata(state) {
        Ok(meta) if meta.is_dir() => {}
        Ok(_) => {
            return Err(Error::Usage(format!("{shown} is a file: give a state directory")));
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::Usage(format!(
                "there is no directory {shown}: give the state directory with --state"
            )));
        }
        Err(e) => return Err(afterimage_journal::Error::io("open directory", state, e).into()),
    }
    let format = state.join("format");
    if !format.exists() && !layout::pool_dir(state).is_dir() {
        return Err(Error::Usage(format!(
            "{shown} is not a state directory: it has neither a file `format` nor a directory \
             `pool`"
        )));
    }
    Ok(layout::check_state(state, false)?)
}

/// Searches the guests of all journals; the one where it is a member now comes first.
fn find_guest(
    storage: &Arc<dyn Storage>,
    state: &Path,
    name: &str,
    journals: &[String],
) -> Result<Recovery> {
    let mut guests = Vec::new();
    let mut found: Vec<(bool, Recovery)> = Vec::new();
    let mut unread = Vec::new();
    for journal in journals {
        let history = match History::load_in(storage, &layout::journal_dir(state, journal)?) {
            Ok(loaded) => loaded,
            Err(e) => {
                unread.push(e.into());
                continue;
            }
        };
        let now = history.config().is_some_and(|c| c.guests.iter().any(|g| g.name == name));
        let ever = history.configs.iter().flat_map(|(_, c)| &c.guests).any(|g| g.name == name);
        if let Some(config) = history.config() {
            guests.extend(config.guests.iter().map(|g| g.name.clone()));
        }
        if ever {
            let recovery = Recovery { history, guest: Some(name.to_owned()) };
            found.push((now, recovery));
        }
    }
    let current = found.iter().filter(|(now, _)| *now).count();
    if current == 1 || (current == 0 && found.len() == 1) {
        let at = found.iter().position(|(now, _)| *now || current == 0).unwrap_or(0);
        return Ok(found.swap_remove(at).1);
    }
    if !found.is_empty() {
        let groups: Vec<&str> =
            found.iter().map(|(_, r)| r.history.identity.name.as_str()).collect();
        return Err(Error::Usage(format!(
            "guest {name} is in several groups ({}): name the group",
            groups.join(", ")
        )));
    }
    if let Some(e) = unread.into_iter().next() {
        return Err(e);
    }
    Err(Error::Usage(unknown_name(state, name, journals, guests)))
}

fn unknown_name(state: &Path, name: &str, journals: &[String], mut guests: Vec<String>) -> String {
    if journals.is_empty() {
        return format!("nothing is protected in {}: it has no journal", state.display());
    }
    guests.sort();
    guests.dedup();
    format!(
        "there is no guest or group {name:?} in {}; groups: {}; guests: {}",
        state.display(),
        journals.join(", "),
        guests.join(", ")
    )
}

impl Recovery {
    /// The name that was found: the guest's, or the group's.
    #[must_use]
    pub fn name(&self) -> &str {
        self.guest.as_deref().unwrap_or(&self.history.identity.name)
    }

    /// The restorable ranges of what was asked for: those of the group, for a guest only where it
    /// has been synced.
    #[must_use]
    pub fn ranges(&self) -> Vec<LevelRange> {
        refusal::ranges(&self.history, self.guest.as_deref())
    }

    /// The recovery point for a wanted moment.
    ///
    /// # Errors
    /// [`Error::NotRestorable`], with the nearest points on both sides; [`Error::NewestAway`].
    pub fn resolve(&self, when: &When) -> Result<Point> {
        let history = &self.history;
        let ranges = self.ranges();
        if *when == When::Latest {
            self.check_newest(&ranges)?;
        }
        if let (When::Latest, Some(last), Some(_)) = (when, ranges.last(), &self.guest) {
            return Ok(history.point(last.to));
        }
        let point = history.resolve(when).map_err(|refusal| {
            match Error::refused(history, when, &refusal) {
                Error::NotRestorable { what, nearest } if self.guest.is_some() => {
                    let nearest = refusal::within(history, &ranges, nearest);
                    Error::NotRestorable { what, nearest }
                }
                other => other,
            }
        })?;
        if self.guest.is_some() && !ranges.iter().any(|r| r.from <= point.seq && point.seq <= r.to)
        {
            return Err(self.refuse_guest(when, point.seq));
        }
        Ok(point)
    }

    /// Whoever asks for the newest point must not get an older one without a word, because what is
    /// newer lies on a member of the pool that is away. One that is lost for good is forgotten by
    /// `pool remove --lost`.
    fn check_newest(&self, ranges: &[LevelRange]) -> Result<()> {
        let history = &self.history;
        let newest = ranges.last().map_or(0, |r| r.to);
        let lost = |d: &Damage| d.to.is_none() && d.last > newest;
        if !history.damage.iter().any(lost) {
            return Ok(());
        }
        let places = Places::of(history.storage(), &history.dir)?;
        let away: Vec<String> = places.missing().iter().map(ToString::to_string).collect();
        if away.is_empty() {
            return Ok(());
        }
        let nearest = refusal::nearest(history, ranges, newest + 1);
        Err(Error::NewestAway { away: away.join("; "), nearest })
    }

    fn refuse_guest(&self, when: &When, seq: Seq) -> Error {
        let nearest = self.nearest(seq);
        let refusal = NotRestorable {
            why: format!("guest {} was not synced and attached there", self.name()),
            before: nearest.before.map(|m| m.point),
            after: nearest.after.map(|m| m.point),
            named: Vec::new(),
        };
        Error::refused(&self.history, when, &refusal)
    }

    /// The nearest recovery points below and above a position.
    #[must_use]
    pub fn nearest(&self, seq: Seq) -> Nearest {
        refusal::nearest(&self.history, &self.ranges(), seq)
    }
}
