//! Taking in a guest's memory: a stream of 1 GiB of RAM over a unix socket, beside reading the same
//! bytes from the same kind of socket and dropping them, which is what `cat >/dev/null` would do.
//! Pages are either all new to the journal (hashed by nobody, spooled) or all in it already (hashed,
//! spooled by nobody). Their bytes are no compression's gift.

use crate::journal::{self, Rng};
use crate::report::{Report, median};
use crate::{Scale, bench_dir};
use afterimage_agent::memory::{
    Block, Intake, Options, PAGE_BYTES, STATE_BYTES_MAX, Source, SpoolAt, Table, Taken, store,
};
use afterimage_journal::meta::{Config, Guest, RamBlock, Volume, VolumeKind};
use afterimage_journal::{Journal, VolumeId};
use afterimage_migration::Writer;
use anyhow::{Context, Result, ensure};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};
use uuid::Uuid;

const RAM_BYTES: u64 = 1 << 30;
const RAM: VolumeId = 1;
const STATE: VolumeId = 2;
const ID: &str = "pc.ram";
/// What a sender writes at a time: about what QEMU's vectors hold.
const PIECE_BYTES: usize = 128 << 10;
/// What the peer reads at a time.
const READ_BYTES: usize = 1 << 20;
const LIMIT: Duration = Duration::from_secs(60);

/// Measures.
pub fn measure(scale: &Scale, report: &mut Report) -> Result<()> {
    journal::need_room(RAM_BYTES * 4)?;
    let dir = tempfile::TempDir::with_prefix_in("memory-", bench_dir())?;
    let group = Uuid::new_v4();
    let options = afterimage_journal::Options { unit_wait: LIMIT, ..Default::default() };
    let journal = Journal::create(&dir.path().join("journal"), group, "bench", options)?;
    journal.set_config(&config(group))?;
    let stream = Arc::new(stream()?);
    let spool = SpoolAt { dir: dir.path().join("spool"), spool_bytes_max: None };
    let mut table = Table::build(&journal, &[RAM, STATE], &AtomicBool::new(false))?;
    for what in ["every page changed", "nothing changed"] {
        let (mut ours, mut peers) = (Vec::new(), Vec::new());
        for round in 0..scale.rounds {
            for is_peer in [round % 2 == 0, round % 2 != 0] {
                if is_peer {
                    peers.push(read_only(&stream)?);
                    continue;
                }
                let (speed, taken, back) = take(&stream, &spool, table)?;
                let spooled = taken.changed.spool_bytes();
                let expected = if what == "nothing changed" { 0 } else { RAM_BYTES };
                ensure!(spooled == expected, "{what}: {spooled} bytes were spooled");
                ours.push(speed);
                table = back;
            }
        }
        let name = format!("1 GiB of memory taken in over a unix socket, {what} (aim >= 0.15)");
        report.add(name, (median(ours), median(peers)), "reading it to nowhere", "MiB/s");
        // Stored once, so that nothing has changed from then on.
        let (_, taken, mut known) = take(&stream, &spool, table)?;
        let blocks = [RamBlock { volume: RAM, id: ID.into(), bytes: RAM_BYTES }];
        store(&journal, &mut known, &taken, &blocks, STATE, &AtomicBool::new(false))?;
        table = known;
    }
    Ok(())
}

/// The stream of a guest none of whose pages is zero.
fn stream() -> Result<Vec<u8>> {
    let mut head = b"QEVM\0\0\0\x03\x07\0\0\0\x02pc\x01\0\0\0\x02\x03ram".to_vec();
    head.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 4, 0x7e, 0, 0, 0, 2]);
    let blocks = [Block { id: ID.into(), bytes: RAM_BYTES }];
    let mut writer = Writer::new(Vec::new(), &head, &blocks)?;
    let mut rng = Rng(0x9e37_79b9_7f4a_7c15);
    let mut page = [0; PAGE_BYTES];
    for at in (0..RAM_BYTES).step_by(PAGE_BYTES) {
        for word in page.chunks_exact_mut(8) {
            word.copy_from_slice(&rng.next().to_le_bytes());
        }
        writer.page(0, at, &page)?;
    }
    Ok(writer.finish(b"\x04\0\x06\0\0\0\x02{}")?)
}

/// A socket at whose other end a thread sends the stream as fast as it is taken.
fn sent(stream: &Arc<Vec<u8>>) -> Result<UnixStream> {
    let (mut theirs, ours) = UnixStream::pair()?;
    let stream = Arc::clone(stream);
    std::thread::spawn(move || {
        for piece in stream.chunks(PIECE_BYTES) {
            // A reader that gave up has said so itself.
            if theirs.write_all(piece).is_err() {
                return;
            }
        }
    });
    Ok(ours)
}

fn read_only(stream: &Arc<Vec<u8>>) -> Result<f64> {
    let mut buffer = vec![0; READ_BYTES];
    let mut socket = sent(stream)?;
    let (begun, mut bytes) = (Instant::now(), 0);
    loop {
        match socket.read(&mut buffer)? {
            0 => break,
            read => bytes += read,
        }
    }
    ensure!(bytes == stream.len(), "{bytes} bytes came");
    Ok(mib_per_s(begun))
}

fn take(stream: &Arc<Vec<u8>>, spool: &SpoolAt, table: Table) -> Result<(f64, Taken, Table)> {
    let volumes = vec![(ID.to_owned(), RAM)];
    let options = Options { table, volumes, spool: spool.clone(), stall_limit: LIMIT };
    let socket = sent(stream)?;
    let begun = Instant::now();
    let intake = Intake::start(Source::Connected(socket), options, |_| {})?;
    let (taken, table) = intake.wait();
    let speed = mib_per_s(begun);
    Ok((speed, taken?, table.context("the table came back")?))
}

fn mib_per_s(begun: Instant) -> f64 {
    (RAM_BYTES >> 20) as f64 / begun.elapsed().as_secs_f64()
}

fn config(group: Uuid) -> Config {
    let volume = |id, kind, name: &str, bytes| Volume {
        id,
        kind,
        uuid: Uuid::new_v4(),
        guest: "bench".into(),
        disk: name.into(),
        node: name.into(),
        bytes,
        format: "ram".into(),
        source: String::new(),
        active: true,
    };
    let guest = Guest {
        name: "bench".into(),
        command_line: vec![],
        libvirt_xml: None,
        qemu_version: String::new(),
    };
    let volumes = vec![
        volume(RAM, VolumeKind::Ram, ID, RAM_BYTES),
        volume(STATE, VolumeKind::DeviceState, "device-state", STATE_BYTES_MAX),
    ];
    Config { group, name: "bench".into(), guests: vec![guest], volumes }
}
