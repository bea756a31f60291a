//! The warm act: the guest's memory is taken while it runs, and after the original is gone the guest
//! goes on from there.
//!
//! What always holds: what the resumed guest says is compared with what the original said before and
//! after the checkpoint was taken; a copy that is not that guest fails the demo.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::guest::{Counted, Guest, MEMORY_MIB, TMPFS_BYTES};
use super::rows::{Moment, judge};
use super::{NAME, Story, ms};
use crate::show::{bytes, tell};

/// The checkpoint with memory.
const TAG: &str = "with-memory";
/// How long the resumed guest counts before it is asked again.
const GOES_ON: Duration = Duration::from_secs(1);

/// A checkpoint with memory, between two looks at the guest.
pub(super) struct Taken {
    before: Counted,
    after: Counted,
    rows: Moment,
    pause_us: u64,
    kept_bytes: u64,
    took_ms: u64,
}

/// The guest that went on.
pub(super) struct Warm {
    first: Counted,
    rows: u64,
    restore_seconds: f64,
    resume_seconds: f64,
}

impl Story {
    /// Takes the memory of the running guest.
    pub(super) fn take_memory(&self, guest: &mut Guest) -> Result<Taken> {
        self.step(
            "Take a checkpoint with memory: disks and memory of one instant, as the guest runs",
        );
        let (before, acked) = (guest.counted()?, guest.moment().acked);
        self.commands.run(&["mark", NAME, "--tag", TAG, "--memory"])?;
        // In this order: what is granted later is none of the checkpoint's.
        let (rows, after) = (guest.moment(), guest.counted()?);
        let status = self.commands.quiet_json(&["status", NAME, "--json"])?;
        let last = &status["memory"]["last"];
        let number = |key: &str| {
            last[key].as_u64().with_context(|| format!("status says no {key} of it: {status}"))
        };
        let taken = Taken {
            before,
            after,
            rows: Moment { acked, ..rows },
            pause_us: number("pause_us")?,
            kept_bytes: number("changed_bytes")?,
            took_ms: number("took_ms")?,
        };
        self.say(&format!(
            "the guest stood still for {}; {} of its {MEMORY_MIB} MiB were kept, in {:.1} s",
            ms(taken.pause_us),
            bytes(taken.kept_bytes),
            taken.took_ms as f64 / 1000.0
        ));
        self.say(&format!(
            "its number was {} before and {} after",
            taken.before.ram, taken.after.ram
        ));
        Ok(taken)
    }

    /// Restores disks and memory, and has the guest go on.
    pub(super) fn resume(&self, taken: &Taken) -> Result<Warm> {
        self.step("Now warm: restore disks and memory of that checkpoint; neither agent nor guest is there");
        let to = self.dir.join("warm");
        let at = format!("tag:{TAG}");
        let begin = Instant::now();
        let words = ["restore", NAME, "--at", &at, "--to", &to.display().to_string(), "--warm"];
        self.commands.run(&words)?;
        let restore_seconds = begin.elapsed().as_secs_f64();

        let script: PathBuf = to.join(format!("{NAME}.start.sh"));
        self.step("Run the script that it wrote, and ask the guest over its port");
        self.commands.show_line(&script);
        let port = to.join(format!("{NAME}.port.sock"));
        let (mut guest, first) = Guest::resume(&script, port, &self.dir.join("warm.log"))?;
        let resume_seconds = guest.boot_time().as_secs_f64();
        std::thread::sleep(GOES_ON);
        let later = guest.counted()?;
        judge_memory(taken, &first, &later)?;
        self.say(&format!(
            "it answers after {resume_seconds:.1} s: its number is {}, and {} a second later",
            first.ram, later.ram
        ));
        self.say("same boot of its kernel; the file in tmpfs has the same checksum");
        let checked = guest.check()?;
        judge(&checked, &taken.rows).context("the resumed guest's database")?;
        self.say(&format!("its database is there: integrity=ok, rows 1 to {}", checked.max));
        guest.power_off()?;
        Ok(Warm { first, rows: checked.max, restore_seconds, resume_seconds })
    }

    /// The end of the summary.
    pub(super) fn sum_up_warm(&self, taken: &Taken, warm: &Warm) {
        let (first, mib) = (&warm.first, TMPFS_BYTES >> 20);
        tell!(
            "\n  Warm: the guest went on in its memory, with no boot: its number from {},",
            first.ram
        );
        tell!("  {mib} MiB in tmpfs unchanged, its database whole with rows 1 to {}.", warm.rows);
        tell!(
            "  It had stood still for {} while {} of its {MEMORY_MIB} MiB of memory were kept.",
            ms(taken.pause_us),
            bytes(taken.kept_bytes)
        );
        tell!(
            "  Restore: {:.1} s; from the script's start to its first answer: {:.1} s.",
            warm.restore_seconds,
            warm.resume_seconds
        );
    }
}

/// Whether what went on is the guest whose memory was taken.
fn judge_memory(taken: &Taken, first: &Counted, later: &Counted) -> Result<()> {
    let was = &taken.before;
    ensure!(first.boot == was.boot, "the copy booted: {first:?}, the original was {was:?}");
    for now in [first, later] {
        ensure!(now.tmpfs == was.tmpfs, "the file in tmpfs is another one: {now:?}, {was:?}");
    }
    ensure!(
        first.ram >= was.ram,
        "the number went back to {}, behind that from before the checkpoint: {}",
        first.ram,
        was.ram
    );
    ensure!(later.ram > first.ram, "the guest does not go on: {first:?}, then {later:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(ram: u64) -> Counted {
        Counted { ram, tmpfs: "a".into(), boot: "b".into() }
    }

    #[test]
    fn a_copy_that_booted_changed_went_back_or_stands_still_is_none() {
        let rows = Moment { time: String::new(), acked: 1, granted: 2 };
        let (before, after) = (counted(10), counted(20));
        let taken = Taken { before, after, rows, pause_us: 1, kept_bytes: 1, took_ms: 1 };
        let judge = |first: &Counted, later: &Counted| judge_memory(&taken, first, later);
        assert!(judge(&counted(12), &counted(13)).is_ok());
        assert!(judge(&counted(9), &counted(13)).is_err());
        assert!(judge(&counted(12), &counted(12)).is_err());
        let booted = Counted { boot: "c".into(), ..counted(12) };
        assert!(judge(&booted, &counted(13)).is_err());
        let changed = Counted { tmpfs: "c".into(), ..counted(13) };
        assert!(judge(&counted(12), &changed).is_err());
    }
}
