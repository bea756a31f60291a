//! What can go wrong between us and a hypervisor.
//!
//! A variant names the fact and the thing it happened to; [`Error::kind`] names what the caller
//! can do about it. Texts say what to do next, since they end up in front of an operator.

use std::path::PathBuf;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What the caller can do about an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The hypervisor or the guest is gone, or its monitor is: connect again, or end.
    Gone,
    /// It may work a little later, unchanged.
    Retry,
    /// The configuration or the argument is wrong: tell the operator.
    FixInput,
    /// This hypervisor cannot do it: tell the operator, don't try again.
    Unsupported,
    /// QEMU refused the command; the text is QEMU's own.
    Refused,
    /// The answer was not what the protocol promises.
    Protocol,
}

/// An error of the monitor, of QEMU, of libvirt or of the guest agent.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// There is nothing at the path.
    #[error(
        "no socket at {path}: is the guest running? Start QEMU with \
         `-qmp unix:{path},server=on,wait=off`, or name its monitor's path"
    )]
    Missing {
        /// The path that was tried.
        path: PathBuf,
    },
    /// There is something at the path, but not a socket.
    #[error("{path} is not a socket but a {what}: name the path of QEMU's QMP socket")]
    NotSocket {
        /// The path that was tried.
        path: PathBuf,
        /// What is there instead.
        what: &'static str,
    },
    /// A socket file that nobody listens on.
    #[error("nobody listens on {path}: the process that made this socket has ended")]
    Refused {
        /// The path that was tried.
        path: PathBuf,
    },
    /// The socket could not be opened for another reason.
    #[error("cannot connect to {path}: {reason}")]
    Connect {
        /// The path that was tried.
        path: PathBuf,
        /// The system's reason.
        reason: String,
    },
    /// The socket took the connection and then said nothing.
    #[error(
        "{path} said nothing within {waited_ms} ms ({peer}). QMP serves one client at a time: \
         another program (libvirt, another agent, a script) may hold this monitor, or it is no \
         QMP socket. End the other client, give QEMU a second `-qmp` socket, or use --libvirt"
    )]
    Silent {
        /// The path that was tried.
        path: PathBuf,
        /// How long we waited, in milliseconds.
        waited_ms: u64,
        /// Who listens there, as far as the kernel tells.
        peer: String,
    },
    /// The socket talks, but not QMP.
    #[error("{path} is not a QMP socket: {saw}")]
    NotQmp {
        /// The path that was tried.
        path: PathBuf,
        /// What it is, or the beginning of what it said.
        saw: String,
    },
    /// The connection to the monitor has ended.
    #[error("the monitor is gone: {reason}")]
    Closed {
        /// Why it ended, as far as known.
        reason: String,
    },
    /// A command was not answered in time.
    ///
    /// Its effect is unknown: it may still be carried out.
    #[error("{command} was not answered within {limit_ms} ms: QEMU's main loop may be blocked")]
    Timeout {
        /// The command.
        command: String,
        /// The limit, in milliseconds.
        limit_ms: u64,
    },
    /// Too many commands are waiting for an answer already.
    #[error("{command} was not sent: {pending} commands are unanswered; QEMU's monitor is blocked")]
    Overloaded {
        /// The command.
        command: String,
        /// Commands without an answer.
        pending: usize,
    },
    /// QEMU (or the guest agent) answered with an error.
    #[error("{command} was refused: {desc} ({class})")]
    Command {
        /// The command.
        command: String,
        /// QMP's error class: `GenericError`, `CommandNotFound`, `DeviceNotActive`, ...
        class: String,
        /// QEMU's own words.
        desc: String,
    },
    /// An answer did not have the shape that the command promises.
    #[error("{command} answered in a form that is not understood: {what}")]
    Shape {
        /// The command.
        command: String,
        /// What was missing or odd.
        what: String,
    },
    /// QEMU is older than what mirror capture was built on.
    #[error(
        "QEMU {found} is too old: mirror capture needs {needed} or later \
         (older ones don't say when a mirror is actively synced)"
    )]
    TooOld {
        /// The version that runs.
        found: String,
        /// The oldest that will do.
        needed: &'static str,
    },
    /// No disk answers to that name.
    #[error("no disk {selector:?}; this guest has: {have}")]
    NoSuchDisk {
        /// What was asked for.
        selector: String,
        /// The disks there are.
        have: String,
    },
    /// More than one disk answers to that name.
    #[error("{selector:?} could be any of: {have}; use the node name or the full qdev path")]
    AmbiguousDisk {
        /// What was asked for.
        selector: String,
        /// The disks that match.
        have: String,
    },
    /// A name that QEMU would not take.
    #[error("{name:?} cannot name a {what}: {why}")]
    BadName {
        /// The name.
        name: String,
        /// What it was to name.
        what: &'static str,
        /// The rule that it breaks.
        why: &'static str,
    },
    /// A job that should be there is not.
    #[error("block job {job} is gone{}", reason.as_ref().map(|r| format!(": {r}")).unwrap_or_default())]
    JobGone {
        /// The job.
        job: String,
        /// QEMU's reason, where it gave one.
        reason: Option<String>,
    },
    /// A job did not get where it should within the limit.
    #[error("block job {job} is not {wanted} after {waited_ms} ms; it is {state}")]
    JobStuck {
        /// The job.
        job: String,
        /// Where it should be.
        wanted: &'static str,
        /// How long we waited, in milliseconds.
        waited_ms: u64,
        /// Where it is.
        state: String,
    },
    /// QEMU's one NBD server belongs to somebody else and cannot be used.
    #[error(
        "QEMU's NBD server is in use by somebody else ({why}) and QEMU has only one: \
         stop theirs (`nbd-server-stop`, or end the backup that runs), then try again"
    )]
    NbdServerTaken {
        /// What is known about it.
        why: String,
    },
    /// The guest stands still, or has ended: its memory can't be taken while it runs.
    #[error("the guest does not run (it is {state}): its memory can be taken once it does")]
    NotRunning {
        /// What it does.
        state: String,
    },
    /// QEMU has one migration at a time.
    #[error("a migration of the guest goes on ({status}): wait for its end, or cancel it")]
    MigrationUnderWay {
        /// QEMU's word for where it stands.
        status: String,
    },
    /// A device or an option forbids migration, and with it reading the memory.
    #[error("QEMU cannot give the guest's memory away: {reasons}")]
    MigrationBlocked {
        /// QEMU's reasons.
        reasons: String,
    },
    /// The guest's memory can't be saved while it runs.
    #[error(
        "QEMU cannot save the guest's memory while it runs (background-snapshot): {reason}; \
         `--memory-mode stop` stops the guest until its memory is read"
    )]
    NoBackgroundSnapshot {
        /// QEMU's reason.
        reason: String,
    },
    /// `virsh` could not be run, or failed.
    #[error("{program} {action} failed: {reason}")]
    Virsh {
        /// The program as configured.
        program: String,
        /// The subcommand and its domain.
        action: String,
        /// Its standard error, or the system's reason.
        reason: String,
    },
    /// The guest agent does not answer.
    #[error(
        "the guest agent at {channel} did not answer within {waited_ms} ms: \
         is qemu-guest-agent installed and running in the guest?"
    )]
    AgentSilent {
        /// The socket or domain.
        channel: String,
        /// How long we waited, in milliseconds.
        waited_ms: u64,
    },
    /// A file of /proc could not be read.
    #[error("cannot read {path}: {reason}")]
    Proc {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        reason: String,
    },
}

impl Error {
    /// What the caller can do about it.
    pub fn kind(&self) -> Kind {
        match self {
            Error::Missing { .. }
            | Error::Refused { .. }
            | Error::Closed { .. }
            | Error::Proc { .. } => Kind::Gone,
            Error::Timeout { .. }
            | Error::Overloaded { .. }
            | Error::JobStuck { .. }
            | Error::Silent { .. }
            | Error::NbdServerTaken { .. }
            | Error::NotRunning { .. }
            | Error::MigrationUnderWay { .. }
            | Error::AgentSilent { .. } => Kind::Retry,
            Error::NotSocket { .. }
            | Error::Connect { .. }
            | Error::NotQmp { .. }
            | Error::NoSuchDisk { .. }
            | Error::AmbiguousDisk { .. }
            | Error::BadName { .. }
            | Error::Virsh { .. } => Kind::FixInput,
            Error::TooOld { .. }
            | Error::MigrationBlocked { .. }
            | Error::NoBackgroundSnapshot { .. } => Kind::Unsupported,
            Error::Command { class, .. } if class == "CommandNotFound" => Kind::Unsupported,
            Error::Command { .. } | Error::JobGone { .. } => Kind::Refused,
            Error::Shape { .. } => Kind::Protocol,
        }
    }

    /// Whether QEMU refused with a text that holds `part`.
    ///
    /// QMP has no codes beyond a few classes, so some answers can only be told by their words.
    pub(crate) fn refused_with(&self, part: &str) -> bool {
        matches!(self, Error::Command { desc, .. } if desc.contains(part))
    }

    pub(crate) fn shape(command: &str, what: impl Into<String>) -> Self {
        Error::Shape { command: command.to_owned(), what: what.into() }
    }
}
