//! What the journal keeps for each byte that it captured: units, indexes, runs, catalogue,
//! everything in the state directory, once the journal is closed.

use crate::journal;
use crate::number;
use crate::report::Report;
use anyhow::Result;

const VOLUME_BYTES: u64 = 100 << 30;

/// Measures; how much is captured, `AFTERIMAGE_BENCH_SPACE_MIB` says.
pub fn measure(report: &mut Report) -> Result<()> {
    let mib = number("AFTERIMAGE_BENCH_SPACE_MIB", 2048)?.max(256);
    journal::need_room((mib << 20) * 3 / 2)?;
    for (bytes, aim) in [(64 << 10, "1.03"), (4 << 10, "1.1")] {
        let written = journal::random(VOLUME_BYTES, (mib << 20) / bytes as u64, bytes)?;
        let kept = journal::disk_bytes(written.state())?;
        let to_mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        report.add(
            format!("space, random writes of {} KiB: kept (aim: ratio <= {aim})", bytes >> 10),
            (to_mib(kept), to_mib(written.captured_bytes)),
            "captured",
            "MiB",
        );
    }
    Ok(())
}
