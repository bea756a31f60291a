//! The link itself: one thread, which connects, says hello, and then sends and hears until it ends.

use super::connect::connect;
use super::state::Shared;
use crate::error::{Error, Result};
use crate::frame::io::{PING_EVERY, Reader, SILENCE_LIMIT, flush, write};
use crate::frame::{Accepts, Kind, convert, decode, encode, message as m};
use crate::identity::{Credentials, now_s};
use afterimage_journal::wire::{Hello, SinkError};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

/// How long the link's rate is measured at a time.
const RATE_OVER: Duration = Duration::from_millis(200);
/// Time between two looks at the certificate.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Starts a link; how it goes is in `shared`.
pub(super) fn start(
    shared: &Arc<Shared>,
    addr: &str,
    credentials: Credentials,
    hello: &Hello,
) -> std::result::Result<JoinHandle<()>, SinkError> {
    let hello = encode(Kind::Hello, &convert::hello_of(hello))?;
    let (shared, addr) = (Arc::clone(shared), addr.to_owned());
    std::thread::Builder::new()
        .name("site link".into())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let ended = match runtime {
                Ok(runtime) => {
                    let ended = runtime.block_on(run(&shared, &addr, &credentials, &hello));
                    // A name that is being looked up is not waited for.
                    runtime.shutdown_background();
                    ended
                }
                Err(e) => SinkError::Away(format!("start a runtime: {e}")),
            };
            shared.ended(&ended);
        })
        .map_err(|e| SinkError::Away(format!("start a thread: {e}")))
}

async fn run(shared: &Shared, addr: &str, credentials: &Credentials, hello: &[u8]) -> SinkError {
    let talk = async {
        let fingerprint = credentials.fingerprint();
        let stream = connect(addr, &fingerprint, Some(credentials)).await?;
        let (from, mut to) = tokio::io::split(stream);
        let mut reader = Reader::new(from, SILENCE_LIMIT);
        let sending = async {
            write(&mut to, hello).await?;
            flush(&mut to).await?;
            send(shared, &mut to).await
        };
        tokio::select! {
            biased;
            heard = hear(shared, &mut reader) => Err(heard),
            sent = sending => match sent {
                // Why the site takes nothing more is the last that it says.
                Err(error) => match timeout(LAST_WORD, hear(shared, &mut reader)).await {
                    Ok(said) => Err(said),
                    Err(_) => Err(SinkError::from(error)),
                },
                Ok(()) => Ok(()),
            },
        }
    };
    let due = due(credentials);
    tokio::select! {
        ended = talk => match ended {
            Ok(()) => SinkError::Away("the link was closed".into()),
            Err(error) => error,
        },
        () = due => SinkError::Away("it is time for a new certificate: connecting anew".into()),
    }
}

/// How long the site's last message is waited for when nothing can be sent any more.
const LAST_WORD: Duration = Duration::from_secs(1);

/// Comes when the certificate gets due; one that already is has to do.
async fn due(credentials: &Credentials) {
    let renew_at_s = credentials.validity.renew_at_s();
    if renew_at_s <= now_s() {
        return std::future::pending().await;
    }
    while now_s() < renew_at_s {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Sends what is put; ends when the sink is dropped.
async fn send<W: AsyncWrite + Unpin>(shared: &Shared, to: &mut W) -> Result<()> {
    let mut rate = Rate::default();
    let ping = encode(Kind::Ping, &m::Ping {})?;
    loop {
        if shared.stopped() {
            // The other end need not wait to find out.
            let _ = timeout(LAST_WORD, tokio::io::AsyncWriteExt::shutdown(to)).await;
            return Ok(());
        }
        if let Some(frame) = shared.next() {
            let begin = Instant::now();
            write(to, &frame).await?;
            if let Some(now) = rate.sent(frame.len() as u64, begin.elapsed()) {
                shared.set_rate(now);
            }
            continue;
        }
        flush(to).await?;
        if timeout(PING_EVERY, shared.woken()).await.is_err() {
            write(to, &ping).await?;
        }
    }
}

/// Takes in what the site says, until it ends.
async fn hear<R: AsyncRead + Unpin>(shared: &Shared, reader: &mut Reader<R>) -> SinkError {
    loop {
        let heard = reader.next(Accepts::Answers).await;
        let taken = match heard {
            Ok(Some((Kind::Failed, message))) => match decode::<m::Failed>(&message) {
                Ok(failed) => return convert::read_failed(failed),
                Err(error) => Err(error),
            },
            Ok(Some((kind, message))) => take(shared, kind, &message),
            Ok(None) => Err(Error::Away("the site ended the link".into())),
            Err(error) => Err(error),
        };
        if let Err(error) = taken {
            return error.into();
        }
    }
}

fn take(shared: &Shared, kind: Kind, message: &[u8]) -> Result<()> {
    match kind {
        Kind::Welcome => shared.welcome(&decode(message)?),
        Kind::Held => shared.held(decode(message)?),
        Kind::Ack => shared.acked(convert::read_ack(decode(message)?)?),
        Kind::Credit => shared.credited(&decode(message)?),
        Kind::Ping => Ok(()),
        other => Err(Error::Broken(format!("the site said {other:?} at a wrong time"))),
    }
}

/// How fast the link takes bytes, while it is what is waited for.
#[derive(Debug)]
struct Rate {
    began: Instant,
    bytes: u64,
    writing: Duration,
}

impl Default for Rate {
    fn default() -> Self {
        Self { began: Instant::now(), bytes: 0, writing: Duration::ZERO }
    }
}

impl Rate {
    /// Counts a frame; from time to time what it comes to: bytes a second, `None` when writing was less
    /// than half of the time.
    fn sent(&mut self, bytes: u64, took: Duration) -> Option<Option<u64>> {
        self.bytes += bytes;
        self.writing += took;
        let over = self.began.elapsed();
        if over < RATE_OVER {
            return None;
        }
        let us = u64::try_from(self.writing.as_micros()).unwrap_or(u64::MAX).max(1);
        let waits = self.writing * 2 >= over;
        let rate = waits.then(|| self.bytes.saturating_mul(1_000_000) / us);
        *self = Self::default();
        Some(rate)
    }
}
