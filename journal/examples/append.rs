//! Measures one append: the journal's mapped one beside a plain `pwrite` of the same bytes.
//!
//! `cargo run --release -p afterimage-journal --example append -- DIR` (DIR on the disk that counts)

use afterimage_journal::format::record::Kind;
use afterimage_journal::log::Draft;
use afterimage_journal::{Journal, Options};
use std::error::Error;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

const TOTAL_BYTES: usize = 512 << 20;

fn mapped(dir: &Path, bytes: usize) -> Result<Duration, Box<dyn Error>> {
    let options = Options { unit_wait: Duration::from_secs(10), ..Options::default() };
    let journal = Journal::create(dir, uuid::Uuid::new_v4(), "bench", options)?;
    let payload = vec![7; bytes];
    let draft = Draft { volume: 1, len: bytes as u32, ..Draft::of(Kind::Write) };
    let start = Instant::now();
    for _ in 0..TOTAL_BYTES / bytes {
        journal.append(&draft, &payload)?;
    }
    let took = start.elapsed();
    journal.close()?;
    Ok(took)
}

fn plain(path: &Path, bytes: usize) -> Result<Duration, Box<dyn Error>> {
    let file = std::fs::File::create(path)?;
    let payload = vec![7; bytes + 64];
    let start = Instant::now();
    for i in 0..TOTAL_BYTES / bytes {
        file.write_all_at(&payload, (i * payload.len()) as u64)?;
    }
    let took = start.elapsed();
    file.sync_all()?;
    Ok(took)
}

fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args().nth(1).ok_or("usage: append DIR")?;
    let dir = Path::new(&dir).join(format!("append-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    println!("{:>9} {:>22} {:>22}", "bytes", "mapped µs (GB/s)", "pwrite µs (GB/s)");
    for bytes in [4 << 10, 128 << 10] {
        let figures = [mapped(&dir.join("j"), bytes)?, plain(&dir.join("f"), bytes)?].map(|t| {
            let each = t.as_secs_f64() * 1e6 / (TOTAL_BYTES / bytes) as f64;
            format!("{each:.2} ({:.2})", TOTAL_BYTES as f64 / t.as_secs_f64() / 1e9)
        });
        println!("{bytes:>9} {:>22} {:>22}", figures[0], figures[1]);
        std::fs::remove_dir_all(dir.join("j"))?;
        std::fs::remove_file(dir.join("f"))?;
    }
    std::fs::remove_dir(&dir)?;
    Ok(())
}
