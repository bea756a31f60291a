//! A QMP client for the test's own socket: one command at a time, events kept for whoever asks.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::REPLY_LIMIT;

/// A connection to a QMP socket, past the capabilities negotiation.
pub struct Qmp {
    socket: UnixStream,
    messages: Receiver<Value>,
    events: Vec<Value>,
}

impl Qmp {
    /// Connects to the socket at `path`.
    pub fn connect(path: &Path) -> std::io::Result<Self> {
        let socket = UnixStream::connect(path)?;
        let (sender, messages) = channel();
        let reader = BufReader::new(socket.try_clone()?);
        std::thread::spawn(move || {
            for line in reader.lines().map_while(Result::ok) {
                let message = serde_json::from_str(&line).unwrap_or(Value::Null);
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let mut qmp = Self { socket, messages, events: Vec::new() };
        qmp.next(REPLY_LIMIT).map_err(std::io::Error::other)?; // the greeting
        qmp.try_execute("qmp_capabilities", json!({})).map_err(std::io::Error::other)?;
        Ok(qmp)
    }

    /// Runs a command and gives what it returned; panics where QEMU refuses it.
    #[track_caller]
    pub fn execute(&mut self, command: &str, arguments: Value) -> Value {
        match self.try_execute(command, arguments) {
            Ok(value) => value,
            Err(e) => panic!("QMP {command}: {e}"),
        }
    }

    /// Runs a command; the error is QEMU's own text, or that there was no answer.
    pub fn try_execute(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let mut line = json!({"execute": command, "arguments": arguments}).to_string();
        line.push('\n');
        self.socket.write_all(line.as_bytes()).map_err(|e| format!("send: {e}"))?;
        loop {
            let message = self.next(REPLY_LIMIT)?;
            if let Some(value) = message.get("return") {
                return Ok(value.clone());
            }
            if let Some(error) = message.get("error") {
                return Err(error.to_string());
            }
            self.events.push(message);
        }
    }

    /// The next event called `name`, seen already or still to come. It is taken.
    pub fn wait_event(&mut self, name: &str, limit: Duration) -> Result<Value, String> {
        let end = Instant::now() + limit;
        loop {
            if let Some(index) = self.events.iter().position(|event| event["event"] == name) {
                return Ok(self.events.remove(index));
            }
            let message = self.next(end.saturating_duration_since(Instant::now()))?;
            self.events.push(message);
        }
    }

    /// Forgets the events that came so far.
    pub fn drop_events(&mut self) {
        while self.messages.try_recv().is_ok() {}
        self.events.clear();
    }

    fn next(&mut self, limit: Duration) -> Result<Value, String> {
        self.messages.recv_timeout(limit).map_err(|e| format!("QEMU's monitor: {e} ({limit:?})"))
    }
}
