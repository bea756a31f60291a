//! Certificates that the site's authority could have signed, each with one thing wrong.

use super::bed::Bed;
use afterimage_link::Credentials;
use afterimage_link::identity::{Peer, server_name, text};
use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType,
    SerialNumber,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, SystemTime};

/// What a forged certificate says.
pub struct Forged {
    pub group: Option<&'static str>,
    pub name: Option<String>,
    pub usages: Vec<ExtendedKeyUsagePurpose>,
    pub from: SystemTime,
    pub until: SystemTime,
    pub serial: Vec<u8>,
}

impl Forged {
    /// As the site would sign it for a client, with the serial of one that is valid.
    pub fn client(bed: &Bed, enrolled: &Credentials, group: &'static str) -> Self {
        let der = rustls::pki_types::CertificateDer::from(enrolled.certificate());
        let serial = Peer::of(&der).unwrap().serial;
        assert!(bed.site.ledger().certificates.iter().any(|c| c.serial == serial));
        Self {
            group: Some(group),
            name: None,
            usages: vec![ExtendedKeyUsagePurpose::ClientAuth],
            from: ago(3600),
            until: SystemTime::now() + Duration::from_secs(3600),
            serial,
        }
    }

    /// As the site would sign it for itself.
    pub fn server(bed: &Bed) -> Self {
        Self {
            group: None,
            name: Some(server_name(bed.site.fingerprint())),
            usages: vec![ExtendedKeyUsagePurpose::ServerAuth],
            from: ago(3600),
            until: SystemTime::now() + Duration::from_secs(3600),
            serial: vec![0x41; 16],
        }
    }

    /// Signs it: certificate and key. `signed_by` is a site's state directory.
    pub fn sign(self, signed_by: &Path) -> (Vec<u8>, Vec<u8>) {
        let stored: Value =
            serde_json::from_slice(&std::fs::read(signed_by.join("tls/authority.json")).unwrap())
                .unwrap();
        let key = text::from_hex(stored["key"].as_str().unwrap()).unwrap();
        let key = KeyPair::from_pkcs8_der_and_sign_algo(
            &PrivatePkcs8KeyDer::from(key),
            &rcgen::PKCS_ECDSA_P256_SHA256,
        )
        .unwrap();
        let mut authority = CertificateParams::default();
        let mut name = rcgen::DistinguishedName::new();
        name.push(
            DnType::CommonName,
            format!("afterimage site {}", stored["id"].as_str().unwrap()),
        );
        authority.distinguished_name = name;
        authority.is_ca = IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
        let issuer = Issuer::new(authority, key);
        let mut params = CertificateParams::default();
        params.extended_key_usages = self.usages;
        params.not_before = self.from.into();
        params.not_after = self.until.into();
        params.serial_number = Some(SerialNumber::from_slice(&self.serial));
        if let Some(group) = self.group {
            let uri = format!("afterimage:group:{group}");
            params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        }
        if let Some(name) = self.name {
            params.subject_alt_names.push(SanType::DnsName(name.try_into().unwrap()));
        }
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let made = params.signed_by(&key, &issuer).unwrap();
        (made.der().to_vec(), key.serialize_der())
    }
}

pub fn ago(s: u64) -> SystemTime {
    SystemTime::now() - Duration::from_secs(s)
}

/// Credentials for a bed's site with this certificate, as an agent would come for `group`.
pub fn credentials(bed: &Bed, group: &str, (certificate, key): &(Vec<u8>, Vec<u8>)) -> Credentials {
    let now = afterimage_link::identity::now_s();
    serde_json::from_value(json!({
        "group": group,
        "authority": text::to_hex(bed.site.fingerprint()),
        "certificate": text::to_hex(certificate),
        "key": text::to_hex(key),
        "from_s": now - 60,
        "until_s": now + 3600,
    }))
    .unwrap()
}

/// Stores credentials as an agent has them.
pub fn store(bed: &Bed, name: &str, credentials: &Credentials) {
    use std::os::unix::fs::PermissionsExt;
    let dir = bed.credentials_dir(name);
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("credentials.json");
    std::fs::write(&path, serde_json::to_vec(credentials).unwrap()).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
}
