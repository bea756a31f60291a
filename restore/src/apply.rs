//! Doing what a plan says: read records, check them, write their bytes. Decides nothing.

use crate::error::Error;
use crate::plan::Plan;
use crate::refusal;
use crate::restore::Progress;
use crate::runs;
use crate::target::Target;
use afterimage_journal::History;
use afterimage_journal::history::Entry;

/// Why a plan could not be carried out.
pub(crate) enum Fault {
    /// A record is damaged: the index of the read, and what is wrong.
    Record(usize, String),
    /// A target could not be written: the volume's index.
    Target(usize, std::io::Error),
}

impl Fault {
    /// The error for people; `path` names a volume's target.
    pub(crate) fn into_error(
        self,
        history: &History,
        guest: Option<&str>,
        plan: &Plan,
        path: impl Fn(usize) -> std::path::PathBuf,
    ) -> Error {
        match self {
            Self::Record(read, why) => refusal::damaged(history, guest, plan, read, why),
            Self::Target(volume, source) => Error::target("write", &path(volume), source),
        }
    }
}

/// Reads every record of the plan once and writes what is needed of it to the targets (one a
/// volume, in the plan's order; they must be empty, so that what isn't written is zero).
pub(crate) fn apply(
    history: &History,
    plan: &Plan,
    targets: &mut [Box<dyn Target>],
    progress: &mut dyn FnMut(Progress),
) -> Result<(), Fault> {
    let entries: Vec<Entry> = plan.reads.iter().map(|r| r.entry).collect();
    let total_bytes = plan.data_bytes;
    let mut done_bytes = 0;
    progress(Progress { done_bytes, total_bytes });
    runs::for_each(history, &entries, |i, stored| {
        let read = &plan.reads[i];
        let payload = stored.payload.map_err(|why| Fault::Record(i, why))?;
        for write in &plan.writes[read.writes.clone()] {
            let from = write.skip as usize;
            let bytes = payload
                .get(from..from + write.len as usize)
                .ok_or_else(|| Fault::Record(i, "it is shorter than what it covers".into()))?;
            targets[read.volume]
                .write(write.addr, bytes)
                .map_err(|e| Fault::Target(read.volume, e))?;
            done_bytes += bytes.len() as u64;
        }
        progress(Progress { done_bytes, total_bytes });
        Ok(())
    })
}
