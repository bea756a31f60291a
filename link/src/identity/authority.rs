//! A site's authority: the one key that signs the site's own certificates and its clients'.

use super::keys::{Key, PublicKey, random};
use super::{DAY_S, Fingerprint, group_uri, now_s, server_name, sha256, text};
use crate::error::{Error, Result};
use crate::files;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use uuid::Uuid;
use zeroize::{Zeroize, Zeroizing};

const FILE: &str = "authority.json";
/// How long an authority is valid. Its end is the end of all that it signed, so it is far away.
const AUTHORITY_DAYS: u64 = 30 * 365;
/// How long a site's own certificate is valid.
pub const SERVER_DAYS: u64 = 90;
/// How long a client's certificate is valid.
pub const CLIENT_DAYS: u64 = 90;
/// Clocks may differ by so much.
const SKEW_S: u64 = 300;

/// How long a certificate is valid, seconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validity {
    /// From then on.
    pub from_s: u64,
    /// Until then.
    pub until_s: u64,
}

impl Validity {
    /// So many days from now on.
    #[must_use]
    pub fn days(days: u64) -> Self {
        let now = now_s();
        Self { from_s: now.saturating_sub(SKEW_S), until_s: now + days * DAY_S }
    }

    /// When it is time for a new certificate: two thirds of the way.
    #[must_use]
    pub fn renew_at_s(&self) -> u64 {
        self.from_s + self.until_s.saturating_sub(self.from_s) / 3 * 2
    }
}

/// A certificate with its key, as its file has it.
#[derive(Serialize, Deserialize)]
pub(super) struct Keyed {
    #[serde(with = "text::hex")]
    pub(super) certificate: Vec<u8>,
    #[serde(with = "text::hex")]
    pub(super) key: Vec<u8>,
    #[serde(flatten)]
    pub(super) validity: Validity,
}

impl Drop for Keyed {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

/// See the module.
pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, rcgen::KeyPair>,
    fingerprint: Fingerprint,
}

impl Authority {
    /// Opens a site's, or makes it at its first start. The lock of `dir` is held.
    pub(super) fn open_or_make(dir: &Path) -> Result<Self> {
        let path = dir.join(FILE);
        let stored: Stored = match files::read(&path)? {
            Some(stored) => stored,
            None => {
                let made = Stored::make()?;
                files::write(&path, &made)?;
                made
            }
        };
        let key = Key::from_pkcs8(&stored.keyed.key)?;
        let certificate = CertificateDer::from(stored.keyed.certificate.clone());
        let fingerprint = sha256(&certificate);
        let issuer = Issuer::new(params_of(stored.id, stored.keyed.validity)?, key.0);
        Ok(Self { certificate, issuer, fingerprint })
    }

    /// Its certificate.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// What invitations pin.
    #[must_use]
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// A new certificate and key for the site itself.
    pub(super) fn make_server(&self, validity: Validity) -> Result<Keyed> {
        let key = Key::generate()?;
        let name = server_name(&self.fingerprint);
        let mut params = params(&name, validity)?;
        let dns = name.as_str().try_into().map_err(|e| failed("name the site", e))?;
        params.subject_alt_names = vec![SanType::DnsName(dns)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let made = params.signed_by(&key.0, &self.issuer).map_err(|e| failed("sign", e))?;
        Ok(Keyed { certificate: made.der().to_vec(), key: key.pkcs8().to_vec(), validity })
    }

    /// A client's certificate for a group.
    ///
    /// # Errors
    /// Signing failed.
    pub fn sign_client(
        &self,
        public: &PublicKey,
        group: &str,
        serial: &[u8],
        validity: Validity,
    ) -> Result<Vec<u8>> {
        let mut params = params(group, validity)?;
        params.serial_number = Some(SerialNumber::from_slice(serial));
        let uri = group_uri(group);
        let uri = uri.as_str().try_into().map_err(|e| failed("name the group", e))?;
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let made = params.signed_by(public, &self.issuer).map_err(|e| failed("sign", e))?;
        Ok(made.der().to_vec())
    }
}

/// `authority.json`.
#[derive(Serialize, Deserialize)]
struct Stored {
    id: Uuid,
    #[serde(flatten)]
    keyed: Keyed,
}

impl Stored {
    fn make() -> Result<Self> {
        let id = Uuid::new_v4();
        let validity = Validity::days(AUTHORITY_DAYS);
        let key = Key::generate()?;
        let made = params_of(id, validity)?
            .self_signed(&key.0)
            .map_err(|e| failed("sign the site's authority", e))?;
        let key = Zeroizing::new(key.pkcs8().to_vec());
        let keyed = Keyed { certificate: made.der().to_vec(), key: key.to_vec(), validity };
        Ok(Self { id, keyed })
    }
}

fn params_of(id: Uuid, validity: Validity) -> Result<CertificateParams> {
    let mut params = params(&format!("afterimage site {id}"), validity)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn params(name: &str, validity: Validity) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    let mut called = DistinguishedName::new();
    called.push(DnType::CommonName, name);
    params.distinguished_name = called;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params.not_before = time(validity.from_s).into();
    params.not_after = time(validity.until_s).into();
    params.serial_number = Some(SerialNumber::from_slice(&serial()?));
    Ok(params)
}

fn time(s: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(s)
}

/// A new serial: positive, and of one spelling in DER.
pub(super) fn serial() -> Result<[u8; 16]> {
    let mut serial = random::<16>()?;
    serial[0] = 0x40 | serial[0] & 0x3f;
    Ok(serial)
}

fn failed(what: &str, error: impl std::fmt::Display) -> Error {
    Error::Local(format!("{what}: {error}"))
}
