//! The transmission phase: parses requests, calls the export, gathers replies.
//!
//! What always holds: a request reaches the export only when its range, alignment, flags and
//! the export's permissions were checked; its payload is consumed whole whatever the export
//! answers; in steady state nothing is allocated for a request.

use super::Limits;
use super::block_status::Query;
use super::handshake::{Agreed, Handshake};
use super::link::Link;
use super::observer::CloseReason;
use super::registry::Seat;
use crate::errno::Errno;
use crate::export::{ExportInfo, ExportSet, Payload, Source, WriteFlags, ZeroFlags};
use crate::proto::Mode;
use crate::proto::flags::*;
use crate::proto::request::{Request, header_bytes};

const PAST_THE_END: &str = "range reaches past the end of the export";

/// The flags that tell a client what the export can do.
pub(super) fn transmission_flags(info: &ExportInfo, mode: Mode) -> u16 {
    let writable = !info.read_only;
    let chunks = mode != Mode::Simple;
    [
        (true, HAS_FLAGS),
        (info.read_only, READ_ONLY),
        (info.can_flush, SEND_FLUSH),
        (info.can_fua, SEND_FUA),
        (info.rotational, ROTATIONAL),
        (info.can_trim && writable, SEND_TRIM),
        (info.can_zero && writable, SEND_WRITE_ZEROES),
        (chunks, SEND_DF),
        (info.multi_conn, CAN_MULTI_CONN),
        (info.can_cache, SEND_CACHE),
        (info.can_zero && info.can_fast_zero && writable, SEND_FAST_ZERO),
        (mode == Mode::Extended, BLOCK_STATUS_PAYLOAD),
    ]
    .into_iter()
    .filter_map(|(on, flag)| on.then_some(flag))
    .sum()
}

/// Serves one client from greeting to goodbye.
pub(super) fn serve(
    link: &mut Link,
    exports: &dyn ExportSet,
    seat: &Seat,
    limits: &Limits,
) -> CloseReason {
    let done = Handshake::new(link, exports, seat, limits).run().and_then(|agreed| {
        let bytes = agreed.export.bytes();
        Transmission { link, agreed, bytes, limits, extents: Vec::new() }.run()
    });
    match done {
        Ok(reason) | Err(reason) => reason,
    }
}

pub(super) struct Transmission<'a> {
    pub(super) link: &'a mut Link,
    pub(super) agreed: Agreed,
    bytes: u64,
    limits: &'a Limits,
    /// Reused by every BLOCK_STATUS.
    pub(super) extents: Vec<(u64, u32)>,
}

/// How a request that cannot be carried out ends.
type Refused = (Errno, &'static str);

impl Transmission<'_> {
    fn run(mut self) -> Result<CloseReason, CloseReason> {
        let mode = self.agreed.mode;
        loop {
            let Some(request) = Request::decode(mode, self.link.inbox.buffered())? else {
                // Nothing is buffered: the client is idle, for as long as it likes.
                self.link.fill(self.link.inbox.buffered().is_empty())?;
                continue;
            };
            self.link.begin_request();
            self.link.inbox.consume(header_bytes(mode));
            if request.command == CMD_DISC {
                self.link.flush()?;
                return Ok(CloseReason::Disconnected);
            }
            self.handle(&request)?;
            self.link.begin_request();
            if self.link.outbox.bytes() >= self.limits.reply_bytes {
                self.link.flush_early()?;
            }
        }
    }

    fn handle(&mut self, request: &Request) -> Result<(), CloseReason> {
        let payload = self.payload_bytes(request);
        if payload > u64::from(self.agreed.info.payload_bytes_max) {
            // Skipping it could take for ever: the client gets its error and goes.
            self.refuse(request, (Errno::Overflow, "payload is larger than was agreed"));
            self.link.flush()?;
            return Err(CloseReason::Protocol(format!("payload of {payload} bytes")));
        }
        match self.check(request) {
            Err(refused) => {
                self.refuse(request, refused);
                self.link.drain(payload)
            }
            Ok(()) if request.command == CMD_WRITE => self.write(request),
            Ok(()) if request.command == CMD_BLOCK_STATUS => self.block_status(request),
            Ok(()) if request.command == CMD_READ => self.read(request),
            Ok(()) => self.simple_command(request),
        }
    }

    /// Bytes that follow the header, whether the request makes sense or not.
    fn payload_bytes(&self, request: &Request) -> u64 {
        // QEMU (seen with 10.0) sends extended writes without the flag that the protocol asks
        // for; a write always brings its payload.
        let has_payload = request.command == CMD_WRITE
            || (self.agreed.mode == Mode::Extended && request.flags & CMD_PAYLOAD_LEN != 0);
        if has_payload { request.length } else { 0 }
    }

    pub(super) fn refuse(&mut self, request: &Request, (errno, text): Refused) {
        self.link.outbox.push_error(self.agreed.mode, request, errno.code(), text);
    }

    /// Everything that can be said against a request before the export sees it.
    fn check(&self, request: &Request) -> Result<(), Refused> {
        let info = &self.agreed.info;
        let extended = self.agreed.mode == Mode::Extended;
        let (offered, mut flags_known) = match request.command {
            CMD_READ => (true, if self.agreed.mode == Mode::Simple { 0 } else { CMD_DF }),
            CMD_WRITE => (true, if extended { CMD_PAYLOAD_LEN } else { 0 }),
            CMD_FLUSH => (info.can_flush, 0),
            CMD_TRIM => (info.can_trim, 0),
            CMD_CACHE => (info.can_cache, 0),
            CMD_WRITE_ZEROES if info.can_fast_zero => (info.can_zero, CMD_NO_HOLE | CMD_FAST_ZERO),
            CMD_WRITE_ZEROES => (info.can_zero, CMD_NO_HOLE),
            CMD_BLOCK_STATUS if extended => (true, CMD_REQ_ONE | CMD_PAYLOAD_LEN),
            CMD_BLOCK_STATUS => (true, CMD_REQ_ONE),
            _ => return Err((Errno::Inval, "unknown command")),
        };
        let writes = matches!(request.command, CMD_WRITE | CMD_TRIM | CMD_WRITE_ZEROES);
        if writes && info.read_only {
            return Err((Errno::Perm, "export is read-only"));
        }
        if !offered {
            return Err((Errno::Inval, "command is not offered by this export"));
        }
        if info.can_fua {
            flags_known |= CMD_FUA;
        }
        if request.flags & !flags_known != 0 {
            return Err((Errno::Inval, "flag is not valid for this command"));
        }
        if request.command == CMD_BLOCK_STATUS && self.agreed.contexts.is_empty() {
            return Err((Errno::Inval, "no metadata context was selected"));
        }
        self.check_range(request)
    }

    fn check_range(&self, request: &Request) -> Result<(), Refused> {
        if request.command == CMD_FLUSH {
            // The protocol reserves its range. Clients that set one all the same mean the whole
            // export, and qemu-nbd takes what lies inside it.
            let inside = self.is_inside(request.offset, request.length);
            return if inside { Ok(()) } else { Err((Errno::Inval, PAST_THE_END)) };
        }
        if request.command == CMD_BLOCK_STATUS && request.flags & CMD_PAYLOAD_LEN != 0 {
            // Its range is in the payload, and is checked there.
            return Ok(());
        }
        let payload_max = u64::from(self.agreed.info.payload_bytes_max);
        if request.command == CMD_READ && request.length > payload_max {
            return Err((Errno::Inval, "read is larger than was agreed"));
        }
        let errno = match request.command {
            CMD_WRITE | CMD_WRITE_ZEROES => Errno::NoSpc,
            _ => Errno::Inval,
        };
        self.in_bounds(request.offset, request.length, errno)
    }

    fn is_inside(&self, at: u64, len: u64) -> bool {
        at.checked_add(len).is_some_and(|end| end <= self.bytes)
    }

    /// Whether the range lies in the export and is aligned.
    pub(super) fn in_bounds(&self, at: u64, len: u64, beyond: Errno) -> Result<(), Refused> {
        if !self.is_inside(at, len) {
            return Err((beyond, PAST_THE_END));
        }
        let mask = u64::from(self.agreed.info.block_bytes_min).wrapping_sub(1);
        if (at | len) & mask != 0 {
            return Err((Errno::Inval, "range is not aligned to the minimum block size"));
        }
        Ok(())
    }

    /// Adds the reply to a request that brings no data back.
    pub(super) fn finish(&mut self, request: &Request, result: Result<(), Errno>) {
        match result {
            Ok(()) => self.link.outbox.push_success(self.agreed.mode, request),
            Err(errno) => self.refuse(request, (errno, "")),
        }
    }

    fn write(&mut self, request: &Request) -> Result<(), CloseReason> {
        // At most payload_bytes_max, which is 32 bits wide.
        let bytes = request.length as usize;
        let fua = request.flags & CMD_FUA != 0;
        if fua {
            // Making it durable takes long: what is done already is answered first.
            self.link.flush_early()?;
        }
        let mut result = Ok(());
        if bytes > 0 {
            self.link.inbox.saw_payload(bytes);
            let source: &mut dyn Source = self.link;
            let mut payload = Payload::new(bytes, source);
            result = self.agreed.export.write(request.offset, &mut payload, WriteFlags { fua });
            let (left, failed) = (payload.left(), payload.failed());
            if failed {
                return Err(self.link.timed_out().unwrap_or(CloseReason::Truncated));
            }
            if left > 0 {
                if result.is_ok() {
                    tracing::error!(left, "export acknowledged a write that it did not read");
                    result = Err(Errno::Io);
                }
                self.link.drain(left as u64)?;
            }
        }
        self.finish(request, result);
        Ok(())
    }

    fn simple_command(&mut self, request: &Request) -> Result<(), CloseReason> {
        let Request { offset: at, length: len, flags, .. } = *request;
        let fua = flags & CMD_FUA != 0;
        let export = std::sync::Arc::clone(&self.agreed.export);
        if request.command == CMD_FLUSH || fua {
            self.link.flush_early()?;
        }
        let result = match request.command {
            CMD_FLUSH => export.flush(),
            _ if len == 0 => Ok(()),
            CMD_TRIM => export.trim(at, len, WriteFlags { fua }),
            CMD_CACHE => export.cache(at, len),
            _ => {
                let no_hole = flags & CMD_NO_HOLE != 0;
                let fast = flags & CMD_FAST_ZERO != 0;
                export.write_zeroes(at, len, ZeroFlags { fua, no_hole, fast })
            }
        };
        self.finish(request, result);
        Ok(())
    }

    fn block_status(&mut self, request: &Request) -> Result<(), CloseReason> {
        let query = match Query::receive(self, request)? {
            Ok(query) => query,
            Err(refused) => {
                self.refuse(request, refused);
                return Ok(());
            }
        };
        let mark = self.link.outbox.bytes();
        if let Err(errno) = query.answer(self, request) {
            self.link.outbox.truncate(mark);
            self.refuse(request, (errno, "block status failed"));
        }
        Ok(())
    }
}
