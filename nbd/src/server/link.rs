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
use afterimage_planted as planted;

pub(super) struct Link {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) inbox: Inbox,
    pub(super) outbox: Outbox,
    pub(super) observer: Box<dyn ConnectionObserver>,
    /// How long the rest of a request may take; `None` in the handshake, which has a limit of its
    /// own.
    request_max: Option<Duration>,
    /// For how long the rest of the request at hand has been waited for.
    waited: Duration,
}

impl Link {
    pub(super) fn new(
        transport: Arc<dyn Transport>,
        inbox: Inbox,
        outbox: Outbox,
        observer: Box<dyn ConnectionObserver>,
    ) -> Self {
        let (request_max, waited) = (None, Duration::ZERO);
        Self { transport, inbox, outbox, observer, request_max, waited }
    }

    /// From now on requests arrive, the rest of each within the limit.
    pub(super) fn limit_requests(&mut self, limit: Duration) -> io::Result<()> {
        if planted::is("request-without-limit") {
            return self.transport.limit_receive(None);
        }
        let limit = limit.max(Duration::from_millis(1));
        self.request_max = Some(limit);
        self.transport.limit_receive(Some(limit))
    }

    /// The header of a request is here.
    pub(super) fn begin_request(&mut self) {
        self.waited = Duration::ZERO;
    }

    /// Why the connection ends, if the rest of a request took too long.
    pub(super) fn timed_out(&self) -> Option<CloseReason> {
        let limit = self.request_max.filter(|limit| self.waited >= *limit)?;
        Some(CloseReason::RequestTimeout(limit))
    }

    /// Calls `receive`, which waits for the rest of a request. A client that sends too little in the
    /// time limit gets no more of it: a byte now and then is no progress.
    fn within_limit(
        &mut self,
        mut receive: impl FnMut(&mut Self) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let Some(limit) = self.request_max else { return receive(self) };
        let begin = Instant::now();
        let got = receive(self);
        self.waited += begin.elapsed();
        match got {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.waited = self.waited.max(limit);
                Err(io::ErrorKind::TimedOut.into())
            }
            Ok(got) if got > 0 && self.waited >= limit => Err(io::ErrorKind::TimedOut.into()),
            other => other,
        }
    }

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

    /// Sends what has gathered, then waits for more bytes behind those that are buffered: for ever
    /// if the client `may_be_idle`, else for the rest of a request.
    pub(super) fn fill(&mut self, may_be_idle: bool) -> Result<(), CloseReason> {
        self.flush()?;
        self.observer.waiting();
        let got = match (may_be_idle, self.request_max) {
            (true, Some(_)) => self.fill_idle(),
            _ => self.within_limit(|link| link.inbox.fill(&*link.transport, true)),
        };
        self.observer.received();
        let got = match got {
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                return Err(self.timed_out().unwrap_or(CloseReason::Stream(error)));
            }
            other => other?,
        };
        match got {
            0 if self.inbox.buffered().is_empty() => Err(CloseReason::Hangup),
            0 => Err(CloseReason::Truncated),
            _ => Ok(()),
        }
    }

    /// Waits for the first bytes of a request, without a limit.
    fn fill_idle(&mut self) -> io::Result<usize> {
        self.waited = Duration::ZERO;
        loop {
            match self.inbox.fill(&*self.transport, true) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
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
            match self.fill(false) {
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
        let got = self.within_limit(|link| link.inbox.receive_past(&*link.transport, dst, true));
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
