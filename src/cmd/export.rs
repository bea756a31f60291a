//! `afterimage export`: a guest's disks as they were at a moment, over NBD, at once.

use crate::failure::{Failure, Outcome};
use crate::state::{self, KeyArgs, StateArgs};
use crate::{show, when};
use afterimage_journal::history::When;
use afterimage_restore::{
    ExportOptions, ExportReport, Exporting, Host, Recovery, ThisHost, WarmExport, WithQemu,
    export_warm, uri_part,
};
use std::path::PathBuf;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Serve the disks of a guest or group over NBD, as they were at a moment
///
/// Answers at once, straight from the journal, with or without an agent; the guest may go on
/// meanwhile. One line is printed when clients can connect; the command ends on Ctrl-C or
/// SIGTERM. Each disk is an export under its node's name (GUEST/NODE too, and "" for a single
/// one). Any number of exports may run at a time, each on a socket of its own.
#[derive(Debug, clap::Args)]
pub struct ExportArgs {
    /// Guest or group
    name: String,
    /// The moment (WHEN): latest, RFC 3339, 14:03:10.250, '5m ago', seq:123, '#7', tag:TEXT
    #[arg(long, value_name = "WHEN")]
    at: String,
    /// Unix socket to listen on; it is removed at the end
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// Only this disk: node name, device path or id (repeatable; all)
    #[arg(long = "disk", value_name = "NODE")]
    disks: Vec<String>,
    /// Take writes, into a scratch layer that is thrown away at the end; the moment never changes
    #[arg(long)]
    writable: bool,
    /// Directory for the scratch layer [default: $TMPDIR, else /var/tmp]
    #[arg(long, value_name = "DIR", requires = "writable")]
    scratch: Option<PathBuf>,
    /// The memory too, over a second socket: WHEN is a checkpoint with memory (latest: the newest
    /// of them). With --writable a script beside the socket resumes a copy: once, for what it
    /// writes makes the disks another moment's
    #[arg(long, conflicts_with = "disks")]
    warm: bool,
    /// The memory's socket [default: that of the disks with .memory behind it]
    #[arg(long, value_name = "PATH", requires = "warm")]
    memory_socket: Option<PathBuf>,
    /// The copy waits until all of its memory is there; else it runs at once, where that is
    /// possible, and pages that it touches come first
    #[arg(long, requires = "warm")]
    preload: bool,
    /// The QEMU that resumes the copy [default: that of this system with the original's name]
    #[arg(long, value_name = "PATH", requires = "warm")]
    qemu: Option<PathBuf>,
    /// Print the ready line as JSON: {socket, exports, seq, time, ..}
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    state: StateArgs,
}

/// Runs it.
pub fn run(args: &ExportArgs) -> Outcome {
    let wanted = when::parse_here(&args.at)?;
    let mut recovery = args.state.open_to_reread(&args.name)?;
    args.key.unlock(&mut recovery)?;
    let name = recovery.name().to_owned();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(|e| Failure::io("start the runtime", &e))?;
    // From before the socket is there, which whoever ends us then finds removed; until now a
    // signal just ended the command.
    let mut ends = {
        let _inside = runtime.enter();
        Ends::new().map_err(|e| Failure::io("listen for signals", &e))?
    };
    let options = ExportOptions {
        socket: args.socket.clone(),
        disks: args.disks.clone(),
        writable: args.writable,
        scratch: args.scratch.clone(),
    };
    let (exporting, wall_ns) = serve(args, recovery, &wanted, &options)?;
    let line = if args.json {
        show::json(&exporting.report, false)?
    } else {
        for warning in &exporting.report.warnings {
            show::complain(warning);
        }
        ready(&name, wall_ns, &exporting.report)
    };
    show::print(&line)?;
    runtime.block_on(ends.next());
    exporting.end();
    Ok(())
}

/// Begins to serve; the time of what is served, nanoseconds since the Unix epoch.
fn serve(
    args: &ExportArgs,
    recovery: Recovery,
    wanted: &When,
    options: &ExportOptions,
) -> Outcome<(Exporting, u64)> {
    if !args.warm {
        let point = state::resolve(&recovery, wanted)?;
        return Ok((afterimage_restore::export(recovery, point, options)?, point.wall_ns));
    }
    let point = state::resolve_warm(&recovery, wanted)?;
    let program = std::env::current_exe().map_err(|e| Failure::io("find this program", &e))?;
    let fetch = vec![program.display().to_string(), super::fetch_memory::NAME.to_owned()];
    let socket = args.memory_socket.clone();
    let warm = WarmExport { socket, fetch, preload: args.preload };
    let named = args.qemu.clone().map(WithQemu);
    let host: &dyn Host = named.as_ref().map_or(&ThisHost, |named| named);
    let exporting = export_warm(recovery, &point, options, &warm, host)?;
    Ok((exporting, point.point.wall_ns))
}

/// The signals that end an export.
struct Ends {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Ends {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

fn ready(name: &str, wall_ns: u64, report: &ExportReport) -> String {
    let disks: Vec<String> = report
        .exports
        .iter()
        .map(|disk| format!("{} ({})", show::escaped(&disk.name), show::bytes(disk.bytes)))
        .collect();
    let export = match &report.exports[..] {
        [_] => String::new(),
        disks => uri_part(disks.first().map_or("", |disk| &disk.name)),
    };
    let mode = match (&report.scratch, report.scratch_free_bytes) {
        (Some(dir), Some(free)) => {
            format!("writable, into {} ({} free)", dir.display(), show::bytes(free))
        }
        _ => "read-only".to_owned(),
    };
    let mut line = format!(
        "ready: {name} as it was at {} (seq:{}), {}; {mode}; nbd+unix:///{export}?socket={}",
        show::clock(state::time(wall_ns)),
        report.seq,
        disks.join(", "),
        uri_part(&report.socket.display().to_string()),
    );
    for memory in &report.memories {
        let guest = show::escaped(&memory.guest);
        line += &format!("; memory of {guest}: {}", memory.socket.display());
        if let Some(script) = &memory.script {
            line += &format!(", resume it: {}", script.display());
        }
    }
    for disk in &report.skipped {
        let disk = show::escaped(disk);
        line += &format!("; {disk} is not there: it had not been synced at that moment");
    }
    line + "\n"
}
