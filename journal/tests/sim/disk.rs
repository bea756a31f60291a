//! A disk in memory that knows what is durable.
//!
//! A file has what readers see (`live`), what was synced (`durable`), and the changes in between.
//! Names are the same: what is seen, what a synced directory holds, and operations in between. A
//! power cut keeps what is durable and any subset of the rest: writes sector by sector (512 bytes)
//! and in any order, sizes, renames and removals one by one.

use crate::rng::{Digest, Rng};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub const SECTOR_BYTES: u64 = 512;
const PAGE_BYTES: u64 = 4096;

pub type InodeId = u64;

/// Bytes of a file; what is not there reads as zeroes. Clones share pages.
#[derive(Debug, Clone, Default)]
pub struct Content {
    pub bytes: u64,
    pages: BTreeMap<u64, Arc<[u8; PAGE_BYTES as usize]>>,
}

impl Content {
    pub fn read(&self, buffer: &mut [u8], at: u64) -> usize {
        let len = (self.bytes.saturating_sub(at) as usize).min(buffer.len());
        let mut done = 0;
        while done < len {
            let from = at + done as u64;
            let skip = (from % PAGE_BYTES) as usize;
            let count = (PAGE_BYTES as usize - skip).min(len - done);
            let to = &mut buffer[done..done + count];
            match self.pages.get(&(from / PAGE_BYTES)) {
                Some(page) => to.copy_from_slice(&page[skip..skip + count]),
                None => to.fill(0),
            }
            done += count;
        }
        len
    }

    /// Writes without making the file longer: its size is a change of its own.
    fn write(&mut self, bytes: &[u8], at: u64) {
        let mut done = 0;
        while done < bytes.len() {
            let to = at + done as u64;
            let skip = (to % PAGE_BYTES) as usize;
            let count = (PAGE_BYTES as usize - skip).min(bytes.len() - done);
            let page = self.pages.entry(to / PAGE_BYTES);
            let page = Arc::make_mut(page.or_insert_with(|| Arc::new([0; PAGE_BYTES as usize])));
            page[skip..skip + count].copy_from_slice(&bytes[done..done + count]);
            done += count;
        }
    }

    fn clear(&mut self, from: u64, to: u64) {
        let whole = from.div_ceil(PAGE_BYTES)..to / PAGE_BYTES;
        if whole.start < whole.end {
            self.pages.retain(|page, _| !whole.contains(page));
        }
        let head_end = to.min(from.next_multiple_of(PAGE_BYTES));
        let tail_start = from.max(to / PAGE_BYTES * PAGE_BYTES);
        for (start, end) in [(from, head_end), (tail_start, to)] {
            if start < end && self.pages.contains_key(&(start / PAGE_BYTES)) {
                self.write(&vec![0; (end - start) as usize], start);
            }
        }
    }

    /// What lies behind the end is gone, though the file may grow again.
    fn set_bytes(&mut self, bytes: u64) {
        self.clear(bytes, u64::MAX / PAGE_BYTES * PAGE_BYTES);
        self.bytes = bytes;
    }
}

/// Something done to a file that a sync has yet to make durable.
#[derive(Debug, Clone)]
pub enum Change {
    /// Whole sectors, as they were behind the write.
    Write { at: u64, sectors: Arc<[u8]> },
    /// A size.
    Bytes(u64),
    /// A range that reads as zeroes.
    Punch { from: u64, to: u64 },
}

impl Change {
    fn apply(&self, content: &mut Content) {
        match self {
            Self::Write { at, sectors } => content.write(sectors, *at),
            Self::Bytes(bytes) => content.set_bytes(*bytes),
            Self::Punch { from, to } => content.clear(*from, *to),
        }
    }
}

#[derive(Debug, Clone, Default)]
pub struct Inode {
    pub live: Content,
    durable: Content,
    pending: Vec<Change>,
    /// Bytes that it takes: everything up to here, but for what was punched.
    pub held_bytes: u64,
    punched_bytes: u64,
}

impl Inode {
    pub fn used_bytes(&self) -> u64 {
        self.held_bytes.saturating_sub(self.punched_bytes)
    }

    fn cut(&self, keep: Keep, rng: &mut Rng) -> Content {
        let mut content = self.durable.clone();
        // Sizes first: what lies behind the size that survives is no part of the file.
        let sizes = self.pending.iter().filter(|c| matches!(c, Change::Bytes(_)));
        for size in sizes {
            if keep.one(rng) {
                size.apply(&mut content);
            }
        }
        let bytes = content.bytes;
        for change in &self.pending {
            match change {
                Change::Write { at, sectors } => {
                    for (i, sector) in sectors.chunks(SECTOR_BYTES as usize).enumerate() {
                        if keep.one(rng) {
                            content.write(sector, at + i as u64 * SECTOR_BYTES);
                        }
                    }
                }
                Change::Punch { .. } if keep.one(rng) => change.apply(&mut content),
                _ => {}
            }
        }
        content.set_bytes(bytes);
        content
    }
}

/// What of the unsynced survives a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    All,
    Nothing,
    /// Each sector and each name on its own, with this chance in percent.
    Percent(u64),
    /// Names as under `names`, data as under `data`, both in percent.
    Apart {
        names: u64,
        data: u64,
    },
}

impl Keep {
    pub fn any(rng: &mut Rng) -> Self {
        match rng.below(5) {
            0 => Self::All,
            1 => Self::Nothing,
            2 => Self::Apart { names: 100, data: rng.pick(&[0, 50, 90]) },
            3 => Self::Apart { names: 50, data: 100 },
            _ => Self::Percent(rng.pick(&[5, 50, 90, 97])),
        }
    }

    fn percent(self, names: bool) -> u64 {
        match self {
            Self::All => 100,
            Self::Nothing => 0,
            Self::Percent(percent) => percent,
            Self::Apart { names: percent, .. } if names => percent,
            Self::Apart { data, .. } => data,
        }
    }

    fn one(self, rng: &mut Rng) -> bool {
        rng.percent(self.percent(false))
    }

    fn name(self, rng: &mut Rng) -> bool {
        rng.percent(self.percent(true))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    File(InodeId),
    Dir,
}

/// One thing done to the disk, as it is recorded and replayed.
#[derive(Debug, Clone)]
pub enum Op {
    Make { path: PathBuf, inode: InodeId },
    MakeDir { path: PathBuf },
    Rename { from: PathBuf, to: PathBuf },
    Remove { path: PathBuf },
    SyncDir { dir: PathBuf },
    Change { inode: InodeId, change: Change },
    Sync { inode: InodeId },
}

impl Op {
    /// Which operation, on what, where: not the bytes, whose salts are random.
    pub fn trace(&self, digest: &mut Digest) {
        let mut path = |kind: u8, path: &Path| {
            digest.add(&[kind]);
            digest.add(path.as_os_str().as_encoded_bytes());
        };
        match self {
            Self::Make { path: p, .. } => path(1, p),
            Self::MakeDir { path: p } => path(2, p),
            Self::Rename { from, to } => {
                path(3, from);
                path(3, to);
            }
            Self::Remove { path: p } => path(4, p),
            Self::SyncDir { dir } => path(5, dir),
            Self::Change { inode, change } => {
                let (kind, from, to) = match change {
                    Change::Write { at, sectors } => (6, *at, sectors.len() as u64),
                    Change::Bytes(bytes) => (7, *bytes, 0),
                    Change::Punch { from, to } => (8, *from, *to),
                };
                for number in [kind, *inode, from, to] {
                    digest.number(number);
                }
            }
            Self::Sync { inode } => {
                digest.add(&[9]);
                digest.number(*inode);
            }
        }
    }

    /// Whether something became durable by it.
    pub fn is_sync(&self) -> bool {
        matches!(self, Self::Sync { .. } | Self::SyncDir { .. })
    }
}

#[derive(Debug, Clone)]
enum NameOp {
    Put(PathBuf, Node),
    Move(PathBuf, PathBuf, Node),
    Drop(PathBuf),
}

impl NameOp {
    fn touches(&self, dir: &Path) -> bool {
        match self {
            Self::Put(path, _) | Self::Drop(path) => path.parent() == Some(dir),
            Self::Move(from, to, _) => from.parent() == Some(dir) || to.parent() == Some(dir),
        }
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, Node>) {
        match self {
            Self::Put(path, node) => drop(names.insert(path.clone(), *node)),
            Self::Move(from, to, node) => {
                names.remove(from);
                names.insert(to.clone(), *node);
            }
            Self::Drop(path) => drop(names.remove(path)),
        }
    }
}

/// Names and files.
#[derive(Debug, Clone, Default)]
pub struct Disk {
    pub names: BTreeMap<PathBuf, Node>,
    durable: BTreeMap<PathBuf, Node>,
    pending: Vec<NameOp>,
    inodes: BTreeMap<InodeId, Inode>,
    pub next_inode: InodeId,
}

impl Disk {
    pub fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[&id]
    }

    pub fn file(&self, path: &Path) -> Option<InodeId> {
        match self.names.get(path)? {
            Node::File(id) => Some(*id),
            Node::Dir => None,
        }
    }

    pub fn apply(&mut self, op: &Op) {
        match op {
            Op::Make { path, inode } => {
                self.inodes.insert(*inode, Inode::default());
                self.next_inode = self.next_inode.max(inode + 1);
                self.name(NameOp::Put(path.clone(), Node::File(*inode)));
            }
            Op::MakeDir { path } => self.name(NameOp::Put(path.clone(), Node::Dir)),
            Op::Rename { from, to } => {
                let node = self.names[from];
                self.name(NameOp::Move(from.clone(), to.clone(), node));
            }
            Op::Remove { path } => self.name(NameOp::Drop(path.clone())),
            Op::SyncDir { dir } => {
                let (now, later) =
                    std::mem::take(&mut self.pending).into_iter().partition(|op| op.touches(dir));
                self.pending = later;
                let now: Vec<NameOp> = now;
                now.iter().for_each(|op| op.apply(&mut self.durable));
            }
            Op::Change { inode, change } => self.change(*inode, change),
            Op::Sync { inode } => self.sync(*inode),
        }
    }

    fn name(&mut self, op: NameOp) {
        op.apply(&mut self.names);
        self.pending.push(op);
    }

    fn change(&mut self, id: InodeId, change: &Change) {
        let Some(inode) = self.inodes.get_mut(&id) else { return };
        change.apply(&mut inode.live);
        match change {
            Change::Write { at, sectors } => {
                inode.held_bytes = inode.held_bytes.max(at + sectors.len() as u64);
            }
            Change::Bytes(bytes) => {
                inode.held_bytes = inode.held_bytes.min(*bytes);
                inode.punched_bytes = if *bytes == 0 { 0 } else { inode.punched_bytes };
            }
            Change::Punch { from, to } => inode.punched_bytes += to - from,
        }
        inode.pending.push(change.clone());
    }

    fn sync(&mut self, id: InodeId) {
        let Some(inode) = self.inodes.get_mut(&id) else { return };
        for change in std::mem::take(&mut inode.pending) {
            change.apply(&mut inode.durable);
        }
    }

    /// A sync that failed: any part became durable, the rest is shown as clean and never will.
    pub fn fail_sync(&mut self, id: InodeId, rng: &mut Rng) {
        let Some(inode) = self.inodes.get_mut(&id) else { return };
        let keep = Keep::any(rng);
        inode.durable = inode.cut(keep, rng);
        inode.pending.clear();
    }

    pub fn hold(&mut self, id: InodeId, bytes: u64) {
        if let Some(inode) = self.inodes.get_mut(&id) {
            inode.held_bytes = inode.held_bytes.max(bytes);
        }
    }

    /// Bytes taken by the files below a directory.
    pub fn used_bytes(&self, below: &Path) -> u64 {
        let files = self.names.iter().filter(|(path, _)| path.starts_with(below));
        files
            .map(|(_, node)| match node {
                Node::File(id) => self.inode(*id).used_bytes(),
                Node::Dir => 0,
            })
            .sum()
    }

    /// The disk after a power cut.
    pub fn cut(&self, keep: Keep, rng: &mut Rng) -> Self {
        let mut names = self.durable.clone();
        for op in &self.pending {
            if keep.name(rng) {
                op.apply(&mut names);
            }
        }
        // What a directory that is gone held is gone with it.
        let all = names.clone();
        names.retain(|path, _| {
            let mut above = path.ancestors().skip(1).filter(|p| p.parent().is_some());
            above.all(|p| all.get(p) == Some(&Node::Dir))
        });
        let mut inodes = BTreeMap::new();
        for node in names.values() {
            let Node::File(id) = node else { continue };
            let old = self.inode(*id);
            let content = old.cut(keep, rng);
            let held_bytes = old.held_bytes.min(content.bytes);
            let (live, durable) = (content.clone(), content);
            inodes.insert(
                *id,
                Inode { live, durable, pending: Vec::new(), held_bytes, punched_bytes: 0 },
            );
        }
        let durable = names.clone();
        Self { names, durable, pending: Vec::new(), inodes, next_inode: self.next_inode }
    }

    /// Everything below a directory as it is now, all of it durable.
    pub fn copy_of(&self, below: &Path) -> Vec<(PathBuf, Option<Content>)> {
        let names = self.names.iter().filter(|(path, _)| path.starts_with(below));
        names
            .map(|(path, node)| match node {
                Node::File(id) => (path.clone(), Some(self.inode(*id).live.clone())),
                Node::Dir => (path.clone(), None),
            })
            .collect()
    }

    /// Puts back what [`Disk::copy_of`] gave, in place of what is there.
    pub fn put_back(&mut self, below: &Path, copy: &[(PathBuf, Option<Content>)]) {
        self.names.retain(|path, _| !path.starts_with(below));
        self.durable.retain(|path, _| !path.starts_with(below));
        for (path, content) in copy {
            let node = match content {
                Some(content) => {
                    let (live, durable) = (content.clone(), content.clone());
                    let held_bytes = content.bytes;
                    let id = self.next_inode;
                    self.next_inode += 1;
                    let inode =
                        Inode { live, durable, pending: Vec::new(), held_bytes, punched_bytes: 0 };
                    self.inodes.insert(id, inode);
                    Node::File(id)
                }
                None => Node::Dir,
            };
            self.names.insert(path.clone(), node);
            self.durable.insert(path.clone(), node);
        }
    }
}
