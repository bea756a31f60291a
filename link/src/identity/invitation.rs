//! An invitation: what an agent needs to come to a site for the first time.
//!
//! ```text
//!  0        1                                     33     41          73
//!  version  fingerprint of the site's authority   id, 8  secret, 32  check, 4
//! ```
//!
//! 77 bytes as one line of URL-safe base64: it goes behind the `#` of `tls://HOST:PORT#INVITATION`. The
//! check tells a copy that lost characters from one that is refused. Whoever has it can redeem it once,
//! and can trust the site's answer: the fingerprint is what TLS is pinned to.

use super::text::{from_base64, to_base64};
use crate::error::{Error, Result};
use afterimage_journal::format::checksum::crc32c;
use std::fmt;
use std::str::FromStr;
use zeroize::Zeroizing;

const VERSION: u8 = 1;
const BYTES: usize = 77;

/// SHA-256 of an authority's certificate.
pub type Fingerprint = [u8; 32];

/// See the module.
#[derive(Clone, PartialEq, Eq)]
pub struct Invitation {
    /// Of the site's authority.
    pub fingerprint: Fingerprint,
    /// Names it at the site.
    pub id: [u8; 8],
    /// What proves that it was given.
    pub secret: Zeroizing<[u8; 32]>,
}

impl fmt::Debug for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invitation").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Invitation {
    /// The line that is handed over. It is a secret.
    #[must_use]
    pub fn line(&self) -> Zeroizing<String> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(BYTES));
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.fingerprint);
        bytes.extend_from_slice(&self.id);
        bytes.extend_from_slice(self.secret.as_slice());
        let check = crc32c(&bytes).to_le_bytes();
        bytes.extend_from_slice(&check);
        Zeroizing::new(to_base64(&bytes))
    }
}

impl FromStr for Invitation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let again = "copy the whole line that `afterimage site enroll` printed";
        let whole = || Error::Invalid(format!("this is not an invitation: {again}"));
        let bytes = Zeroizing::new(from_base64(text).ok_or_else(whole)?);
        if bytes.first().is_some_and(|v| *v > VERSION) {
            return Err(Error::Invalid(format!(
                "the invitation is of version {}, this program knows {VERSION}: update it",
                bytes[0]
            )));
        }
        let bytes: &[u8; BYTES] = bytes.as_slice().try_into().map_err(|_| whole())?;
        let (content, check) = bytes.split_at(BYTES - 4);
        if content[0] != VERSION || crc32c(content).to_le_bytes() != check {
            return Err(Error::Invalid(format!(
                "the invitation is not as it was printed: {again}"
            )));
        }
        let mut read = Self { fingerprint: [0; 32], id: [0; 8], secret: Zeroizing::new([0; 32]) };
        read.fingerprint.copy_from_slice(&content[1..33]);
        read.id.copy_from_slice(&content[33..41]);
        read.secret.copy_from_slice(&content[41..73]);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::Invitation;
    use zeroize::Zeroizing;

    #[test]
    fn a_line_comes_back_and_no_other_one_passes_for_it() {
        let given = Invitation {
            fingerprint: [7; 32],
            id: *b"01234567",
            secret: Zeroizing::new([0xa5; 32]),
        };
        let line = given.line().to_string();
        assert_eq!(line.parse::<Invitation>().unwrap(), given);
        for at in 0..line.len() {
            assert!(line[..at].parse::<Invitation>().is_err());
            let other = if &line[at..=at] == "A" { "B" } else { "A" };
            let changed = format!("{}{other}{}", &line[..at], &line[at + 1..]);
            assert!(changed.parse::<Invitation>().is_err(), "{changed}");
        }
        assert!(format!("{line}A").parse::<Invitation>().is_err());
        assert!(!format!("{given:?}").contains("165"), "the secret is not to be logged");
    }
}
