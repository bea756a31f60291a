//! `afterimage fetch-memory`: connects a memory socket of `export --warm`, which QEMU's `-incoming fd:`
//! then reads: it itself only listens on sockets.

use crate::failure::{Failure, Outcome};
use rustix::io::{Errno, FdFlags};
use std::ffi::OsString;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// The subcommand's name: scripts of exports call it.
pub const NAME: &str = "fetch-memory";
/// The descriptor that the program finds the socket at.
const DESCRIPTOR: i32 = 3;

/// Copy what a memory socket of `export --warm` sends to standard output, or run a program with it
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub struct FetchMemoryArgs {
    /// The socket
    socket: PathBuf,
    /// A program, and its arguments: it gets the socket as descriptor 3
    #[arg(last = true, value_name = "PROGRAM")]
    program: Vec<OsString>,
}

/// Runs it.
pub fn run(args: &FetchMemoryArgs) -> Outcome {
    let shown = args.socket.display();
    let mut stream = UnixStream::connect(&args.socket).map_err(|e| Failure {
        code: 4,
        message: format!("connect to {shown}: {e}: does `export --warm` still run?"),
    })?;
    let failed = |e: &io::Error| Failure::io(format!("read memory from {shown}"), e);
    // A look ahead: it waits for the first bytes.
    let mut first = [0];
    let flags = rustix::net::RecvFlags::PEEK;
    let (peeked, _) =
        rustix::net::recv(&stream, &mut first[..], flags).map_err(|e: Errno| failed(&e.into()))?;
    if peeked == 0 {
        return Err(Failure::other(format!(
            "{shown} gave no memory: its disks were written to since, so that it belongs to them \
             no more (boot them: `cold`, or export again); or it can't be read, and the export's \
             log says why"
        )));
    }
    let Some((program, arguments)) = args.program.split_first() else {
        io::copy(&mut stream, &mut io::stdout().lock()).map_err(|e| failed(&e))?;
        return Ok(());
    };
    pass(stream).map_err(|e| failed(&e))?;
    let error = Command::new(program).args(arguments).exec();
    Err(Failure::io(format!("start {}", program.display()), &error))
}

/// Makes it the descriptor that the next program has.
fn pass(stream: UnixStream) -> io::Result<()> {
    let socket = OwnedFd::from(stream);
    if socket.as_raw_fd() == DESCRIPTOR {
        rustix::io::fcntl_setfd(&socket, FdFlags::empty())?;
        let _stays = socket.into_raw_fd();
        return Ok(());
    }
    // SAFETY: whatever of this process has the number goes with it: nothing but `exec` follows. It is
    // never closed by this owner.
    let mut target = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(DESCRIPTOR) });
    rustix::io::dup2(&socket, &mut target)?;
    Ok(())
}
