//! The messages, by field. `docs/protocol.md` is their specification: a number is never used for
//! anything else, a field that is new has a new number, and what is not there has its default.

/// The version that this program speaks. Neighbours understand each other.
pub const VERSION: u32 = 1;

/// A client begins: who it is, and with what.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Hello {
    /// Highest version that it speaks.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// What it can do besides, a bit each; a site uses only what both can.
    #[prost(fixed64, tag = "2")]
    pub features: u64,
    /// Its program, for people.
    #[prost(string, tag = "3")]
    pub program: String,
    /// UUID of the group.
    #[prost(bytes = "vec", tag = "4")]
    pub group: Vec<u8>,
    /// Name of the group.
    #[prost(string, tag = "5")]
    pub name: String,
    /// Version of the journal's format.
    #[prost(uint32, tag = "6")]
    pub format: u32,
    /// Size of new units, bytes.
    #[prost(uint64, tag = "7")]
    pub unit_bytes: u64,
    /// The cipher of an encrypted journal; empty: it isn't.
    #[prost(string, tag = "8")]
    pub cipher: String,
    /// What tells its key from another.
    #[prost(string, tag = "9")]
    pub key_check: String,
    /// Epoch of the journal.
    #[prost(uint64, tag = "10")]
    pub epoch: u64,
}

/// A site answers.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Welcome {
    /// The version that is spoken: the lower one of both.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// What both can do besides.
    #[prost(fixed64, tag = "2")]
    pub features: u64,
    /// Its program, for people.
    #[prost(string, tag = "3")]
    pub program: String,
    /// Bytes of fresh frames that may be under way.
    #[prost(uint64, tag = "4")]
    pub fresh_bytes_max: u64,
    /// Bytes of background frames that may be under way.
    #[prost(uint64, tag = "5")]
    pub background_bytes_max: u64,
    /// Whether the site keeps just what the journal keeps.
    #[prost(bool, tag = "6")]
    pub mirrors: bool,
}

/// A file's name.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Name {
    /// First unit.
    #[prost(uint64, tag = "1")]
    pub first: u64,
    /// Last unit of a merged one; 0: it is not merged.
    #[prost(uint64, tag = "2")]
    pub last: u64,
}

/// A file that a site holds.
#[derive(Clone, PartialEq, prost::Message)]
pub struct File {
    /// Its name.
    #[prost(message, optional, tag = "1")]
    pub name: Option<Name>,
    /// Its salt.
    #[prost(bytes = "vec", tag = "2")]
    pub salt: Vec<u8>,
    /// 0: whole; 1: open; 2: a part.
    #[prost(uint32, tag = "3")]
    pub extent: u32,
    /// All below this byte, when it is not whole.
    #[prost(uint64, tag = "4")]
    pub bytes: u64,
    /// The epoch in its header; 0: not told.
    #[prost(uint64, tag = "5")]
    pub epoch: u64,
    /// The lowest number in an open one; 0: not told.
    #[prost(uint64, tag = "6")]
    pub lowest: u64,
}

/// An epoch of which a site holds records.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Epoch {
    /// Its number.
    #[prost(uint64, tag = "1")]
    pub epoch: u64,
    /// The salt of its first unit; empty: not known.
    #[prost(bytes = "vec", tag = "2")]
    pub id: Vec<u8>,
}

/// A part of what a site holds; the last one has `is_last`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Held {
    /// In the inventory's order.
    #[prost(message, repeated, tag = "1")]
    pub files: Vec<File>,
    /// In the last part.
    #[prost(uint64, tag = "2")]
    pub watermark: u64,
    /// In the last part.
    #[prost(uint64, tag = "3")]
    pub edge: u64,
    /// Nothing of it follows.
    #[prost(bool, tag = "4")]
    pub is_last: bool,
    /// In the last part: the epochs that are held, ascending, the newest.
    #[prost(message, repeated, tag = "5")]
    pub epochs: Vec<Epoch>,
}

/// A site ends the link, and says why.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Failed {
    /// 1: away; 2: full; 3: refused; 4: broken. Others are as 1.
    #[prost(uint32, tag = "1")]
    pub cause: u32,
    /// For people.
    #[prost(string, tag = "2")]
    pub text: String,
}

/// A client redeems an invitation.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Redeem {
    /// The invitation's id.
    #[prost(bytes = "vec", tag = "1")]
    pub id: Vec<u8>,
    /// Its secret.
    #[prost(bytes = "vec", tag = "2")]
    pub secret: Vec<u8>,
    /// The client's public key: a point on P-256.
    #[prost(bytes = "vec", tag = "3")]
    pub public_key: Vec<u8>,
    /// Signature of what the link exports, by that key.
    #[prost(bytes = "vec", tag = "4")]
    pub proof: Vec<u8>,
}

/// A client asks for a new certificate over its old one.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Renew {
    /// The new public key.
    #[prost(bytes = "vec", tag = "1")]
    pub public_key: Vec<u8>,
    /// As in [`Redeem`].
    #[prost(bytes = "vec", tag = "2")]
    pub proof: Vec<u8>,
}

/// A client's new certificate.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Issued {
    /// The group that it is for.
    #[prost(string, tag = "1")]
    pub group: String,
    /// DER.
    #[prost(bytes = "vec", tag = "2")]
    pub certificate: Vec<u8>,
    /// Seconds since the Unix epoch.
    #[prost(uint64, tag = "3")]
    pub from_s: u64,
    /// Seconds since the Unix epoch.
    #[prost(uint64, tag = "4")]
    pub until_s: u64,
}

/// `Op::Begin`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Begin {
    /// The unit's header, without the zeroes at its end.
    #[prost(bytes = "vec", tag = "1")]
    pub header: Vec<u8>,
}

/// `Op::Bytes`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Bytes {
    /// Number of the unit.
    #[prost(uint64, tag = "1")]
    pub unit: u64,
    /// Byte of its file.
    #[prost(uint64, tag = "2")]
    pub at: u64,
    /// Compressed: bytes before that. 0: they are as they are.
    #[prost(uint32, tag = "3")]
    pub raw_bytes: u32,
    /// The bytes, or a zstd frame of them.
    #[prost(bytes = "vec", tag = "4")]
    pub data: Vec<u8>,
}

/// `Op::Seal`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Seal {
    /// Number of the unit.
    #[prost(uint64, tag = "1")]
    pub unit: u64,
    /// Byte at which its records end.
    #[prost(uint64, tag = "2")]
    pub end: u64,
    /// CRC of the index.
    #[prost(fixed32, tag = "3")]
    pub index_crc: u32,
}

/// `Op::Sync`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Sync {
    /// Comes back in [`Ack`].
    #[prost(uint64, tag = "1")]
    pub token: u64,
    /// The journal's durable watermark.
    #[prost(uint64, tag = "2")]
    pub watermark: u64,
    /// When its newest record was written, nanoseconds since the Unix epoch.
    #[prost(fixed64, tag = "3")]
    pub wall_ns: u64,
}

/// `Op::Put`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Put {
    /// The file's name.
    #[prost(message, optional, tag = "1")]
    pub name: Option<Name>,
    /// The file's size.
    #[prost(uint64, tag = "2")]
    pub file_bytes: u64,
    /// Byte of the file.
    #[prost(uint64, tag = "3")]
    pub at: u64,
    /// Bytes of the file that it stands for.
    #[prost(uint64, tag = "4")]
    pub len: u64,
    /// As in [`Bytes`].
    #[prost(uint32, tag = "5")]
    pub raw_bytes: u32,
    /// As in [`Bytes`].
    #[prost(bytes = "vec", tag = "6")]
    pub data: Vec<u8>,
}

/// `Op::PutEnd`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PutEnd {
    /// The file's name.
    #[prost(message, optional, tag = "1")]
    pub name: Option<Name>,
    /// CRC of its index.
    #[prost(fixed32, tag = "2")]
    pub index_crc: u32,
}

/// `Op::Release`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Release {
    /// The files' names.
    #[prost(message, repeated, tag = "1")]
    pub names: Vec<Name>,
}

/// What is durable at the site.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Ack {
    /// The highest [`Sync`] that is done.
    #[prost(uint64, tag = "1")]
    pub token: u64,
    /// Its watermark.
    #[prost(uint64, tag = "2")]
    pub watermark: u64,
    /// Files that count since the last one.
    #[prost(message, repeated, tag = "3")]
    pub whole: Vec<Name>,
}

/// What the site took since the link began, bytes of frames with their heads.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Credit {
    /// Of fresh frames.
    #[prost(uint64, tag = "1")]
    pub fresh_bytes: u64,
    /// Of background frames.
    #[prost(uint64, tag = "2")]
    pub background_bytes: u64,
}

/// Says that one is there.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Ping {}
