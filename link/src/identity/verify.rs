//! What TLS accepts: 1.3, no resumption, certificates of the one authority for the one usage.

use super::site::{Site, certified};
use super::{Credentials, Fingerprint, group_name, group_of_uri, now_s, server_name, sha256};
use crate::error::{Error, Result};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig,
    SignatureScheme,
};
use std::sync::Arc;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

/// Protocol of a link (ALPN): both ends show certificates.
pub const ALPN: &[u8] = b"afterimage/1";
/// Protocol of redeeming an invitation (ALPN): the client has no certificate yet.
pub const ALPN_REDEEM: &[u8] = b"afterimage-redeem/1";

/// OIDs of the extended key usages, encoded.
const SERVER_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
const CLIENT_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2];

/// The one library of ciphers.
#[must_use]
pub fn provider() -> CryptoProvider {
    aws_lc_rs::default_provider()
}

/// Who is at a site's other end: told by its certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The group that it may append to.
    pub group: String,
    /// Its certificate's serial.
    pub serial: Vec<u8>,
}

impl Peer {
    /// Reads a certificate that was verified.
    ///
    /// # Errors
    /// It names no group, or several.
    pub fn of(certificate: &CertificateDer<'_>) -> std::result::Result<Self, rustls::Error> {
        let read = EndEntityCert::try_from(certificate).map_err(|_| bad_encoding())?;
        let mut groups = read.valid_uri_names().filter_map(group_of_uri);
        match (groups.next(), groups.next()) {
            (Some(group), None) => {
                Ok(Self { group: group.to_owned(), serial: read.serial().to_vec() })
            }
            _ => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }
}

fn bad_encoding() -> rustls::Error {
    CertificateError::BadEncoding.into()
}

/// Checks a certificate's signature, time and usage.
fn check(
    certificate: &CertificateDer<'_>,
    anchor: &TrustAnchor<'_>,
    usage: &'static [u8],
    now: UnixTime,
) -> std::result::Result<(), rustls::Error> {
    let read = EndEntityCert::try_from(certificate).map_err(|_| bad_encoding())?;
    let provider = provider();
    let algorithms = provider.signature_verification_algorithms.all;
    let anchors = std::slice::from_ref(anchor);
    let usage = KeyUsage::required(usage);
    let verified = read.verify_for_usage(algorithms, anchors, &[], now, usage, None, None);
    verified.map(drop).map_err(|e| {
        let why = match e {
            webpki::Error::CertExpired { .. } => CertificateError::Expired,
            webpki::Error::CertNotValidYet { .. } => CertificateError::NotValidYet,
            webpki::Error::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
            webpki::Error::UnknownIssuer
            | webpki::Error::InvalidSignatureForPublicKey
            | webpki::Error::CaUsedAsEndEntity => CertificateError::UnknownIssuer,
            other => CertificateError::Other(rustls::OtherError(Arc::new(other))),
        };
        rustls::Error::from(why)
    })
}

/// What a client accepts: the site with this authority, under whatever address.
#[derive(Debug)]
struct SiteVerifier {
    provider: CryptoProvider,
    fingerprint: Fingerprint,
}

impl ServerCertVerifier for SiteVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let authority = intermediates.iter().find(|c| sha256(c) == self.fingerprint);
        let authority = authority.ok_or(CertificateError::UnknownIssuer)?;
        let anchor = anchor_from_trusted_cert(authority).map_err(|_| bad_encoding())?;
        check(end_entity, &anchor, SERVER_AUTH, now)?;
        let read = EndEntityCert::try_from(end_entity).map_err(|_| bad_encoding())?;
        let name = ServerName::try_from(server_name(&self.fingerprint))
            .map_err(|_| rustls::Error::General("a site's name".into()))?;
        read.verify_is_valid_for_subject_name(&name)
            .map_err(|_| CertificateError::NotValidForName)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What a site accepts: certificates of its own, in its ledger, for the group that the client came for.
#[derive(Debug)]
struct GroupVerifier {
    provider: CryptoProvider,
    site: Arc<Site>,
    /// The name that the client asked for.
    asked: String,
}

impl ClientCertVerifier for GroupVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> std::result::Result<ClientCertVerified, rustls::Error> {
        let anchor = anchor_from_trusted_cert(self.site.authority()).map_err(|_| bad_encoding())?;
        check(end_entity, &anchor, CLIENT_AUTH, now)?;
        let peer = Peer::of(end_entity)?;
        let known = self.site.ledger().check(&peer.serial, &peer.group, now_s());
        if let Err(refusal) = known {
            tracing::warn!(group = peer.group, %refusal, "a client is refused");
            return Err(match refusal {
                super::Refusal::Revoked => CertificateError::Revoked,
                super::Refusal::Expired => CertificateError::Expired,
                _ => CertificateError::ApplicationVerificationFailure,
            }
            .into());
        }
        if self.asked != group_name(self.site.fingerprint(), &peer.group) {
            tracing::warn!(group = peer.group, "a client came for another group: refused");
            return Err(CertificateError::ApplicationVerificationFailure.into());
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::PeerIncompatible::Tls12NotOffered.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// How a site answers a client that asked for this name over this protocol.
///
/// # Errors
/// The site's certificate can't be read.
pub fn server_config(site: &Arc<Site>, asked: &str, redeems: bool) -> Result<Arc<ServerConfig>> {
    let provider = provider();
    let builder = ServerConfig::builder_with_provider(Arc::new(provider.clone()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| Error::Local(format!("set TLS up: {e}")))?;
    let builder = if redeems {
        builder.with_no_client_auth()
    } else {
        let (site, asked) = (Arc::clone(site), asked.to_owned());
        builder.with_client_cert_verifier(Arc::new(GroupVerifier { provider, site, asked }))
    };
    let key: Arc<CertifiedKey> = site.server_key()?;
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![if redeems { ALPN_REDEEM } else { ALPN }.to_vec()];
    // A resumed session would not show its certificate again.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// How a client comes: with credentials, or to get some.
///
/// # Errors
/// The credentials can't be used.
pub fn client_config(
    fingerprint: &Fingerprint,
    credentials: Option<&Credentials>,
) -> Result<Arc<ClientConfig>> {
    let provider = provider();
    let verifier = SiteVerifier { provider: provider.clone(), fingerprint: *fingerprint };
    let builder = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| Error::Local(format!("set TLS up: {e}")))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match credentials {
        None => builder.with_no_client_auth(),
        Some(c) => {
            let key = certified(vec![c.certificate.clone().into()], &c.key)?;
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key)))
        }
    };
    let alpn = if credentials.is_some() { ALPN } else { ALPN_REDEEM };
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}
