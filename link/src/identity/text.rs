//! Bytes as text: hex for files, URL-safe base64 (RFC 4648 section 5, without padding) for invitations.

use serde::{Deserialize, Deserializer, Serializer};
use std::fmt::Write as _;

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Two digits a byte.
#[must_use]
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The bytes of [`to_hex`]; `None` for anything else.
#[must_use]
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    let plain = text.len().is_multiple_of(2) && text.bytes().all(|b| b.is_ascii_hexdigit());
    let digits = plain.then(|| (0..text.len() / 2).map(|i| &text[2 * i..2 * i + 2]))?;
    digits.map(|d| u8::from_str_radix(d, 16).ok()).collect()
}

/// Six bits a character.
#[must_use]
pub fn to_base64(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte));
        let word = word << (8 * (3 - chunk.len()));
        for i in 0..=chunk.len() {
            let digit = word >> (18 - 6 * i) & 63;
            text.push(char::from(DIGITS[digit as usize]));
        }
    }
    text
}

/// The bytes of [`to_base64`]; `None` for anything that it doesn't write.
#[must_use]
pub fn from_base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for chunk in text.as_bytes().chunks(4) {
        let mut word = 0u32;
        for digit in chunk {
            let value = DIGITS.iter().position(|d| d == digit)?;
            word = word << 6 | value as u32;
        }
        let word = word << (6 * (4 - chunk.len()));
        bytes.extend_from_slice(&word.to_be_bytes()[1..chunk.len()]);
    }
    // One spelling each: neither a lone digit nor bits behind the last byte.
    (to_base64(&bytes) == text).then_some(bytes)
}

/// Bytes in JSON, as hex.
pub(crate) mod hex {
    use super::{Deserialize, Deserializer, Serializer, from_hex, to_hex};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&to_hex(bytes))
    }

    pub(crate) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        from_hex(&text).ok_or_else(|| serde::de::Error::custom("not a string of hex digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::{from_base64, from_hex, to_base64, to_hex};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bytes_come_back_from_their_text(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(from_hex(&to_hex(&bytes)), Some(bytes.clone()));
            let text = to_base64(&bytes);
            prop_assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'));
            prop_assert_eq!(from_base64(&text), Some(bytes));
        }

        #[test]
        fn text_that_is_read_is_what_would_be_written(text in "[A-Za-z0-9_=+-]{0,20}") {
            if let Some(bytes) = from_base64(&text) {
                prop_assert_eq!(to_base64(&bytes), text);
            }
        }
    }

    #[test]
    fn known_texts() {
        assert_eq!(to_base64(b"any carnal pleas"), "YW55IGNhcm5hbCBwbGVhcw");
        assert_eq!(to_base64(&[0xfb, 0xff]), "-_8");
        assert_eq!(from_base64("Zh"), None, "bits behind the last byte");
        assert_eq!(from_hex("0g"), None);
    }
}
