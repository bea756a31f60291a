//! The catalogue's file: a 64-byte header with what it is and its checksum, then JSON.

use super::Catalogue;
use crate::error::{Error, Result};
use crate::format::checksum::crc32c;
use crate::layout::Identity;
use crate::planted;
use crate::storage::{Access, Storage};
use std::path::Path;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Its name in the journal's directory.
pub const NAME: &str = "catalogue";
/// Its draft.
const DRAFT: &str = "catalogue.tmp";
/// Version of what it holds; another one is as good as none.
const VERSION: u32 = 1;
/// Largest catalogue that is read, in bytes.
const BYTES_MAX: u64 = 1 << 30;
/// Bytes that are read at a time.
const PIECE_BYTES: u64 = 1 << 20;
const MAGIC: [u8; 8] = *b"AIMGCATL";

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: U32,
    /// Checksum of what follows the header.
    body_crc: U32,
    body_bytes: U64,
    group: [u8; 16],
    /// Checksum of the header, this field as zero.
    crc: U32,
    reserved: [u8; 20],
}

const _: () = assert!(size_of::<Header>() == 64);

fn header_crc(header: &Header) -> u32 {
    let mut clean = *header;
    clean.crc = 0.into();
    crc32c(clean.as_bytes())
}

/// Writes a journal's catalogue, durably: after a crash the old or the new one is there. What it says
/// of units is made durable first: a writer that was killed may have left a seal that a power cut
/// still takes back.
///
/// # Errors
/// A write, sync or rename failed; the old one is intact.
pub fn save(
    storage: &dyn Storage,
    dir: &Path,
    identity: &Identity,
    catalogue: &mut Catalogue,
) -> Result<()> {
    let saved_last = catalogue.saved_last;
    if !planted::is("catalogue-before-seal") {
        for unit in catalogue.units.iter().rev().take_while(|u| u.name.numbers().1 > saved_last) {
            sync_unit(storage, &unit.path)?;
        }
    }
    let body = serde_json::to_vec(catalogue)
        .map_err(|e| Error::Invalid(format!("encode catalogue: {e}")))?;
    let mut header = Header {
        magic: MAGIC,
        version: VERSION.into(),
        body_crc: crc32c(&body).into(),
        body_bytes: (body.len() as u64).into(),
        group: identity.group.into_bytes(),
        crc: 0.into(),
        reserved: [0; 20],
    };
    header.crc = header_crc(&header).into();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(&body);
    let (draft, path) = (dir.join(DRAFT), dir.join(NAME));
    let write = || {
        let file =
            storage.open(&draft, Access::Replace).map_err(|e| Error::io("create", &draft, e))?;
        file.write_all_at(&bytes, 0).map_err(|e| Error::io("write", &draft, e))?;
        file.sync_data().map_err(|e| Error::io("sync", &draft, e))?;
        storage.rename(&draft, &path).map_err(|e| Error::io("rename to", &path, e))
    };
    if let Err(e) = write() {
        let _ = storage.remove(&draft);
        return Err(e);
    }
    storage.sync_dir(dir).map_err(|e| Error::io("sync directory", dir, e))?;
    catalogue.saved_last = catalogue.last_unit();
    Ok(())
}

fn sync_unit(storage: &dyn Storage, path: &Path) -> Result<()> {
    match storage.open(path, Access::Read).and_then(|file| file.sync_data()) {
        // It moved to another member, which took it durably.
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        synced => synced.map_err(|e| Error::io("sync unit", path, e)),
    }
}

/// Reads a journal's catalogue; `None`: there is none that can be used.
///
/// # Errors
/// This process can open no file: it may be there.
pub(super) fn load(
    storage: &dyn Storage,
    dir: &Path,
    identity: &Identity,
) -> Result<Option<Catalogue>> {
    let path = dir.join(NAME);
    match read(storage, &path, identity) {
        Ok(catalogue) => Ok(Some(catalogue)),
        Err(e) if e.is_exhausted() => Err(e),
        Err(error) => {
            let file = path.display();
            tracing::debug!(%file, %error, "reading units without a catalogue");
            Ok(None)
        }
    }
}

fn read(storage: &dyn Storage, path: &Path, identity: &Identity) -> Result<Catalogue> {
    let text = |e| Error::io("read catalogue", path, e);
    let unusable = |why: &str| Error::Unusable { path: path.to_owned(), why: why.into() };
    let file = storage.open(path, Access::Read).map_err(text)?;
    let mut head = [0; 64];
    file.read_exact_at(&mut head, 0).map_err(text)?;
    let header = Header::read_from_bytes(&head).map_err(|_| unusable("it is too short"))?;
    let good = header.magic == MAGIC && header.crc.get() == header_crc(&header);
    if !good || header.version.get() != VERSION || header.group != identity.group.into_bytes() {
        return Err(unusable("its header is damaged, of another version or of another journal"));
    }
    let bytes = header.body_bytes.get();
    if bytes > BYTES_MAX || file.bytes().map_err(text)? < 64 + bytes {
        return Err(unusable("it is too long, or cut off"));
    }
    let mut body = Vec::new();
    while (body.len() as u64) < bytes {
        let done = body.len();
        let piece = PIECE_BYTES.min(bytes - done as u64) as usize;
        body.resize(done + piece, 0);
        file.read_exact_at(&mut body[done..], 64 + done as u64).map_err(text)?;
        // There are none in JSON: a sparse file costs one piece, whatever it claims.
        if body[done..].contains(&0) {
            return Err(unusable("it is not text"));
        }
    }
    if crc32c(&body) != header.body_crc.get() {
        return Err(unusable("its checksum doesn't match"));
    }
    let decoded = serde_json::from_slice(&body);
    let mut catalogue: Catalogue = decoded.map_err(|e| unusable(&e.to_string()))?;
    catalogue.saved_last = catalogue.last_unit();
    Ok(catalogue)
}
