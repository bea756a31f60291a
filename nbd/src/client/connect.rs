//! The client's handshake. Each reply's length is checked before it is received.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::{Client, ClientError, ClientOptions, INBOX_BYTES};
use crate::export::PAYLOAD_BYTES_MAX;
use crate::proto::flags::*;
use crate::proto::option::{
    ContextQuery, InfoQuery, OPTION_REPLY_BYTES, OptionHeader, OptionReply,
};
use crate::proto::{Fields, Mode, NBD_MAGIC, OPTION_MAGIC, STRING_BYTES_MAX, as_string};
use crate::transport::{Inbox, Transport};

/// The most data of one reply to an option, in bytes: a name and a description with lengths.
const REPLY_BYTES_MAX: u32 = 2 * STRING_BYTES_MAX as u32 + 64;
/// The most replies to one option.
const REPLIES_MAX: usize = 16 << 10;
/// Bytes of a reply to EXPORT_NAME, with the zeroes.
const EXPORT_NAME_REPLY_BYTES: usize = 10;

/// One reply to an option.
struct Answer {
    kind: u32,
    data: Vec<u8>,
}

pub(super) fn connect(path: &Path, options: &ClientOptions) -> Result<Client, ClientError> {
    negotiate(Box::new(open(path, options.connect_max)?), options)
}

fn open(path: &Path, limit: Duration) -> Result<std::os::unix::net::UnixStream, ClientError> {
    let connected = || {
        let flags = SocketFlags::CLOEXEC;
        let kind = SocketType::STREAM;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
        // Also limits how long connecting waits for room in the server's backlog.
        set_socket_timeout(&socket, Timeout::Send, Some(limit))?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok::<_, io::Error>(socket.into())
    };
    connected().map_err(|source| ClientError::Connect { path: path.to_owned(), source })
}

pub(super) fn list(path: &Path, limit: Duration) -> Result<Vec<String>, ClientError> {
    let mut haggle = Haggle::greet(Box::new(open(path, limit)?), limit)?;
    let mut names = Vec::new();
    haggle.ask("LIST", OPT_LIST, &[], |answer| {
        if answer.kind == REP_SERVER {
            let mut fields = Fields::new(&answer.data);
            let name = fields.string().ok_or("malformed export name")?;
            names.push(name.to_owned());
        }
        Ok(())
    })?;
    haggle.send_option(OPT_ABORT, &[])?;
    Ok(names)
}

pub(super) fn negotiate(
    transport: Box<dyn Transport>,
    options: &ClientOptions,
) -> Result<Client, ClientError> {
    let mut haggle = Haggle::greet(transport, options.connect_max)?;
    if options.extended && haggle.offer(OPT_EXTENDED_HEADERS)? {
        haggle.client.mode = Mode::Extended;
    } else if (options.structured || options.extended) && haggle.offer(OPT_STRUCTURED_REPLY)? {
        haggle.client.mode = Mode::Structured;
    }
    if !options.contexts.is_empty() && haggle.client.mode != Mode::Simple {
        haggle.contexts(options)?;
    }
    if !haggle.go(&options.export)? {
        haggle.export_name(&options.export)?;
    }
    let mut client = haggle.client;
    client.transport.limit_receive(options.wait_max)?;
    client.transport.limit_send(options.wait_max)?;
    let piece = options.piece_bytes_max.min(client.payload_bytes_max);
    // Whole minimum blocks, and one at least.
    let min = client.block_bytes_min;
    client.piece_bytes = (piece / min * min).max(min);
    Ok(client)
}

struct Haggle {
    client: Client,
    deadline: Instant,
}

impl Haggle {
    fn greet(transport: Box<dyn Transport>, limit: Duration) -> Result<Self, ClientError> {
        transport.limit_send(Some(limit))?;
        let client = Client {
            transport,
            inbox: Inbox::new(INBOX_BYTES),
            outgoing: Vec::new(),
            scratch: Vec::new(),
            mode: Mode::Simple,
            bytes: 0,
            flags: 0,
            block_bytes_min: 1,
            payload_bytes_max: PAYLOAD_BYTES_MAX,
            piece_bytes: 1,
            contexts: Vec::new(),
            next_cookie: 1,
            broken: false,
        };
        let mut haggle = Self { client, deadline: Instant::now() + limit };
        let greeting = haggle.take(18)?;
        let mut fields = Fields::new(&greeting);
        let (first, second, flags) = (fields.u64(), fields.u64(), fields.u16().unwrap_or(0));
        if first != Some(NBD_MAGIC) || second != Some(OPTION_MAGIC) {
            return Err(haggle.client.violated("greeting is not that of a newstyle NBD server"));
        }
        if flags & HANDSHAKE_FIXED_NEWSTYLE == 0 || flags & HANDSHAKE_NO_ZEROES == 0 {
            return Err(haggle.client.violated("server is too old: no fixed newstyle handshake"));
        }
        let flags = (CLIENT_FIXED_NEWSTYLE | CLIENT_NO_ZEROES).to_be_bytes();
        haggle.client.outgoing.extend_from_slice(&flags);
        Ok(haggle)
    }

    /// The next `bytes` of the stream, within the time limit.
    fn take(&mut self, bytes: usize) -> Result<Vec<u8>, ClientError> {
        self.client.send_queued()?;
        while self.client.inbox.buffered().len() < bytes {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.client.broken = true;
                return Err(ClientError::Stream(io::ErrorKind::TimedOut.into()));
            }
            self.client.transport.limit_receive(Some(left))?;
            let had = self.client.inbox.buffered().len();
            self.client.need(had + 1)?;
        }
        let taken = self.client.inbox.buffered()[..bytes].to_vec();
        self.client.inbox.consume(bytes);
        Ok(taken)
    }

    fn send_option(&mut self, option: u32, data: &[u8]) -> Result<(), ClientError> {
        let header = OptionHeader { option, length: data.len() as u32 };
        self.client.outgoing.extend_from_slice(&header.encode());
        self.client.outgoing.extend_from_slice(data);
        self.client.send_queued()
    }

    fn answer(&mut self, option: u32) -> Result<Answer, ClientError> {
        let header = self.take(OPTION_REPLY_BYTES)?;
        let reply = match OptionReply::decode(&header) {
            Ok(Some(reply)) => reply,
            Ok(None) => return Err(self.client.violated("short reply to an option")),
            Err(error) => return Err(self.client.violated(error.to_string())),
        };
        if reply.option != option || reply.length > REPLY_BYTES_MAX {
            let what = format!("reply to option {} of {} bytes", reply.option, reply.length);
            return Err(self.client.violated(what));
        }
        let data = self.take(reply.length as usize)?;
        Ok(Answer { kind: reply.kind, data })
    }

    /// Sends an option and hands each answer before the last to `each`.
    fn ask(
        &mut self,
        what: &str,
        option: u32,
        data: &[u8],
        mut each: impl FnMut(&Answer) -> Result<(), &'static str>,
    ) -> Result<(), ClientError> {
        self.send_option(option, data)?;
        for _ in 0..REPLIES_MAX {
            let answer = self.answer(option)?;
            if answer.kind == REP_ACK {
                return Ok(());
            }
            if answer.kind & REP_ERROR != 0 {
                let message = String::from_utf8_lossy(&answer.data).into_owned();
                let what = what.to_owned();
                return Err(ClientError::Refused { what, kind: answer.kind, message });
            }
            each(&answer).map_err(|what| self.client.violated(what))?;
        }
        Err(self.client.violated(format!("{what} is answered without end")))
    }

    /// Asks for an option that a server may well not have.
    fn offer(&mut self, option: u32) -> Result<bool, ClientError> {
        match self.ask("an option", option, &[], |_| Ok(())) {
            Ok(()) => Ok(true),
            Err(ClientError::Refused { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn contexts(&mut self, options: &ClientOptions) -> Result<(), ClientError> {
        let queries = options.contexts.iter().map(String::as_str).collect();
        let data = ContextQuery { name: &options.export, queries }.encode();
        let mut found = Vec::new();
        let what = format!("metadata contexts of export {:?}", options.export);
        self.ask(&what, OPT_SET_META_CONTEXT, &data, |answer| {
            if answer.kind == REP_META_CONTEXT {
                let mut fields = Fields::new(&answer.data);
                let id = fields.u32().ok_or("malformed metadata context")?;
                let name = as_string(fields.rest()).ok_or("malformed metadata context")?;
                found.push((id, name.to_owned()));
            }
            Ok(())
        })?;
        self.client.contexts = found;
        Ok(())
    }

    /// Enters transmission; false when the server does not know how to be asked.
    fn go(&mut self, export: &str) -> Result<bool, ClientError> {
        let data = InfoQuery { name: export, wanted: vec![INFO_BLOCK_SIZE] }.encode();
        let (mut size, mut blocks) = (None, None);
        let asked = self.ask(&format!("export {export:?}"), OPT_GO, &data, |answer| {
            let mut fields = Fields::new(&answer.data);
            match (answer.kind, fields.u16()) {
                (REP_INFO, Some(INFO_EXPORT)) => size = fields.u64().zip(fields.u16()),
                (REP_INFO, Some(INFO_BLOCK_SIZE)) => {
                    let min = fields.u32().filter(|min| min.is_power_of_two());
                    let _preferred = fields.u32();
                    blocks = Some(min.zip(fields.u32()).ok_or("malformed block sizes")?);
                }
                _ => {}
            }
            Ok(())
        });
        match asked {
            Err(ClientError::Refused { kind: REP_ERR_UNSUP, .. }) => return Ok(false),
            other => other?,
        }
        let Some((bytes, flags)) = size else {
            return Err(self.client.violated("server did not say how large the export is"));
        };
        (self.client.bytes, self.client.flags) = (bytes, flags);
        if let Some((min, payload_max)) = blocks {
            self.client.block_bytes_min = min;
            self.client.payload_bytes_max = payload_max.max(min);
        }
        Ok(true)
    }

    fn export_name(&mut self, export: &str) -> Result<(), ClientError> {
        self.send_option(OPT_EXPORT_NAME, export.as_bytes())?;
        let reply = self.take(EXPORT_NAME_REPLY_BYTES)?;
        let mut fields = Fields::new(&reply);
        self.client.bytes = fields.u64().unwrap_or(0);
        self.client.flags = fields.u16().unwrap_or(0);
        Ok(())
    }
}
