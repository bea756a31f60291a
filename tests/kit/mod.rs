//! What end-to-end tests and benches stand on: real QEMU guests ([`Vm`]), their images ([`image`]),
//! the program under test ([`Agent`], [`Cli`]) and the judge of what a restored copy holds
//! ([`prefix`]).
//!
//! Blocking, with threads and a limit on every wait. What cannot be set up panics with all that is
//! needed to see why; a process that was started here ends with its handle, by its pid. Sockets,
//! logs and state lie in temporary directories of their own.
#![allow(dead_code, unused_imports, reason = "each test binary and bench uses a part of it")]

mod agent;
mod disk;
mod export;
pub mod faulty;
mod filesystem;
pub mod image;
mod net;
mod port;
pub mod prefix;
mod qmp;
#[path = "../guest/program/src/record.rs"]
pub mod record;
pub mod s3;
#[cfg(test)]
mod selftest;
mod site;
mod vm;

pub use agent::{Agent, Cli, Outcome};
pub use disk::{Cache, Disk, Format, Style};
pub use export::Export;
pub use filesystem::SmallFs;
pub use net::{Net, SOURCE};
pub use port::{GuestPort, value};
pub use qmp::Qmp;
pub use site::Site;
pub use vm::{Accel, Stats, Vm, VmBuilder};

use std::time::{Duration, Instant};

/// How long a guest may take to boot. Some seconds are usual; tests beside it may slow it down.
pub const BOOT_LIMIT: Duration = Duration::from_secs(90);
/// How long an answer of a guest or of QEMU may take.
pub const REPLY_LIMIT: Duration = Duration::from_secs(30);

/// Asks `probe` every 10 ms until it gives something. `None` once `limit` has passed.
pub fn poll<T>(limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let begin = Instant::now();
    loop {
        if let Some(found) = probe() {
            return Some(found);
        }
        if begin.elapsed() >= limit {
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The last `count` lines of the file at `path`, for a message.
fn tail(path: &std::path::Path, count: usize) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
