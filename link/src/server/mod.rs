//! A site's end: accepts links, lets in whom the ledger knows, and hands ops to a sink for each group.
//!
//! ```text
//!  accept ─► ClientHello ─► redeem: no certificate, one small message, a certificate back
//!                       └─► link: certificate, ledger, group ─► Hello ─► one writer a group ─► ops
//! ```
//!
//! What always holds:
//! * what a client may do is known from its certificate before a byte of a message is looked at;
//! * handshakes, links, and what each may have under way are bounded, by source and by group; what is over
//!   is turned away, those that are in go on, and silent ones keep nobody out;
//! * a group has one writer: a newer link takes over from an older one, unless its epoch is lower;
//! * a link ends within a second of its certificate's revocation.

mod admission;
mod enroll;
mod lanes;
mod session;
mod slot;
mod work;

use crate::error::{Error, Result};
use crate::identity::verify::ALPN_REDEEM;
use crate::identity::{Peer, Site, verify};
use crate::socket;
use admission::{Admission, Place};
use afterimage_journal::wire::{Sink, SinkError};
use slot::Slots;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

/// Longest that a handshake takes, and until its first message came.
pub const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
const CLIENT_HELLO_LIMIT: Duration = Duration::from_secs(5);
/// Longest that the first message takes to come.
pub const FIRST_LIMIT: Duration = Duration::from_secs(10);
/// Most links at a time. Each has at most [`FRESH_BYTES_MAX`] and [`BACKGROUND_BYTES_MAX`] under way.
pub const LINKS_MAX: usize = 64;
/// Most links of a group at a time: the writer, one that takes over from it, and what ends meanwhile.
pub const LINKS_PER_GROUP_MAX: usize = 4;
/// Bytes of fresh frames that a client may have under way.
pub const FRESH_BYTES_MAX: u64 = 12 << 20;
/// Bytes of background frames that a client may have under way.
pub const BACKGROUND_BYTES_MAX: u64 = 5 << 20;
/// How long links get to end in when the site stops.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// Pause when no connection can be taken: for want of file numbers, for one.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Who has the groups' journals.
pub trait Host: Send + Sync + 'static {
    /// The sink of a group; asked for once, and kept.
    ///
    /// # Errors
    /// There is none: what the client is told.
    fn sink(&self, group: &str) -> std::result::Result<Box<dyn Sink>, SinkError>;

    /// A link of a group begins.
    fn connected(&self, _group: &str, _connection: &Connection) {}

    /// The link that began last ended, and why.
    fn disconnected(&self, _group: &str, _why: &str) {}
}

/// A link, for status.
#[derive(Debug, Clone)]
pub struct Connection {
    /// Where it comes from.
    pub addr: SocketAddr,
    /// Its certificate's serial.
    pub serial: Vec<u8>,
    /// The journal's epoch.
    pub epoch: u64,
}

/// What happened at a site's door.
#[derive(Debug, Default)]
pub struct Counts {
    /// Connections that were taken.
    pub accepted: AtomicU64,
    /// Connections that were turned away, or ended, before they were let in.
    pub refused: AtomicU64,
    /// Messages that were parsed.
    pub messages: AtomicU64,
}

impl Counts {
    fn add(count: &AtomicU64) {
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// See the module.
pub struct Server {
    site: Arc<Site>,
    host: Arc<dyn Host>,
    slots: Slots,
    admission: Admission,
    counts: Counts,
}

impl Server {
    /// One for a site's groups.
    #[must_use]
    pub fn new(site: Arc<Site>, host: Arc<dyn Host>) -> Arc<Self> {
        let (slots, admission, counts) =
            (Slots::default(), Admission::default(), Counts::default());
        Arc::new(Self { site, host, slots, admission, counts })
    }

    /// What happened at the door.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Serves until `end` comes; links that stand then are closed, and what they were doing is waited
    /// for, for a bounded time.
    pub async fn serve(self: &Arc<Self>, listener: TcpListener, end: impl Future<Output = ()>) {
        let mut links = JoinSet::new();
        let mut end = std::pin::pin!(end);
        loop {
            let accepted = tokio::select! {
                () = &mut end => break,
                accepted = listener.accept() => accepted,
                // Taken away, so that the set doesn't grow.
                Some(_) = links.join_next() => continue,
            };
            match accepted {
                Ok((stream, addr)) => {
                    Counts::add(&self.counts.accepted);
                    let Some(place) = self.admission.handshake(addr.ip()) else {
                        Counts::add(&self.counts.refused);
                        tracing::debug!(%addr, "too many handshakes of one source: turned away");
                        continue;
                    };
                    let server = Arc::clone(self);
                    links.spawn(async move { server.welcome(stream, addr, place).await });
                }
                Err(error) => {
                    tracing::warn!(%error, "take a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        self.slots.end_all("the site is being stopped");
        let ended = timeout(STOP_LIMIT, async { while links.join_next().await.is_some() {} });
        if ended.await.is_err() {
            tracing::warn!("links did not end in time: given up");
        }
    }

    async fn welcome(self: Arc<Self>, stream: TcpStream, addr: SocketAddr, place: Place) {
        let shaken = async {
            tokio::select! {
                shaken = timeout(HANDSHAKE_LIMIT, self.shake(stream)) => shaken,
                () = place.evicted() => Ok(Err(crowded())),
            }
        };
        let shaken = shaken.await;
        let outcome = match shaken {
            Ok(Ok((stream, redeems))) if redeems => enroll::redeem(&self, stream, place).await,
            Ok(Ok((stream, _))) => session::run(&self, stream, addr, place).await,
            Ok(Err(error)) => self.turned_away(error),
            Err(_) => self.turned_away(Error::Away("the handshake took too long".into())),
        };
        match outcome {
            Ok(()) => {}
            Err(error @ (Error::Refused(_) | Error::Broken(_))) => {
                tracing::warn!(%addr, %error, "a link ended");
            }
            Err(error) => tracing::info!(%addr, %error, "a link ended"),
        }
    }

    fn turned_away(&self, error: Error) -> Result<()> {
        Counts::add(&self.counts.refused);
        Err(error)
    }

    /// The handshake; whether it was one of who comes to redeem.
    async fn shake(&self, stream: TcpStream) -> Result<(TlsStream<TcpStream>, bool)> {
        let away = |e: std::io::Error| Error::Away(format!("handshake: {e}"));
        socket::set(&stream).map_err(away)?;
        let acceptor = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream);
        let begun = timeout(CLIENT_HELLO_LIMIT, acceptor).await;
        let slow = |_| Error::Away("nothing came after connecting".into());
        let begun = begun.map_err(slow)?.map_err(away)?;
        let hello = begun.client_hello();
        let asked = hello.server_name().unwrap_or_default().to_owned();
        let wants = hello.alpn().is_some_and(|mut names| names.any(|n| n == ALPN_REDEEM));
        // With no invitation open there is nobody who may come without a certificate.
        let redeems = wants && self.site.ledger().has_open_invitations(crate::identity::now_s());
        let config = verify::server_config(&self.site, &asked, redeems)?;
        let stream = begun.into_stream(config).await.map_err(away)?;
        if stream.get_ref().1.alpn_protocol().is_none() {
            return Err(Error::Refused("a client that names no protocol".into()));
        }
        Ok((stream, redeems))
    }
}

/// A place at the door was needed for somebody else.
fn crowded() -> Error {
    Error::Away("many connect at once, and this one took too long: try again".into())
}

/// Who is at the other end of a link with certificates.
fn peer_of(stream: &TlsStream<TcpStream>) -> Result<Peer> {
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let certificate = certificates
        .first()
        .ok_or_else(|| Error::Refused("a client without a certificate".into()))?;
    Peer::of(certificate).map_err(|e| Error::Refused(format!("a client's certificate: {e}")))
}
