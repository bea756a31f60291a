//! Making a connection to a site, with limits of time.

use crate::error::{Error, Result};
use crate::frame::io::broken_off;
use crate::identity::{Credentials, Fingerprint, group_name, server_name, verify};
use crate::socket;
use rustls::pki_types::ServerName;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Longest that connecting takes, and the handshake.
pub const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// Connects to the site with this authority: with credentials, or to get some.
pub(super) async fn connect(
    addr: &str,
    fingerprint: &Fingerprint,
    credentials: Option<&Credentials>,
) -> Result<TlsStream<TcpStream>> {
    let config = verify::client_config(fingerprint, credentials)?;
    let name = match credentials {
        Some(c) => group_name(fingerprint, &c.group),
        None => server_name(fingerprint),
    };
    let name = ServerName::try_from(name).map_err(|e| Error::Local(format!("a name: {e}")))?;
    let limit = CONNECT_LIMIT.as_secs();
    let tcp = timeout(CONNECT_LIMIT, TcpStream::connect(addr))
        .await
        .map_err(|_| Error::Away(format!("{addr} did not answer within {limit} s")))?
        .map_err(|e| {
            Error::Away(format!(
                "connect to {addr}: {e}; is `afterimage site serve` running there?"
            ))
        })?;
    socket::set(&tcp).map_err(|e| Error::Away(format!("set the socket to {addr}: {e}")))?;
    timeout(CONNECT_LIMIT, TlsConnector::from(config).connect(name, tcp))
        .await
        .map_err(|_| Error::Away(format!("{addr} did not end the handshake within {limit} s")))?
        .map_err(|e| broken_off(&e))
}
