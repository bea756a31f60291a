//! A site behind TLS as a [`Sink`]: what the agent calls, blocking, in front of a link of its own thread.
//!
//! ```text
//!  caller ─ apply ─► fresh ──────┐                      ┌─► fresh ──────┐
//!                └─► background ─┴─ link: fresh first ──┴─► background ─┴─ site: fresh first
//!  caller ◄─ ack ◄──────────────────────── acks, credit ◄────────────────────────┘
//! ```
//!
//! What always holds: bytes under way are bounded for each class apart by what the site allows, so that a
//! background piece delays what is fresh by no more than itself; no call blocks longer than its limit; an
//! end that is silent for [`SILENCE_LIMIT`](crate::frame::io::SILENCE_LIMIT) is gone.

mod connect;
mod enroll;
mod link;
mod state;

pub use enroll::{redeem, renew};

use crate::error::Error;
use crate::frame::convert::{Class, NAMES_MAX, frame_of};
use crate::frame::pack::Packer;
use crate::identity::{Credentials, Invitation, now_s};
use afterimage_journal::wire::{Ack, Hello, Inventory, Op, Sink, SinkError};
use state::Shared;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longest that [`Sink::open`] takes: a site may have much to recover first.
pub const OPEN_LIMIT: Duration = Duration::from_secs(120);
/// Longest that [`Sink::apply`] waits for the site to take what is under way.
pub const CREDIT_LIMIT: Duration = Duration::from_secs(60);
/// Time between two attempts to renew a certificate.
const RENEW_AGAIN: Duration = Duration::from_secs(600);

/// Where a site is: `tls://HOST:PORT`, or `tls://HOST:PORT#INVITATION` when it is to be come to for the
/// first time.
#[derive(Debug, Clone)]
pub struct SiteUrl {
    /// `HOST:PORT`.
    pub addr: String,
    /// What is behind the `#`.
    pub invitation: Option<Invitation>,
}

impl FromStr for SiteUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let form = || Error::Invalid("a site is written as tls://HOST:PORT#INVITATION".into());
        let rest = text.strip_prefix("tls://").ok_or_else(form)?;
        let (addr, invitation) = match rest.split_once('#') {
            Some((addr, invitation)) => (addr, Some(invitation.parse()?)),
            None => (rest, None),
        };
        let (host, port) = addr.rsplit_once(':').ok_or_else(form)?;
        let bare = !host.contains(':') || (host.starts_with('[') && host.ends_with(']'));
        let plain = !host.is_empty() && !host.contains(['/', '@', '?']) && bare;
        if !plain || !port.parse::<u16>().is_ok_and(|p| p > 0) {
            return Err(form());
        }
        Ok(Self { addr: addr.to_owned(), invitation })
    }
}

/// Where a sink sends to.
#[derive(Debug, Clone)]
pub struct TlsTarget {
    /// `HOST:PORT`.
    pub addr: String,
    /// The directory with the credentials for this site and group ([`redeem`] makes them).
    pub credentials: PathBuf,
}

/// See the module.
pub struct TlsSink {
    target: TlsTarget,
    link: Option<Link>,
    packer: Packer,
    mirrors: bool,
    renew_tried: Option<Instant>,
}

/// One link, and the thread that it runs on.
struct Link {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.shared.stop();
        if let Some(thread) = self.thread.take() {
            // It waits for nothing but the stop.
            let _ = thread.join();
        }
    }
}

impl TlsSink {
    /// One that is not connected yet.
    #[must_use]
    pub fn new(target: TlsTarget) -> Self {
        let packer = Packer::default();
        Self { target, link: None, packer, mirrors: false, renew_tried: None }
    }

    /// Bytes of payload that were to be sent, and that were sent for them.
    #[must_use]
    pub fn payload_bytes(&self) -> (u64, u64) {
        self.packer.counts()
    }

    fn credentials(&mut self, group: &str) -> Result<Credentials, Error> {
        let dir = &self.target.credentials;
        let found = Credentials::load(dir)?.ok_or_else(|| {
            Error::Refused(format!(
                "there are no credentials for {} in {}: redeem an invitation, which `afterimage \
                 site enroll --group {group}` prints there",
                self.target.addr,
                dir.display()
            ))
        })?;
        if found.group != group {
            return Err(Error::Refused(format!(
                "the certificate for {} is for group {}, not {group}",
                self.target.addr, found.group
            )));
        }
        let due = found.validity.renew_at_s() <= now_s();
        let tried = self.renew_tried.is_some_and(|t| t.elapsed() < RENEW_AGAIN);
        if !due || tried {
            return Ok(found);
        }
        self.renew_tried = Some(Instant::now());
        match renew(&self.target.addr, &self.target.credentials) {
            Ok(renewed) => {
                self.renew_tried = None;
                Ok(renewed)
            }
            // The old one may be good still; if it isn't, the site says so.
            Err(error) => {
                tracing::warn!(group, site = self.target.addr, %error, "renew the certificate");
                Ok(found)
            }
        }
    }

    fn apply_one(&mut self, op: Op) -> Result<(), SinkError> {
        let Some(link) = &self.link else { return Err(not_open()) };
        let class = Class::of(&op);
        self.packer.set_link(link.shared.rate());
        let frame = frame_of(op, &mut self.packer)?;
        link.shared.put(class, frame, CREDIT_LIMIT)
    }
}

fn not_open() -> SinkError {
    SinkError::Away("the site is not connected: it is to be opened first".into())
}

impl Sink for TlsSink {
    fn open(&mut self, hello: &Hello) -> Result<Inventory, SinkError> {
        self.link = None;
        let credentials = self.credentials(&hello.identity.name)?;
        let shared = Arc::new(Shared::default());
        let thread = link::start(&shared, &self.target.addr, credentials, hello)?;
        let link = Link { shared: Arc::clone(&shared), thread: Some(thread) };
        let (inventory, mirrors) = shared.opened(OPEN_LIMIT)?;
        self.mirrors = mirrors;
        self.link = Some(link);
        Ok(inventory)
    }

    fn apply(&mut self, op: Op) -> Result<(), SinkError> {
        let outcome = match op {
            Op::Release(names) if names.len() > NAMES_MAX => names
                .chunks(NAMES_MAX)
                .try_for_each(|part| self.apply_one(Op::Release(part.to_vec()))),
            op => self.apply_one(op),
        };
        if outcome.is_err() {
            self.link = None;
        }
        outcome
    }

    fn ack(&mut self, wait: Duration) -> Result<Option<Ack>, SinkError> {
        let Some(link) = &self.link else { return Err(not_open()) };
        let outcome = link.shared.ack(wait);
        if outcome.is_err() {
            self.link = None;
        }
        outcome
    }

    fn mirrors(&self) -> bool {
        self.mirrors
    }
}

#[cfg(test)]
mod tests;
