//! Encryption of what records hold: a journal's key, the keys of its units, and what a payload is bound to.
//!
//! What always holds: each unit has a key of its own, made of the journal's and the unit's random salt; the
//! nonce under it is the record's byte offset, and a unit's bytes are written once, so no nonce comes twice
//! with a key. A payload opens only as the record that it was stored as: by number, volume, address, length,
//! session and time, at its offset, in its unit. No key is ever shown.

use super::payload::PLAIN;
use super::record::{Kind, Record};
use super::unit_header::UnitHeader;
use crate::planted;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use uuid::Uuid;
use zeroize::Zeroizing;

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;
/// Bytes of the tag behind an encrypted payload.
pub const TAG_BYTES: u32 = 16;
/// Bytes of a key's check value.
pub const CHECK_BYTES: usize = 16;
/// Units whose keys are held ready, for those who read here and there.
const UNITS_HELD_MAX: usize = 64;
/// Bytes of what a payload is bound to.
const BOUND_BYTES: usize = 64;

const NO_KEY: &str = "it is encrypted, and its key was not given";
const CHANGED: &str =
    "it doesn't decrypt: its checksum is right, so it was changed or moved on purpose";
const IN_THE_CLEAR: &str =
    "it is not encrypted, as all data of this journal is: it was changed on purpose";
const UNEXPECTED: &str = "it is encrypted, and its journal is not: it was changed on purpose";

/// A journal's key. Clones are the same key; its memory is cleared with the last one.
#[derive(Clone)]
pub struct Key {
    inner: Arc<Inner>,
}

struct Inner {
    bytes: Zeroizing<[u8; KEY_BYTES]>,
    /// The one that was used last is the last.
    units: Mutex<Vec<Arc<UnitKey>>>,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// The length that is asked of HKDF.
struct Bytes(usize);

impl KeyType for Bytes {
    fn len(&self) -> usize {
        self.0
    }
}

impl Key {
    /// A key of these bytes.
    #[must_use]
    pub fn new(bytes: Zeroizing<[u8; KEY_BYTES]>) -> Self {
        Self { inner: Arc::new(Inner { bytes, units: Mutex::default() }) }
    }

    /// What tells one key from another, and nothing of either.
    #[must_use]
    pub fn check(&self) -> [u8; CHECK_BYTES] {
        let mut check = [0; CHECK_BYTES];
        self.derive(&[], &[b"afterimage key check"], &mut check);
        check
    }

    fn derive(&self, salt: &[u8], info: &[&[u8]], into: &mut [u8]) {
        let secret = Salt::new(HKDF_SHA256, salt).extract(self.inner.bytes.as_slice());
        let made = secret.expand(info, Bytes(into.len())).and_then(|made| made.fill(into));
        assert!(made.is_ok(), "HKDF gives more than 16 or 32 bytes");
    }

    /// The key of a unit.
    #[must_use]
    pub fn unit(&self, header: &UnitHeader) -> Arc<UnitKey> {
        let mut held = self.inner.units.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = held.iter().rposition(|k| k.is_of(header)) {
            let key = held.remove(at);
            held.push(Arc::clone(&key));
            return key;
        }
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        self.derive(&header.salt, &[b"afterimage unit 1", &header.group], bytes.as_mut_slice());
        let key = Arc::new(UnitKey::new(&bytes, header));
        if held.len() >= UNITS_HELD_MAX {
            held.remove(0);
        }
        held.push(Arc::clone(&key));
        key
    }
}

/// The key of one unit, bound to the unit's group and epoch.
pub struct UnitKey {
    aead: LessSafeKey,
    salt: [u8; 16],
    group: [u8; 16],
    epoch: u64,
}

impl fmt::Debug for UnitKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UnitKey(..)")
    }
}

impl UnitKey {
    fn new(bytes: &[u8; KEY_BYTES], header: &UnitHeader) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, bytes);
        let Ok(key) = key else { unreachable!("AES-256 takes any 32 bytes") };
        let UnitHeader { salt, group, epoch, .. } = *header;
        Self { aead: LessSafeKey::new(key), salt, group, epoch }
    }

    fn is_of(&self, header: &UnitHeader) -> bool {
        (self.salt, self.group, self.epoch) == (header.salt, header.group, header.epoch)
    }

    /// Encrypts a record's payload, already compressed, into what is stored at byte `at` of the unit: its
    /// size and [`TAG_BYTES`]. The caller sees to it that this is done once for each `at`.
    ///
    /// # Errors
    /// The sizes don't fit each other, or are beyond what AES-GCM can do.
    pub fn seal(
        &self,
        record: &Record,
        at: u64,
        payload: &[u8],
        stored: &mut [u8],
    ) -> Result<(), &'static str> {
        let broken = "it can't be encrypted: its sizes don't fit";
        let (sealed, tag) = stored.split_at_mut_checked(payload.len()).ok_or(broken)?;
        let bound = Aad::from(self.bound(record));
        let aead = &self.aead;
        let done = aead.seal_out_of_place_scatter(nonce(at), bound, payload, sealed, &[], tag);
        done.map_err(|_| broken)
    }

    /// Decrypts what is stored at byte `at` of the unit; `payload` has its size without the tag.
    ///
    /// # Errors
    /// It is not what was stored as this record at this place; `payload` then holds nothing of it.
    pub fn open(
        &self,
        record: &Record,
        at: u64,
        stored: &[u8],
        payload: &mut [u8],
    ) -> Result<(), &'static str> {
        let (sealed, tag) = stored.split_at_checked(payload.len()).ok_or(CHANGED)?;
        let bound = Aad::from(self.bound(record));
        let done = self.aead.open_separate_gather(nonce(at), bound, sealed, tag, payload);
        done.map_err(|_| {
            payload.fill(0);
            CHANGED
        })
    }

    /// What a payload is bound to, `docs/format.md` draws it.
    fn bound(&self, record: &Record) -> [u8; BOUND_BYTES] {
        let seq = if planted::is("seal-with-seq-left-out") { 0 } else { record.seq };
        let mut bound = [0; BOUND_BYTES];
        bound[..16].copy_from_slice(&self.group);
        bound[16..24].copy_from_slice(&self.epoch.to_le_bytes());
        bound[24..32].copy_from_slice(&seq.to_le_bytes());
        bound[32..40].copy_from_slice(&record.addr.to_le_bytes());
        bound[40..48].copy_from_slice(&record.wall_ns.to_le_bytes());
        bound[48..52].copy_from_slice(&record.len.to_le_bytes());
        bound[52..56].copy_from_slice(&record.scope.to_le_bytes());
        bound[56..58].copy_from_slice(&record.volume.to_le_bytes());
        bound[58..61].copy_from_slice(&[record.kind as u8, record.flags, record.compression]);
        bound
    }
}

/// A key that is made for one file of this process and dies with it: nobody ever reads the file later.
pub struct ScratchKey {
    aead: LessSafeKey,
}

impl ScratchKey {
    /// A new random one.
    ///
    /// # Errors
    /// The system has no randomness to give.
    pub fn new() -> Result<Self, &'static str> {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        aws_lc_rs::rand::fill(bytes.as_mut_slice()).map_err(|_| "there is no randomness")?;
        let key = UnboundKey::new(&AES_256_GCM, bytes.as_slice());
        let key = key.map_err(|_| "AES-256 can't be had")?;
        Ok(Self { aead: LessSafeKey::new(key) })
    }

    /// Encrypts data with this number into what is stored: its size and [`TAG_BYTES`]. No number comes
    /// twice.
    ///
    /// # Errors
    /// The sizes don't fit each other.
    pub fn seal(&self, number: u64, data: &[u8], stored: &mut [u8]) -> Result<(), &'static str> {
        let broken = "it can't be encrypted: its sizes don't fit";
        let (sealed, tag) = stored.split_at_mut_checked(data.len()).ok_or(broken)?;
        let (aead, none) = (&self.aead, Aad::empty());
        let done = aead.seal_out_of_place_scatter(nonce(number), none, data, sealed, &[], tag);
        done.map_err(|_| broken)
    }

    /// Decrypts what was stored with this number.
    ///
    /// # Errors
    /// It is not what was stored.
    pub fn open(&self, number: u64, stored: &[u8], data: &mut [u8]) -> Result<(), &'static str> {
        let changed = "it doesn't decrypt: it was changed";
        let (sealed, tag) = stored.split_at_checked(data.len()).ok_or(changed)?;
        let done = self.aead.open_separate_gather(nonce(number), Aad::empty(), sealed, tag, data);
        done.map_err(|_| {
            data.fill(0);
            changed
        })
    }
}

/// A unit's byte offset, which no two of its records share.
fn nonce(at: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&at.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// How the data of one journal is stored, and whether it can be read here.
#[derive(Debug, Clone, Default)]
pub enum Cipher {
    /// In the clear.
    #[default]
    Plain,
    /// Encrypted; the key is not here.
    Locked,
    /// Encrypted with this key.
    Open(Key),
}

/// Where a payload is stored.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// How its journal stores data.
    pub cipher: &'a Cipher,
    /// Its unit.
    pub unit: &'a UnitHeader,
    /// Byte offset of its record in the unit.
    pub at: u64,
}

impl Origin<'_> {
    /// The key that the payload is encrypted with, `None`: it isn't. What is encrypted and what is not
    /// is the journal's to say, not the record's.
    pub(super) fn key(&self, record: &Record) -> Result<Option<Arc<UnitKey>>, &'static str> {
        if record.kind != Kind::Write || record.payload_bytes == 0 {
            return Ok(None);
        }
        match (self.cipher, record.encrypted) {
            (Cipher::Plain, false) => Ok(None),
            (Cipher::Plain, true) => Err(UNEXPECTED),
            (Cipher::Locked | Cipher::Open(_), false) => Err(IN_THE_CLEAR),
            (Cipher::Locked, true) => Err(NO_KEY),
            (Cipher::Open(key), true) => Ok(Some(key.unit(self.unit))),
        }
    }
}

/// Whether a record of this kind can be encrypted, with so many bytes stored; if it says that it is.
pub(super) fn is_possible(kind: Kind, encrypted: bool, payload_bytes: u32) -> bool {
    !encrypted || (kind == Kind::Write && payload_bytes > TAG_BYTES)
}

impl Record {
    /// Bytes of its payload when it is decrypted, still compressed.
    #[must_use]
    pub fn packed_bytes(&self) -> u32 {
        let tag = if self.encrypted { TAG_BYTES } else { 0 };
        self.payload_bytes.saturating_sub(tag)
    }

    /// Bytes of its payload as it was captured.
    #[must_use]
    pub fn data_bytes(&self) -> u32 {
        if self.compression == PLAIN { self.packed_bytes() } else { self.len }
    }
}

/// The text of a key's check value.
#[must_use]
pub fn check_text(check: &[u8; CHECK_BYTES]) -> String {
    Uuid::from_bytes(*check).simple().to_string()
}
