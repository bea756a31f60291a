//! The NBD server, with the journal behind it, beside servers that keep no history at all.

use crate::capture::OurServer;
use crate::fio::{Figures, LOADS, Load};
use crate::peers::{Running, nbdkit_file, qemu_nbd, written_file};
use crate::report::Report;
use crate::{Scale, VOLUME_BYTES};
use anyhow::{Context, Result};
use std::path::PathBuf;
use tempfile::TempDir;

/// The peers' names, in the order of [`Peers::start`].
const NAMES: [&str; 3] = ["nbdkit file", "qemu-nbd, aio=threads", "qemu-nbd, aio=io_uring"];

struct Peers {
    _processes: Vec<Running>,
    sockets: Vec<PathBuf>,
    dir: TempDir,
    _files: TempDir,
}

impl Peers {
    /// Starts all, each with a file of its own beside our journals.
    fn start() -> Result<Self> {
        let dir = TempDir::with_prefix("direct-")?;
        let files = TempDir::with_prefix_in("files-", crate::bench_dir())?;
        let sockets: Vec<PathBuf> =
            (0..NAMES.len()).map(|i| dir.path().join(format!("peer{i}"))).collect();
        let paths: Vec<PathBuf> =
            (0..NAMES.len()).map(|i| files.path().join(format!("file{i}"))).collect();
        for path in &paths {
            written_file(path, VOLUME_BYTES)?;
        }
        let processes = vec![
            nbdkit_file(dir.path(), &sockets[0], &paths[0])?,
            qemu_nbd(dir.path(), &sockets[1], &paths[1], "threads")?,
            qemu_nbd(dir.path(), &sockets[2], &paths[2], "io_uring")?,
        ];
        Ok(Self { _processes: processes, sockets, dir, _files: files })
    }
}

/// Measures all loads; the peer of each is the one that bears most of it.
pub fn measure(scale: &Scale, report: &mut Report) -> Result<()> {
    let peers = Peers::start()?;
    for load in LOADS {
        let (ours, theirs) = rounds(scale, load, &peers).context(load.name)?;
        let rates = theirs.iter().map(|rounds| load.median_rate(rounds));
        let (best, _) = rates
            .enumerate()
            .max_by(|one, other| one.1.total_cmp(&other.1))
            .context("there are peers")?;
        load.add_rows(
            report,
            "NBD server with journal",
            (&ours, &theirs[best]),
            &format!("{} without journal, fastest of {}", NAMES[best], NAMES.len()),
            (" (aim >= 1.0)", ""),
        );
    }
    Ok(())
}

fn rounds(scale: &Scale, load: Load, peers: &Peers) -> Result<(Vec<Figures>, Vec<Vec<Figures>>)> {
    let mut ours = Vec::new();
    let mut theirs = vec![Vec::new(); NAMES.len()];
    let sides = NAMES.len() + 1;
    for round in 0..scale.rounds {
        for turn in 0..sides {
            match (round + turn) % sides {
                0 => ours.push(run_ours(scale, load, peers)?),
                n => theirs[n - 1].push(load.run(&peers.sockets[n - 1], "", scale.run_ms)?),
            }
        }
    }
    Ok((ours, theirs))
}

/// A fresh journal each time: the space that it takes is bounded by one run's writes.
fn run_ours(scale: &Scale, load: Load, peers: &Peers) -> Result<Figures> {
    let socket = peers.dir.path().join("ours");
    let server = OurServer::start(&socket, VOLUME_BYTES)?;
    let figures = load.run(&socket, "", scale.run_ms)?;
    server.end()?;
    Ok(figures)
}
