//! The agent inside the guest: freezing and thawing its file systems.
//!
//! Each call is a conversation of its own: connect, `guest-sync-delimited` (which throws away
//! what an earlier, broken-off conversation left in the channel), one command, close. So nothing
//! of ours keeps the channel busy while the guest is frozen, and anybody can thaw it.
//!
//! What always holds: [`GuestAgent::freeze`] either returns with the guest frozen, or has tried
//! to thaw it again. Whoever freezes writes down an intent first, so that [`thaw_blocking`] undoes
//! it should they die.

mod thaw;

use std::{path::PathBuf, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncWriteExt, BufReader},
    time::timeout,
};

pub use thaw::{thaw_blocking, thaw_blocking_virsh};

use crate::{
    Error, Result,
    client::{self, wire::Line, wire::Lines},
    libvirt::Target,
};

/// For an answer of an agent that runs. More means that none runs, or that another holds it.
const SYNC_LIMIT: Duration = Duration::from_secs(3);
/// For freezing: the guest writes its caches out first.
const FREEZE_LIMIT: Duration = Duration::from_secs(20);
/// For thawing, and asking.
const THAW_LIMIT: Duration = Duration::from_secs(10);
/// The longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// How a guest's agent is reached.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum AgentChannel {
    /// The unix socket of the channel `org.qemu.guest_agent.0`.
    Socket(PathBuf),
    /// Through libvirt, which then holds the channel.
    Libvirt(Target),
}

impl std::fmt::Display for AgentChannel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            AgentChannel::Socket(path) => write!(f, "{}", path.display()),
            AgentChannel::Libvirt(target) => write!(f, "libvirt domain {}", target.domain),
        }
    }
}

/// What the guest's file systems are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreezeState {
    /// They take writes.
    Thawed,
    /// They hold writes back.
    Frozen,
}

/// The agent of one guest.
#[derive(Debug, Clone)]
pub struct GuestAgent {
    channel: AgentChannel,
    freeze_limit: Duration,
}

impl GuestAgent {
    /// The agent behind `channel`. Nothing is sent yet.
    pub fn new(channel: AgentChannel) -> GuestAgent {
        GuestAgent { channel, freeze_limit: FREEZE_LIMIT }
    }

    /// The same with another limit for freezing than 20 s.
    pub fn with_freeze_limit(self, freeze_limit: Duration) -> GuestAgent {
        GuestAgent { freeze_limit, ..self }
    }

    /// How it is reached.
    pub fn channel(&self) -> &AgentChannel {
        &self.channel
    }

    /// Whether somebody answers: 3 s at most.
    pub async fn ping(&self) -> Result<()> {
        self.call("guest-ping", THAW_LIMIT).await.map(drop)
    }

    /// Freezes all file systems and returns how many. On an error it has tried to thaw them.
    pub async fn freeze(&self) -> Result<u64> {
        let command = "guest-fsfreeze-freeze";
        let frozen = self.call(command, self.freeze_limit).await;
        let count = frozen.and_then(|v| {
            v.as_u64().ok_or_else(|| Error::shape(command, "no number of file systems"))
        });
        if count.is_err() {
            // A late freeze may still take effect: the error counts, not this one.
            let _ = self.thaw().await;
        }
        count
    }

    /// Thaws all file systems and returns how many were frozen. 0 when none was.
    pub async fn thaw(&self) -> Result<u64> {
        let command = "guest-fsfreeze-thaw";
        let thawed = self.call(command, THAW_LIMIT).await?;
        thawed.as_u64().ok_or_else(|| Error::shape(command, "no number of file systems"))
    }

    /// Whether the file systems are frozen.
    pub async fn freeze_state(&self) -> Result<FreezeState> {
        let command = "guest-fsfreeze-status";
        match self.call(command, THAW_LIMIT).await?.as_str() {
            Some("thawed") => Ok(FreezeState::Thawed),
            Some("frozen") => Ok(FreezeState::Frozen),
            other => Err(Error::shape(command, format!("{other:?}"))),
        }
    }

    async fn call(&self, command: &str, limit: Duration) -> Result<Value> {
        match &self.channel {
            AgentChannel::Libvirt(target) => {
                crate::libvirt::agent_command(target, command, limit).await
            }
            AgentChannel::Socket(path) => {
                let mut talk = self.within(SYNC_LIMIT, Conversation::begin(path)).await?;
                self.within(limit, talk.call(command)).await
            }
        }
    }

    async fn within<T>(
        &self,
        limit: Duration,
        what: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        timeout(limit, what).await.unwrap_or_else(|_| Err(silent(&self.channel.to_string(), limit)))
    }
}

fn silent(channel: &str, waited: Duration) -> Error {
    let waited_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
    Error::AgentSilent { channel: channel.to_owned(), waited_ms }
}

/// What opens a conversation: the marker that resets the agent's parser, then a command whose
/// answer can be told from all others by `id`.
fn opening(id: u64) -> Vec<u8> {
    let sync = json!({ "execute": "guest-sync-delimited", "arguments": { "id": id } });
    let mut bytes = vec![0xff];
    bytes.extend(request(&sync));
    bytes
}

fn request(message: &Value) -> Vec<u8> {
    let mut bytes = message.to_string().into_bytes();
    bytes.push(b'\n');
    bytes
}

/// Whether `line` answers the opening with `id`. The agent puts the marker before its answer;
/// what stands before the marker belongs to somebody's earlier conversation.
fn answers_opening(line: &[u8], id: u64) -> bool {
    let Some(marker) = line.iter().rposition(|&b| b == 0xff) else { return false };
    let answer = serde_json::from_slice::<Value>(&line[marker + 1..]);
    answer.is_ok_and(|a| a["return"] == id)
}

/// A number that no earlier conversation had.
fn fresh_id() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    // The agent reads it as a signed number, so the top bits stay clear.
    now.map_or(1, |d| d.as_micros() as u64 & (u64::MAX >> 2))
}

/// The outcome that an answer line tells.
fn read_answer(command: &str, line: &[u8]) -> Result<Value> {
    let message = serde_json::from_slice(line);
    let message = message.map_err(|_| Error::shape(command, client::wire::excerpt(line)))?;
    client::answer(command, message)
}

struct Conversation {
    lines: Lines<BufReader<tokio::net::unix::OwnedReadHalf>>,
    write: tokio::net::unix::OwnedWriteHalf,
}

impl Conversation {
    async fn begin(path: &std::path::Path) -> Result<Conversation> {
        let (read, write) = client::open(path, SYNC_LIMIT).await?.into_split();
        let lines = Lines::new(BufReader::new(read), ANSWER_BYTES_MAX);
        let mut talk = Conversation { lines, write };
        let id = fresh_id();
        talk.send(&opening(id)).await?;
        while !answers_opening(&talk.line().await?, id) {}
        Ok(talk)
    }

    async fn call(&mut self, command: &str) -> Result<Value> {
        self.send(&request(&json!({ "execute": command }))).await?;
        read_answer(command, &self.line().await?)
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.write.write_all(bytes).await.map_err(|e| Error::Closed { reason: e.to_string() })
    }

    async fn line(&mut self) -> Result<Vec<u8>> {
        let closed = |reason: &str| Err(Error::Closed { reason: reason.to_owned() });
        match self.lines.next().await {
            Ok(Line::Whole(line)) => Ok(line),
            Ok(Line::End(_)) => closed("the guest agent's channel was closed"),
            Ok(Line::TooLong(_)) => closed("the guest agent sent too long a line"),
            Err(e) => closed(&e.to_string()),
        }
    }
}
