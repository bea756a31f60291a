//! Which records count where units are merged.

use crate::Seq;
use crate::error::Result;
use crate::map::{Run, Stack};
use std::sync::Arc;

/// Volumes that are read at the same positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Disks: at the positions of checkpoints.
    Disks,
    /// What holds guests' memory: at the numbers of the records that commit them.
    Memory,
}

/// See the module. What always holds: a record that is hidden where it is judged is hidden at every
/// position from its own number on at which volumes of its part can be restored.
pub trait Sight {
    /// The position at which the record with a number is judged.
    fn judged_at(&self, part: Part, seq: Seq) -> Seq;

    /// Where everything is judged, if that is one position for all.
    fn judges_all_at(&self) -> Option<Seq> {
        None
    }

    /// What is visible at such a position, of all that can hide records of this part in the unit with
    /// this number and those behind it.
    ///
    /// # Errors
    /// An index or a run can't be read.
    fn stack(&mut self, part: Part, at: Seq, unit: u64) -> Result<Arc<Stack>>;
}

/// The base's: everything is judged where it ends.
#[derive(Debug)]
pub struct AtFloor {
    floor: Seq,
    stack: Arc<Stack>,
}

impl AtFloor {
    /// By the base run that was made for this position.
    #[must_use]
    pub fn new(floor: Seq, base: &Arc<Run>) -> Self {
        Self { floor, stack: Arc::new(Stack::new(vec![Arc::clone(base).into()])) }
    }
}

impl Sight for AtFloor {
    fn judged_at(&self, _part: Part, _seq: Seq) -> Seq {
        self.floor
    }

    fn judges_all_at(&self) -> Option<Seq> {
        Some(self.floor)
    }

    fn stack(&mut self, _part: Part, _at: Seq, _unit: u64) -> Result<Arc<Stack>> {
        Ok(Arc::clone(&self.stack))
    }
}
