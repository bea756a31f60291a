//! QMP over a unix socket.
//!
//! ```text
//!  execute ──► pending[id] ──► writer task ──► QEMU
//!     ▲            │                            │
//!     └─ oneshot ──┴────── reader task ◄────────┘
//!                              └─► broadcast ──► Events
//! ```
//!
//! What always holds: a command's id stays in `pending` until its answer came or the connection
//! ended, so a dropped or timed-out caller never disturbs the others; only whole messages are
//! written; after the end every waiting caller and every [`Events`] is told why. The connection
//! closes when the last clone of the [`Client`] is dropped: QEMU's monitor is then free again.

mod connect;
pub(crate) mod wire;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufRead, AsyncWrite, AsyncWriteExt},
    sync::{broadcast, mpsc, oneshot},
    task::JoinHandle,
};

pub(crate) use connect::open;
use wire::{Line, Lines, excerpt};

use crate::{Error, Event, Events, Monitor, Result, event::EVENTS_MAX, monitor::BoxFuture};

/// Commands without an answer, at most. QEMU itself stops reading after eight.
const PENDING_MAX: usize = 64;

/// The limits of a connection.
#[derive(Debug, Clone)]
pub struct Limits {
    /// From connecting to a usable monitor.
    pub greeting: Duration,
    /// For an ordinary command.
    pub command: Duration,
    /// The longest message that is read, in bytes.
    pub message_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            greeting: Duration::from_secs(3),
            command: Duration::from_secs(10),
            // The longest real answer, query-named-block-nodes over long backing chains, takes
            // well under a mebibyte.
            message_bytes_max: 16 << 20,
        }
    }
}

/// A QMP connection. Clones share it.
#[derive(Debug, Clone)]
pub struct Client {
    connection: Arc<Connection>,
}

#[derive(Debug)]
struct Connection {
    shared: Arc<Shared>,
    outgoing: mpsc::Sender<Vec<u8>>,
    tasks: [JoinHandle<()>; 2],
    greeting: Value,
    pid: Option<u32>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        self.shared.end("the connection was closed by us");
    }
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    limits: Limits,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    next_id: u64,
    pending: HashMap<u64, Waiting>,
    /// Gone once the connection has ended.
    events: Option<broadcast::Sender<Event>>,
    ended: Option<String>,
}

#[derive(Debug)]
struct Waiting {
    command: String,
    answer: oneshot::Sender<Result<Value>>,
}

impl Client {
    /// Connects to the QMP socket at `path` with the default [`Limits`].
    pub async fn connect(path: impl AsRef<Path>) -> Result<Client> {
        Client::connect_with(path.as_ref(), Limits::default()).await
    }

    /// Connects to the QMP socket at `path` and negotiates.
    ///
    /// Takes `limits.greeting` at most. Errors say what the path is if it isn't a free QMP
    /// socket: missing, not a socket, refusing, silent (held by another client), or talking
    /// something else.
    pub async fn connect_with(path: &Path, limits: Limits) -> Result<Client> {
        let greeted = connect::greet(path, &limits).await?;
        let (events, _) = broadcast::channel(EVENTS_MAX);
        let state =
            State { next_id: 1, pending: HashMap::new(), events: Some(events), ended: None };
        let greeting_limit = limits.greeting;
        let shared = Arc::new(Shared { path: path.to_owned(), limits, state: Mutex::new(state) });
        let (outgoing, queue) = mpsc::channel(PENDING_MAX);
        let tasks = [
            tokio::spawn(read_messages(Arc::clone(&shared), greeted.lines)),
            tokio::spawn(write_messages(Arc::clone(&shared), greeted.write, queue)),
        ];
        let (greeting, pid) = (greeted.greeting, greeted.pid);
        let client =
            Client { connection: Arc::new(Connection { shared, outgoing, tasks, greeting, pid }) };
        client.execute_within("qmp_capabilities", Value::Null, greeting_limit).await?;
        Ok(client)
    }

    /// QEMU's greeting, the object under `QMP`.
    pub fn greeting(&self) -> &Value {
        &self.connection.greeting["QMP"]
    }

    /// Commands that have no answer yet, those of dropped callers included.
    pub fn pending(&self) -> usize {
        self.connection.shared.lock().pending.len()
    }

    /// Queues a command; its answer will come through the receiver.
    fn send(&self, command: &str, arguments: Value) -> Result<oneshot::Receiver<Result<Value>>> {
        let shared = &self.connection.shared;
        let mut state = shared.lock();
        if let Some(reason) = &state.ended {
            return Err(Error::Closed { reason: reason.clone() });
        }
        let pending = state.pending.len();
        let overloaded = || Error::Overloaded { command: command.to_owned(), pending };
        if pending >= PENDING_MAX {
            return Err(overloaded());
        }
        let id = state.next_id;
        state.next_id += 1;
        let mut message = json!({ "execute": command, "id": id });
        if !arguments.is_null() {
            message["arguments"] = arguments;
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(b'\n');
        // Under the lock, so that ids leave in order. Never full: it is as long as `pending`.
        self.connection.outgoing.try_send(bytes).map_err(|_| overloaded())?;
        let (answer, receiver) = oneshot::channel();
        state.pending.insert(id, Waiting { command: command.to_owned(), answer });
        Ok(receiver)
    }
}

impl Monitor for Client {
    fn execute_within<'a>(
        &'a self,
        command: &'a str,
        arguments: Value,
        limit: Duration,
    ) -> BoxFuture<'a, Result<Value>> {
        Box::pin(async move {
            let receiver = self.send(command, arguments)?;
            match tokio::time::timeout(limit, receiver).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) => Err(Error::Closed { reason: "the connection was closed".into() }),
                Err(_) => Err(Error::Timeout {
                    command: command.to_owned(),
                    limit_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
                }),
            }
        })
    }

    fn events(&self) -> Events {
        let state = self.connection.shared.lock();
        match (&state.events, &state.ended) {
            (Some(events), _) => Events::new(events.subscribe()),
            (None, reason) => Events::ended(reason.as_deref().unwrap_or("the monitor is gone")),
        }
    }

    fn pid(&self) -> Option<u32> {
        self.connection.pid
    }

    fn describe(&self) -> String {
        self.connection.shared.path.display().to_string()
    }

    fn limit(&self) -> Duration {
        self.connection.shared.limits.command
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics under this lock; its state is whole even if something did.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the connection once: all who wait are told `reason`.
    fn end(&self, reason: &str) {
        let mut state = self.lock();
        if state.ended.is_some() {
            return;
        }
        state.ended = Some(reason.to_owned());
        for (_, waiting) in state.pending.drain() {
            // Whoever dropped its receiver doesn't want to know.
            let _ = waiting.answer.send(Err(Error::Closed { reason: reason.to_owned() }));
        }
        if let Some(events) = state.events.take() {
            let _ = events.send(Event::eof(reason));
        }
    }

    /// Hands out one message; an error ends the connection.
    fn deliver(&self, line: &[u8]) -> std::result::Result<(), String> {
        if line.iter().all(u8::is_ascii_whitespace) {
            return Ok(());
        }
        let message: Value = serde_json::from_slice(line)
            .map_err(|_| format!("it sent a line that is no JSON: {}", excerpt(line)))?;
        if let Some(event) = Event::from_message(&message) {
            if let Some(events) = &self.lock().events {
                // An error here means that nobody listens.
                let _ = events.send(event);
            }
            return Ok(());
        }
        let waiting = message["id"].as_u64().and_then(|id| self.lock().pending.remove(&id));
        match waiting {
            Some(waiting) => {
                let answer = answer(&waiting.command, message);
                let _ = waiting.answer.send(answer);
            }
            None => tracing::warn!(
                monitor = %self.path.display(),
                message = excerpt(line),
                "a message that answers no command of ours was skipped"
            ),
        }
        Ok(())
    }
}

/// The outcome that a message with our id tells.
pub(crate) fn answer(command: &str, mut message: Value) -> Result<Value> {
    if let Some(value) = message.get_mut("return") {
        return Ok(value.take());
    }
    match message.get("error") {
        Some(error) => {
            let text = |k: &str| error[k].as_str().unwrap_or("(not said)").to_owned();
            let (class, desc) = (text("class"), text("desc"));
            Err(Error::Command { command: command.to_owned(), class, desc })
        }
        None => Err(Error::shape(command, "neither `return` nor `error`")),
    }
}

async fn read_messages<R: AsyncBufRead + Unpin>(shared: Arc<Shared>, mut lines: Lines<R>) {
    let reason = loop {
        match lines.next().await {
            Ok(Line::Whole(line)) => {
                if let Err(reason) = shared.deliver(&line) {
                    break reason;
                }
            }
            Ok(Line::End(_)) => break "QEMU closed the connection".to_owned(),
            Ok(Line::TooLong(_)) => {
                let limit = shared.limits.message_bytes_max;
                break format!("it sent a message of more than {limit} bytes");
            }
            Err(e) => break e.to_string(),
        }
    };
    shared.end(&reason);
}

async fn write_messages<W: AsyncWrite + Unpin>(
    shared: Arc<Shared>,
    mut to: W,
    mut queue: mpsc::Receiver<Vec<u8>>,
) {
    while let Some(message) = queue.recv().await {
        if let Err(e) = to.write_all(&message).await {
            // The reader may still find answers and the better reason, so it decides the end;
            // but a peer that only stopped reading must not leave callers waiting.
            shared.end(&format!("writing to it failed: {e}"));
            return;
        }
    }
}
