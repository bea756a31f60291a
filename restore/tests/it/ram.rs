//! A guest's memory as a test knows it: blocks in memory, a checkpoint of them in a bed's journal
//! as an agent writes it, and a stream read back.

use crate::bed::{Bed, Dice, GUEST};
use afterimage_journal::Seq;
use afterimage_journal::meta::{
    Checkpoint, CheckpointKind, GuestMemory, Memory, Meta, RamBlock, Volume, VolumeKind,
};
use afterimage_migration::{Block, Limits, Parts, Reader, Sink};
use std::convert::Infallible;
use std::path::Path;
use uuid::Uuid;

pub const PAGE: usize = 4096;
/// The volume of the device state; blocks follow it.
pub const STATE_VOLUME: u16 = 100;
/// Longest run of pages in a record.
const RUN_BYTES_MAX: usize = 64 << 10;

/// Memory and device state.
#[derive(Clone, PartialEq, Eq)]
pub struct Ram {
    pub parts: Parts,
    /// By block.
    pub bytes: Vec<Vec<u8>>,
}

impl Ram {
    /// Blocks of zeroes with a device state that no QEMU wrote.
    pub fn made_up(blocks: &[(&str, usize)]) -> Self {
        let id = |id: &str| id.to_owned();
        let made = blocks.iter().map(|(i, b)| Block { id: id(i), bytes: *b as u64 });
        let parts = Parts { head: head(), blocks: made.collect(), tail: tail("paused") };
        Self { parts, bytes: blocks.iter().map(|(_, bytes)| vec![0; *bytes]).collect() }
    }

    /// The guest writes pages, some of them zeroes.
    pub fn run(&mut self, dice: &mut Dice, pages: usize) {
        for _ in 0..pages {
            let block = dice.below(self.bytes.len() as u64) as usize;
            let block = &mut self.bytes[block];
            let page = dice.below((block.len() / PAGE) as u64) as usize * PAGE;
            if dice.below(4) == 0 {
                block[page..page + PAGE].fill(0);
            } else {
                dice.fill(&mut block[page..page + PAGE]);
            }
        }
    }

    /// What a stream holds.
    pub fn read(stream: &Path) -> Self {
        Self::parse(&std::fs::read(stream).unwrap(), true)
    }

    /// As [`Ram::read`]; QEMU's own may hold pages twice, and in any order.
    pub fn parse(stream: &[u8], one_of_ours: bool) -> Self {
        let mut reader = Reader::new(Limits::default());
        let mut pages = Pages::default();
        for piece in stream.chunks(1 << 20) {
            reader.feed(piece, &mut pages).unwrap();
        }
        let parts = reader.finish().unwrap();
        assert!(!one_of_ours || pages.is_in_order, "pages out of order, or one twice");
        Self { parts, bytes: pages.bytes }
    }

    /// Makes the memory part of the guest, as of now.
    pub fn configure(&self, bed: &mut Bed) {
        bed.config.volumes.retain(|v| v.kind == VolumeKind::Disk);
        let volume = |id: u16, kind, name: &str, bytes| Volume {
            id,
            kind,
            uuid: Uuid::from_u128(u128::from(id)),
            guest: GUEST.into(),
            disk: name.into(),
            node: name.into(),
            bytes,
            format: "ram".into(),
            source: String::new(),
            active: true,
        };
        let state = volume(STATE_VOLUME, VolumeKind::DeviceState, "device-state", 64 << 20);
        bed.config.volumes.push(state);
        for (i, block) in self.parts.blocks.iter().enumerate() {
            let id = STATE_VOLUME + 1 + i as u16;
            bed.config.volumes.push(volume(id, VolumeKind::Ram, &block.id, block.bytes));
        }
        bed.journal().set_config(&bed.config).unwrap();
    }

    /// Appends what differs from `before`, and the device state, without committing it.
    pub fn append(&self, bed: &Bed, before: Option<&Ram>) {
        for (i, bytes) in self.bytes.iter().enumerate() {
            let volume = STATE_VOLUME + 1 + i as u16;
            let same = |at: usize| match before {
                Some(ram) => ram.bytes[i][at..at + PAGE] == bytes[at..at + PAGE],
                None => is_zero(&bytes[at..at + PAGE]),
            };
            let mut at = 0;
            while at < bytes.len() {
                let run = |what: &dyn Fn(usize) -> bool| {
                    let end = (at + RUN_BYTES_MAX).min(bytes.len());
                    (at..end).step_by(PAGE).find(|a| !what(*a)).unwrap_or(end)
                };
                let zero = |a: usize| !same(a) && is_zero(&bytes[a..a + PAGE]);
                let data = |a: usize| !same(a) && !is_zero(&bytes[a..a + PAGE]);
                let journal = bed.journal();
                if data(at) {
                    let end = run(&data);
                    journal.append_memory(volume, at as u64, &bytes[at..end]).unwrap();
                    at = end;
                } else if zero(at) {
                    let end = run(&zero);
                    journal.append_memory_zero(volume, at as u64, (end - at) as u32).unwrap();
                    at = end;
                } else {
                    at += PAGE;
                }
            }
        }
        let state = [&self.parts.head[..], &self.parts.tail].concat();
        for (i, piece) in state.chunks(RUN_BYTES_MAX).enumerate() {
            let at = (i * RUN_BYTES_MAX) as u64;
            bed.journal().append_memory(STATE_VOLUME, at, piece).unwrap();
        }
    }

    /// What a checkpoint says of it.
    pub fn described(&self) -> GuestMemory {
        let blocks = self.parts.blocks.iter().enumerate();
        let block = |(i, block): (usize, &Block)| RamBlock {
            volume: STATE_VOLUME + 1 + i as u16,
            id: block.id.clone(),
            bytes: block.bytes,
        };
        GuestMemory {
            guest: GUEST.into(),
            blocks: blocks.map(block).collect(),
            state: STATE_VOLUME,
            head_bytes: self.parts.head.len() as u64,
            tail_bytes: self.parts.tail.len() as u64,
            pause_us: 7_250,
        }
    }

    /// Appends and commits a checkpoint of the instant `instant`; returns the commit's position.
    pub fn checkpoint(&self, bed: &Bed, before: Option<&Ram>, id: u64, instant: Seq) -> Seq {
        let wall_ns = bed.open().history.point(instant).wall_ns;
        self.append(bed, before);
        let memory = Memory { instant, wall_ns, guests: vec![self.described()] };
        let tag = Some(format!("tag{id}"));
        let kind = CheckpointKind::Crash;
        let mark = Checkpoint { id, kind, tag, memory: Some(memory) };
        bed.journal().append_meta(&Meta::Mark(mark)).unwrap()
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| *b == 0)
}

#[derive(Default)]
struct Pages {
    bytes: Vec<Vec<u8>>,
    /// The page that has to come next.
    next: (usize, u64),
    is_in_order: bool,
}

impl Sink for Pages {
    type Error = Infallible;

    fn blocks(&mut self, blocks: &[Block]) -> Result<(), Infallible> {
        // What isn't sent would be seen.
        self.bytes = blocks.iter().map(|b| vec![0xee; b.bytes as usize]).collect();
        self.is_in_order = true;
        Ok(())
    }

    fn page(&mut self, block: usize, offset: u64, data: &[u8]) -> Result<(), Infallible> {
        let at = offset as usize;
        self.bytes[block][at..at + PAGE].copy_from_slice(data);
        self.is_in_order &= (block, offset) >= self.next;
        self.next = (block, offset + PAGE as u64);
        Ok(())
    }

    fn zero(&mut self, block: usize, offset: u64) -> Result<(), Infallible> {
        self.page(block, offset, &[0; PAGE])
    }
}

/// A head that names a machine type.
pub fn head() -> Vec<u8> {
    let mut head = b"QEVM\0\0\0\x03\x07\0\0\0\x0bpc-q35-10.0".to_vec();
    head.extend(b"\x01\0\0\0\x02\x03ram\0\0\0\0\0\0\0\x04\x7e\0\0\0\x02");
    head
}

/// A tail with nothing but a run state.
pub fn tail(state: &str) -> Vec<u8> {
    let mut tail = b"\x04\0\0\0\x09\x0bglobalstate\0\0\0\0\0\0\0\x01".to_vec();
    tail.extend((state.len() as u32 + 1).to_be_bytes());
    let mut field = [0; 100];
    field[..state.len()].copy_from_slice(state.as_bytes());
    tail.extend(field);
    tail.extend(b"\x7e\0\0\0\x09\0\x06\0\0\0\x02{}");
    tail
}
