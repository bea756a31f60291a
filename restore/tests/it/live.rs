//! Memory for a guest that runs already: whatever it asks for and when, each page comes once, as it was.

use crate::bed::{Bed, Dice, flip};
use crate::ram::{PAGE, Ram, tail};
use crate::warm::Roomy;
use afterimage_migration::LiveWriter;
use afterimage_restore::{ExportOptions, Exporting, WarmExport, When, export_warm};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(20);
const BLOCKS: [(&str, usize); 3] = [("pc.ram", 3 << 20), ("vga.vram", 64 << 10), ("rom", PAGE)];

/// A guest with one checkpoint of memory.
fn checkpoint(seed: u64) -> (Bed, Ram) {
    let mut bed = Bed::new(seed, &[64 << 10]);
    bed.open_session();
    let mut ram = Ram::made_up(&BLOCKS);
    ram.configure(&mut bed);
    ram.run(&mut Dice::new(seed), 500);
    ram.parts.tail = [&[0x04, 1][..], &tail("running")[2..]].concat();
    let instant = bed.write();
    ram.checkpoint(&bed, None, 1, instant);
    (bed, ram)
}

fn exported(bed: &Bed, dir: &Path) -> Exporting {
    let recovery = bed.open();
    let point = recovery.resolve_warm(&When::Latest).unwrap();
    let options = ExportOptions { socket: dir.join("nbd"), ..ExportOptions::default() };
    export_warm(recovery, &point, &options, &WarmExport::default(), &Roomy).unwrap()
}

/// What QEMU does: it takes sections, and asks.
struct Client {
    socket: UnixStream,
    came: Vec<u8>,
    at: usize,
    /// Each block, and which of its pages came.
    ram: Vec<(Vec<u8>, Vec<bool>)>,
}

impl Client {
    fn connect(exporting: &Exporting, ram: &Ram) -> Self {
        let [memory] = &exporting.report.memories[..] else { panic!("{:?}", exporting.report) };
        let socket = UnixStream::connect(memory.live_socket.as_ref().unwrap()).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        let parts = &ram.parts;
        let mut before = Vec::new();
        LiveWriter::new(&mut before, &parts.head, &parts.blocks, &parts.tail).unwrap();
        let block = |b: &Vec<u8>| (vec![0; b.len()], vec![false; b.len() / PAGE]);
        let ram = ram.bytes.iter().map(block).collect();
        let mut client = Self { socket, came: vec![], at: 0, ram };
        let begun = client.take(before.len()).unwrap();
        assert!(begun == before, "what comes before the guest runs");
        client
    }

    fn take(&mut self, bytes: usize) -> Option<Vec<u8>> {
        while self.came.len() < self.at + bytes {
            let mut piece = [0; 1 << 16];
            match self.socket.read(&mut piece) {
                Ok(0) => return None,
                Ok(read) => self.came.extend_from_slice(&piece[..read]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::ConnectionReset => return None,
                Err(e) => panic!("{e}"),
            }
        }
        self.at += bytes;
        Some(self.came[self.at - bytes..self.at].to_vec())
    }

    fn ask(&mut self, block: usize, page: usize, by_name: bool) {
        let name = BLOCKS[block].0.as_bytes();
        let place =
            [&((page * PAGE) as u64).to_be_bytes()[..], &(PAGE as u32).to_be_bytes()].concat();
        let body = match by_name {
            true => [&place[..], &[name.len() as u8], name].concat(),
            false => place,
        };
        let kind = if by_name { 3_u16 } else { 4 };
        let head = [kind.to_be_bytes(), (body.len() as u16).to_be_bytes()].concat();
        self.socket.write_all(&[&head[..], &body].concat()).unwrap();
    }

    /// Says that the devices are loaded.
    fn loaded(&mut self) {
        self.socket.write_all(&[0, 2, 0, 4, 0, 0, 0, 3]).unwrap();
    }

    /// Takes a section; `false`: it was the last. `None`: the stream broke off.
    fn section(&mut self) -> Option<bool> {
        let kind = self.take(5)?[0];
        let mut block = None;
        loop {
            let word = u64::from_be_bytes(self.take(8)?.try_into().unwrap());
            let (at, flags) = ((word & !0xfff) as usize, word & 0xfff);
            if flags == 0x10 {
                assert_eq!(self.take(5)?[0], 0x7e);
                break;
            }
            if flags & 0x20 == 0 {
                let length = usize::from(self.take(1)?[0]);
                let name = String::from_utf8(self.take(length)?).unwrap();
                block = BLOCKS.iter().position(|(id, _)| *id == name);
            }
            let data = match flags & !0x20 {
                8 => self.take(PAGE)?,
                2 => vec![self.take(1)?[0]; PAGE],
                other => panic!("flags {other:#x}"),
            };
            let (bytes, came) = &mut self.ram[block.expect("a block")];
            assert!(!std::mem::replace(&mut came[at / PAGE], true), "page {at:#x} came twice");
            bytes[at..at + PAGE].copy_from_slice(&data);
        }
        match kind {
            2 => Some(true),
            3 => (self.take(1)?[0] == 0).then_some(false),
            other => panic!("section {other}"),
        }
    }

    fn is_equal(&self, ram: &Ram) -> bool {
        self.ram.iter().zip(&ram.bytes).all(|((came, _), known)| came == known)
    }
}

#[test]
fn whatever_is_asked_for_each_page_comes_once_as_it_was() {
    for seed in 1..=6 {
        let (bed, ram) = checkpoint(seed);
        let dir = tempfile::tempdir().unwrap();
        let exporting = exported(&bed, dir.path());
        let mut client = Client::connect(&exporting, &ram);
        let mut dice = Dice::new(seed);
        let mut asked = 0;
        client.loaded();
        loop {
            if seed > 1 && asked < 200 {
                let block = dice.below(3) as usize;
                let page = dice.below((BLOCKS[block].1 / PAGE) as u64) as usize;
                client.ask(block, page, true);
                client.ask(block, page / 2, false);
                asked += 1;
            }
            if !client.section().expect("the stream broke off") {
                break;
            }
        }
        assert!(client.is_equal(&ram), "seed {seed}");
        // Requests that crossed the stream's end on their way.
        for (block, (_, bytes)) in BLOCKS.iter().enumerate().rev().cycle().take(6) {
            client.ask(block, bytes / PAGE - 1, true);
        }
        client.socket.write_all(&[0, 1, 0, 4, 0, 0, 0, 0]).unwrap();
        assert!(client.take(1).is_none(), "nothing comes behind the end");
        exporting.end();
    }
}

/// A device may look at memory while it is loaded, at a page of zeroes too, which never has its turn.
#[test]
fn the_stream_does_not_end_before_qemu_has_loaded_its_devices() {
    let (bed, ram) = checkpoint(9);
    let dir = tempfile::tempdir().unwrap();
    let exporting = exported(&bed, dir.path());
    let mut client = Client::connect(&exporting, &ram);
    while !client.is_equal(&ram) {
        assert_eq!(client.section(), Some(true), "it ends before anything was said");
    }
    client.socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let early = client.socket.read(&mut [0; 16]);
    assert!(early.is_err_and(|e| e.kind() == ErrorKind::WouldBlock), "or while nothing is said");
    client.socket.set_read_timeout(Some(SOON)).unwrap();
    let zero = client.ram[0].1.iter().position(|came| !came).expect("a page of zeroes");
    client.ask(0, zero, true);
    while !client.ram[0].1[zero] {
        assert_eq!(client.section(), Some(true), "it is not given");
    }
    client.loaded();
    assert_eq!(client.section(), Some(false));
    client.socket.write_all(&[0, 1, 0, 4, 0, 0, 0, 0]).unwrap();
    exporting.end();
}

#[test]
fn what_is_asked_for_goes_before_what_has_its_turn() {
    let (bed, ram) = checkpoint(7);
    let dir = tempfile::tempdir().unwrap();
    let exporting = exported(&bed, dir.path());
    let mut client = Client::connect(&exporting, &ram);
    // Nothing is taken meanwhile, so that the stream's turn stands still in the socket's buffer.
    let last = BLOCKS[0].1 / PAGE - 1;
    client.ask(0, last, true);
    std::thread::sleep(Duration::from_millis(200));
    while !client.ram[0].1[last] {
        assert_eq!(client.section(), Some(true));
    }
    let before = client.ram[0].1.iter().filter(|came| **came).count();
    let all = ram.bytes[0].chunks(PAGE).filter(|p| p.iter().any(|b| *b != 0)).count();
    assert!(before < all / 2, "{before} of {all} pages came first");
}

#[test]
fn a_damaged_page_is_never_given_and_bad_requests_end_it() {
    let (mut bed, ram) = checkpoint(8);
    bed.stop_agent();
    // The largest records are memory: some byte in the middle of the unit's data.
    let unit = bed.journal_dir().join("unit-0000000001");
    let content = std::fs::read(&unit).unwrap();
    let page = ram.bytes[0].chunks(PAGE).filter(|p| p.iter().any(|b| *b != 0)).nth(20).unwrap();
    let at =
        content.windows(64).position(|w| w == &page[..64]).expect("a page that is stored plainly");
    flip(&unit, at as u64 + 8);
    let dir = tempfile::tempdir().unwrap();
    let exporting = exported(&bed, dir.path());
    let mut client = Client::connect(&exporting, &ram);
    let ended = loop {
        match client.section() {
            Some(true) => {}
            ended => break ended,
        }
    };
    assert_eq!(ended, None, "it breaks off");
    for ((came, pages), known) in client.ram.iter().zip(&ram.bytes) {
        for (page, _) in pages.iter().enumerate().filter(|(_, came)| **came) {
            let range = page * PAGE..(page + 1) * PAGE;
            assert!(came[range.clone()] == known[range]);
        }
    }
    for bad in [
        &[0, 3, 0xff, 0xff][..],
        &[0, 4, 0, 1, 0],
        &[0, 3, 0, 14, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, b'x'],
        // A place that no block has.
        &[0, 4, 0, 12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 0x10, 0],
    ] {
        let mut client = Client::connect(&exporting, &ram);
        // It may have ended already.
        let _ = client.socket.write_all(bad);
        while client.section() == Some(true) {}
    }
}
