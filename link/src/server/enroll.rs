//! Giving certificates out: for an invitation, or over an old one.

use super::admission::Place;
use super::{Counts, FIRST_LIMIT, Server, crowded};
use crate::error::{Error, Result};
use crate::frame::io::{Reader, SILENCE_LIMIT, flush, write};
use crate::frame::{Accepts, Kind, convert, decode, encode, message as m};
use crate::identity::keys::{EXPORTED_BYTES, EXPORTER_LABEL, PublicKey};
use crate::identity::site::Issued;
use crate::identity::{Peer, Site};
use afterimage_journal::wire::SinkError;
use std::sync::Arc;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

/// A client without a certificate: takes one message, answers it, and is done. It stays at the door, so
/// that as few can be here as can shake hands.
pub(super) async fn redeem(
    server: &Arc<Server>,
    mut stream: TlsStream<TcpStream>,
    place: Place,
) -> Result<()> {
    let exported = exported(&stream)?;
    let request = async {
        let mut reader = Reader::new(&mut stream, SILENCE_LIMIT);
        reader.next(Accepts::Redeem).await
    };
    let request = tokio::select! {
        request = timeout(FIRST_LIMIT, request) => request,
        () = place.evicted() => return Err(crowded()),
    };
    let Some((_, message)) = request.map_err(|_| too_slow())?? else { return Ok(()) };
    Counts::add(&server.counts.messages);
    if !server.admission.redeem() {
        let error = Error::Away("too many invitations are tried: try again in a minute".into());
        return answer(&mut stream, Err(error)).await;
    }
    let m::Redeem { id, secret, public_key, proof } = decode(&message)?;
    let issued = change(&server.site, move |site| {
        let key = PublicKey::proved(&public_key, &proof, &exported)?;
        site.redeem(&id, &zeroize::Zeroizing::new(secret), &key)
    })
    .await;
    if let Ok(issued) = &issued {
        tracing::info!(group = issued.group, "an invitation was redeemed");
    }
    answer(&mut stream, issued).await
}

/// A client whose certificate is valid asks for the next one.
pub(super) async fn renew(
    server: &Arc<Server>,
    stream: &mut TlsStream<TcpStream>,
    peer: Peer,
    message: &[u8],
) -> Result<()> {
    let exported = exported(stream)?;
    let m::Renew { public_key, proof } = decode(message)?;
    let group = peer.group.clone();
    let issued = change(&server.site, move |site| {
        let key = PublicKey::proved(&public_key, &proof, &exported)?;
        site.renew(&peer.serial, &peer.group, &key)
    })
    .await;
    if issued.is_ok() {
        tracing::info!(group, "a certificate was renewed");
    }
    answer(stream, issued).await
}

fn exported(stream: &TlsStream<TcpStream>) -> Result<[u8; EXPORTED_BYTES]> {
    let (_, tls) = stream.get_ref();
    tls.export_keying_material([0; EXPORTED_BYTES], EXPORTER_LABEL, None)
        .map_err(|e| Error::Away(format!("TLS: {e}")))
}

/// Changes what is on the disk, off the threads that serve.
async fn change<T: Send + 'static>(
    site: &Arc<Site>,
    change: impl FnOnce(&Site) -> Result<T> + Send + 'static,
) -> Result<T> {
    let site = Arc::clone(site);
    let changed = tokio::task::spawn_blocking(move || change(&site)).await;
    changed.unwrap_or_else(|e| Err(Error::Local(format!("a thread ended: {e}"))))
}

async fn answer(stream: &mut TlsStream<TcpStream>, issued: Result<Issued>) -> Result<()> {
    let frame = match &issued {
        Ok(Issued { group, certificate, validity }) => {
            let (group, certificate) = (group.clone(), certificate.clone());
            let (from_s, until_s) = (validity.from_s, validity.until_s);
            encode(Kind::Issued, &m::Issued { group, certificate, from_s, until_s })?
        }
        Err(error) => {
            // What is wrong with our own disk is nobody else's business.
            let told = match error {
                Error::Local(_) => SinkError::Away("the site can't do that now".into()),
                other => SinkError::Refused(other.to_string()),
            };
            encode(Kind::Failed, &convert::failed_of(&told))?
        }
    };
    write(stream, &frame).await?;
    flush(stream).await?;
    // The answer is out; how the client takes the end doesn't matter.
    let _ = timeout(FIRST_LIMIT, stream.shutdown()).await;
    issued.map(drop)
}

fn too_slow() -> Error {
    Error::Away("the first message took too long".into())
}
