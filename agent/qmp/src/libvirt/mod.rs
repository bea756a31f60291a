//! A guest whose monitor libvirt owns, reached by `virsh` as a subprocess.
//!
//! Arguments are passed as they are, never through a shell. One `virsh` of ours runs at a time
//! for a guest, so that commands keep their order. Events come from `virsh qemu-monitor-event`
//! and, since that may be cut off or buffered at any time, from looking once a second as well.
//! The same fact may so be told twice.

mod watch;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::Command,
    sync::broadcast,
    task::JoinHandle,
};

use crate::{
    Error, Event, Events, Monitor, Result, client, client::wire::excerpt, event::EVENTS_MAX,
    monitor::BoxFuture,
};

/// For `virsh` itself: connecting to libvirt's daemon, and questions that it answers alone.
const VIRSH_LIMIT: Duration = Duration::from_secs(15);
/// The longest output that is read, in bytes.
const OUTPUT_BYTES_MAX: usize = 16 << 20;
/// The longest command, in bytes: the kernel takes 128 KiB in one argument.
const COMMAND_BYTES_MAX: usize = 120 << 10;

/// Which domain, by which `virsh`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Target {
    /// The program: `virsh`, or a path.
    pub program: String,
    /// Its `--connect`, such as `qemu:///system`; its default when `None`.
    pub uri: Option<String>,
    /// The domain's name, id or UUID.
    pub domain: String,
}

impl Target {
    /// The domain of the default connection, by `virsh`.
    pub fn new(domain: &str) -> Target {
        Target { program: "virsh".to_owned(), uri: None, domain: domain.to_owned() }
    }

    /// `[--connect URI] SUBCOMMAND --domain DOMAIN`, then `more`.
    fn arguments(&self, subcommand: &str, more: &[&str]) -> Vec<OsString> {
        let mut all: Vec<&str> = Vec::new();
        if let Some(uri) = &self.uri {
            all.extend(["--connect", uri]);
        }
        all.extend([subcommand, "--domain", &self.domain]);
        all.extend(more);
        all.into_iter().map(OsString::from).collect()
    }

    pub(crate) fn agent_arguments(&self, command: &str, limit: Duration) -> Vec<OsString> {
        let json = json!({ "execute": command }).to_string();
        let seconds = limit.as_secs().max(1).to_string();
        self.arguments("qemu-agent-command", &["--timeout", &seconds, &json])
    }

    fn failed(&self, subcommand: &str, reason: impl Into<String>) -> Error {
        let action = format!("{subcommand} {}", self.domain);
        Error::Virsh { program: self.program.clone(), action, reason: reason.into() }
    }

    /// Runs `virsh` and returns its standard output.
    async fn run(&self, subcommand: &str, more: &[&str], limit: Duration) -> Result<Vec<u8>> {
        self.run_with(subcommand, self.arguments(subcommand, more), limit).await
    }

    async fn run_with(
        &self,
        subcommand: &str,
        arguments: Vec<OsString>,
        limit: Duration,
    ) -> Result<Vec<u8>> {
        let failed = |reason: String| self.failed(subcommand, reason);
        let mut child = Command::new(&self.program)
            .args(arguments)
            // Messages are matched by their words.
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| failed(format!("{e}; is libvirt-clients installed?")))?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let work = async {
            let (out, err) = tokio::join!(read_all(out), read_all(err));
            child.wait().await.map(|status| (status, out, err))
        };
        let ended = tokio::time::timeout(limit, work).await;
        let ended = ended.map_err(|_| Error::Timeout {
            command: format!("virsh {subcommand}"),
            limit_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
        })?;
        let (status, out, err) = ended.map_err(|e| failed(e.to_string()))?;
        if status.success() {
            return out.map_err(|e| failed(e.to_string()));
        }
        let err = err.unwrap_or_default();
        let said = String::from_utf8_lossy(&err).trim().to_owned();
        if said.contains("domain is not running") || said.contains("failed to get domain") {
            return Err(Error::Closed { reason: said });
        }
        Err(failed(if said.is_empty() { status.to_string() } else { said }))
    }

    async fn run_text(&self, subcommand: &str) -> Result<String> {
        let out = self.run(subcommand, &[], VIRSH_LIMIT).await?;
        String::from_utf8(out).map_err(|_| self.failed(subcommand, "its output is no UTF-8"))
    }

    /// One QMP command, without regard to order.
    async fn monitor_command(
        &self,
        command: &str,
        arguments: Value,
        limit: Duration,
    ) -> Result<Value> {
        let subcommand = "qemu-monitor-command";
        let mut message = json!({ "execute": command });
        if !arguments.is_null() {
            message["arguments"] = arguments;
        }
        let message = message.to_string();
        if message.len() > COMMAND_BYTES_MAX {
            return Err(self.failed(subcommand, format!("{command} is too long for an argument")));
        }
        let out = self.run(subcommand, &[&message], limit).await;
        let out = out.map_err(|e| match e {
            Error::Timeout { limit_ms, .. } => {
                Error::Timeout { command: command.to_owned(), limit_ms }
            }
            other => other,
        })?;
        let answer = serde_json::from_slice(&out);
        let answer = answer.map_err(|_| Error::shape(command, excerpt(&out)))?;
        client::answer(command, answer)
    }
}

async fn read_all(from: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        from.take(OUTPUT_BYTES_MAX as u64).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

/// One command to the agent inside the guest.
pub(crate) async fn agent_command(
    target: &Target,
    command: &str,
    limit: Duration,
) -> Result<Value> {
    let arguments = target.agent_arguments(command, limit);
    let out = target.run_with("qemu-agent-command", arguments, limit + VIRSH_LIMIT).await?;
    let answer = serde_json::from_slice(&out);
    client::answer(command, answer.map_err(|_| Error::shape(command, excerpt(&out)))?)
}

/// A disk as libvirt lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockTarget {
    /// `disk` or `cdrom`, `floppy`, `lun`.
    pub device: String,
    /// The name in the guest's definition, such as `vda`.
    pub target: String,
    /// The image, where there is one.
    pub source: Option<String>,
}

/// The monitor of a libvirt domain. Clones share it; the last one ends the watch.
#[derive(Debug, Clone)]
pub struct Libvirt {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    target: Target,
    pid: Option<u32>,
    /// One command at a time, in the order of the calls.
    turn: Arc<tokio::sync::Mutex<()>>,
    feed: Arc<Feed>,
    watch: JoinHandle<()>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

/// Where events go until the domain has ended.
#[derive(Debug)]
struct Feed {
    state: Mutex<std::result::Result<broadcast::Sender<Event>, String>>,
}

impl Feed {
    fn send(&self, event: Event) {
        if let Ok(sender) = &*self.state.lock().unwrap_or_else(PoisonError::into_inner) {
            // An error here means that nobody listens.
            let _ = sender.send(event);
        }
    }

    fn end(&self, reason: &str) {
        self.send(Event::eof(reason));
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = Err(reason.to_owned());
    }
}

impl Libvirt {
    /// Reaches the domain, which must run, and begins to watch it.
    pub async fn open(target: Target) -> Result<Libvirt> {
        let name = target.run_text("domname").await?.trim().to_owned();
        target.monitor_command("query-status", Value::Null, VIRSH_LIMIT).await?;
        let (sender, _) = broadcast::channel(EVENTS_MAX);
        let feed = Arc::new(Feed { state: Mutex::new(Ok(sender)) });
        let turn = Arc::default();
        let watch = watch::watch(target.clone(), Arc::clone(&turn), Arc::clone(&feed));
        let watch = tokio::spawn(watch);
        let pid = pid_of(&name);
        Ok(Libvirt { inner: Arc::new(Inner { target, pid, turn, feed, watch }) })
    }

    /// Which domain, by which `virsh`.
    pub fn target(&self) -> &Target {
        &self.inner.target
    }

    /// The domain's definition as it runs now.
    pub async fn dump_xml(&self) -> Result<String> {
        self.inner.target.run_text("dumpxml").await
    }

    /// The domain's state in libvirt's words: `running`, `paused`, `shut off`, ...
    pub async fn state(&self) -> Result<String> {
        Ok(self.inner.target.run_text("domstate").await?.trim().to_owned())
    }

    /// The domain's disks as libvirt lists them.
    pub async fn block_list(&self) -> Result<Vec<BlockTarget>> {
        let out = self.inner.target.run("domblklist", &["--details"], VIRSH_LIMIT).await?;
        let out = String::from_utf8_lossy(&out).into_owned();
        Ok(out.lines().filter_map(block_target).collect())
    }
}

/// A line of `domblklist --details`: type, device, target, source; `None` for its head.
fn block_target(line: &str) -> Option<BlockTarget> {
    let mut rest = line.trim();
    let mut fields = [""; 3];
    for field in &mut fields {
        let (head, tail) = rest.split_once(char::is_whitespace)?;
        (*field, rest) = (head, tail.trim_start());
    }
    let [_, device, target] = fields;
    if device == "Device" || rest.is_empty() {
        return None;
    }
    let source = (rest != "-").then(|| rest.to_owned());
    Some(BlockTarget { device: device.to_owned(), target: target.to_owned(), source })
}

/// The pid that libvirt's daemon wrote down for the domain.
fn pid_of(name: &str) -> Option<u32> {
    let session = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let folders = [
        Some(PathBuf::from("/run/libvirt/qemu")),
        session.map(|folder| folder.join("libvirt/qemu/run")),
    ];
    let read = |folder: PathBuf| {
        // A name with a slash can't be a domain's, and must not leave the folder.
        let file = Path::new(name).file_name()?.to_str()?;
        std::fs::read_to_string(folder.join(format!("{file}.pid"))).ok()?.trim().parse().ok()
    };
    folders.into_iter().flatten().find_map(read)
}

impl Monitor for Libvirt {
    fn execute_within<'a>(
        &'a self,
        command: &'a str,
        arguments: Value,
        limit: Duration,
    ) -> BoxFuture<'a, Result<Value>> {
        let (target, turn) = (self.inner.target.clone(), Arc::clone(&self.inner.turn));
        let name = command.to_owned();
        // A task of its own: a dropped caller must not end a half-spoken virsh.
        let work = tokio::spawn(async move {
            let _turn = turn.lock().await;
            target.monitor_command(&name, arguments, limit).await
        });
        Box::pin(async move {
            work.await.unwrap_or_else(|e| Err(Error::Closed { reason: e.to_string() }))
        })
    }

    fn events(&self) -> Events {
        match &*self.inner.feed.state.lock().unwrap_or_else(PoisonError::into_inner) {
            Ok(sender) => Events::new(sender.subscribe()),
            Err(reason) => Events::ended(reason),
        }
    }

    fn pid(&self) -> Option<u32> {
        self.inner.pid
    }

    fn describe(&self) -> String {
        format!("libvirt domain {}", self.inner.target.domain)
    }
}
