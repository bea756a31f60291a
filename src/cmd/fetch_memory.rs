//! `afterimage fetch-memory`: the client that QEMU's `-incoming exec:` needs, which itself only
//! listens on sockets.

use crate::failure::{Failure, Outcome};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// The subcommand's name: scripts of exports call it.
pub const NAME: &str = "fetch-memory";

/// Copy what a memory socket of `export --warm` sends to standard output
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub struct FetchMemoryArgs {
    /// The socket
    socket: PathBuf,
}

/// Runs it.
pub fn run(args: &FetchMemoryArgs) -> Outcome {
    let shown = args.socket.display();
    let mut stream = UnixStream::connect(&args.socket).map_err(|e| Failure {
        code: 4,
        message: format!("connect to {shown}: {e}: does `export --warm` still run?"),
    })?;
    let copied = io::copy(&mut stream, &mut io::stdout().lock())
        .map_err(|e| Failure::io(format!("copy memory from {shown}"), &e))?;
    if copied == 0 {
        return Err(Failure::other(format!(
            "{shown} gave no memory: its disks were written to since, so that it belongs to them \
             no more (boot them: `cold`, or export again); or it can't be read, and the export's \
             log says why"
        )));
    }
    Ok(())
}
