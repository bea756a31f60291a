//! QEMU's own NBD server, from which the base and the changed blocks are pulled.
//!
//! A QEMU has one such server. Ours listens on a unix socket of ours; where somebody else's runs
//! (a backup program's), our exports are added to theirs if its socket can be found, and it is
//! never stopped. Exports are read-only, of the disk's own node, below the mirror.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::AsyncReadExt,
    time::{Instant, timeout},
};

use super::{Backoff, Qemu, names::OURS};
use crate::{Error, Result, client};

/// How long a server has to greet when we look for it.
const PROBE_LIMIT: Duration = Duration::from_millis(500);
/// How long an export may take to go.
const GONE_LIMIT: Duration = Duration::from_secs(10);

/// QEMU's running NBD server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdServer {
    /// Where it listens.
    pub socket: PathBuf,
    /// We started it, so we may stop it.
    pub ours: bool,
}

/// An export to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportSpec {
    /// Its id in QEMU, unique: see [`super::Names::export`].
    pub id: String,
    /// The disk's own node.
    pub node: String,
    /// The name that a client asks for, unique at this server; the id is a good one.
    pub name: String,
    /// Bitmaps of the node to serve as `qemu:dirty-bitmap:NAME`. They must not record.
    pub bitmaps: Vec<String>,
}

/// An export that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Its id in QEMU.
    pub id: String,
    /// The node that it serves.
    pub node: String,
}

impl Qemu {
    /// Starts the NBD server on `socket`, or takes the one that runs.
    ///
    /// One that an earlier agent started on the same path counts as ours. [`Error::NbdServerTaken`]
    /// when somebody else's runs where we can't reach it (TCP, another mount namespace).
    pub async fn start_nbd_server(&self, socket: &Path) -> Result<NbdServer> {
        let address = json!({ "addr": { "type": "unix", "data": { "path": socket } } });
        match self.run("nbd-server-start", address).await {
            Ok(_) => Ok(NbdServer { socket: socket.to_owned(), ours: true }),
            Err(e) if e.refused_with("already running") => self.find_nbd_server(socket).await,
            Err(e) => Err(e),
        }
    }

    async fn find_nbd_server(&self, ours: &Path) -> Result<NbdServer> {
        let taken = |why: String| Error::NbdServerTaken { why };
        let Some(pid) = self.monitor().pid() else {
            return Err(taken("its socket can't be looked up: QEMU's pid is not known".to_owned()));
        };
        let listening = listening_sockets(pid)?;
        if listening.iter().any(|path| path == ours) {
            return Ok(NbdServer { socket: ours.to_owned(), ours: true });
        }
        // Monitors, serial ports and vhost-user back ends serve one client: not to be disturbed.
        let chardevs = self.run_list("query-chardev", Value::Null).await?;
        let is_chardev = |path: &Path| {
            let path = path.to_string_lossy();
            let mut names = chardevs.iter().filter_map(|c| c["filename"].as_str());
            names.any(|name| name.contains(&*path))
        };
        for path in listening.iter().filter(|p| !is_chardev(p)) {
            if greets_as_nbd(path).await {
                return Ok(NbdServer { socket: path.clone(), ours: false });
            }
        }
        Err(taken("it listens on no unix socket that we can reach".to_owned()))
    }

    /// Stops the server if it is ours and serves nobody else; says whether it has stopped.
    /// Done as well when none runs.
    pub async fn stop_nbd_server(&self, server: &NbdServer) -> Result<bool> {
        let foreign = self.exports().await?.iter().any(|e| !e.id.starts_with(OURS));
        if !server.ours || foreign {
            return Ok(false);
        }
        match self.run("nbd-server-stop", Value::Null).await {
            Err(e) if e.refused_with("not running") => Ok(true),
            other => other.map(|_| true),
        }
    }

    /// Makes an export.
    pub async fn add_export(&self, spec: &ExportSpec) -> Result<()> {
        let arguments = json!({
            "type": "nbd",
            "id": spec.id,
            "node-name": spec.node,
            "name": spec.name,
            "bitmaps": spec.bitmaps,
            "writable": false,
        });
        self.run("block-export-add", arguments).await.map(drop)
    }

    /// Takes an export away, its clients too, and waits until it is gone. Done as well when
    /// there is none.
    pub async fn remove_export(&self, id: &str) -> Result<()> {
        match self.run("block-export-del", json!({ "id": id, "mode": "hard" })).await {
            Ok(_) => {}
            Err(e) if e.refused_with("not found") => return Ok(()),
            // Asked for before: on its way out.
            Err(e) if e.refused_with("shutting down") => {}
            Err(e) => return Err(e),
        }
        let begun = Instant::now();
        let mut backoff = Backoff::new(1, 50);
        while self.exports().await?.iter().any(|e| e.id == id) {
            if begun.elapsed() > GONE_LIMIT {
                return Err(Error::Timeout {
                    command: format!("block-export-del {id}"),
                    limit_ms: u64::try_from(GONE_LIMIT.as_millis()).unwrap_or(u64::MAX),
                });
            }
            backoff.pause().await;
        }
        Ok(())
    }

    /// All exports, whoever they belong to.
    pub async fn exports(&self) -> Result<Vec<Export>> {
        let command = "query-block-exports";
        let read = |e: &Value| {
            let text = |k: &str| e[k].as_str().map(str::to_owned);
            Some(Export { id: text("id")?, node: text("node-name")? })
        };
        let exports = self.run_list(command, Value::Null).await?;
        let exports = exports.iter().map(read).collect::<Option<_>>();
        exports.ok_or_else(|| Error::shape(command, "an export without id or node"))
    }
}

/// The unix sockets that the process listens on, by absolute path.
fn listening_sockets(pid: u32) -> Result<Vec<PathBuf>> {
    let io = |path: &Path, e: std::io::Error| Error::Proc {
        path: path.to_owned(),
        reason: e.to_string(),
    };
    let folder = PathBuf::from(format!("/proc/{pid}/fd"));
    let entries = std::fs::read_dir(&folder).map_err(|e| io(&folder, e))?;
    // A descriptor that closes while we look is no error.
    let links = entries.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let inodes: HashSet<String> = links
        .filter_map(|link| {
            let inode = link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?;
            Some(inode.to_owned())
        })
        .collect();
    let table = PathBuf::from(format!("/proc/{pid}/net/unix"));
    let text = std::fs::read(&table).map_err(|e| io(&table, e))?;
    let text = String::from_utf8_lossy(&text);
    Ok(text.lines().skip(1).filter_map(|line| listener(line, &inodes)).collect())
}

/// The path of a line of /proc/net/unix, if it is a listener among `inodes`.
fn listener(line: &str, inodes: &HashSet<String>) -> Option<PathBuf> {
    const ACCEPTS: u64 = 1 << 16;
    // Address, references, protocol, flags, type, state, inode, path (which may hold spaces).
    let mut rest = line;
    let mut fields = [""; 7];
    for field in &mut fields {
        let (head, tail) = rest.trim_start().split_once(' ')?;
        (*field, rest) = (head, tail);
    }
    let accepts = u64::from_str_radix(fields[3], 16).ok()? & ACCEPTS != 0;
    let path = PathBuf::from(rest.trim_start());
    (accepts && inodes.contains(fields[6]) && path.is_absolute()).then_some(path)
}

async fn greets_as_nbd(path: &Path) -> bool {
    let probe = async {
        let mut stream = client::open(path, PROBE_LIMIT).await.ok()?;
        let mut magic = [0; 8];
        stream.read_exact(&mut magic).await.ok()?;
        Some(&magic == b"NBDMAGIC")
    };
    timeout(PROBE_LIMIT, probe).await.ok().flatten().unwrap_or(false)
}
