//! Who may come, and to whom: a site's own authority, what it gave out, and what an agent holds.
//!
//! ```text
//!  site: STATE/tls/                                    agent: a directory a site
//!    authority.json  certificate and key, 30 years       credentials.json  key, certificate, the
//!    server.json     certificate and key, 90 days                          site's authority
//!    ledger.json     invitations, certificates           pending.json      a key without a certificate
//! ```
//!
//! What always holds:
//! * TLS 1.3 and nothing else; both ends show certificates that the site's authority signed, but for
//!   redeeming an invitation, where the client shows a secret over a link that is pinned to the site;
//! * a certificate is for one usage: a server's is no client's, and the other way round;
//! * a client's names one group; the site lets in only serials that its ledger has and that are neither
//!   revoked nor expired, and asks it again every second while the link stands;
//! * an invitation is good for one key; that it was used is durable before the certificate goes out;
//! * every file here is 0600 and replaced whole.

pub mod authority;
pub mod credentials;
pub mod invitation;
pub mod keys;
pub mod ledger;
pub mod site;
pub mod text;
pub mod verify;

pub use credentials::Credentials;
pub use invitation::{Fingerprint, Invitation};
pub use ledger::{Certificate, Ledger, Refusal};
pub use site::Site;
pub use verify::Peer;

use afterimage_journal::layout;
use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds of a day.
pub const DAY_S: u64 = 24 * 3600;

/// Wall time, seconds since the Unix epoch.
#[must_use]
pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// The name in a site's server certificates: made from its authority, so that it doesn't depend on where
/// the site is reached.
#[must_use]
pub fn server_name(authority: &Fingerprint) -> String {
    format!("{}.afterimage", text::to_hex(&authority[..16]))
}

/// The name that a client asks for (SNI): says to the site which group it comes for before anything else,
/// and to others nothing.
#[must_use]
pub fn group_name(authority: &Fingerprint, group: &str) -> String {
    let mut input = authority.to_vec();
    input.extend_from_slice(group.as_bytes());
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &input);
    format!("{}.{}", text::to_hex(&digest.as_ref()[..16]), server_name(authority))
}

/// The URI in a client's certificate.
fn group_uri(group: &str) -> String {
    format!("{GROUP_URI}{group}")
}

const GROUP_URI: &str = "afterimage:group:";

/// The group that a URI names.
fn group_of_uri(uri: &str) -> Option<&str> {
    let group = uri.strip_prefix(GROUP_URI)?;
    layout::check_name(group).ok().map(|()| group)
}

/// SHA-256.
fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}

#[cfg(test)]
mod tests;
