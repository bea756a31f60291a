//! One latch for all connections of a guest.
//!
//! When a connection of a level guest is lost, or one of its writes is refused, QEMU acknowledges
//! that write to the guest all the same and goes on: on its other disks, and, reconnecting, on
//! the same one. Nothing that comes after may be taken in as if nothing were missing before it
//! (I-2, I-4). So the first loss shuts the gate, before the socket is closed and before the error
//! is sent, and every write of the guest is refused until it is attached anew.

use std::sync::atomic::{AtomicU8, Ordering};

const OPEN: u8 = 0;
const ARMED: u8 = 1;
const SHUT: u8 = 2;
const LET_GO: u8 = 3;

/// See the module.
#[derive(Debug, Default)]
pub struct Gate {
    state: AtomicU8,
}

impl Gate {
    /// From here on a loss shuts it. Before, while the guest is brought level, connections may
    /// come and go.
    pub fn arm(&self) {
        let _ = self.state.compare_exchange(OPEN, ARMED, Ordering::AcqRel, Ordering::Acquire);
    }

    /// A loss: shuts an armed gate.
    pub fn trip(&self) {
        let _ = self.state.compare_exchange(ARMED, SHUT, Ordering::AcqRel, Ordering::Acquire);
    }

    /// From here on writes are answered and forgotten, whatever was before. The caller has closed the
    /// session, and noted that the disks owe the blocks of their maps.
    pub fn let_go(&self) {
        self.state.store(LET_GO, Ordering::Release);
    }

    /// True after [`Gate::let_go`].
    #[must_use]
    pub fn has_let_go(&self) -> bool {
        self.state.load(Ordering::Acquire) == LET_GO
    }

    /// Whether writes are refused.
    #[must_use]
    pub fn is_shut(&self) -> bool {
        self.state.load(Ordering::Acquire) == SHUT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_armed_gate_shuts_and_stays_shut() {
        let gate = Gate::default();
        gate.trip();
        assert!(!gate.is_shut());
        gate.arm();
        assert!(!gate.is_shut());
        gate.trip();
        assert!(gate.is_shut());
        gate.arm();
        assert!(gate.is_shut());
    }

    #[test]
    fn a_gate_that_let_go_never_shuts_again() {
        for trips in [false, true] {
            let gate = Gate::default();
            gate.arm();
            if trips {
                gate.trip();
            }
            assert!(!gate.has_let_go());
            gate.let_go();
            gate.trip();
            gate.arm();
            gate.trip();
            assert!(gate.has_let_go() && !gate.is_shut());
        }
    }
}
