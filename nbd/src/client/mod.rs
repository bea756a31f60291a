//! The client: reads other NBD servers (QEMU's own export above all), blocking and pipelined.
//!
//! What always holds: a size that a server declares is checked against what was asked before
//! anything is allocated or received for it; data is handed on only inside the range that was
//! asked for, each byte once; after a broken message the connection is not used again.

mod connect;
mod flight;
mod pipeline;
mod status;

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::errno::Errno;
use crate::proto::Mode;
use crate::proto::flags::{
    CMD_CACHE, CMD_DISC, CMD_FAST_ZERO, CMD_FLUSH, CMD_FUA, CMD_NO_HOLE, CMD_PAYLOAD_LEN, CMD_TRIM,
    CMD_WRITE_ZEROES, READ_ONLY,
};
use crate::proto::request::{EXTENDED_BYTES, Request};
use crate::transport::{Inbox, Transport, send_all};
use flight::Flight;

/// Receive buffer, in bytes.
const INBOX_BYTES: usize = 256 << 10;
/// Payloads up to this many bytes are gathered with other requests before they are sent.
const GATHERED_PAYLOAD_BYTES: usize = 64 << 10;
/// Gathered requests are sent when there are this many bytes of them.
const GATHERED_BYTES: usize = 256 << 10;
/// Most bytes of effect in one compact request: 32 bits, aligned to any usual block size.
const COMPACT_EFFECT_BYTES_MAX: u64 = (1 << 32) - (1 << 20);

/// What to ask a server for.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// The export's name.
    pub export: String,
    /// Ask for structured replies; metadata contexts need them.
    pub structured: bool,
    /// Ask for extended headers; structured replies if they are refused.
    pub extended: bool,
    /// Metadata contexts to ask for, such as `base:allocation`.
    pub contexts: Vec<String>,
    /// How long connecting may take, and the handshake after it.
    pub connect_max: Duration,
    /// How long a single wait for the server may take afterwards; `None` for ever.
    pub wait_max: Option<Duration>,
    /// The largest READ or WRITE sent, in bytes; also limited by what the server allows.
    pub piece_bytes_max: u32,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            export: String::new(),
            structured: true,
            extended: false,
            contexts: Vec::new(),
            connect_max: Duration::from_secs(10),
            wait_max: Some(Duration::from_secs(60)),
            piece_bytes_max: 1 << 20,
        }
    }
}

/// Why a client failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers at the socket.
    #[error("connect to {path}: {source}; is the NBD server running?")]
    Connect {
        /// The socket's path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The stream failed or the server took too long; the connection is not usable any more.
    #[error("NBD stream: {0}")]
    Stream(#[from] io::Error),
    /// The server broke the protocol; the connection is not usable any more.
    #[error("NBD server broke the protocol: {0}")]
    Protocol(String),
    /// The server refused an option of the handshake.
    #[error("NBD server refused {what}: {message} (reply {kind:#x})")]
    Refused {
        /// What was asked for.
        what: String,
        /// The reply type.
        kind: u32,
        /// The server's text.
        message: String,
    },
    /// A request failed; the connection goes on.
    #[error("NBD {command} of {len} bytes at {at}: {errno} {message}")]
    Request {
        /// The command.
        command: &'static str,
        /// Offset in bytes.
        at: u64,
        /// Length in bytes.
        len: u64,
        /// The server's error.
        errno: Errno,
        /// The server's text.
        message: String,
    },
    /// The range does not lie in the export.
    #[error("range of {len} bytes at {at} lies outside the export of {bytes} bytes")]
    Range {
        /// Offset in bytes.
        at: u64,
        /// Length in bytes.
        len: u64,
        /// The export's size.
        bytes: u64,
    },
    /// The metadata context was not asked for at connecting, or the server does not have it.
    #[error("metadata context {0} was not negotiated with the NBD server")]
    Context(String),
    /// The caller's own function refused the data.
    #[error("take the data: {0}")]
    Sink(#[source] io::Error),
    /// An earlier failure made the connection unusable.
    #[error("NBD connection failed earlier; connect again")]
    Broken,
}

/// What a read brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content<'a> {
    /// Bytes.
    Data(&'a [u8]),
    /// This many zero bytes that the server does not store.
    Hole(u64),
}

impl Content<'_> {
    /// How many bytes of the export it stands for.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Hole(bytes) => *bytes,
        }
    }
}

/// A connection to an export.
pub struct Client {
    transport: Box<dyn Transport>,
    inbox: Inbox,
    /// Requests that were not sent yet.
    outgoing: Vec<u8>,
    scratch: Vec<u8>,
    mode: Mode,
    bytes: u64,
    flags: u16,
    block_bytes_min: u32,
    payload_bytes_max: u32,
    piece_bytes: u32,
    contexts: Vec<(u32, String)>,
    next_cookie: u64,
    broken: bool,
}

impl Client {
    /// Connects to the Unix socket at `path` and negotiates.
    pub fn connect(path: &Path, options: &ClientOptions) -> Result<Self, ClientError> {
        connect::connect(path, options)
    }

    /// Negotiates over a stream that is connected.
    pub fn negotiate(
        transport: impl Transport,
        options: &ClientOptions,
    ) -> Result<Self, ClientError> {
        connect::negotiate(Box::new(transport), options)
    }

    /// The names of the exports of the server at `path`.
    pub fn list(path: &Path, connect_max: Duration) -> Result<Vec<String>, ClientError> {
        connect::list(path, connect_max)
    }

    /// Size of the export in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The transmission flags that the server sent (`proto::flags`).
    pub fn flags(&self) -> u16 {
        self.flags
    }

    /// Whether the export refuses writes.
    pub fn is_read_only(&self) -> bool {
        self.flags & READ_ONLY != 0
    }

    /// Which headers were negotiated.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Alignment that every request must have, in bytes.
    pub fn block_bytes_min(&self) -> u32 {
        self.block_bytes_min
    }

    /// The largest payload that the server accepts, in bytes.
    pub fn payload_bytes_max(&self) -> u32 {
        self.payload_bytes_max
    }

    /// Whether the metadata context was negotiated.
    pub fn has_context(&self, name: &str) -> bool {
        self.contexts.iter().any(|(_, own)| own == name)
    }

    /// Makes durable what was written.
    pub fn flush(&mut self) -> Result<(), ClientError> {
        self.command(CMD_FLUSH, 0, 0, 0)
    }

    /// Writes zeroes.
    pub fn write_zeroes(
        &mut self,
        at: u64,
        len: u64,
        flags: crate::export::ZeroFlags,
    ) -> Result<(), ClientError> {
        let bits =
            [(flags.fua, CMD_FUA), (flags.no_hole, CMD_NO_HOLE), (flags.fast, CMD_FAST_ZERO)]
                .into_iter()
                .filter_map(|(on, bit)| on.then_some(bit))
                .sum();
        self.ranged(CMD_WRITE_ZEROES, bits, at, len)
    }

    /// Lets the server forget the range.
    pub fn trim(&mut self, at: u64, len: u64) -> Result<(), ClientError> {
        self.ranged(CMD_TRIM, 0, at, len)
    }

    /// Asks the server to bring the range into its cache.
    pub fn cache(&mut self, at: u64, len: u64) -> Result<(), ClientError> {
        self.ranged(CMD_CACHE, 0, at, len)
    }

    /// Says goodbye and closes.
    pub fn disconnect(mut self) -> Result<(), ClientError> {
        self.usable()?;
        self.queue(CMD_DISC, 0, 0, 0, &[])?;
        self.send_queued()?;
        self.transport.end();
        Ok(())
    }

    /// Sends raw bytes, for tests of servers.
    pub fn send_raw(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        self.broken = true;
        Ok(send_all(&*self.transport, bytes)?)
    }

    fn usable(&self) -> Result<(), ClientError> {
        if self.broken { Err(ClientError::Broken) } else { Ok(()) }
    }

    fn in_range(&self, at: u64, len: u64) -> Result<(), ClientError> {
        match at.checked_add(len) {
            Some(end) if end <= self.bytes => Ok(()),
            _ => Err(ClientError::Range { at, len, bytes: self.bytes }),
        }
    }

    /// Sends a command without payload for the range, in pieces if the header is too narrow.
    fn ranged(&mut self, command: u16, flags: u16, at: u64, len: u64) -> Result<(), ClientError> {
        self.in_range(at, len)?;
        let (mut at, end) = (at, at + len);
        while at < end {
            let piece = match self.mode {
                Mode::Extended => end - at,
                _ => (end - at).min(COMPACT_EFFECT_BYTES_MAX),
            };
            self.command(command, flags, at, piece)?;
            at += piece;
        }
        Ok(())
    }

    fn command(&mut self, command: u16, flags: u16, at: u64, len: u64) -> Result<(), ClientError> {
        self.usable()?;
        let cookie = self.queue(command, flags, at, len, &[])?;
        let mut flights = vec![Flight::new(cookie, command, at, len)];
        while !flights.is_empty() {
            if let Some(done) = self.receive_reply(&mut flights, &mut flight::NoData)? {
                done.into_result()?;
            }
        }
        Ok(())
    }

    /// Queues a request and gives its cookie.
    fn queue(
        &mut self,
        command: u16,
        flags: u16,
        at: u64,
        len: u64,
        payload: &[u8],
    ) -> Result<u64, ClientError> {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        let has_payload = !payload.is_empty() && self.mode == Mode::Extended;
        let flags = if has_payload { flags | CMD_PAYLOAD_LEN } else { flags };
        let mut header = [0; EXTENDED_BYTES];
        let request = Request { flags, command, cookie, offset: at, length: len };
        let header_bytes = request.encode(self.mode, &mut header);
        self.outgoing.extend_from_slice(&header[..header_bytes]);
        if payload.len() <= GATHERED_PAYLOAD_BYTES {
            self.outgoing.extend_from_slice(payload);
            if self.outgoing.len() >= GATHERED_BYTES {
                self.send_queued()?;
            }
            return Ok(cookie);
        }
        let sent = self.transport.send(&[IoSlice::new(&self.outgoing), IoSlice::new(payload)]);
        let queued = self.outgoing.len();
        let rest = sent.and_then(|sent| {
            let first = self.outgoing.get(sent..).unwrap_or(&[]);
            send_all(&*self.transport, first)?;
            send_all(&*self.transport, &payload[sent.saturating_sub(queued)..])
        });
        self.outgoing.clear();
        self.breaking(rest)?;
        Ok(cookie)
    }

    fn send_queued(&mut self) -> Result<(), ClientError> {
        if self.outgoing.is_empty() {
            return Ok(());
        }
        let sent = send_all(&*self.transport, &self.outgoing);
        self.outgoing.clear();
        self.breaking(sent)
    }

    /// Remembers that the stream cannot be used any more if `result` is an error.
    fn breaking<T>(&mut self, result: io::Result<T>) -> Result<T, ClientError> {
        self.broken |= result.is_err();
        result.map_err(|error| match error.kind() {
            // What a socket with a time limit says when the limit is over.
            io::ErrorKind::WouldBlock => {
                let text = "the server took longer than the time limit";
                ClientError::Stream(io::Error::new(io::ErrorKind::TimedOut, text))
            }
            _ => ClientError::Stream(error),
        })
    }

    /// Remembers that the server broke the protocol.
    fn violated(&mut self, what: impl Into<String>) -> ClientError {
        self.broken = true;
        ClientError::Protocol(what.into())
    }

    /// Waits until `bytes` are buffered; they must fit the buffer.
    fn need(&mut self, bytes: usize) -> Result<(), ClientError> {
        while self.inbox.buffered().len() < bytes {
            self.send_queued()?;
            let got = self.inbox.fill(&*self.transport, true);
            if self.breaking(got)? == 0 {
                return self.breaking(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        Ok(())
    }

    /// Fills `dst` with the next bytes of the stream.
    fn receive(&mut self, dst: &mut [u8]) -> Result<(), ClientError> {
        let received = receive_into(&mut self.inbox, &*self.transport, dst);
        self.breaking(received)
    }
}

fn receive_into(inbox: &mut Inbox, from: &dyn Transport, dst: &mut [u8]) -> io::Result<()> {
    let mut filled = inbox.take(dst);
    while filled < dst.len() {
        match inbox.receive_past(from, &mut dst[filled..], true)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            got => filled += got,
        }
    }
    Ok(())
}
