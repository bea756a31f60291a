//! Which records count where units are merged.

use crate::Seq;
use crate::error::Result;
use crate::map::{Run, Stack};
use std::sync::Arc;

/// See the module. What always holds: a record that is hidden where it is judged is hidden at every
/// restorable position from its own number on.
pub trait Sight {
    /// The position at which the record with a number is judged.
    fn judged_at(&self, seq: Seq) -> Seq;

    /// What is visible at such a position, of all that can hide records of the unit with this number and
    /// of those behind it.
    ///
    /// # Errors
    /// An index or a run can't be read.
    fn stack(&mut self, at: Seq, unit: u64) -> Result<Arc<Stack>>;
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
    fn judged_at(&self, _seq: Seq) -> Seq {
        self.floor
    }

    fn stack(&mut self, _at: Seq, _unit: u64) -> Result<Arc<Stack>> {
        Ok(Arc::clone(&self.stack))
    }
}
