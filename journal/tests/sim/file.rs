//! An open file of the simulated disk.

use crate::disk::{Change, InodeId, Op, SECTOR_BYTES};
use crate::storage::SimStorage;
use crate::world::{Class, World};
use afterimage_journal::storage::StoredFile;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, MutexGuard};

#[derive(Debug)]
pub struct SimFile {
    pub storage: SimStorage,
    pub path: PathBuf,
    pub inode: InodeId,
    pub ring: Option<Arc<File>>,
    pub device: Option<PathBuf>,
    pub writable: bool,
}

impl SimFile {
    fn world(&self, class: Option<Class>) -> io::Result<MutexGuard<'_, World>> {
        let mut world = self.storage.world();
        world.alive(self.storage.process)?;
        if world.is_gone(&self.path) {
            return Err(ErrorKind::Other.into());
        }
        if let Some(class) = class {
            assert!(
                self.writable || class == Class::Sync,
                "{} was opened to read",
                self.path.display()
            );
            world.before(self.storage.process, class)?;
        }
        Ok(world)
    }

    fn take_room(&self, world: &mut World, end: u64) -> io::Result<()> {
        let more = end.saturating_sub(world.disk.inode(self.inode).held_bytes);
        if let Some((_, free)) = self.device.as_ref().and_then(|d| world.room(d))
            && more > free
        {
            return Err(ErrorKind::StorageFull.into());
        }
        world.disk.hold(self.inode, end);
        Ok(())
    }
}

impl StoredFile for SimFile {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let world = self.world(None)?;
        match &self.ring {
            Some(ring) => StoredFile::read_at(&**ring, buffer, at),
            None => Ok(world.disk.inode(self.inode).live.read(buffer, at)),
        }
    }

    fn write_all_at(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let (mut world, outcome) = match self.world(Some(Class::Write)) {
            Ok(world) => (world, Ok(())),
            Err(e) => (self.world(None)?, Err(e)),
        };
        // A write that fails has got somewhere.
        let part = if outcome.is_ok() { bytes } else { &bytes[..bytes.len() / 2] };
        if let Some(ring) = &self.ring {
            FileExt::write_all_at(&**ring, part, at)?;
            return outcome;
        }
        let end = at + part.len() as u64;
        self.take_room(&mut world, end)?;
        if end > world.disk.inode(self.inode).live.bytes {
            world.change(self.inode, Change::Bytes(end));
        }
        let from = at / SECTOR_BYTES * SECTOR_BYTES;
        let mut sectors = vec![0; (end.next_multiple_of(SECTOR_BYTES) - from) as usize];
        world.disk.inode(self.inode).live.read(&mut sectors, from);
        let skip = (at - from) as usize;
        sectors[skip..skip + part.len()].copy_from_slice(part);
        world.change(self.inode, Change::Write { at: from, sectors: sectors.into() });
        outcome
    }

    fn sync_data(&self) -> io::Result<()> {
        match self.world(Some(Class::Sync)) {
            Ok(mut world) => {
                world.apply(Op::Sync { inode: self.inode });
                Ok(())
            }
            Err(e) => {
                let mut world = self.storage.world();
                if world.alive(self.storage.process).is_ok() {
                    let mut rng = world.rng.clone();
                    world.disk.fail_sync(self.inode, &mut rng);
                    world.rng = rng;
                }
                Err(e)
            }
        }
    }

    fn bytes(&self) -> io::Result<u64> {
        let world = self.world(None)?;
        match &self.ring {
            Some(ring) => Ok(ring.metadata()?.len()),
            None => Ok(world.disk.inode(self.inode).live.bytes),
        }
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        Ok(self.world(None)?.disk.inode(self.inode).used_bytes())
    }

    fn allocate(&self, from: u64, bytes: u64) -> io::Result<()> {
        let mut world = self.world(Some(Class::Write))?;
        let end = from + bytes;
        self.take_room(&mut world, end)?;
        if let Some(ring) = &self.ring {
            return if ring.metadata()?.len() < end { ring.set_len(end) } else { Ok(()) };
        }
        if end > world.disk.inode(self.inode).live.bytes {
            world.change(self.inode, Change::Bytes(end));
            world.disk.hold(self.inode, end);
        }
        Ok(())
    }

    fn set_bytes(&self, bytes: u64) -> io::Result<()> {
        let mut world = self.world(Some(Class::Write))?;
        match &self.ring {
            Some(ring) => ring.set_len(bytes),
            None => {
                world.change(self.inode, Change::Bytes(bytes));
                Ok(())
            }
        }
    }

    fn punch(&self, from: u64, bytes: u64) {
        if let Ok(mut world) = self.world(Some(Class::Write))
            && self.ring.is_none()
        {
            world.change(self.inode, Change::Punch { from, to: from + bytes });
        }
    }

    fn as_file(&self) -> Option<&File> {
        self.ring.as_deref()
    }
}
