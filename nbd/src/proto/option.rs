//! Options of the handshake: headers, and the data of INFO, GO and the meta context options.

use super::{Fields, OPTION_MAGIC, OPTION_REPLY_MAGIC};

/// Length of an option's header.
pub const OPTION_BYTES: usize = 16;
/// Length of the header of a reply to an option.
pub const OPTION_REPLY_BYTES: usize = 20;

/// The header of an option that a client sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHeader {
    /// The option (`OPT_*`).
    pub option: u32,
    /// Bytes of data that follow.
    pub length: u32,
}

/// A magic that does not belong there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("handshake message starts with {0:#018x}, not with its magic")]
pub struct BadMagic(pub u64);

impl OptionHeader {
    /// Reads a header; `Ok(None)` when `bytes` do not hold all of it.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, BadMagic> {
        let mut fields = Fields::new(bytes);
        let Some(magic) = fields.u64() else { return Ok(None) };
        if magic != OPTION_MAGIC {
            return Err(BadMagic(magic));
        }
        let mut rest = || Some(Self { option: fields.u32()?, length: fields.u32()? });
        Ok(rest())
    }

    /// The header as bytes.
    pub fn encode(&self) -> [u8; OPTION_BYTES] {
        let mut out = [0; OPTION_BYTES];
        out[0..8].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        out[8..12].copy_from_slice(&self.option.to_be_bytes());
        out[12..16].copy_from_slice(&self.length.to_be_bytes());
        out
    }
}

/// The header of a server's reply to an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionReply {
    /// The option that is answered.
    pub option: u32,
    /// Reply type (`REP_*`).
    pub kind: u32,
    /// Bytes of data that follow.
    pub length: u32,
}

impl OptionReply {
    /// Reads a header; `Ok(None)` when `bytes` do not hold all of it.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, BadMagic> {
        let mut fields = Fields::new(bytes);
        let Some(magic) = fields.u64() else { return Ok(None) };
        if magic != OPTION_REPLY_MAGIC {
            return Err(BadMagic(magic));
        }
        let mut rest =
            || Some(Self { option: fields.u32()?, kind: fields.u32()?, length: fields.u32()? });
        Ok(rest())
    }

    /// The header as bytes.
    pub fn encode(&self) -> [u8; OPTION_REPLY_BYTES] {
        let mut out = [0; OPTION_REPLY_BYTES];
        out[0..8].copy_from_slice(&OPTION_REPLY_MAGIC.to_be_bytes());
        out[8..12].copy_from_slice(&self.option.to_be_bytes());
        out[12..16].copy_from_slice(&self.kind.to_be_bytes());
        out[16..20].copy_from_slice(&self.length.to_be_bytes());
        out
    }
}

/// The data of INFO and GO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InfoQuery<'a> {
    /// The export's name.
    pub name: &'a str,
    /// The kinds of information asked for (`INFO_*`).
    pub wanted: Vec<u16>,
}

impl<'a> InfoQuery<'a> {
    /// Reads the data; `None` when the lengths in it do not fit, or the name is no string.
    pub fn decode(data: &'a [u8]) -> Option<Self> {
        let mut fields = Fields::new(data);
        let name = fields.string()?;
        let count = fields.u16()? as usize;
        let wanted = fields.bytes(count.checked_mul(2)?)?;
        if !fields.is_empty() {
            return None;
        }
        let wanted = wanted.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
        Some(Self { name, wanted: wanted.collect() })
    }

    /// The data as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(6 + self.name.len() + 2 * self.wanted.len());
        put_string(&mut out, self.name);
        out.extend_from_slice(&(self.wanted.len() as u16).to_be_bytes());
        for kind in &self.wanted {
            out.extend_from_slice(&kind.to_be_bytes());
        }
        out
    }
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextQuery<'a> {
    /// The export's name.
    pub name: &'a str,
    /// The queries, such as `base:allocation` or `base:`.
    pub queries: Vec<&'a str>,
}

impl<'a> ContextQuery<'a> {
    /// Reads the data; `None` when the lengths in it do not fit, or a string is none.
    pub fn decode(data: &'a [u8]) -> Option<Self> {
        let mut fields = Fields::new(data);
        let name = fields.string()?;
        let count = fields.u32()? as usize;
        // Each query takes four bytes at least: a count that the data cannot hold is refused
        // before anything is allocated for it.
        if count > fields.rest().len() / 4 {
            return None;
        }
        let mut queries = Vec::with_capacity(count);
        for _ in 0..count {
            queries.push(fields.string()?);
        }
        fields.is_empty().then_some(Self { name, queries })
    }

    /// The data as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_string(&mut out, self.name);
        out.extend_from_slice(&(self.queries.len() as u32).to_be_bytes());
        for query in &self.queries {
            put_string(&mut out, query);
        }
        out
    }
}

/// Appends a string, preceded by its length in 32 bits.
pub fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u32).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}
