//! What a mapped reader would save: a checked block of a file of the size of a map run, read by `pread`
//! as the journal does, beside the same through a mapping. Decides that nothing is read through
//! mappings: a file that is cut short, or that its device can't read, is an error that names it by
//! `pread`, and the end of the process (SIGBUS) by mapping.

use crate::bench_dir;
use crate::journal::Rng;
use crate::report::{Report, median};
use crate::{Scale, journal};
use afterimage_journal::format::checksum;
use anyhow::{Context, Result, ensure};
use memmap2::{Advice as MapAdvice, Mmap};
use rustix::fs::{Advice, fadvise};
use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::time::Instant;

const FILE_BYTES: u64 = 256 << 20;
const BLOCK_BYTES: usize = 4096;
const WARM_READS: u64 = 200_000;
const COLD_READS: u64 = 5_000;

/// Measures.
pub fn measure(scale: &Scale, report: &mut Report) -> Result<()> {
    journal::need_room(FILE_BYTES * 2)?;
    let dir = tempfile::TempDir::with_prefix_in("lookup-", bench_dir())?;
    let path = dir.path().join("file");
    crate::peers::written_file(&path, FILE_BYTES)?;
    for (name, reads) in [("warm", WARM_READS), ("cold", COLD_READS)] {
        let (mut ours, mut peers) = (Vec::new(), Vec::new());
        for round in 0..scale.rounds {
            for is_mapped in [round % 2 == 0, round % 2 != 0] {
                let file = File::open(&path)?;
                // What is cold has to be dropped, what is warm to be read once.
                match name {
                    "cold" => drop_pages(&file)?,
                    _ => drop(std::io::copy(&mut &file, &mut std::io::sink())?),
                }
                let figures = if is_mapped { &mut peers } else { &mut ours };
                figures.push(if is_mapped {
                    mapped(&file, reads)?
                } else {
                    by_pread(&file, reads)?
                });
            }
        }
        report.add(
            format!("blocks of 4 KiB read at random and checked, page cache {name}: pread"),
            (median(ours), median(peers)),
            "mapping (memmap2)",
            "1/s",
        );
    }
    Ok(())
}

fn drop_pages(file: &File) -> Result<()> {
    fadvise(file, 0, None, Advice::DontNeed).context("drop a file from the page cache")
}

fn places(reads: u64) -> impl Iterator<Item = usize> {
    let mut rng = Rng(0x2545_f491_4f6c_dd1d);
    (0..reads).map(move |_| (rng.next() % (FILE_BYTES / BLOCK_BYTES as u64)) as usize * BLOCK_BYTES)
}

fn by_pread(file: &File, reads: u64) -> Result<f64> {
    fadvise(file, 0, None, Advice::Random)?;
    let mut block = vec![0; BLOCK_BYTES];
    let start = Instant::now();
    for at in places(reads) {
        file.read_exact_at(&mut block, at as u64)?;
        black_box(checksum::crc32c(&block));
    }
    Ok(reads as f64 / start.elapsed().as_secs_f64())
}

fn mapped(file: &File, reads: u64) -> Result<f64> {
    let start = Instant::now();
    // SAFETY: the file is this bench's own: nobody writes to it or cuts it short.
    let map = unsafe { Mmap::map(file)? };
    ensure!(map.len() as u64 == FILE_BYTES, "the file has {} bytes", map.len());
    map.advise(MapAdvice::Random)?;
    for at in places(reads) {
        black_box(checksum::crc32c(&map[at..at + BLOCK_BYTES]));
    }
    Ok(reads as f64 / start.elapsed().as_secs_f64())
}
