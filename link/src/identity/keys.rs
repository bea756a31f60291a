//! Keys: ECDSA on P-256. A client proves that it holds a new one by signing what only this TLS link
//! knows.

use crate::error::{Error, Result};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls::pki_types::PrivatePkcs8KeyDer;
use zeroize::Zeroizing;

/// Bytes of a public key: an uncompressed point.
pub const PUBLIC_KEY_BYTES: usize = 65;
/// Label of the secret that both ends of a link derive from it (RFC 8446 section 7.5).
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-afterimage-key";
/// Bytes of that secret.
pub const EXPORTED_BYTES: usize = 32;

/// A key of ours.
pub struct Key(pub(super) KeyPair);

impl Key {
    /// A new one.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn generate() -> Result<Self> {
        let made = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256);
        made.map(Self).map_err(|e| Error::Local(format!("make a key: {e}")))
    }

    /// One from its PKCS #8 bytes.
    ///
    /// # Errors
    /// They are none.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self> {
        let der = PrivatePkcs8KeyDer::from(der.to_vec());
        KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ECDSA_P256_SHA256)
            .map(Self)
            .map_err(|e| Error::Local(format!("read a key: {e}")))
    }

    /// Its PKCS #8 bytes.
    #[must_use]
    pub fn pkcs8(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.0.serialize_der())
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> Vec<u8> {
        self.0.public_key_raw().to_vec()
    }

    /// Proves to the other end of a link that the key is here; `exported` is that link's.
    ///
    /// # Errors
    /// Signing failed.
    pub fn prove(&self, exported: &[u8]) -> Result<Vec<u8>> {
        self.0.sign(exported).map_err(|e| Error::Local(format!("sign: {e}")))
    }
}

/// A public key that came from a client, which proved that it holds the other half.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicKey(Vec<u8>);

impl PublicKey {
    /// Checks a client's proof.
    ///
    /// # Errors
    /// It is not a key, or not proved.
    pub fn proved(bytes: &[u8], proof: &[u8], exported: &[u8]) -> Result<Self> {
        let wrong = || Error::Refused("the client does not hold the key that it names".into());
        if bytes.len() != PUBLIC_KEY_BYTES {
            return Err(wrong());
        }
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, bytes);
        key.verify(exported, proof).map_err(|_| wrong())?;
        Ok(Self(bytes.to_vec()))
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

/// Random bytes.
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes)
        .map_err(|_| Error::Local("the system gives no randomness".into()))?;
    Ok(bytes)
}
