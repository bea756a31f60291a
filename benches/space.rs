//! What the journal keeps for each byte that it captured: units with their indexes, map runs, the
//! catalogue, everything in the state directory, once the journal is closed.

use crate::journal::{self, NAME, Written};
use crate::number;
use crate::report::Report;
use afterimage_journal::layout;
use anyhow::Result;
use std::os::unix::fs::MetadataExt;

const VOLUME_BYTES: u64 = 100 << 30;

/// Measures; how much is captured, `AFTERIMAGE_BENCH_SPACE_MIB` says.
pub fn measure(report: &mut Report) -> Result<()> {
    let mib = number("AFTERIMAGE_BENCH_SPACE_MIB", 2048)?.max(256);
    journal::need_room((mib << 20) * 3 / 2)?;
    for (bytes, aim) in [(64 << 10, "1.03"), (4 << 10, "1.1")] {
        let written = journal::random(VOLUME_BYTES, (mib << 20) / bytes as u64, bytes)?;
        let kept = journal::disk_bytes(written.state())?;
        let to_mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let captured = to_mib(written.captured_bytes);
        let what = format!("space, random writes of {} KiB", bytes >> 10);
        report.add(
            format!("{what}: kept in all (aim: ratio <= {aim})"),
            (to_mib(kept), captured),
            "captured",
            "MiB",
        );
        let beside = kept.saturating_sub(unit_bytes(&written)?);
        report.add(
            format!("{what}: map runs and all else but units"),
            (to_mib(beside), captured),
            "captured",
            "MiB",
        );
    }
    Ok(())
}

/// Bytes that the units take on the disk, their indexes included.
fn unit_bytes(written: &Written) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(layout::journal_dir(written.state(), NAME)?)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("unit-") {
            bytes += entry.metadata()?.blocks() * 512;
        }
    }
    Ok(bytes)
}
