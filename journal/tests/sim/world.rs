//! The simulated machine: its disk, which process of it lives, and what strikes when.
//!
//! A file named `ring*` is a real one in memory, since it is mapped: the end of the process keeps
//! it, a power cut does not.

use crate::disk::{Change, Disk, InodeId, Keep, Op};
use crate::rng::{Digest, Rng};
use afterimage_journal::storage::LockKind;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What strikes, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The process ends before this operation.
    Kill,
    /// The power goes before this operation.
    Power,
    /// A sync fails, and what it was for is lost in part, though it is still shown.
    FailSync,
    /// A write fails; a part of it is there.
    FailWrite,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Name,
    Write,
    Sync,
}

pub struct Taken {
    pub id: u64,
    pub process: u64,
    pub path: PathBuf,
    pub kind: LockKind,
}

pub struct World {
    pub disk: Disk,
    pub rng: Rng,
    /// Processes are numbered; only the newest lives.
    pub process: u64,
    pub boot: u64,
    pub ops: u64,
    pub trace: Digest,
    pub record: Option<Vec<Op>>,
    pub fault: Option<(u64, Fault)>,
    pub struck: Option<Fault>,
    pub locks: Vec<Taken>,
    pub next_lock: u64,
    pub limits: BTreeMap<PathBuf, u64>,
    pub gone: Vec<PathBuf>,
    pub rings: BTreeMap<InodeId, Arc<File>>,
}

fn dead() -> io::Error {
    io::Error::other("this process is dead")
}

pub fn memory_file() -> io::Result<Arc<File>> {
    let fd = rustix::fs::memfd_create("ring", rustix::fs::MemfdFlags::CLOEXEC)?;
    Ok(Arc::new(File::from(fd)))
}

fn copy_of(file: &File) -> io::Result<Arc<File>> {
    let copy = memory_file()?;
    let mut bytes = vec![0; file.metadata()?.len() as usize];
    FileExt::read_exact_at(file, &mut bytes, 0)?;
    FileExt::write_all_at(&*copy, &bytes, 0)?;
    Ok(copy)
}

impl World {
    pub fn new(disk: Disk, seed: u64) -> Self {
        Self {
            disk,
            rng: Rng::new(seed ^ 0x6469_736b),
            process: 1,
            boot: 1,
            ops: 0,
            trace: Digest::default(),
            record: None,
            fault: None,
            struck: None,
            locks: Vec::new(),
            next_lock: 0,
            limits: BTreeMap::new(),
            gone: Vec::new(),
            rings: BTreeMap::new(),
        }
    }

    /// Before each operation that changes something: counts it, and lets a fault strike.
    pub fn before(&mut self, process: u64, class: Class) -> io::Result<()> {
        self.alive(process)?;
        self.ops += 1;
        let Some((at, fault)) = self.fault else { return Ok(()) };
        let fits = match fault {
            Fault::Kill | Fault::Power => true,
            Fault::FailSync => class == Class::Sync,
            Fault::FailWrite => class == Class::Write,
        };
        if self.ops < at || !fits {
            return Ok(());
        }
        self.fault = None;
        self.struck = Some(fault);
        match fault {
            Fault::Kill => self.kill(),
            Fault::Power => self.power(Keep::any(&mut self.rng.clone())),
            Fault::FailSync | Fault::FailWrite => return Err(ErrorKind::Other.into()),
        }
        Err(dead())
    }

    pub fn alive(&self, process: u64) -> io::Result<()> {
        if process == self.process { Ok(()) } else { Err(dead()) }
    }

    pub fn apply(&mut self, op: Op) {
        op.trace(&mut self.trace);
        self.disk.apply(&op);
        if let Some(record) = &mut self.record {
            record.push(op);
        }
    }

    pub fn is_gone(&self, path: &Path) -> bool {
        self.gone.iter().any(|g| path.starts_with(g))
    }

    pub fn kill(&mut self) {
        self.process += 1;
        self.locks.clear();
        self.fault = None;
        // Whoever died may still have them mapped.
        for ring in self.rings.values_mut() {
            *ring = copy_of(ring).unwrap();
        }
    }

    pub fn power(&mut self, keep: Keep) {
        self.kill();
        self.boot += 1;
        self.disk = self.disk.cut(keep, &mut self.rng);
        // They may be there as they were, or gone: nobody may count on either.
        for ring in self.rings.values_mut().filter(|_| keep != Keep::All) {
            let bytes = ring.metadata().unwrap().len();
            *ring = memory_file().unwrap();
            ring.set_len(bytes).unwrap();
        }
    }

    pub fn room(&self, path: &Path) -> Option<(u64, u64)> {
        let mut limits = self.limits.iter().filter(|(dir, _)| path.starts_with(dir));
        let (dir, limit) = limits.next_back()?;
        Some((*limit, limit.saturating_sub(self.disk.used_bytes(dir))))
    }

    pub fn change(&mut self, inode: InodeId, change: Change) {
        self.apply(Op::Change { inode, change });
    }

    pub fn make_file(&mut self, path: &Path) -> InodeId {
        let inode = self.disk.next_inode;
        self.apply(Op::Make { path: path.to_owned(), inode });
        inode
    }
}
