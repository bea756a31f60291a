//! `afterimage thaw`: thaws a copy that was resumed from a checkpoint with frozen file systems. Scripts that
//! resume such a copy start it beside QEMU.

use crate::failure::{Failure, Outcome};
use crate::{quantity, show};
use afterimage_qmp::guest_agent::thaw_blocking;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the guest agent may take to answer before it is asked anew: what is said to one whose
/// memory is still being loaded may be lost.
const TRY_LIMIT: Duration = Duration::from_secs(5);
/// Between two tries.
const TRY_EVERY: Duration = Duration::from_millis(200);

/// Thaw the file systems of a copy that was resumed from a checkpoint made with --quiesce
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub struct ThawArgs {
    /// Socket of the copy's guest agent
    socket: PathBuf,
    /// Give up when this process has ended
    #[arg(long, value_name = "PID")]
    of: Option<u32>,
    /// Longest time to wait for the guest agent's answer
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = quantity::window_s)]
    within: u64,
}

/// Runs it.
pub fn run(args: &ThawArgs) -> Outcome {
    let shown = args.socket.display();
    let deadline = Instant::now() + Duration::from_secs(args.within);
    loop {
        if args.of.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            return Err(Failure::other("not thawed: the copy has ended"));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let error = match thaw_blocking(&args.socket, TRY_LIMIT.min(left)) {
            Ok(count) => {
                return show::print(&format!("thawed {count} file systems of the copy\n"));
            }
            Err(error) => error,
        };
        if Instant::now() >= deadline {
            return Err(Failure {
                code: 4,
                message: format!(
                    "the copy's file systems are still frozen: its guest agent at {shown} did not thaw them \
                     within {} s ({error}). When the copy runs: afterimage thaw {shown}",
                    args.within
                ),
            });
        }
        std::thread::sleep(TRY_EVERY.min(left));
    }
}
