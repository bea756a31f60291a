//! A guest that isn't there: it writes to disks held in memory, a journal is written as an agent
//! would, and what the disks held at a position is remembered. The oracle knows nothing of
//! records: it is the memory itself.

use afterimage_journal::format::record::{FLAG_COPIED, Kind};
use afterimage_journal::history::Entry;
use afterimage_journal::log::Draft;
use afterimage_journal::meta::{
    Config, Copy, CopyCause, CopyEvent, Guest, Meta, Session, SessionEvent, Volume, VolumeKind,
};
use afterimage_journal::{History, Journal, Options, Seq};
use afterimage_restore::{Format, Recovery, Report, RestoreOptions, Result, When, open, restore};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;
use uuid::Uuid;

pub const SECTOR: usize = 512;
pub const GROUP: &str = "shop";
pub const GUEST: &str = "web";

/// Numbers that look random and are the same at each run.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % limit
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.below(u64::MAX).to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

pub struct Bed {
    pub dir: TempDir,
    pub disks: Vec<Vec<u8>>,
    /// What the disks held at positions.
    pub known: Vec<(Seq, Vec<Vec<u8>>)>,
    pub config: Config,
    dirty: Vec<BTreeSet<usize>>,
    journal: Option<Journal>,
    session: u32,
    /// Whether all blocks were copied for the session that opens next.
    full: bool,
    copy: u32,
    pub dice: Dice,
}

pub fn volume(id: u16, guest: &str, node: &str, bytes: u64) -> Volume {
    Volume {
        id,
        kind: VolumeKind::Disk,
        uuid: Uuid::from_u128(u128::from(id)),
        guest: guest.into(),
        disk: format!("virtio{id}"),
        node: node.into(),
        bytes,
        format: "raw".into(),
        source: format!("/images/{node}.img"),
        active: true,
    }
}

pub fn guest(name: &str) -> Guest {
    Guest {
        name: name.into(),
        command_line: vec![],
        libvirt_xml: None,
        qemu_version: String::new(),
    }
}

/// Small units, and time for a disk that other tests keep busy: no guest waits here.
pub fn options() -> Options {
    Options { unit_bytes: 1 << 20, unit_wait: Duration::from_secs(20), ..Options::default() }
}

impl Bed {
    /// A guest with disks of these sizes, being journaled, not yet in a session.
    pub fn new(seed: u64, sizes: &[usize]) -> Self {
        Self::with(seed, sizes, |_| options())
    }

    /// As [`Bed::new`], with options made for the state directory's pool.
    pub fn with(seed: u64, sizes: &[usize], options: impl Fn(&Path) -> Options) -> Self {
        let group = Uuid::from_u128(7);
        let volumes = sizes.iter().enumerate();
        let config = Config {
            group,
            name: GROUP.into(),
            guests: vec![guest(GUEST)],
            volumes: volumes
                .map(|(i, bytes)| volume(i as u16 + 1, GUEST, &format!("d{i}"), *bytes as u64))
                .collect(),
        };
        let dir = tempfile::tempdir().unwrap();
        let mut bed = Self {
            disks: sizes.iter().map(|s| vec![0; *s]).collect(),
            dirty: vec![BTreeSet::new(); sizes.len()],
            known: vec![],
            config,
            journal: None,
            session: 0,
            full: true,
            copy: 0,
            dice: Dice::new(seed),
            dir,
        };
        std::fs::create_dir_all(bed.state().join("pool")).unwrap();
        std::fs::write(bed.state().join("format"), "1\n").unwrap();
        let options = options(&bed.state().join("pool"));
        let journal = Journal::create(&bed.journal_dir(), group, GROUP, options).unwrap();
        journal.set_config(&bed.config).unwrap();
        bed.journal = Some(journal);
        bed
    }

    /// One with random content, its first sync, a killed agent, a resync: several units.
    pub fn eventful(seed: u64) -> Self {
        let mut bed = Self::new(seed, &[601 * SECTOR, 1 << 20]);
        for _ in 0..60 {
            bed.missed_write();
        }
        bed.sync(CopyCause::Initial);
        bed.run(200);
        bed.kill_agent();
        for _ in 0..20 {
            bed.missed_write();
        }
        bed.restart_agent();
        bed.sync(CopyCause::Bitmap);
        bed.run(200);
        bed
    }

    pub fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    pub fn journal_dir(&self) -> PathBuf {
        self.state().join("pool").join(GROUP)
    }

    pub fn journal(&self) -> &Journal {
        self.journal.as_ref().unwrap()
    }

    fn range(&mut self) -> (usize, usize, usize) {
        let disk = self.dice.below(self.disks.len() as u64) as usize;
        let sectors = self.disks[disk].len() / SECTOR;
        let at = self.dice.below(sectors as u64) as usize;
        let len = (1 + self.dice.below(48) as usize).min(sectors - at);
        (disk, at * SECTOR, len * SECTOR)
    }

    /// The guest writes while nobody looks.
    pub fn missed_write(&mut self) {
        let (disk, at, len) = self.range();
        let mut bytes = vec![0; len];
        self.dice.fill(&mut bytes);
        self.disks[disk][at..at + len].copy_from_slice(&bytes);
        self.dirty[disk].extend((at / SECTOR)..(at + len) / SECTOR);
    }

    fn draft(&self, disk: usize, kind: Kind, at: usize, len: usize) -> Draft {
        let mut draft = Draft::of(kind);
        draft.volume = disk as u16 + 1;
        draft.addr = at as u64;
        draft.len = len as u32;
        draft.scope = self.session;
        draft
    }

    pub fn write_at(&mut self, disk: usize, at: usize, bytes: &[u8]) -> Seq {
        self.disks[disk][at..at + bytes.len()].copy_from_slice(bytes);
        let draft = self.draft(disk, Kind::Write, at, bytes.len());
        self.journal().append(&draft, bytes).unwrap()
    }

    pub fn zero_at(&mut self, disk: usize, at: usize, len: usize) -> Seq {
        self.disks[disk][at..at + len].fill(0);
        let draft = self.draft(disk, Kind::Zero, at, len);
        self.journal().append(&draft, &[]).unwrap()
    }

    /// The guest writes, and it is captured: data, data with zeroes in it, or zero ranges.
    pub fn write(&mut self) -> Seq {
        let (disk, at, len) = self.range();
        match self.dice.below(5) {
            0 => self.zero_at(disk, at, len),
            kind => {
                let mut bytes = vec![0; len];
                if kind > 1 {
                    self.dice.fill(&mut bytes);
                }
                if kind == 2 {
                    bytes[..len / 2].fill(0);
                }
                self.write_at(disk, at, &bytes)
            }
        }
    }

    /// Remembers what the disks hold at the head.
    pub fn note(&mut self, seq: Seq) {
        self.known.push((seq, self.disks.clone()));
    }

    /// Captured writes; some of the positions are remembered.
    pub fn run(&mut self, writes: usize) {
        for i in 0..writes {
            let seq = self.write();
            if i % 17 == 0 || i + 1 == writes {
                self.note(seq);
            }
        }
    }

    pub fn event(&self, event: SessionEvent) -> Meta {
        Meta::Session(Session {
            id: self.session,
            guest: GUEST.into(),
            event,
            reason: "detached by hand".into(),
            upto: None,
            full: event == SessionEvent::Open && self.full,
            images: vec![],
            maps: vec![],
        })
    }

    fn copy_event(&self, disk: usize, event: CopyEvent, cause: CopyCause) -> Seq {
        let volume = disk as u16 + 1;
        let copy = Meta::Copy(Copy {
            id: self.copy,
            volume,
            event,
            cause,
            upto: 0,
            whole: cause == CopyCause::Initial,
        });
        self.journal().append_meta(&copy).unwrap()
    }

    /// Copies what was missed while the guest goes on writing, then opens a session.
    pub fn sync(&mut self, cause: CopyCause) -> Seq {
        for disk in 0..self.disks.len() {
            self.copy += 1;
            self.copy_event(disk, CopyEvent::Start, cause);
            let dirty = std::mem::take(&mut self.dirty[disk]);
            let mut blocks: Vec<usize> = dirty.iter().map(|s| s / 8).collect();
            blocks.dedup();
            for block in blocks {
                let at = block * 8 * SECTOR;
                let end = (at + 8 * SECTOR).min(self.disks[disk].len());
                let bytes = self.disks[disk][at..end].to_vec();
                let mut draft = self.draft(disk, Kind::Write, at, bytes.len());
                draft.flags = FLAG_COPIED;
                draft.scope = self.copy;
                // The guest's writes are captured before the copied block that was read before them,
                // often in that very block.
                self.write();
                if self.dice.below(2) == 0 {
                    let newer = [self.dice.below(256) as u8; SECTOR];
                    self.write_at(disk, at, &newer);
                }
                self.journal().append(&draft, &bytes).unwrap();
            }
            self.copy_event(disk, CopyEvent::End, cause);
        }
        self.full = cause != CopyCause::Bitmap;
        self.open_session()
    }

    pub fn open_session(&mut self) -> Seq {
        self.session += 1;
        let seq = self.journal().append_meta(&self.event(SessionEvent::Open)).unwrap();
        self.note(seq);
        seq
    }

    pub fn close_session(&mut self) -> Seq {
        self.journal().append_meta(&self.event(SessionEvent::Close)).unwrap()
    }

    /// As SIGKILL leaves it: nothing more is written.
    pub fn kill_agent(&mut self) {
        self.journal = None;
    }

    pub fn restart_agent(&mut self) {
        self.restart_with(options());
    }

    pub fn restart_with(&mut self, options: Options) {
        self.kill_agent();
        self.journal = Some(Journal::open(&self.journal_dir(), options).unwrap().0);
    }

    /// A clean stop: every unit is sealed.
    pub fn stop_agent(&mut self) {
        self.journal.take().unwrap().close().unwrap();
    }

    pub fn open(&self) -> Recovery {
        open(&self.state(), GROUP).unwrap()
    }
}

/// Restores everything at a position into a new directory below `below`.
pub fn restore_at(recovery: &Recovery, seq: Seq, below: &Path, format: Format) -> Result<Report> {
    let to = below.join(format!("{seq}-{}", format.as_str()));
    restore_to(recovery, seq, &to, format, &[])
}

pub fn restore_to(
    recovery: &Recovery,
    seq: Seq,
    to: &Path,
    format: Format,
    disks: &[&str],
) -> Result<Report> {
    let point = recovery.resolve(&When::Seq(seq))?;
    let disks = disks.iter().map(|d| (*d).to_owned()).collect();
    let options = RestoreOptions { to: to.to_owned(), disks, format };
    restore(recovery, point, &options, &mut |_| {})
}

/// Names in a directory, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> =
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Changes one byte of a file.
pub fn flip(path: &Path, at: u64) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
}

/// All records of a journal, by number.
pub fn entries(history: &History) -> Vec<Entry> {
    history.entries().map(|e| e.unwrap()).collect()
}
