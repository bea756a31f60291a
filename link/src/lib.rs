//! The link between an agent and a site: TLS 1.3 with certificates at both ends, frames, a [`Sink`].
//!
//! [`identity`] says who may come and to whom, [`frame`] is the bytes, [`sink`] the agent's end,
//! [`server`] the site's. The protocol is specified in `docs/protocol.md`. What always holds:
//! * nothing goes over a link in the clear, and nothing that a peer sent is looked at before TLS and the
//!   ledger let it in;
//! * every size that is declared is judged before memory is taken for it, every wait has a limit;
//! * an ack is the sink's own: it covers what would survive a power loss at the site.
//!
//! [`Sink`]: afterimage_journal::wire::Sink

pub mod error;
pub mod files;
pub mod frame;
pub mod identity;
pub mod server;
pub mod sink;
mod socket;

pub use error::{Error, Result};
pub use identity::{Credentials, Invitation};
pub use sink::{SiteUrl, TlsSink, TlsTarget, redeem};
