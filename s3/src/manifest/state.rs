//! What a bucket holds of a journal: the sum of its manifests. No I/O.
//!
//! What always holds:
//! * an object that left a file is dead, by key, until it was deleted; none comes back;
//! * what was read from manifests is checked before it is used: names, places and sizes fit.

use super::message::{Dead, FileEntry, FileOpening, Manifest, Opening, SegmentEntry};
use crate::object::{SEGMENT_BYTES_MAX, tail_bytes};
use afterimage_journal::Seq;
use afterimage_journal::format::unit_header::{FLAG_EPOCH_START, UnitHeader};
use afterimage_journal::pool::FileName;
use afterimage_journal::unit::UNIT_BYTES_MAX;
use std::collections::{BTreeMap, BTreeSet};

/// A stretch of a file, in an object of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Byte of the file.
    pub at: u64,
    /// Bytes of the file.
    pub bytes: u64,
    /// Bytes of the object.
    pub object_bytes: u64,
    /// Who wrote it: epoch and number of the opening.
    pub writer: (u64, u64),
    /// The random part of its key.
    pub random: [u8; 16],
}

impl Segment {
    /// Byte of the file behind it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.at + self.bytes
    }

    /// Its object's key, below the journal's.
    #[must_use]
    pub fn key(&self, name: FileName) -> String {
        let random = u128::from_be_bytes(self.random);
        format!("{}{name}/{:011}-{random:032x}", objects_of(self.writer), self.at)
    }
}

/// What the keys of an opening's objects begin with, below the journal's.
#[must_use]
pub fn objects_of((epoch, opening): (u64, u64)) -> String {
    format!("object/{epoch:010}-{opening:020}/")
}

/// How much of a file is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holding {
    /// A unit of the log's end.
    Open = 1,
    /// A file that comes in pieces; it doesn't count.
    Part = 2,
    /// All of it.
    Whole = 3,
}

/// A file of the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// The salt of its header.
    pub salt: [u8; 16],
    /// Its size in bytes.
    pub file_bytes: u64,
    /// How much of it is there.
    pub holding: Holding,
    /// All below this byte is there.
    pub end: u64,
    /// Of an open one: where its records end. What lies behind is the beginning of what it has when it is
    /// sealed, and came in pieces.
    pub records: u64,
    /// Checksum of its index, of a whole one.
    pub index_crc: u32,
    /// The window's edge that a merged unit names.
    pub edge: Seq,
    /// Ascending, without overlap; what is in none reads as zeroes.
    pub segments: Vec<Segment>,
    /// The epoch in its header; 0: not known.
    pub epoch: u64,
    /// The epochs that began in it, each with the salt of its first unit where that is known.
    pub openings: Vec<(u64, Option<[u8; 16]>)>,
}

impl File {
    /// One of which nothing is there yet.
    #[must_use]
    pub fn empty(salt: [u8; 16], file_bytes: u64, holding: Holding) -> Self {
        let (end, records, index_crc, edge, segments) = (0, 0, 0, 0, Vec::new());
        let (epoch, openings) = (0, Vec::new());
        Self { salt, file_bytes, holding, end, records, index_crc, edge, segments, epoch, openings }
    }

    /// One of which nothing is there yet, with this header.
    #[must_use]
    pub fn begun(header: &UnitHeader, holding: Holding) -> Self {
        let starts = header.flags & FLAG_EPOCH_START != 0;
        let openings = starts.then_some((header.epoch, Some(header.salt))).into_iter().collect();
        let empty = Self::empty(header.salt, header.unit_bytes, holding);
        Self { epoch: header.epoch, openings, ..empty }
    }
}

/// What a bucket holds of a journal.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    /// Number of the newest manifest; 0: none is there.
    pub number: u64,
    /// Checksum of its bytes.
    pub crc: u32,
    /// Its writer's epoch.
    pub epoch: u64,
    /// Number of the first manifest since its writer opened.
    pub opening: u64,
    /// Number of the last manifest that says all.
    pub base: u64,
    /// The journal's `journal.json`.
    pub identity: Vec<u8>,
    /// Every number up to it is there, or merged away, or was never given.
    pub watermark: Seq,
    /// When its record was written, nanoseconds since the Unix epoch.
    pub record_wall_ns: u64,
    /// Manifests below it may be gone.
    pub floor: u64,
    /// Manifests below it are gone, but for those that stay.
    pub swept: u64,
    /// The next floor and when it was chosen.
    pub next_floor: Option<(u64, u64)>,
    /// First manifests of openings, from `swept` on: they stay.
    pub firsts: BTreeSet<u64>,
    /// The files.
    pub files: BTreeMap<FileName, File>,
    /// Keys of dead objects, and since when.
    pub dead: BTreeMap<String, u64>,
    /// Openings that may have left objects that nothing ever named.
    pub unswept: BTreeSet<(u64, u64)>,
}

/// What differs between a state and the manifest before.
#[derive(Debug, Default)]
pub struct Change {
    /// Files that changed, with the number of leading segments that did not.
    pub files: BTreeMap<FileName, usize>,
    /// Files that are gone.
    pub gone: BTreeSet<FileName>,
    /// Objects that died.
    pub dead: BTreeMap<String, u64>,
    /// Dead objects that were deleted.
    pub buried: Vec<String>,
    /// Openings that were swept.
    pub swept_openings: Vec<(u64, u64)>,
}

impl Change {
    /// Notes that a file's segments differ from `keep` on.
    pub fn touch(&mut self, name: FileName, keep: usize) {
        let kept = self.files.entry(name).or_insert(keep);
        *kept = (*kept).min(keep);
        self.gone.remove(&name);
    }

    /// Whether there is nothing to tell.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
            && self.gone.is_empty()
            && self.dead.is_empty()
            && self.buried.is_empty()
            && self.swept_openings.is_empty()
    }
}

impl State {
    /// The message of the state's own number: all of it, or the change that led to it.
    #[must_use]
    pub fn message(&self, change: &Change, before_crc: u32, wall_ns: u64) -> Manifest {
        let whole = self.base == self.number;
        let (next_floor, next_floor_ns) = self.next_floor.unwrap_or_default();
        let opening = |(epoch, number): &(u64, u64)| Opening { epoch: *epoch, number: *number };
        let dead = |(key, since): (&String, &u64)| Dead { key: key.clone(), since_ns: *since };
        let mut message = Manifest {
            number: self.number,
            epoch: self.epoch,
            opening: self.opening,
            whole,
            base: self.base,
            before_crc,
            watermark: self.watermark,
            record_wall_ns: self.record_wall_ns,
            wall_ns,
            floor: self.floor,
            swept: self.swept,
            next_floor,
            next_floor_ns,
            ..Manifest::default()
        };
        if whole {
            message.identity.clone_from(&self.identity);
            message.firsts = self.firsts.iter().copied().collect();
            message.files = self.files.iter().map(|(n, f)| entry(*n, f, 0)).collect();
            message.dead = self.dead.iter().map(dead).collect();
            message.unswept = self.unswept.iter().map(opening).collect();
            return message;
        }
        let changed = |(name, keep): (&FileName, &usize)| {
            self.files.get(name).map(|file| entry(*name, file, *keep))
        };
        message.files = change.files.iter().filter_map(changed).collect();
        message.gone = change.gone.iter().map(ToString::to_string).collect();
        message.dead = change.dead.iter().map(dead).collect();
        message.buried.clone_from(&change.buried);
        message.swept_openings = change.swept_openings.iter().map(opening).collect();
        message
    }

    /// Begins manifest `number`, the first of an opening or not: what follows from that alone.
    pub fn step(&mut self, number: u64, epoch: u64, opening: u64, swept: u64) {
        if number == opening {
            if self.opening != 0 {
                self.unswept.insert((self.epoch, self.opening));
            }
            self.firsts.insert(number);
        }
        (self.number, self.epoch, self.opening, self.swept) = (number, epoch, opening, swept);
        self.firsts.retain(|first| *first >= swept);
    }

    /// Takes the next manifest, whose bytes have this checksum.
    ///
    /// # Errors
    /// It doesn't follow, or says what can't be: a clause.
    pub fn apply(&mut self, message: &Manifest, crc: u32) -> Result<(), String> {
        if message.whole {
            *self = Self { identity: message.identity.clone(), ..Self::default() };
        } else if message.number != self.number + 1
            || message.before_crc != self.crc
            || message.base != self.base
        {
            return Err(format!("it doesn't follow manifest {}", self.number));
        }
        if message.epoch < self.epoch || message.opening > message.number {
            return Err("its epoch or opening can't be".into());
        }
        self.step(message.number, message.epoch, message.opening, message.swept);
        self.crc = crc;
        self.base = if message.whole { message.number } else { message.base };
        (self.watermark, self.record_wall_ns) = (message.watermark, message.record_wall_ns);
        self.floor = message.floor;
        self.next_floor =
            (message.next_floor != 0).then_some((message.next_floor, message.next_floor_ns));
        self.firsts.extend(&message.firsts);
        for name in &message.gone {
            self.files.remove(&parse(name)?);
        }
        for file in &message.files {
            self.take(file)?;
        }
        self.dead.extend(message.dead.iter().map(|d| (d.key.clone(), d.since_ns)));
        for key in &message.buried {
            self.dead.remove(key);
        }
        self.unswept.extend(message.unswept.iter().map(|o| (o.epoch, o.number)));
        for opening in &message.swept_openings {
            self.unswept.remove(&(opening.epoch, opening.number));
        }
        Ok(())
    }

    fn take(&mut self, entry: &FileEntry) -> Result<(), String> {
        let name = parse(&entry.name)?;
        let wrong = |what: &str| format!("it says of {name} what can't be: {what}");
        let salt = <[u8; 16]>::try_from(&entry.salt[..]).map_err(|_| wrong("its salt"))?;
        let holding = match entry.holding {
            1 => Holding::Open,
            2 => Holding::Part,
            3 => Holding::Whole,
            _ => return Err(wrong("how much is there")),
        };
        let ends = entry.records <= entry.end && entry.end <= entry.file_bytes;
        if entry.file_bytes > UNIT_BYTES_MAX || !ends {
            return Err(wrong("its size"));
        }
        let mut segments = self.files.remove(&name).map(|f| f.segments).unwrap_or_default();
        if entry.keep as usize > segments.len() {
            return Err(wrong("segments that were not there"));
        }
        segments.truncate(entry.keep as usize);
        for found in &entry.segments {
            let after = segments.last().map_or(0, Segment::end);
            let end = found.at.checked_add(found.bytes);
            let fits = found.at >= after
                && found.bytes <= SEGMENT_BYTES_MAX
                && found.object_bytes <= found.bytes + tail_bytes(found.bytes)
                && end.is_some_and(|end| end <= entry.file_bytes);
            let random = <[u8; 16]>::try_from(&found.random[..]).ok();
            let (Some(random), true) = (random, fits) else { return Err(wrong("a segment")) };
            segments.push(Segment {
                at: found.at,
                bytes: found.bytes,
                object_bytes: found.object_bytes,
                writer: (found.epoch, found.opening),
                random,
            });
        }
        let opening = |found: &FileOpening| match found.id.as_slice() {
            [] => Ok((found.epoch, None)),
            id => id.try_into().map(|id| (found.epoch, Some(id))).map_err(|_| wrong("an opening")),
        };
        let openings = entry.openings.iter().map(opening).collect::<Result<_, _>>()?;
        let file = File {
            epoch: entry.file_epoch,
            openings,
            salt,
            file_bytes: entry.file_bytes,
            holding,
            end: entry.end,
            records: entry.records,
            index_crc: entry.index_crc,
            edge: entry.edge,
            segments,
        };
        self.files.insert(name, file);
        Ok(())
    }
}

fn parse(name: &str) -> Result<FileName, String> {
    FileName::parse(name).ok_or_else(|| format!("it names {name:?}, which is no unit"))
}

fn entry(name: FileName, file: &File, keep: usize) -> FileEntry {
    let keep = keep.min(file.segments.len());
    let segments = file.segments[keep..].iter().map(|s| SegmentEntry {
        at: s.at,
        bytes: s.bytes,
        object_bytes: s.object_bytes,
        epoch: s.writer.0,
        opening: s.writer.1,
        random: s.random.to_vec(),
    });
    FileEntry {
        name: name.to_string(),
        salt: file.salt.to_vec(),
        file_bytes: file.file_bytes,
        holding: file.holding as u32,
        end: file.end,
        records: file.records,
        index_crc: file.index_crc,
        edge: file.edge,
        keep: keep as u32,
        segments: segments.collect(),
        file_epoch: file.epoch,
        openings: file.openings.iter().map(opening_entry).collect(),
    }
}

fn opening_entry((epoch, id): &(u64, Option<[u8; 16]>)) -> FileOpening {
    FileOpening { epoch: *epoch, id: id.map(Vec::from).unwrap_or_default() }
}
