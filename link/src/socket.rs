//! How both ends set their sockets: small delays, and ends that are gone get noticed.

use socket2::{SockRef, TcpKeepalive};
use std::io;
use std::time::Duration;
use tokio::net::TcpStream;

/// Bytes that wait in the kernel unsent: what is fresh stands behind no more than these.
const UNSENT_BYTES_MAX: u32 = 128 << 10;
/// Data that was not acknowledged for so long ends a connection.
const UNACKED_LIMIT: Duration = Duration::from_secs(15);
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(2);
const KEEPALIVE_TRIES: u32 = 3;

/// Sets a socket of ours.
pub(crate) fn set(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_EVERY)
        .with_retries(KEEPALIVE_TRIES);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(UNACKED_LIMIT))?;
    socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX)
}
