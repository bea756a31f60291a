//! Frames: a length, a kind, a message. Bytes only; [`io`] reads and writes them.
//!
//! ```text
//!  0       4      6
//!  length  kind   message: fields known by number (Protocol Buffers)
//! ```
//!
//! What always holds:
//! * a length is judged by what its kind may have before anything is allocated for it;
//! * unknown fields are skipped; an unknown kind is skipped when it is [`Kind::SKIPPED_FROM`] or above,
//!   and ends the link otherwise: what an op that is not understood would have done would be missing;
//! * what a message declares (a size, a count) is checked against its limit before it is believed.

pub mod convert;
pub mod io;
pub mod message;
pub mod pack;

use crate::error::{Error, Result};
use afterimage_journal::wire::OP_BYTES_MAX;

/// Bytes before the message.
pub const HEAD_BYTES: usize = 6;
/// Largest message that carries data, in bytes.
pub const DATA_BYTES_MAX: usize = OP_BYTES_MAX + 1024;
/// Largest message without data, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 256 << 10;
/// Largest message of who is not known yet, or has only begun, in bytes.
pub const FIRST_BYTES_MAX: usize = 4096;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// Client: [`message::Hello`].
    Hello = 1,
    /// Site: [`message::Welcome`].
    Welcome = 2,
    /// Site: [`message::Held`], parts of the inventory.
    Held = 3,
    /// Site: [`message::Failed`].
    Failed = 4,
    /// Client: [`message::Redeem`].
    Redeem = 8,
    /// Client: [`message::Renew`].
    Renew = 9,
    /// Site: [`message::Issued`].
    Issued = 10,
    /// Client: [`message::Begin`].
    Begin = 16,
    /// Client: [`message::Bytes`].
    Bytes = 17,
    /// Client: [`message::Seal`].
    Seal = 18,
    /// Client: [`message::Sync`].
    Sync = 19,
    /// Client: [`message::Put`].
    Put = 24,
    /// Client: [`message::PutEnd`].
    PutEnd = 25,
    /// Client: [`message::Release`].
    Release = 26,
    /// Site: [`message::Ack`].
    Ack = 32,
    /// Site: [`message::Credit`].
    Credit = 33,
    /// Both: nothing; says that one is there.
    Ping = 0x8000,
}

impl Kind {
    /// Kinds from here on are skipped by who doesn't know them.
    pub const SKIPPED_FROM: u16 = 0x8000;

    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::Hello,
        Self::Welcome,
        Self::Held,
        Self::Failed,
        Self::Redeem,
        Self::Renew,
        Self::Issued,
        Self::Begin,
        Self::Bytes,
        Self::Seal,
        Self::Sync,
        Self::Put,
        Self::PutEnd,
        Self::Release,
        Self::Ack,
        Self::Credit,
        Self::Ping,
    ];

    /// The kind of a number.
    #[must_use]
    pub fn of(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|k| *k as u16 == number)
    }

    /// Most bytes of its message.
    #[must_use]
    pub fn bytes_max(self) -> usize {
        match self {
            Self::Bytes | Self::Put => DATA_BYTES_MAX,
            Self::Held | Self::Ack | Self::Release => MESSAGE_BYTES_MAX,
            Self::Ping => 64,
            _ => FIRST_BYTES_MAX,
        }
    }
}

/// Who is spoken to, and so what may come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepts {
    /// A site, before anything was said over a link with certificates.
    First,
    /// A site, over a link without a client's certificate.
    Redeem,
    /// A site, of a client that said hello.
    Ops,
    /// A client.
    Answers,
}

impl Accepts {
    fn takes(self, kind: Kind) -> bool {
        use Kind as K;
        let of_site =
            matches!(kind, K::Welcome | K::Held | K::Failed | K::Issued | K::Ack | K::Credit);
        match self {
            Self::First => matches!(kind, K::Hello | K::Renew | K::Ping),
            Self::Redeem => kind == K::Redeem,
            Self::Ops => (kind as u16) >= K::Begin as u16 && !of_site,
            Self::Answers => of_site || kind == K::Ping,
        }
    }

    /// Judges a frame's head: the kind (`None`: to be skipped) and the bytes that follow.
    ///
    /// # Errors
    /// It is too long, not known, or nothing that may come now.
    pub fn judge(self, head: &[u8; HEAD_BYTES]) -> Result<(Option<Kind>, usize)> {
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let number = u16::from_le_bytes([head[4], head[5]]);
        let kind = Kind::of(number);
        let skipped = kind.is_none() && number >= Kind::SKIPPED_FROM && self != Self::Redeem;
        if !skipped && !kind.is_some_and(|k| self.takes(k)) {
            return Err(Error::Broken(format!("a message of kind {number} must not come here")));
        }
        let most = kind.map_or(FIRST_BYTES_MAX, Kind::bytes_max);
        if length > most {
            return Err(Error::Broken(format!(
                "a message of kind {number} has {length} bytes, {most} at most are allowed"
            )));
        }
        Ok((kind, length))
    }
}

/// A whole frame.
///
/// # Errors
/// The message is longer than its kind may be: a bug at this end.
pub fn encode(kind: Kind, message: &impl prost::Message) -> Result<Vec<u8>> {
    let length = message.encoded_len();
    if length > kind.bytes_max() {
        return Err(Error::Broken(format!("a message {kind:?} would have {length} bytes")));
    }
    let mut frame = Vec::with_capacity(HEAD_BYTES + length);
    // Bounded above, far below 4 GiB.
    frame.extend_from_slice(&(length as u32).to_le_bytes());
    frame.extend_from_slice(&(kind as u16).to_le_bytes());
    message.encode_raw(&mut frame);
    Ok(frame)
}

/// A frame's message.
///
/// # Errors
/// It is none of its kind.
pub fn decode<M: prost::Message + Default>(message: &[u8]) -> Result<M> {
    M::decode(message).map_err(|e| Error::Broken(format!("a message can't be read: {e}")))
}

#[cfg(test)]
mod tests;
