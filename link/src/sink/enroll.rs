//! Getting a certificate: for an invitation, or over the old one. Blocking.

use super::connect::connect;
use crate::error::{Error, Result};
use crate::frame::io::{Reader, SILENCE_LIMIT, flush, write};
use crate::frame::{Accepts, Kind, convert, decode, encode, message as m};
use crate::identity::authority::Validity;
use crate::identity::credentials::Making;
use crate::identity::keys::{EXPORTED_BYTES, EXPORTER_LABEL, Key};
use crate::identity::site::Issued;
use crate::identity::{Credentials, Fingerprint, Invitation, Peer, text};
use rustls::pki_types::CertificateDer;
use std::path::Path;
use std::time::Duration;
use tokio::time::timeout;

/// Longest that all of it takes.
const LIMIT: Duration = Duration::from_secs(30);

/// Redeems an invitation at the site that answers at `addr` (`HOST:PORT`), and stores the credentials in
/// `dir` (made, 0700). Again after a failure is safe: the site gives the same key its certificate anew.
///
/// # Errors
/// [`Error::Away`]: the site can't be reached; [`Error::Refused`]: another site, or the invitation is
/// not good; [`Error::Local`]: the credentials can't be written.
pub fn redeem(addr: &str, invitation: &Invitation, dir: &Path) -> Result<Credentials> {
    let making = Making::begin(dir, &format!("invitation {}", text::to_hex(&invitation.id)))?;
    let issued =
        run(ask(addr, &invitation.fingerprint, None, &making.key, |public_key, proof| {
            let (id, secret) = (invitation.id.to_vec(), invitation.secret.to_vec());
            encode(Kind::Redeem, &m::Redeem { id, secret, public_key, proof })
        }))?;
    making.end(&invitation.fingerprint, issued)
}

/// Renews the credentials in `dir` over the certificate that they have.
///
/// # Errors
/// As [`redeem`]; the old ones stay.
pub fn renew(addr: &str, dir: &Path) -> Result<Credentials> {
    let none = || Error::Invalid(format!("there are no credentials in {}", dir.display()));
    let old = Credentials::load(dir)?.ok_or_else(none)?;
    let serial = Peer::of(&CertificateDer::from(old.certificate()))
        .map_err(|e| Error::Local(format!("read our certificate: {e}")))?
        .serial;
    let making = Making::begin(dir, &format!("renewal of {}", text::to_hex(&serial)))?;
    let issued =
        run(ask(addr, &old.fingerprint(), Some(&old), &making.key, |public_key, proof| {
            encode(Kind::Renew, &m::Renew { public_key, proof })
        }))?;
    if issued.group != old.group {
        return Err(Error::Broken("the site gave a certificate for another group".into()));
    }
    making.end(&old.fingerprint(), issued)
}

async fn ask(
    addr: &str,
    fingerprint: &Fingerprint,
    old: Option<&Credentials>,
    key: &Key,
    request: impl Fn(Vec<u8>, Vec<u8>) -> Result<Vec<u8>>,
) -> Result<Issued> {
    let mut stream = connect(addr, fingerprint, old).await?;
    let (_, tls) = stream.get_ref();
    let exported = tls
        .export_keying_material([0; EXPORTED_BYTES], EXPORTER_LABEL, None)
        .map_err(|e| Error::Local(format!("TLS: {e}")))?;
    let frame = request(key.public(), key.prove(&exported)?)?;
    write(&mut stream, &frame).await?;
    flush(&mut stream).await?;
    let mut reader = Reader::new(&mut stream, SILENCE_LIMIT);
    loop {
        match reader.next(Accepts::Answers).await? {
            Some((Kind::Issued, message)) => return read_issued(&message, key),
            Some((Kind::Failed, message)) => {
                let failed = convert::read_failed(decode(&message)?);
                return Err(Error::Refused(failed.to_string()));
            }
            Some((Kind::Ping, _)) => {}
            Some((kind, _)) => {
                return Err(Error::Broken(format!("the site answered with {kind:?}")));
            }
            None => return Err(Error::Away("the site ended the link without an answer".into())),
        }
    }
}

/// A certificate that is not for our key would be of no use, and is not stored.
fn read_issued(message: &[u8], key: &Key) -> Result<Issued> {
    let m::Issued { group, certificate, from_s, until_s } = decode(message)?;
    let der = CertificateDer::from(certificate.as_slice());
    let wrong = || Error::Broken("the site gave a certificate that is not for our key".into());
    let read = webpki::EndEntityCert::try_from(&der).map_err(|_| wrong())?;
    let names = Peer::of(&der).is_ok_and(|p| p.group == group);
    if !names || !read.subject_public_key_info().ends_with(&key.public()) {
        return Err(wrong());
    }
    Ok(Issued { group, certificate, validity: Validity { from_s, until_s } })
}

/// Runs it on a thread of its own: the caller may be one of a runtime.
fn run<T: Send>(ask: impl Future<Output = Result<T>> + Send) -> Result<T> {
    let work = || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| Error::Local(format!("start a runtime: {e}")))?;
        let done = runtime.block_on(async { timeout(LIMIT, ask).await });
        runtime.shutdown_background();
        done.unwrap_or_else(|_| {
            Err(Error::Away(format!("the site did not answer within {} s", LIMIT.as_secs())))
        })
    };
    std::thread::scope(|scope| scope.spawn(work).join())
        .unwrap_or_else(|_| Err(Error::Local("a thread panicked".into())))
}
