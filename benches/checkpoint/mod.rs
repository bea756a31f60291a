//! Checkpoints of a real guest's memory, beside what QEMU does without us.
//!
//! Two guests of the same kind run the same load, one protected by our agent, one alone. In turn, each
//! round: a checkpoint with memory of ours; of the other guest a background snapshot into
//! `cat >/dev/null`, and `stop`, `migrate` to nowhere, `cont`. Pauses are the time between QEMU's own events
//! STOP and RESUME, gaps are those of a 1 ms timer in the guest, by its own clock (which doesn't see the
//! pause), durations are QEMU's own. Half of the RAM holds data.

mod restore;
mod scene;

use crate::report::{Report, median};
use anyhow::{Result, ensure};
use scene::{Peer, Protected, Round, State};

/// What is measured.
struct Scale {
    /// RAM of the guests (`AFTERIMAGE_BENCH_MEMORY_MIB`, several with commas).
    sizes_mib: Vec<u32>,
    /// Rounds of each size and state (`AFTERIMAGE_BENCH_MEMORY_ROUNDS`).
    rounds: usize,
}

impl Scale {
    fn from_env() -> Result<Self> {
        let text = std::env::var("AFTERIMAGE_BENCH_MEMORY_MIB");
        let text = text.unwrap_or_else(|_| "512,2048".into());
        let sizes: Result<Vec<u32>, _> = text.split(',').map(|s| s.trim().parse()).collect();
        let sizes_mib = sizes?;
        ensure!(sizes_mib.iter().all(|mib| *mib >= 128), "AFTERIMAGE_BENCH_MEMORY_MIB={text}");
        let rounds = crate::number("AFTERIMAGE_BENCH_MEMORY_ROUNDS", 5)?.max(1) as usize;
        Ok(Self { sizes_mib, rounds })
    }
}

/// Measures.
pub fn measure(report: &mut Report) -> Result<()> {
    let scale = Scale::from_env()?;
    for &mib in &scale.sizes_mib {
        let mut ours = Protected::start(mib)?;
        let mut peer = Peer::start(mib)?;
        // The first one stores all of the memory; the rounds are about those that follow.
        ours.checkpoint("first")?;
        for state in [State::Idle, State::Writing] {
            ours.load(state);
            peer.load(state);
            let mut rounds = Vec::new();
            for round in 0..scale.rounds {
                let tag = format!("{state}-{round}");
                let (snapshot, stopped) = (peer.snapshot()?, peer.stop_and_migrate()?);
                let ours = ours.checkpoint(&tag)?;
                eprintln!(
                    "{mib} MiB, {state}, {}/{}: ours {ours}; snapshot {snapshot}; stop {stopped}",
                    round + 1,
                    scale.rounds
                );
                rounds.push((ours, snapshot, stopped));
            }
            add(report, mib, state, &rounds);
        }
        ours.load(State::Idle);
        restore::second_checkpoint(&mut ours, mib, report)?;
        restore::warm(&mut ours, peer, mib, report)?;
    }
    Ok(())
}

fn add(report: &mut Report, mib: u32, state: State, rounds: &[(Round, Round, Round)]) {
    let n = rounds.len();
    let most = |of: fn(&(Round, Round, Round)) -> f64| rounds.iter().map(of).fold(0.0, f64::max);
    let middle = |of: fn(&(Round, Round, Round)) -> f64| median(rounds.iter().map(of));
    let title = format!("memory, {mib} MiB, guest {state}, {n} times");
    let aim = if mib == 2048 { " (aim: ratio <= 0.1)" } else { "" };
    let peer = "QEMU's stop, migrate to nowhere, cont";
    let pauses = (middle(|r| r.0.pause_ms), middle(|r| r.2.pause_ms));
    report.add(format!("{title}: pause, median{aim}"), pauses, peer, "ms");
    let pauses = (most(|r| r.0.pause_ms), most(|r| r.2.pause_ms));
    report.add(format!("{title}: pause, worst"), pauses, peer, "ms");
    let peer = "QEMU's background snapshot into cat >/dev/null";
    let times = (middle(|r| r.0.total_ms), middle(|r| r.1.total_ms));
    report.add(format!("{title}: QEMU's time for it (aim: ratio <= 1.05)"), times, peer, "ms");
    let gaps = (middle(|r| r.0.gap_ms), middle(|r| r.1.gap_ms));
    report.add(
        format!("{title}: worst gap of a 1 ms timer, median (aim: ratio <= 1.1)"),
        gaps,
        peer,
        "ms",
    );
    let gaps = (most(|r| r.0.gap_ms), most(|r| r.1.gap_ms));
    report.add(format!("{title}: worst gap of all"), gaps, peer, "ms");
}
