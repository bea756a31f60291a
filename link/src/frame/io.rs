//! Frames over a stream, with limits of time.

use super::{Accepts, HEAD_BYTES, Kind};
use crate::error::{Error, Result};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};

/// Without a byte for so long, the other end is gone.
pub const SILENCE_LIMIT: Duration = Duration::from_secs(10);
/// Each end says that it is there at least so often.
pub const PING_EVERY: Duration = Duration::from_secs(3);
/// A frame that began has to end within this time.
pub const FRAME_LIMIT: Duration = Duration::from_secs(120);
/// What one `write` may take: an end that takes nothing is gone.
pub const WRITE_LIMIT: Duration = Duration::from_secs(20);
/// Bytes that are read, or asked for, at a time: memory grows with what came, not with what is said.
const STEP_BYTES: usize = 64 << 10;

/// Reads frames.
#[derive(Debug)]
pub struct Reader<R> {
    from: R,
    silence_limit: Duration,
}

impl<R: AsyncRead + Unpin> Reader<R> {
    /// Of a stream.
    pub fn new(from: R, silence_limit: Duration) -> Self {
        Self { from, silence_limit }
    }

    /// The next frame that is known; `None`: the other end ended the link between two.
    ///
    /// # Errors
    /// See [`Accepts::judge`]; the other end is silent, slow, or gone.
    pub async fn next(&mut self, accepts: Accepts) -> Result<Option<(Kind, Vec<u8>)>> {
        loop {
            let mut head = [0; HEAD_BYTES];
            let got = self.step(&mut head[..1]).await?;
            if got == 0 {
                return Ok(None);
            }
            let limit = Instant::now() + FRAME_LIMIT;
            timeout_at(limit, self.fill(&mut head[1..])).await.map_err(|_| too_slow())??;
            let (kind, length) = accepts.judge(&head)?;
            let mut message = Vec::new();
            let body = async {
                while message.len() < length {
                    let begin = message.len();
                    message.resize(length.min(begin + STEP_BYTES), 0);
                    self.fill(&mut message[begin..]).await?;
                }
                Ok::<(), Error>(())
            };
            timeout_at(limit, body).await.map_err(|_| too_slow())??;
            if let Some(kind) = kind {
                return Ok(Some((kind, message)));
            }
        }
    }

    async fn fill(&mut self, mut buffer: &mut [u8]) -> Result<()> {
        while !buffer.is_empty() {
            let got = self.step(buffer).await?;
            if got == 0 {
                return Err(Error::Away("the link ended in the middle of a message".into()));
            }
            buffer = &mut buffer[got..];
        }
        Ok(())
    }

    async fn step(&mut self, buffer: &mut [u8]) -> Result<usize> {
        match timeout(self.silence_limit, self.from.read(buffer)).await {
            Ok(Ok(got)) => Ok(got),
            Ok(Err(e)) => Err(broken_off(&e)),
            Err(_) => Err(Error::Away(format!(
                "nothing came from the other end for {} s",
                self.silence_limit.as_secs()
            ))),
        }
    }
}

fn too_slow() -> Error {
    Error::Away(format!("a message took more than {} s to come", FRAME_LIMIT.as_secs()))
}

/// Writes a frame.
///
/// # Errors
/// The other end takes nothing, or is gone.
pub async fn write<W: AsyncWrite + Unpin>(to: &mut W, frame: &[u8]) -> Result<()> {
    for piece in frame.chunks(STEP_BYTES) {
        match timeout(WRITE_LIMIT, to.write_all(piece)).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => return Err(broken_off(&e)),
            Err(_) => {
                return Err(Error::Away(format!(
                    "the other end took nothing for {} s",
                    WRITE_LIMIT.as_secs()
                )));
            }
        }
    }
    Ok(())
}

/// Hands over what was written.
///
/// # Errors
/// As [`write()`].
pub async fn flush<W: AsyncWrite + Unpin>(to: &mut W) -> Result<()> {
    match timeout(WRITE_LIMIT, to.flush()).await {
        Ok(done) => done.map_err(|e| broken_off(&e)),
        Err(_) => Err(Error::Away("the other end takes nothing".into())),
    }
}

/// What an error of the stream means. The other end's verdict on our certificate comes as an alert, after
/// our half of the handshake is over.
pub(crate) fn broken_off(error: &std::io::Error) -> Error {
    use rustls::AlertDescription as A;
    let tls = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::AlertReceived(alert)) => match alert {
            A::CertificateRevoked => Error::Refused(
                "the site revoked this agent's certificate: enroll again, if it is to come".into(),
            ),
            A::CertificateExpired => Error::Refused(
                "this agent's certificate has expired: `afterimage site enroll` at the site makes \
                 an invitation for a new one"
                    .into(),
            ),
            A::AccessDenied => Error::Refused(
                "the site doesn't let this agent append to this group: its certificate is for \
                 another one, or the site doesn't know it"
                    .into(),
            ),
            A::NoApplicationProtocol => Error::Refused(
                "the site doesn't take that: no invitation is open there, or it speaks another \
                 version"
                    .into(),
            ),
            A::UnknownCA
            | A::BadCertificate
            | A::UnsupportedCertificate
            | A::CertificateRequired
            | A::DecryptError => Error::Refused(format!(
                "the site does not accept this agent's certificate ({alert:?})"
            )),
            other => Error::Away(format!("the site broke the link off ({other:?})")),
        },
        Some(rustls::Error::InvalidCertificate(why)) => Error::Refused(format!(
            "who answers there is not the site of the invitation, or its certificate is not valid \
             ({why:?}): nothing was sent"
        )),
        Some(other) => Error::Away(format!("TLS: {other}")),
        None => Error::Away(format!("the link broke off: {error}")),
    }
}
