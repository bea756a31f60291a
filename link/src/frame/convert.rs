//! Ops, acks and inventories as messages, and back. What comes back was judged: names that are names,
//! sizes within their limits.

use super::message as m;
use super::pack::{self, Packed, Packer};
use super::{Kind, decode, encode};
use crate::error::{Error, Result};
use afterimage_journal::format::unit_header::{BLOCK_BYTES, UnitHeader};
use afterimage_journal::layout::{Encryption, Identity, check_name};
use afterimage_journal::pool::FileName;
use afterimage_journal::wire::{Ack, Extent, HELD_EPOCHS_MAX, Held, HeldEpoch, Hello};
use afterimage_journal::wire::{Inventory, OP_BYTES_MAX, Op, SinkError};
use uuid::Uuid;

/// Most files in one part of an inventory, names in one ack or release.
pub const NAMES_MAX: usize = 4096;
/// Files that a part of an inventory is sent with: it has room for the epochs, too.
const FILES_IN_PART_MAX: usize = NAMES_MAX / 2;
/// Files of an inventory that a client takes.
pub const INVENTORY_FILES_MAX: usize = 1 << 20;
/// Largest file that a site is told of, in bytes.
pub const FILE_BYTES_MAX: u64 = 1 << 44;
/// Longest text for people, in bytes.
pub const TEXT_BYTES_MAX: usize = 1024;

/// Which of the two orders a frame belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The log's end.
    Fresh,
    /// Whole files, and what is given up.
    Background,
}

impl Class {
    /// That of an op.
    #[must_use]
    pub fn of(op: &Op) -> Self {
        match op {
            Op::Put { .. } | Op::PutEnd { .. } | Op::Release(_) => Self::Background,
            Op::Begin(_) | Op::Bytes { .. } | Op::Seal { .. } | Op::Sync { .. } => Self::Fresh,
        }
    }

    /// That of a frame with an op; `None`: it has none.
    #[must_use]
    pub fn of_kind(kind: Kind) -> Option<Self> {
        match kind {
            Kind::Begin | Kind::Bytes | Kind::Seal | Kind::Sync => Some(Self::Fresh),
            Kind::Put | Kind::PutEnd | Kind::Release => Some(Self::Background),
            _ => None,
        }
    }
}

fn broken(what: impl Into<String>) -> Error {
    Error::Broken(what.into())
}

fn name_of(name: FileName) -> m::Name {
    match name {
        FileName::Unit(first) => m::Name { first, last: 0 },
        FileName::Merged(first, last) => m::Name { first, last },
    }
}

fn read_name(name: Option<m::Name>) -> Result<FileName> {
    match name {
        Some(m::Name { first, last: 0 }) if first > 0 => Ok(FileName::Unit(first)),
        Some(m::Name { first, last }) if first > 0 && first <= last => {
            Ok(FileName::Merged(first, last))
        }
        _ => Err(broken("a file without a proper name")),
    }
}

/// An op's frame; its bytes are compressed when `packer` finds that it pays.
///
/// # Errors
/// The op is larger than ops may be.
pub fn frame_of(op: Op, packer: &mut Packer) -> Result<Vec<u8>> {
    match op {
        Op::Begin(header) => {
            let mut header = header.encode();
            let end = header.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1);
            header.truncate(end);
            encode(Kind::Begin, &m::Begin { header })
        }
        Op::Bytes { unit, at, bytes } => {
            let Packed { raw_bytes, data } = packer.pack(bytes);
            encode(Kind::Bytes, &m::Bytes { unit, at, raw_bytes, data })
        }
        Op::Seal { unit, end, index_crc } => encode(Kind::Seal, &m::Seal { unit, end, index_crc }),
        Op::Sync { token, watermark, wall_ns } => {
            encode(Kind::Sync, &m::Sync { token, watermark, wall_ns })
        }
        Op::Put { name, file_bytes, at, bytes, len } => {
            let Packed { raw_bytes, data } = packer.pack(bytes);
            let name = Some(name_of(name));
            encode(Kind::Put, &m::Put { name, file_bytes, at, len, raw_bytes, data })
        }
        Op::PutEnd { name, index_crc } => {
            encode(Kind::PutEnd, &m::PutEnd { name: Some(name_of(name)), index_crc })
        }
        Op::Release(names) if names.len() <= NAMES_MAX => {
            let names = names.into_iter().map(name_of).collect();
            encode(Kind::Release, &m::Release { names })
        }
        Op::Release(names) => Err(broken(format!("a release of {} files at once", names.len()))),
    }
}

/// The op of a frame.
///
/// # Errors
/// It is none, or exceeds a limit.
pub fn read_op(kind: Kind, message: &[u8]) -> Result<Op> {
    Ok(match kind {
        Kind::Begin => {
            let mut header = decode::<m::Begin>(message)?.header;
            if header.len() > BLOCK_BYTES as usize {
                return Err(broken("a unit's header that is too long"));
            }
            header.resize(BLOCK_BYTES as usize, 0);
            let header = UnitHeader::decode(&header)
                .map_err(|e| broken(format!("a unit's header can't be read: {e:?}")))?;
            Op::Begin(Box::new(header))
        }
        Kind::Bytes => {
            let m::Bytes { unit, at, raw_bytes, data } = decode(message)?;
            check_span(at, OP_BYTES_MAX as u64)?;
            Op::Bytes { unit, at, bytes: pack::unpack(raw_bytes, data)? }
        }
        Kind::Seal => {
            let m::Seal { unit, end, index_crc } = decode(message)?;
            Op::Seal { unit, end, index_crc }
        }
        Kind::Sync => {
            let m::Sync { token, watermark, wall_ns } = decode(message)?;
            Op::Sync { token, watermark, wall_ns }
        }
        Kind::Put => {
            let m::Put { name, file_bytes, at, len, raw_bytes, data } = decode(message)?;
            let name = read_name(name)?;
            check_span(at, len)?;
            if file_bytes > FILE_BYTES_MAX || at + len > file_bytes {
                return Err(broken(format!("a piece behind the end of {name}")));
            }
            let bytes = pack::unpack(raw_bytes, data)?;
            if bytes.len() as u64 > len {
                return Err(broken(format!("a piece of {name} with more bytes than it says")));
            }
            Op::Put { name, file_bytes, at, bytes, len }
        }
        Kind::PutEnd => {
            let m::PutEnd { name, index_crc } = decode(message)?;
            Op::PutEnd { name: read_name(name)?, index_crc }
        }
        Kind::Release => Op::Release(read_names(decode::<m::Release>(message)?.names)?),
        other => return Err(broken(format!("a message {other:?} is no op"))),
    })
}

fn check_span(at: u64, len: u64) -> Result<()> {
    let fits = at.checked_add(len).is_some_and(|end| end <= FILE_BYTES_MAX);
    if fits { Ok(()) } else { Err(broken("a place that no file has")) }
}

fn read_names(names: Vec<m::Name>) -> Result<Vec<FileName>> {
    if names.len() > NAMES_MAX {
        return Err(broken(format!("{} names in one message", names.len())));
    }
    names.into_iter().map(|n| read_name(Some(n))).collect()
}

fn epoch_of(held: &HeldEpoch) -> m::Epoch {
    m::Epoch { epoch: held.epoch, id: held.id.map(Vec::from).unwrap_or_default() }
}

fn read_epoch(epoch: m::Epoch) -> Result<HeldEpoch> {
    let m::Epoch { epoch, id } = epoch;
    let id = match id.is_empty() {
        true => None,
        false => Some(id.try_into().map_err(|_| broken("an epoch's id of other size"))?),
    };
    Ok(HeldEpoch { epoch, id })
}

/// An inventory's messages, the last one marked.
#[must_use]
pub fn parts_of(inventory: &Inventory) -> Vec<m::Held> {
    let file = |held: &Held| {
        let (extent, bytes) = match held.extent {
            Extent::Whole => (0, 0),
            Extent::Open(bytes) => (1, bytes),
            Extent::Part(bytes) => (2, bytes),
        };
        let (name, salt, epoch) = (Some(name_of(held.name)), held.salt.to_vec(), held.epoch);
        m::File { name, salt, extent, bytes, epoch, lowest: held.lowest }
    };
    let chunks = inventory.files.chunks(FILES_IN_PART_MAX);
    let part =
        |files: &[Held]| m::Held { files: files.iter().map(file).collect(), ..m::Held::default() };
    let mut parts: Vec<m::Held> = chunks.map(part).collect();
    if parts.is_empty() {
        parts.push(m::Held::default());
    }
    if let Some(last) = parts.last_mut() {
        last.watermark = inventory.watermark;
        last.edge = inventory.edge;
        last.epochs = inventory.epochs.iter().map(epoch_of).collect();
        last.is_last = true;
    }
    parts
}

/// Adds a part to an inventory; whether it was the last one.
///
/// # Errors
/// It is too much, or has what is no file.
pub fn take_part(inventory: &mut Inventory, part: m::Held) -> Result<bool> {
    if part.files.len() > NAMES_MAX
        || inventory.files.len() + part.files.len() > INVENTORY_FILES_MAX
        || (part.files.is_empty() && !part.is_last)
    {
        return Err(broken("the site says that it holds more files than there can be"));
    }
    for file in part.files {
        let salt = file.salt.as_slice().try_into().map_err(|_| broken("a salt of other size"))?;
        let extent = match file.extent {
            0 => Extent::Whole,
            1 => Extent::Open(file.bytes),
            2 => Extent::Part(file.bytes),
            other => return Err(broken(format!("a file is there to an extent {other}"))),
        };
        inventory.files.push(Held {
            name: read_name(file.name)?,
            salt,
            extent,
            epoch: file.epoch,
            lowest: file.lowest,
        });
    }
    if part.epochs.len() > HELD_EPOCHS_MAX {
        return Err(broken("the site says that it holds more epochs than it may list"));
    }
    inventory.epochs = part.epochs.into_iter().map(read_epoch).collect::<Result<_>>()?;
    inventory.watermark = part.watermark;
    inventory.edge = part.edge;
    Ok(part.is_last)
}

/// An ack's messages: one, or several when many files count at once.
#[must_use]
pub fn acks_of(ack: &Ack) -> Vec<m::Ack> {
    let Ack { token, watermark, whole } = ack;
    let part = |names: &[FileName]| m::Ack {
        token: *token,
        watermark: *watermark,
        whole: names.iter().copied().map(name_of).collect(),
    };
    if whole.is_empty() { vec![part(&[])] } else { whole.chunks(NAMES_MAX).map(part).collect() }
}

/// The ack of a message.
///
/// # Errors
/// It names what is no file.
pub fn read_ack(ack: m::Ack) -> Result<Ack> {
    let m::Ack { token, watermark, whole } = ack;
    Ok(Ack { token, watermark, whole: read_names(whole)? })
}

/// A client's first message.
#[must_use]
pub fn hello_of(hello: &Hello) -> m::Hello {
    let Hello { identity, epoch } = hello;
    let encryption = identity.encryption.clone();
    let (cipher, key_check) = encryption.map(|e| (e.cipher, e.check)).unwrap_or_default();
    m::Hello {
        version: m::VERSION,
        features: 0,
        program: program(),
        group: identity.group.as_bytes().to_vec(),
        name: identity.name.clone(),
        format: identity.format,
        unit_bytes: identity.unit_bytes,
        cipher,
        key_check,
        epoch: *epoch,
    }
}

/// Who comes, and the version that is spoken with it: the lower one.
///
/// # Errors
/// A field is missing, or can't be what it is.
pub fn read_hello(hello: m::Hello) -> Result<(Hello, u32)> {
    let m::Hello { version, group, name, format, unit_bytes, cipher, key_check, epoch, .. } = hello;
    if version == 0 {
        return Err(broken("a client without a version"));
    }
    let group = Uuid::from_slice(&group).map_err(|_| broken("a group without a UUID"))?;
    check_name(&name).map_err(|e| broken(e.to_string()))?;
    let encryption = (!cipher.is_empty()).then_some(Encryption { cipher, check: key_check });
    let identity = Identity { format, group, name, unit_bytes, encryption };
    Ok((Hello { identity, epoch }, version.min(m::VERSION)))
}

/// This program, for people.
#[must_use]
pub fn program() -> String {
    concat!("afterimage ", env!("CARGO_PKG_VERSION")).to_owned()
}

/// Why a site ends a link, as its last message.
#[must_use]
pub fn failed_of(error: &SinkError) -> m::Failed {
    let cause = match error {
        SinkError::Away(_) => 1,
        SinkError::Full(_) => 2,
        SinkError::Refused(_) => 3,
        SinkError::Broken(_) => 4,
    };
    let mut text = error.to_string();
    while text.len() > TEXT_BYTES_MAX {
        text.pop();
    }
    m::Failed { cause, text }
}

/// The error of a site's last message; its text is shown as text.
#[must_use]
pub fn read_failed(failed: m::Failed) -> SinkError {
    let shown = failed.text.chars().filter(|c| !c.is_control()).take(TEXT_BYTES_MAX);
    let text: String = shown.collect();
    match failed.cause {
        2 => SinkError::Full(text),
        3 => SinkError::Refused(text),
        4 => SinkError::Broken(text),
        _ => SinkError::Away(text),
    }
}
