//! One client's stream with its receive buffer, its replies and its observer.
//!
//! Every wait for the client happens here. What always holds: the observer is told before each
//! wait and after it, and nothing that could be sent is held back over a wait.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::observer::{CloseReason, ConnectionObserver};
use super::outbox::Outbox;
use crate::export::Source;
use crate::transport::{Inbox, Transport, send_all};

pub(super) struct Link {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) inbox: Inbox,
    pub(super) outbox: Outbox,
    pub(super) observer: Box<dyn ConnectionObserver>,
}

impl Link {
    /// Sends what has gathered in the outbox.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if self.outbox.bytes() == 0 {
            return Ok(());
        }
        self.observer.sending();
        send_all(&*self.transport, self.outbox.pending())?;
        self.outbox.clear();
        self.observer.replied();
        Ok(())
    }

    /// Sends what has gathered while requests of the same batch are still to be answered.
    pub(super) fn flush_early(&mut self) -> io::Result<()> {
        if self.outbox.bytes() == 0 {
            return Ok(());
        }
        self.flush()?;
        self.observer.received();
        Ok(())
    }

    /// Sends what has gathered, then waits for more bytes behind those that are buffered.
    pub(super) fn fill(&mut self) -> Result<(), CloseReason> {
        self.flush()?;
        self.observer.waiting();
        let got = self.inbox.fill(&*self.transport, true)?;
        self.observer.received();
        match got {
            0 if self.inbox.buffered().is_empty() => Err(CloseReason::Hangup),
            0 => Err(CloseReason::Truncated),
            _ => Ok(()),
        }
    }

    /// Receives and drops `bytes`.
    pub(super) fn drain(&mut self, mut bytes: u64) -> Result<(), CloseReason> {
        loop {
            let here = (self.inbox.buffered().len() as u64).min(bytes);
            self.inbox.consume(here as usize);
            bytes -= here;
            if bytes == 0 {
                return Ok(());
            }
            match self.fill() {
                Err(CloseReason::Hangup) => return Err(CloseReason::Truncated),
                other => other?,
            }
        }
    }

    /// Waits until something arrives, or the deadline passes: then it gives false.
    fn wait_until(&mut self, deadline: Instant) -> io::Result<bool> {
        let left = deadline.saturating_duration_since(Instant::now());
        let limit = Timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos().into() };
        self.observer.waiting();
        let ready = {
            let fd = self.transport.fd();
            poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&limit))
        };
        self.observer.received();
        match ready {
            Ok(count) => Ok(count > 0),
            // It is looked at again, and the deadline stays.
            Err(rustix::io::Errno::INTR) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    fn receive_waiting(&mut self, dst: &mut [u8]) -> io::Result<usize> {
        if self.outbox.bytes() > 0 {
            // In a batch the rest is most likely here already: replies wait for it only then.
            match self.inbox.receive_past(&*self.transport, dst, false) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.flush()?,
                other => return other,
            }
        }
        self.observer.waiting();
        let got = self.inbox.receive_past(&*self.transport, dst, true);
        self.observer.received();
        got
    }
}

impl Source for Link {
    fn receive(&mut self, dst: &mut [u8]) -> io::Result<()> {
        let mut filled = self.inbox.take(dst);
        while filled < dst.len() {
            match self.receive_waiting(&mut dst[filled..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                got => filled += got,
            }
        }
        Ok(())
    }

    fn receive_within(&mut self, dst: &mut [u8], limit: Duration) -> io::Result<usize> {
        let mut filled = self.inbox.take(dst);
        let deadline = Instant::now() + limit;
        while filled < dst.len() {
            match self.inbox.receive_past(&*self.transport, &mut dst[filled..], false) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(got) => filled += got,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.flush()?;
                    if !self.wait_until(deadline)? {
                        break;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn buffered(&self) -> usize {
        self.inbox.buffered().len()
    }
}
