//! What an agent holds to come to a site: one directory a site and group.
//!
//! What always holds: a key is durable before the site is asked for its certificate, so that an answer
//! that is lost can be asked for again; the old credentials stay until the new ones are whole.

use super::authority::Validity;
use super::keys::Key;
use super::site::Issued;
use super::{Fingerprint, text};
use crate::error::{Error, Result};
use crate::files;
use afterimage_journal::storage::Lock;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs;
use std::path::Path;
use zeroize::Zeroize;

const FILE: &str = "credentials.json";
const PENDING: &str = "pending.json";

/// See the module; `credentials.json`.
#[derive(Clone, Serialize, Deserialize)]
pub struct Credentials {
    /// The group that they are for.
    pub group: String,
    #[serde(with = "text::hex")]
    authority: Vec<u8>,
    #[serde(with = "text::hex")]
    pub(super) certificate: Vec<u8>,
    #[serde(with = "text::hex")]
    pub(super) key: Vec<u8>,
    /// When they are valid.
    #[serde(flatten)]
    pub validity: Validity,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { group, validity, .. } = self;
        f.debug_struct("Credentials").field("group", group).field("validity", validity).finish()
    }
}

impl Drop for Credentials {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

/// `pending.json`: a key that has no certificate yet.
#[derive(Serialize, Deserialize)]
struct Pending {
    /// What it is for: an invitation's id, or the old certificate's digest.
    purpose: String,
    #[serde(with = "text::hex")]
    key: Vec<u8>,
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl Credentials {
    /// Those in a directory; `None`: there are none yet.
    ///
    /// # Errors
    /// They can't be read, are damaged, or can be read by others.
    pub fn load(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join(FILE);
        let read: Option<Self> = files::read(&path)?;
        if read.as_ref().is_some_and(|c| c.authority.len() != 32) {
            return Err(Error::Local(format!(
                "{} is damaged: redeem an invitation",
                path.display()
            )));
        }
        Ok(read)
    }

    /// The site's authority.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        let mut fingerprint = [0; 32];
        // Its length was checked when they were loaded.
        if let Ok(authority) = <&Fingerprint>::try_from(self.authority.as_slice()) {
            fingerprint = *authority;
        }
        fingerprint
    }

    /// The certificate, DER.
    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }
}

/// A directory in which credentials are about to be made; nobody else makes some there meanwhile.
pub(crate) struct Making<'a> {
    dir: &'a Path,
    pub(crate) key: Key,
    _lock: Lock,
}

impl<'a> Making<'a> {
    /// Begins: a key that waits for this very purpose, or a new one.
    pub(crate) fn begin(dir: &'a Path, purpose: &str) -> Result<Self> {
        files::make_dir(dir)?;
        let lock = files::lock(dir)?;
        let path = dir.join(PENDING);
        let waiting: Option<Pending> = files::read(&path)?;
        let key = match waiting.filter(|p| p.purpose == purpose) {
            Some(pending) => Key::from_pkcs8(&pending.key)?,
            None => {
                let key = Key::generate()?;
                let pending = Pending { purpose: purpose.to_owned(), key: key.pkcs8().to_vec() };
                files::write(&path, &pending)?;
                key
            }
        };
        Ok(Self { dir, key, _lock: lock })
    }

    /// Stores what the site gave.
    pub(crate) fn end(self, authority: &Fingerprint, issued: Issued) -> Result<Credentials> {
        let Issued { group, certificate, validity } = issued;
        let key = self.key.pkcs8().to_vec();
        let made = Credentials { group, authority: authority.to_vec(), certificate, key, validity };
        files::write(&self.dir.join(FILE), &made)?;
        // Left behind, it is only of no use.
        let _ = fs::remove_file(self.dir.join(PENDING));
        Ok(made)
    }
}
