//! A guest's device state, out of its volume: the head of the stream, then its tail.

use super::runstate;
use afterimage_journal::meta::GuestMemory;
use afterimage_journal::view::View;
use afterimage_journal::{Error, History, Result, Seq};

/// Largest device state, head and tail, in bytes: the size of its volume.
const STATE_BYTES_MAX: u64 = 64 << 20;

/// Head and tail of a stream.
#[derive(Debug)]
pub(crate) struct DeviceState {
    /// Everything before the list of RAM blocks.
    pub head: Vec<u8>,
    /// Everything behind the last page, made to run on.
    pub tail: Vec<u8>,
    /// The state in which a copy will be, when it won't run by itself.
    pub stays: Option<String>,
}

impl DeviceState {
    /// Reads it as it was at the position of the record that commits it.
    ///
    /// # Errors
    /// A record is damaged or can't be read; its size is none that can be.
    pub(crate) fn read(history: &History, memory: &GuestMemory, committed: Seq) -> Result<Self> {
        let mut state = Self::as_stored(history, memory, committed)?;
        state.stays = runstate::let_run(&mut state.tail);
        Ok(state)
    }

    /// As [`DeviceState::read`], just as it was stored.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn as_stored(
        history: &History,
        memory: &GuestMemory,
        committed: Seq,
    ) -> Result<Self> {
        let view = View::at(history, memory.state, committed)?;
        let bytes = memory.head_bytes.saturating_add(memory.tail_bytes);
        if bytes > STATE_BYTES_MAX || bytes > view.bytes() {
            return Err(Error::Invalid(format!(
                "the device state of {} is said to have {bytes} bytes",
                memory.guest
            )));
        }
        let mut head = vec![0; bytes as usize];
        view.read(0, &mut head)?;
        let tail = head.split_off(memory.head_bytes as usize);
        Ok(Self { head, tail, stays: None })
    }
}
