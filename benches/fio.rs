//! The load: fio's nbd engine, one connection, exact times from its own report.

use crate::VOLUME_BYTES;
use crate::report::{Report, median};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// One pattern of writes.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// For the table.
    pub name: &'static str,
    rw: &'static str,
    block_bytes: u64,
    depth: u32,
}

/// The patterns that every server is measured with.
pub const LOADS: [Load; 3] = [
    Load { name: "4 KiB random QD1", rw: "randwrite", block_bytes: 4 << 10, depth: 1 },
    Load { name: "4 KiB random QD32", rw: "randwrite", block_bytes: 4 << 10, depth: 32 },
    Load { name: "128 KiB sequential QD4", rw: "write", block_bytes: 128 << 10, depth: 4 },
];

/// What one run gave.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    /// Writes a second.
    pub iops: f64,
    /// 99 of 100 writes took no longer, in microseconds.
    pub p99_us: f64,
}

impl Load {
    /// What is called the rate of this load.
    pub fn rate_name(&self) -> &'static str {
        if self.is_large() { "bandwidth" } else { "IOPS" }
    }

    fn is_large(&self) -> bool {
        self.block_bytes > 64 << 10
    }

    fn rate(&self, figures: Figures) -> f64 {
        let mib = self.block_bytes as f64 / f64::from(1 << 20);
        if self.is_large() { figures.iops * mib } else { figures.iops }
    }

    fn rate_unit(&self) -> &'static str {
        if self.is_large() { "MiB/s" } else { "1/s" }
    }

    /// The median rate over rounds.
    pub fn median_rate(&self, rounds: &[Figures]) -> f64 {
        median(rounds.iter().map(|figures| self.rate(*figures)))
    }

    /// Adds our and a peer's median rate and p99 to the report; `aims` are said in the names.
    pub fn add_rows(
        &self,
        report: &mut Report,
        what: &str,
        sides: (&[Figures], &[Figures]),
        peer_name: &str,
        aims: (&str, &str),
    ) {
        let rates = (self.median_rate(sides.0), self.median_rate(sides.1));
        let name = format!("{what}, {}: {} ratio{}", self.name, self.rate_name(), aims.0);
        report.add(name, rates, peer_name, self.rate_unit());
        let p99 = |rounds: &[Figures]| median(rounds.iter().map(|figures| figures.p99_us));
        let name = format!("{what}, {}: p99 ratio{}", self.name, aims.1);
        report.add(name, (p99(sides.0), p99(sides.1)), peer_name, "us");
    }

    /// Loads the NBD server on `socket` for `run_ms` milliseconds.
    pub fn run(&self, socket: &Path, export: &str, run_ms: u64) -> Result<Figures> {
        let dir = tempfile::TempDir::with_prefix("fio-").context("a directory for fio")?;
        let output = dir.path().join("fio.json");
        let status = Command::new("fio")
            .args(["--name=load", "--ioengine=nbd", "--thread", "--norandommap", "--time_based"])
            .arg(format!("--uri=nbd+unix:///{export}?socket={}", socket.display()))
            .args([format!("--rw={}", self.rw), format!("--bs={}", self.block_bytes)])
            .args([format!("--iodepth={}", self.depth), format!("--size={VOLUME_BYTES}")])
            .args([format!("--runtime={run_ms}ms"), "--output-format=json".to_owned()])
            .arg(format!("--output={}", output.display()))
            .current_dir(dir.path())
            .output()
            .context("start fio (tests/guest/install.sh installs it)")?;
        let text = std::fs::read_to_string(&output).unwrap_or_default();
        if !status.status.success() {
            let said = String::from_utf8_lossy(&status.stderr);
            bail!("fio on {} ended with {}: {said}{text}", socket.display(), status.status);
        }
        self.figures(&text).with_context(|| format!("read what fio printed: {text}"))
    }

    fn figures(&self, text: &str) -> Result<Figures> {
        // Its engine may have said something first.
        let json = text.find('{').map_or("", |begin| &text[begin..]);
        let report: Value = serde_json::from_str(json)?;
        let job = &report["jobs"][0];
        let writes = &job["write"];
        let p99_ns = writes["clat_ns"]["percentile"]["99.000000"].as_f64();
        match (job["error"].as_i64(), writes["iops"].as_f64(), p99_ns) {
            (Some(0), Some(iops), Some(p99_ns)) if iops > 0.0 => {
                Ok(Figures { iops, p99_us: p99_ns / 1000.0 })
            }
            _ => bail!("it reports an error, or no writes"),
        }
    }
}
