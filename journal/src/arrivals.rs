//! When records arrived at a site, by the site's own clock: the file `arrivals` in the journal's directory.
//! Only a site has one.
//!
//! What always holds:
//! * a record is as old as the first note that covers its number, so never older than it is here; what no
//!   note covers has no age, and stays;
//! * nothing that a sender stamps counts: the site's window is its own clock's;
//! * time in which nothing is known of this host (it was rebooted, or the journal was moved to another one)
//!   counts for at most [`DOWNTIME_MAX_NS`] each time;
//! * notes lie ever further apart with their age, so that there are a few hundred, whatever the window.

use crate::Seq;
use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::format::checksum::crc32c;
use crate::layout;
use crate::storage::{Access, Storage};
use crate::window::age::{DOWNTIME_MAX_NS, between};
use crate::window::{Row, Stamp};
use std::io::ErrorKind;
use std::path::Path;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The file's name.
pub const NAME: &str = "arrivals";
/// Least time between two notes.
const NOTE_EVERY_NS: u64 = 2_000_000_000;
/// Of two notes the newer one goes when they lie closer than this part of their age.
const SPREAD_DIVISOR: u64 = 64;
/// Most notes: the oldest are thinned out beyond.
const NOTES_MAX: usize = 4096;
const MAGIC: [u8; 8] = *b"AIMGARRV";
const VERSION: u32 = 1;
/// The boot of stamps on the site's own time.
const OWN_TIME: [u8; 16] = *b"site's own time\0";

/// At `at_ns` of the site's own time every number up to `upto` had been given out: one that is at least as
/// high was here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Note {
    upto: Seq,
    at_ns: u64,
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Arrivals {
    /// Ascending in both.
    notes: Vec<Note>,
    /// The site's own time when its clocks were looked at last, and what they said.
    own_ns: u64,
    looked: Option<Stamp>,
    /// Every number up to this one was acknowledged by then.
    acknowledged: Seq,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawHead {
    magic: [u8; 8],
    version: U32,
    crc: U32,
    own_ns: U64,
    wall_ns: U64,
    mono_ns: U64,
    boot_id: [u8; 16],
    count: U64,
    acknowledged: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawNote {
    upto: U64,
    at_ns: U64,
}

impl Arrivals {
    /// Those of a site's journal; `None`: there is no such file, it is no site's. A damaged one says nothing,
    /// and all that is here counts as arriving now.
    ///
    /// # Errors
    /// It is there and can't be read.
    pub fn load(storage: &dyn Storage, dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(NAME);
        let file = match storage.open(&path, Access::Read) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("open", &path, e)),
        };
        let most = size_of::<RawHead>() + NOTES_MAX * size_of::<RawNote>();
        let bytes = file.bytes().map_err(|e| Error::io("read", &path, e))?;
        let mut all = vec![0; most.min(usize::try_from(bytes).unwrap_or(most))];
        file.read_exact_at(&mut all, 0).map_err(|e| Error::io("read", &path, e))?;
        Ok(Some(Self::decode(&all).unwrap_or_else(|| {
            let shown = path.display();
            tracing::error!(path = %shown, "damaged: what the site holds counts as arriving now");
            Self::default()
        })))
    }

    /// Makes the file where there is none: from then on the site's own time counts.
    ///
    /// # Errors
    /// It can't be written.
    pub fn begin(storage: &dyn Storage, dir: &Path) -> Result<()> {
        match storage.exists(&dir.join(NAME)) {
            true => Ok(()),
            false => Self::default().save(storage, dir),
        }
    }

    /// Removes the file: an agent writes the journal from here on, and its own stamps count.
    ///
    /// # Errors
    /// It can't be removed.
    pub fn end(storage: &dyn Storage, dir: &Path) -> Result<()> {
        let path = dir.join(NAME);
        match storage.remove(&path) {
            Ok(()) => layout::sync_dir_in(storage, dir),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::io("remove", &path, e)),
        }
    }

    /// Writes the file, durably.
    ///
    /// # Errors
    /// It can't be written; the old one is intact.
    pub fn save(&self, storage: &dyn Storage, dir: &Path) -> Result<()> {
        layout::replace_file_in(storage, &dir.join(NAME), &self.encode())
    }

    /// Notes that a record with the number `upto` is here now, and what was acknowledged; `false`: there is
    /// nothing to note yet.
    pub fn note(&mut self, (upto, acknowledged): (Seq, Seq), clock: &dyn Clock) -> bool {
        let now = Stamp::now(clock);
        let at_ns = self.own_time(&now);
        let is_due = self.notes.last().is_none_or(|last| {
            upto > last.upto && at_ns.saturating_sub(last.at_ns) >= NOTE_EVERY_NS
        });
        if upto == 0 || !is_due {
            return false;
        }
        (self.own_ns, self.looked) = (at_ns, Some(now));
        self.acknowledged = self.acknowledged.max(acknowledged);
        self.notes.push(Note { upto, at_ns });
        self.thin();
        true
    }

    /// Every number up to this one was acknowledged when the last note was made.
    #[must_use]
    pub fn acknowledged(&self) -> Seq {
        self.acknowledged
    }

    /// Takes over the notes of another copy of the journal, made until now; `false`: this one has some.
    pub fn take_over(&mut self, other: &Self, clock: &dyn Clock) -> bool {
        let takes = self.notes.is_empty() && !other.notes.is_empty();
        if takes {
            self.notes.clone_from(&other.notes);
            (self.own_ns, self.looked) = (other.own_ns, Some(Stamp::now(clock)));
        }
        takes
    }

    /// Dates rows by arrival, so that their ages at [`Arrivals::now`] are those of the site.
    pub fn date(&self, rows: &mut [Row]) {
        let stamp = |note: Note| (own_stamp(note.at_ns), note.upto);
        let mut before: Option<Seq> = None;
        for row in rows {
            let dated = match before {
                // What was first here is no older than the first note.
                None => self.notes.first().map(|note| (own_stamp(note.at_ns), 0)),
                Some(seq) => {
                    let at = self.notes.partition_point(|note| note.upto < seq);
                    self.notes.get(at).copied().map(stamp)
                }
            };
            before = Some(row.last_seq);
            row.timed = dated.is_some();
            (row.made, row.after_seq) = dated.unwrap_or((own_stamp(0), 0));
        }
    }

    /// This instant in the site's own time.
    #[must_use]
    pub fn now(&self, clock: &dyn Clock) -> Stamp {
        own_stamp(self.own_time(&Stamp::now(clock)))
    }

    fn own_time(&self, now: &Stamp) -> u64 {
        let since = self.looked.map_or(0, |looked| between(&looked, now));
        self.own_ns.saturating_add(since)
    }

    /// Removes notes that lie close together for their age. The next older one keeps proving less.
    fn thin(&mut self) {
        let now_ns = self.own_ns;
        let mut kept: Vec<Note> = Vec::with_capacity(self.notes.len());
        for (i, note) in self.notes.iter().enumerate() {
            let is_last = i + 1 == self.notes.len();
            let age_ns = now_ns.saturating_sub(note.at_ns);
            let is_close = kept
                .last()
                .is_some_and(|before| note.at_ns - before.at_ns < age_ns / SPREAD_DIVISOR);
            if is_last || !is_close {
                kept.push(*note);
            }
        }
        let surplus = kept.len().saturating_sub(NOTES_MAX);
        kept.drain(..surplus);
        self.notes = kept;
    }

    fn encode(&self) -> Vec<u8> {
        let looked = self.looked.unwrap_or(Stamp { wall_ns: 0, mono_ns: 0, boot_id: [0; 16] });
        let head = RawHead {
            magic: MAGIC,
            version: VERSION.into(),
            crc: 0.into(),
            own_ns: self.own_ns.into(),
            wall_ns: looked.wall_ns.into(),
            mono_ns: looked.mono_ns.into(),
            boot_id: looked.boot_id,
            count: (self.notes.len() as u64).into(),
            acknowledged: self.acknowledged.into(),
        };
        let mut bytes = head.as_bytes().to_vec();
        for Note { upto, at_ns } in &self.notes {
            let note = RawNote { upto: (*upto).into(), at_ns: (*at_ns).into() };
            bytes.extend_from_slice(note.as_bytes());
        }
        let crc: U32 = crc32c(&bytes).into();
        bytes[12..16].copy_from_slice(crc.as_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (head, rest) = RawHead::read_from_prefix(bytes).ok()?;
        let mut zeroed = bytes.to_vec();
        zeroed.get_mut(12..16)?.fill(0);
        let is_sound = head.magic == MAGIC
            && head.version.get() == VERSION
            && head.crc.get() == crc32c(&zeroed)
            && rest.len() as u64 == head.count.get().checked_mul(size_of::<RawNote>() as u64)?;
        if !is_sound {
            return None;
        }
        let read = |raw: &[u8]| RawNote::read_from_bytes(raw).ok();
        let notes =
            rest.chunks_exact(size_of::<RawNote>()).map(read).collect::<Option<Vec<_>>>()?;
        let notes: Vec<Note> =
            notes.iter().map(|n| Note { upto: n.upto.get(), at_ns: n.at_ns.get() }).collect();
        let ascends = notes.windows(2).all(|w| w[0].upto < w[1].upto && w[0].at_ns <= w[1].at_ns);
        let (wall_ns, mono_ns) = (head.wall_ns.get(), head.mono_ns.get());
        let looked = Stamp { wall_ns, mono_ns, boot_id: head.boot_id };
        let looked = (!notes.is_empty()).then_some(looked);
        let (own_ns, acknowledged) = (head.own_ns.get(), head.acknowledged.get());
        ascends.then_some(Self { notes, own_ns, looked, acknowledged })
    }
}

fn own_stamp(at_ns: u64) -> Stamp {
    Stamp { wall_ns: at_ns, mono_ns: at_ns, boot_id: OWN_TIME }
}

/// The most that a look at this host's clocks can add where they are another boot's.
const _: () = assert!(DOWNTIME_MAX_NS > NOTE_EVERY_NS);

#[cfg(test)]
#[path = "arrivals_tests.rs"]
mod tests;
