//! An NBD server and client over stream sockets, blocking, one thread a connection.
//!
//! * [`proto`] is the encoding: pure, no I/O.
//! * [`export`] is what a server offers: the [`Export`] trait, a file, memory.
//! * [`server`] answers clients; a write's payload goes from the socket straight into memory
//!   that the export hands out, and a batch of requests costs a handful of system calls.
//! * [`client`] reads other servers, pipelined, and serves the tests.
//!
//! What always holds: no size that a peer declares is allocated before it has been checked
//! against a limit; a connection's memory is bounded by its buffers and one request's payload;
//! what one peer does ends at most its own connection. Facts about the protocol come from
//! `doc/proto.md` of the NetworkBlockDevice project.

pub mod client;
pub mod errno;
pub mod export;
pub mod proto;
pub mod server;
pub mod transport;

pub use client::{Client, ClientError, ClientOptions, Content};
pub use errno::Errno;
pub use export::{
    Export, ExportInfo, ExportSet, Exports, FileExport, MemoryExport, Payload, StatusSink,
    WriteFlags, ZeroFlags,
};
pub use server::{
    CloseReason, ConnectionObserver, Limits, ListenError, NoObserver, Observer,
    SOCKET_PATH_BYTES_MAX, Server, ServerHandle, SocketFile, bind,
};
pub use transport::Transport;
