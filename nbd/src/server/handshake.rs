//! The fixed newstyle handshake: from the greeting to a chosen export.
//!
//! What always holds: the whole handshake ends within its time limit; an option's data is read
//! only after its length was found to be within [`OPTION_BYTES_MAX`]; an error in one option
//! leaves the client free to send another.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::link::Link;
use super::observer::CloseReason;
use super::registry::Seat;
use super::{Limits, connection};
use crate::export::{Export, ExportInfo, ExportSet};
use crate::proto::flags::*;
use crate::proto::option::{ContextQuery, InfoQuery, OPTION_BYTES, OptionHeader, OptionReply};
use crate::proto::{BASE_ALLOCATION, Mode, NBD_MAGIC, OPTION_MAGIC, as_string};
use afterimage_planted as planted;

/// The most data of one option, in bytes; longer ones are refused.
pub(super) const OPTION_BYTES_MAX: u32 = 64 << 10;
/// Longer options than this are not even skipped.
const OPTION_SKIPPED_BYTES_MAX: u32 = 1 << 20;
/// Metadata contexts of one export.
const CONTEXTS_MAX: usize = 64;

/// What the handshake agreed on.
pub(super) struct Agreed {
    pub(super) name: String,
    pub(super) export: Arc<dyn Export>,
    pub(super) info: ExportInfo,
    pub(super) mode: Mode,
    /// Selected metadata contexts with their ids.
    pub(super) contexts: Vec<(u32, String)>,
    /// The export can say which ranges are zero.
    pub(super) tells_zeroes: bool,
}

/// What follows an option.
enum Next {
    Haggle,
    Transmit(Agreed),
}

pub(super) struct Handshake<'a> {
    pub(super) link: &'a mut Link,
    pub(super) exports: &'a dyn ExportSet,
    pub(super) seat: &'a Seat,
    pub(super) limits: &'a Limits,
    deadline: Instant,
    no_zeroes: bool,
    structured: bool,
    extended: bool,
    /// Why this client is not served: the reply to each of its options.
    refusal: Option<&'a str>,
    /// The export that contexts were selected for, and them.
    contexts: Option<(String, Vec<(u32, String)>)>,
}

impl<'a> Handshake<'a> {
    pub(super) fn new(
        link: &'a mut Link,
        exports: &'a dyn ExportSet,
        seat: &'a Seat,
        limits: &'a Limits,
    ) -> Self {
        Self {
            link,
            exports,
            seat,
            limits,
            deadline: Instant::now() + limits.handshake_max,
            no_zeroes: false,
            structured: false,
            extended: false,
            refusal: None,
            contexts: None,
        }
    }

    /// Answers each option with an error, until the client goes or its time is over.
    pub(super) fn refuse(mut self, why: &'a str) -> CloseReason {
        self.refusal = Some(why);
        match self.run() {
            // A client that is refused gets no export.
            Ok(_) | Err(CloseReason::Disconnected | CloseReason::Hangup) => {
                CloseReason::Refused(why.to_owned())
            }
            Err(reason) => reason,
        }
    }

    /// Leads the client to an export.
    pub(super) fn run(mut self) -> Result<Agreed, CloseReason> {
        self.link.transport.limit_send(Some(self.limits.handshake_max))?;
        let outbox = &mut self.link.outbox;
        outbox.push(&NBD_MAGIC.to_be_bytes());
        outbox.push(&OPTION_MAGIC.to_be_bytes());
        outbox.push(&(HANDSHAKE_FIXED_NEWSTYLE | HANDSHAKE_NO_ZEROES).to_be_bytes());
        self.need(4)?;
        let flags = self.link.inbox.buffered()[..4].try_into().map_or(0, u32::from_be_bytes);
        self.link.inbox.consume(4);
        if flags & !(CLIENT_FIXED_NEWSTYLE | CLIENT_NO_ZEROES) != 0 {
            return Err(CloseReason::Protocol(format!("unknown client flags {flags:#x}")));
        }
        self.no_zeroes = flags & CLIENT_NO_ZEROES != 0;
        let agreed = loop {
            if let Next::Transmit(agreed) = self.option()? {
                break agreed;
            }
            if self.link.outbox.bytes() >= self.limits.reply_bytes {
                self.link.flush()?;
            }
        };
        // Before the client hears that it may write: whoever waits for the client knows of it by then.
        if !planted::is("exporting-is-noted-late") {
            self.link.observer.exporting(&agreed.name);
        }
        self.link.flush()?;
        if planted::is("exporting-is-noted-late") {
            self.link.observer.exporting(&agreed.name);
        }
        self.link.limit_requests(self.limits.request_max)?;
        self.link.transport.limit_send(None)?;
        Ok(agreed)
    }

    /// Waits until `bytes` are buffered, within the time limit.
    fn need(&mut self, bytes: usize) -> Result<(), CloseReason> {
        debug_assert!(bytes <= self.link.inbox.capacity());
        let timeout = || CloseReason::HandshakeTimeout(self.limits.handshake_max);
        while self.link.inbox.buffered().len() < bytes {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(timeout());
            }
            self.link.transport.limit_receive(Some(left))?;
            match self.link.fill(false) {
                Err(CloseReason::Stream(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(timeout());
                }
                other => other?,
            }
        }
        Ok(())
    }

    fn option(&mut self) -> Result<Next, CloseReason> {
        self.need(OPTION_BYTES)?;
        let Some(header) = OptionHeader::decode(self.link.inbox.buffered())? else {
            return Err(CloseReason::Truncated);
        };
        self.link.inbox.consume(OPTION_BYTES);
        if header.length > OPTION_BYTES_MAX {
            return self.refuse_long(header);
        }
        let length = header.length as usize;
        self.need(length)?;
        // One copy of at most 64 KiB, a few times in the life of a connection.
        let data = self.link.inbox.buffered()[..length].to_vec();
        self.link.inbox.consume(length);
        self.answer(header.option, &data)
    }

    fn refuse_long(&mut self, header: OptionHeader) -> Result<Next, CloseReason> {
        let reason = || CloseReason::Protocol(format!("option of {} bytes", header.length));
        if header.option == OPT_EXPORT_NAME {
            return Err(reason());
        }
        self.error(header.option, REP_ERR_TOO_BIG, "option is too long");
        if header.length > OPTION_SKIPPED_BYTES_MAX {
            self.link.flush()?;
            return Err(reason());
        }
        let mut left = header.length as usize;
        while left > 0 {
            let here = left.min(self.link.inbox.capacity() / 2);
            self.need(here)?;
            self.link.inbox.consume(here);
            left -= here;
        }
        Ok(Next::Haggle)
    }

    fn answer(&mut self, option: u32, data: &[u8]) -> Result<Next, CloseReason> {
        if let Some(why) = self.refusal
            && option != OPT_ABORT
        {
            if option == OPT_EXPORT_NAME {
                // It has no error reply.
                return Err(CloseReason::Refused(why.to_owned()));
            }
            self.error(option, REP_ERR_POLICY, why);
            return Ok(Next::Haggle);
        }
        match option {
            OPT_EXPORT_NAME => return self.export_name(data),
            OPT_INFO | OPT_GO => return Ok(self.info(option, data)),
            OPT_LIST_META_CONTEXT | OPT_SET_META_CONTEXT => self.meta_context(option, data),
            OPT_ABORT => {
                self.ack(option);
                // The client may be gone already, and that is no failure.
                let _ = self.link.flush();
                return Err(CloseReason::Disconnected);
            }
            OPT_LIST | OPT_STARTTLS | OPT_STRUCTURED_REPLY | OPT_EXTENDED_HEADERS
                if !data.is_empty() =>
            {
                self.error(option, REP_ERR_INVALID, "option takes no data");
            }
            OPT_LIST => self.list(),
            OPT_STARTTLS => {
                self.error(option, REP_ERR_POLICY, "TLS is not offered on this socket");
            }
            OPT_STRUCTURED_REPLY if self.extended => {
                self.error(option, REP_ERR_EXT_HEADER_REQD, "extended headers are on");
            }
            OPT_STRUCTURED_REPLY if self.structured && !planted::is("options-twice") => {
                self.error(option, REP_ERR_INVALID, "structured replies are negotiated already");
            }
            OPT_EXTENDED_HEADERS if self.extended && !planted::is("options-twice") => {
                self.error(option, REP_ERR_INVALID, "extended headers are negotiated already");
            }
            OPT_STRUCTURED_REPLY => {
                self.structured = true;
                self.ack(option);
            }
            OPT_EXTENDED_HEADERS => {
                self.extended = true;
                self.ack(option);
            }
            _ => self.error(option, REP_ERR_UNSUP, "unknown option"),
        }
        Ok(Next::Haggle)
    }

    fn reply(&mut self, option: u32, kind: u32, parts: &[&[u8]]) {
        let length = parts.iter().map(|part| part.len() as u32).sum();
        self.link.outbox.push(&OptionReply { option, kind, length }.encode());
        for part in parts {
            self.link.outbox.push(part);
        }
    }

    fn ack(&mut self, option: u32) {
        self.reply(option, REP_ACK, &[]);
    }

    fn error(&mut self, option: u32, kind: u32, text: &str) {
        self.reply(option, kind, &[text.as_bytes()]);
    }

    fn list(&mut self) {
        for name in self.exports.names() {
            let length = (name.len() as u32).to_be_bytes();
            let text = self
                .exports
                .get(&name)
                .map_or_else(String::new, |export| export.info().description);
            self.reply(OPT_LIST, REP_SERVER, &[&length, name.as_bytes(), text.as_bytes()]);
        }
        self.ack(OPT_LIST);
    }

    fn export_name(&mut self, data: &[u8]) -> Result<Next, CloseReason> {
        if self.extended {
            let text = "EXPORT_NAME after EXTENDED_HEADERS";
            return Err(CloseReason::Protocol(text.to_owned()));
        }
        let Some(name) = as_string(data) else {
            return Err(CloseReason::Protocol("export name is not a string".to_owned()));
        };
        let Some(agreed) = self.agree(name) else {
            return Err(CloseReason::UnknownExport(name.to_owned()));
        };
        if let Some(why) = self.link.observer.refusal(name) {
            return Err(CloseReason::Refused(why));
        }
        let outbox = &mut self.link.outbox;
        outbox.push(&agreed.export.bytes().to_be_bytes());
        outbox.push(&connection::transmission_flags(&agreed.info, agreed.mode).to_be_bytes());
        if !self.no_zeroes {
            outbox.push(&[0; 124]);
        }
        Ok(Next::Transmit(agreed))
    }

    fn info(&mut self, option: u32, data: &[u8]) -> Next {
        let Some(query) = InfoQuery::decode(data) else {
            self.error(option, REP_ERR_INVALID, "malformed request for an export");
            return Next::Haggle;
        };
        let Some(agreed) = self.agree(query.name) else {
            self.error(option, REP_ERR_UNKNOWN, "no such export");
            return Next::Haggle;
        };
        if option == OPT_GO
            && let Some(why) = self.link.observer.refusal(query.name)
        {
            self.error(option, REP_ERR_POLICY, &why);
            return Next::Haggle;
        }
        let info = &agreed.info;
        let flags = connection::transmission_flags(info, agreed.mode).to_be_bytes();
        let kind = |kind: u16| kind.to_be_bytes();
        let size = agreed.export.bytes().to_be_bytes();
        self.reply(option, REP_INFO, &[&kind(INFO_EXPORT), &size, &flags]);
        let sizes = [info.block_bytes_min, info.block_bytes_preferred, info.payload_bytes_max]
            .map(u32::to_be_bytes);
        self.reply(option, REP_INFO, &[&kind(INFO_BLOCK_SIZE), &sizes[0], &sizes[1], &sizes[2]]);
        if query.wanted.contains(&INFO_NAME) {
            self.reply(option, REP_INFO, &[&kind(INFO_NAME), query.name.as_bytes()]);
        }
        if query.wanted.contains(&INFO_DESCRIPTION) && !info.description.is_empty() {
            let text = info.description.as_bytes();
            self.reply(option, REP_INFO, &[&kind(INFO_DESCRIPTION), text]);
        }
        let aligned = info.block_bytes_min == 1 || query.wanted.contains(&INFO_BLOCK_SIZE);
        if option == OPT_GO && !aligned {
            let text = "export has a minimum block size, ask for it";
            self.error(option, REP_ERR_BLOCK_SIZE_REQD, text);
            return Next::Haggle;
        }
        self.ack(option);
        if option == OPT_GO { Next::Transmit(agreed) } else { Next::Haggle }
    }

    /// The export of that name with what was negotiated for it.
    fn agree(&mut self, name: &str) -> Option<Agreed> {
        // Claimed before it is looked up: whoever takes an export out of the set and then ends
        // its connections finds this one.
        self.seat.claim(name);
        let export = self.exports.get(name)?;
        let mode = match (self.extended, self.structured) {
            (true, _) => Mode::Extended,
            (false, true) => Mode::Structured,
            (false, false) => Mode::Simple,
        };
        let contexts = match &self.contexts {
            Some((of, contexts)) if of == name => contexts.clone(),
            _ => Vec::new(),
        };
        let mut info = export.info();
        info.block_bytes_min = info.block_bytes_min.max(1);
        let tells_zeroes = export.contexts().iter().any(|c| c == BASE_ALLOCATION);
        Some(Agreed { name: name.to_owned(), export, info, mode, contexts, tells_zeroes })
    }

    fn meta_context(&mut self, option: u32, data: &[u8]) {
        let set = option == OPT_SET_META_CONTEXT;
        if set {
            self.contexts = None;
        }
        if !self.structured && !self.extended {
            return self.error(option, REP_ERR_INVALID, "negotiate structured replies first");
        }
        let Some(query) = ContextQuery::decode(data) else {
            return self.error(option, REP_ERR_INVALID, "malformed context query");
        };
        let Some(export) = self.exports.get(query.name) else {
            return self.error(option, REP_ERR_UNKNOWN, "no such export");
        };
        let mut selected = Vec::new();
        for (index, context) in export.contexts().into_iter().enumerate().take(CONTEXTS_MAX) {
            let wanted = |query: &&str| match query.strip_suffix(':') {
                Some(namespace) if !set => {
                    context.split_once(':').is_some_and(|(own, _)| own == namespace)
                }
                _ => *query == context,
            };
            if query.queries.iter().any(wanted) || (!set && query.queries.is_empty()) {
                selected.push((index as u32 + 1, context));
            }
        }
        for (id, context) in &selected {
            let id = if set { *id } else { 0 };
            let parts: [&[u8]; 2] = [&id.to_be_bytes(), context.as_bytes()];
            self.reply(option, REP_META_CONTEXT, &parts);
        }
        self.ack(option);
        if set {
            self.contexts = Some((query.name.to_owned(), selected));
        }
    }
}
