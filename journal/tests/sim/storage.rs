//! [`Storage`] over the simulated machine, and the handles by which a test moves it.

use crate::disk::{Change, Disk, Keep, Node, Op};
use crate::file::SimFile;
use crate::rng::Digest;
use crate::world::{Class, Fault, Taken, World, memory_file};
use afterimage_journal::storage::{Access, Held, Lock, LockKind, Room, Storage, StoredFile};
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A disk, as one process sees it.
#[derive(Clone)]
pub struct SimStorage {
    world: Arc<Mutex<World>>,
    pub process: u64,
}

impl std::fmt::Debug for SimStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "simulated disk, process {}", self.process)
    }
}

impl SimStorage {
    pub fn new(seed: u64) -> Self {
        Self::over(Disk::default(), seed)
    }

    /// A machine that starts with this disk.
    pub fn over(disk: Disk, seed: u64) -> Self {
        let world = World::new(disk, seed);
        Self { world: Arc::new(Mutex::new(world)), process: 1 }
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn shared(&self) -> Arc<dyn Storage> {
        Arc::new(self.clone())
    }

    /// The disk for the process that lives now.
    pub fn now(&self) -> Self {
        let process = self.world().process;
        Self { world: Arc::clone(&self.world), process }
    }

    /// SIGKILL: everything that was written is kept. Returns the disk for the next process.
    pub fn kill(&self) -> Self {
        self.world().kill();
        self.now()
    }

    /// Power cut. Returns the disk for the next process, in another boot.
    pub fn power(&self, keep: Keep) -> Self {
        self.world().power(keep);
        self.now()
    }

    /// Lets a fault strike at the n-th operation from now (1: the next) that it fits.
    pub fn arm(&self, after: u64, fault: Fault) {
        let mut world = self.world();
        world.fault = Some((world.ops + after, fault));
    }

    pub fn disarm(&self) {
        self.world().fault = None;
    }

    /// The fault that struck since the last call.
    pub fn struck(&self) -> Option<Fault> {
        self.world().struck.take()
    }

    /// Whether one struck that nobody asked about yet.
    pub fn has_struck(&self) -> bool {
        self.world().struck.is_some()
    }

    /// Bounds what the files below a directory may take.
    pub fn limit(&self, dir: &Path, bytes: Option<u64>) {
        let mut world = self.world();
        match bytes {
            Some(bytes) => drop(world.limits.insert(dir.to_owned(), bytes)),
            None => drop(world.limits.remove(dir)),
        }
    }

    pub fn used_bytes(&self, dir: &Path) -> u64 {
        self.world().disk.used_bytes(dir)
    }

    /// A device goes away, or comes back.
    pub fn set_gone(&self, dir: &Path, gone: bool) {
        let mut world = self.world();
        world.gone.retain(|g| g != dir);
        if gone {
            world.gone.push(dir.to_owned());
        }
    }

    pub fn boot(&self) -> u64 {
        self.world().boot
    }

    /// Operations that changed something, so far.
    pub fn ops(&self) -> u64 {
        self.world().ops
    }

    pub fn trace(&self) -> Digest {
        self.world().trace
    }

    /// From here on every operation is kept; what was done before is the disk it began with.
    pub fn start_record(&self) -> Disk {
        let mut world = self.world();
        world.record = Some(Vec::new());
        world.disk.clone()
    }

    pub fn recorded(&self) -> usize {
        self.world().record.as_ref().map_or(0, Vec::len)
    }

    pub fn take_record(&self) -> Vec<Op> {
        self.world().record.take().unwrap_or_default()
    }

    /// This many boots later, with everything else as it is.
    pub fn after_boots(self, boots: u64) -> Self {
        self.world().boot += boots;
        self
    }

    /// The disk as it is.
    pub fn disk(&self) -> Disk {
        self.world().disk.clone()
    }

    /// Changes the disk behind everybody's back.
    pub fn edit<T>(&self, with: impl FnOnce(&mut Disk) -> T) -> T {
        with(&mut self.world().disk)
    }
}

#[derive(Debug)]
struct SimLock {
    storage: SimStorage,
    id: u64,
}

impl Held for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.storage.world().locks.retain(|l| l.id != self.id);
    }
}

impl Storage for SimStorage {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn StoredFile>> {
        let mut world = self.world();
        world.alive(self.process)?;
        let parent = path.parent().unwrap_or(Path::new("/"));
        if world.is_gone(path) || world.disk.names.get(parent) != Some(&Node::Dir) {
            return Err(ErrorKind::NotFound.into());
        }
        let inode = match (world.disk.names.get(path).copied(), access) {
            (Some(Node::Dir), _) => return Err(ErrorKind::IsADirectory.into()),
            (Some(Node::File(inode)), Access::Read | Access::Write) => inode,
            (Some(Node::File(inode)), Access::Replace) => {
                world.before(self.process, Class::Write)?;
                world.change(inode, Change::Bytes(0));
                inode
            }
            (None, Access::Replace) => {
                world.before(self.process, Class::Name)?;
                world.make_file(path)
            }
            (None, _) => return Err(ErrorKind::NotFound.into()),
        };
        let is_ring = path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"ring"));
        let ring = match world.rings.get(&inode) {
            Some(ring) => Some(Arc::clone(ring)),
            None if is_ring => {
                let ring = memory_file()?;
                ring.set_len(world.disk.inode(inode).live.bytes)?;
                world.rings.insert(inode, Arc::clone(&ring));
                Some(ring)
            }
            None => None,
        };
        let device = world.limits.keys().rev().find(|d| path.starts_with(d)).cloned();
        drop(world);
        let (storage, path) = (self.clone(), path.to_owned());
        let writable = access != Access::Read;
        Ok(Arc::new(SimFile { storage, path, inode, ring, device, writable }))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let world = self.world();
        world.alive(self.process)?;
        if world.is_gone(dir) || world.disk.names.get(dir) != Some(&Node::Dir) {
            return Err(ErrorKind::NotFound.into());
        }
        let names = world.disk.names.keys().filter(|path| path.parent() == Some(dir));
        let mut names: Vec<String> =
            names.filter_map(|p| Some(p.file_name()?.to_str()?.to_owned())).collect();
        // In no order: nobody may count on one.
        names.reverse();
        Ok(names)
    }

    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        let mut world = self.world();
        world.alive(self.process)?;
        let mut missing: Vec<&Path> = dir.ancestors().collect();
        missing.retain(|p| world.disk.names.get(*p) != Some(&Node::Dir));
        for path in missing.into_iter().rev() {
            world.before(self.process, Class::Name)?;
            world.apply(Op::MakeDir { path: path.to_owned() });
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut world = self.world();
        world.before(self.process, Class::Name)?;
        if world.is_gone(from) || world.is_gone(to) || !world.disk.names.contains_key(from) {
            return Err(ErrorKind::NotFound.into());
        }
        world.apply(Op::Rename { from: from.to_owned(), to: to.to_owned() });
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world();
        world.before(self.process, Class::Name)?;
        if world.is_gone(path) || !world.disk.names.contains_key(path) {
            return Err(ErrorKind::NotFound.into());
        }
        world.apply(Op::Remove { path: path.to_owned() });
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut world = self.world();
        world.before(self.process, Class::Sync)?;
        if world.is_gone(dir) {
            return Err(ErrorKind::NotFound.into());
        }
        world.apply(Op::SyncDir { dir: dir.to_owned() });
        Ok(())
    }

    fn exists(&self, path: &Path) -> bool {
        let world = self.world();
        !world.is_gone(path) && world.disk.names.contains_key(path)
    }

    fn lock(&self, path: &Path, kind: LockKind) -> io::Result<Lock> {
        let mut world = self.world();
        world.alive(self.process)?;
        if world.disk.file(path).is_none() {
            // Readers make theirs, too: no fault is meant for them.
            world.make_file(path);
        }
        let excludes = |l: &Taken| kind == LockKind::Exclusive || l.kind == LockKind::Exclusive;
        if world.locks.iter().any(|l| l.path == path && l.process == self.process && excludes(l)) {
            return Err(ErrorKind::WouldBlock.into());
        }
        world.next_lock += 1;
        let (id, path) = (world.next_lock, path.to_owned());
        world.locks.push(Taken { id, process: self.process, path, kind });
        drop(world);
        Ok(Lock::new(Box::new(SimLock { storage: self.clone(), id })))
    }

    fn room(&self, path: &Path) -> io::Result<Room> {
        let world = self.world();
        world.alive(self.process)?;
        let (total_bytes, free_bytes) = world.room(path).unwrap_or((1 << 50, 1 << 50));
        Ok(Room { total_bytes, free_bytes })
    }

    fn mount_id(&self, _: &Path) -> u64 {
        // Another one after each boot.
        6 + self.world().boot
    }
}
