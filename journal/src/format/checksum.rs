//! CRC-32C (Castagnoli, RFC 3720 section 12.1), the checksum with id 1.
//!
//! It finds rot and torn writes; it proves nothing against somebody who writes on purpose, which
//! is why structures are salted and equality of blocks is never judged by it (I-12).

/// Id of "no checksum".
pub const NONE: u8 = 0;
/// Id of CRC-32C.
pub const CRC32C: u8 = 1;

/// CRC-32C of `bytes`.
#[must_use]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// CRC-32C of bytes that come in pieces.
pub struct Crc32c(crc_fast::Digest);

impl Crc32c {
    /// Of no bytes yet.
    #[must_use]
    pub fn new() -> Self {
        Self(crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi))
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The checksum of all that came.
    #[must_use]
    pub fn finish(&self) -> u32 {
        // One of 32 bits.
        self.0.finalize() as u32
    }
}

impl Default for Crc32c {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Crc32c {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Crc32c({:08x})", self.finish())
    }
}

/// CRC-32C of a small structure of at most 112 bytes, preceded by the salt of its unit.
#[must_use]
pub fn salted(salt: &[u8; 16], bytes: &[u8]) -> u32 {
    let mut joined = [0u8; 128];
    let end = 16 + bytes.len();
    joined[..16].copy_from_slice(salt);
    joined[16..end].copy_from_slice(bytes);
    crc32c(&joined[..end])
}
