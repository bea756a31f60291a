//! Watching a libvirt domain: its events as `virsh` prints them, and a look once a second.
//!
//! The look decides: it alone says that the domain has ended, and it tells what changed even
//! when no event came (`concluded` is set in such events). Events only make it quicker.

use std::{collections::HashMap, process::Stdio, sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::BufReader,
    process::Command,
    sync::Mutex,
    time::{Instant, sleep},
};

use super::{Feed, Target, VIRSH_LIMIT};
use crate::{
    Error, Event, Result, Timestamp,
    client::wire::{Line, Lines},
};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two looks, on a host where each `virsh` takes long: this many times what a look took, so that
/// most of the time is left to commands. An attach needs dozens of them.
const LOOK_SHARE: u32 = 4;
/// Between two looks, at most.
const LOOK_PAUSE_MAX: Duration = Duration::from_secs(5);
/// libvirt's daemon may be restarted; after this long without it the monitor counts as gone.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// Between two starts of `virsh qemu-monitor-event`.
const RESTART_PAUSE: Duration = Duration::from_secs(5);
/// The longest event that is read, in bytes.
const EVENT_BYTES_MAX: usize = 1 << 20;

/// Feeds events until the domain has ended. `turn` keeps commands in order.
pub(super) async fn watch(target: Target, turn: Arc<Mutex<()>>, feed: Arc<Feed>) {
    let reason = tokio::select! {
        reason = look(&target, &turn, &feed) => reason,
        never = listen(&target, &feed) => match never {},
    };
    feed.end(&reason);
}

/// Looks at the domain until it has ended, and says why.
async fn look(target: &Target, turn: &Mutex<()>, feed: &Feed) -> String {
    let mut seen: Option<Seen> = None;
    let mut answered = Instant::now();
    loop {
        let mut took = Duration::ZERO;
        let now = Seen::now(target, turn, &mut took).await;
        match now {
            Ok(now) => {
                answered = Instant::now();
                if let Some(before) = &seen {
                    before.changes_to(&now).into_iter().for_each(|e| feed.send(e));
                }
                seen = Some(now);
            }
            Err(Error::Closed { reason }) => return reason,
            Err(e) if answered.elapsed() > SILENCE_LIMIT => return e.to_string(),
            Err(e) => tracing::warn!(domain = target.domain, error = %e, "libvirt doesn't answer"),
        }
        sleep((took * LOOK_SHARE).clamp(LOOK_EVERY, LOOK_PAUSE_MAX)).await;
    }
}

/// What a look sees.
struct Seen {
    status: String,
    jobs: HashMap<String, SeenJob>,
}

struct SeenJob {
    status: String,
    ready: bool,
    failed: bool,
}

impl Seen {
    /// Adds how long libvirt took, without waiting for other commands, to `took`.
    async fn now(target: &Target, turn: &Mutex<()>, took: &mut Duration) -> Result<Seen> {
        let mut ask = async |command| {
            let _turn = turn.lock().await;
            let begun = Instant::now();
            let answer = target.monitor_command(command, Value::Null, VIRSH_LIMIT).await;
            *took += begun.elapsed();
            answer
        };
        let status = ask("query-status").await?;
        let jobs = ask("query-block-jobs").await?;
        let jobs = jobs.as_array().map(Vec::as_slice).unwrap_or_default();
        let read = |job: &Value| {
            let status = job["status"].as_str()?.to_owned();
            let ready = job["ready"] == true;
            let failed = job["paused"] == true && job["io-status"] != "ok";
            Some((job["device"].as_str()?.to_owned(), SeenJob { status, ready, failed }))
        };
        Ok(Seen {
            status: status["status"].as_str().unwrap_or_default().to_owned(),
            jobs: jobs.iter().filter_map(read).collect(),
        })
    }

    /// The events that lead from here to `now`, in QEMU's words.
    fn changes_to(&self, now: &Seen) -> Vec<Event> {
        let mut events = Vec::new();
        let mut tell = |name: &str, data: Value| events.push(Event::now(name, data));
        if self.status != now.status {
            match (&*self.status, &*now.status) {
                (_, "running") => tell("RESUME", json!({})),
                (_, "shutdown") => tell("SHUTDOWN", json!({ "guest": false, "reason": "unknown" })),
                ("running", _) => tell("STOP", json!({})),
                _ => {}
            }
        }
        for (id, job) in &now.jobs {
            let before = self.jobs.get(id);
            if before.is_none_or(|b| b.status != job.status) {
                tell("JOB_STATUS_CHANGE", json!({ "id": id, "status": job.status }));
            }
            if job.failed && before.is_none_or(|b| !b.failed) {
                let data = json!({ "device": id, "operation": "write", "action": "stop" });
                tell("BLOCK_JOB_ERROR", data);
            }
            if job.ready && before.is_none_or(|b| !b.ready) {
                tell("BLOCK_JOB_READY", json!({ "device": id }));
            }
        }
        for id in self.jobs.keys().filter(|id| !now.jobs.contains_key(*id)) {
            tell("JOB_STATUS_CHANGE", json!({ "id": id, "status": "null" }));
        }
        events
    }
}

/// Runs `virsh qemu-monitor-event` for ever and feeds what it prints.
async fn listen(target: &Target, feed: &Feed) -> std::convert::Infallible {
    loop {
        if let Err(e) = listen_once(target, feed).await {
            tracing::debug!(domain = target.domain, error = %e, "events come from polling alone");
        }
        sleep(RESTART_PAUSE).await;
    }
}

async fn listen_once(target: &Target, feed: &Feed) -> std::io::Result<()> {
    let mut child = Command::new(&target.program)
        .args(target.arguments("qemu-monitor-event", &["--loop"]))
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let Some(out) = child.stdout.take() else { return Ok(()) };
    let mut lines = Lines::new(BufReader::new(out), EVENT_BYTES_MAX);
    while let Line::Whole(line) = lines.next().await? {
        if let Some(event) = read_event(&String::from_utf8_lossy(&line)) {
            feed.send(event);
        }
    }
    Ok(())
}

/// A line such as `event STOP at 1700000000.000001 for domain 'web': {...}`; `None` for others.
fn read_event(line: &str) -> Option<Event> {
    let rest = line.strip_prefix("event ")?;
    let (name, rest) = rest.split_once(" at ")?;
    let (stamp, rest) = rest.split_once(" for domain ")?;
    let (seconds, micros) = stamp.split_once('.')?;
    let data = match rest.find(": {") {
        Some(at) => serde_json::from_str(&rest[at + 2..]).ok()?,
        None => json!({}),
    };
    let seconds: i64 = seconds.parse().ok()?;
    let unix_us = seconds.checked_mul(1_000_000)?.checked_add(micros.parse().ok()?)?;
    let timestamp = Timestamp { unix_us };
    Some(Event { name: name.to_owned(), data, timestamp, concluded: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::QemuEvent;

    #[test]
    fn a_printed_event_is_read_with_its_time_and_data() {
        let line = r#"event BLOCK_JOB_ERROR at 1700000000.000042 for domain 'a: b': {"device":"ai-d0-job","operation":"write","action":"stop"}"#;
        let event = read_event(line).unwrap();
        assert_eq!(event.timestamp.unix_us, 1_700_000_000_000_042);
        let (job, operation, action) = ("ai-d0-job".into(), "write".into(), "stop".into());
        assert_eq!(event.meaning(), QemuEvent::BlockJobError { job, operation, action });
    }

    #[test]
    fn an_event_without_data_and_other_lines_do_no_harm() {
        let event = read_event("event STOP at 1.000002 for domain web: (null)").unwrap();
        assert_eq!(event.meaning(), QemuEvent::Stop);
        for line in ["", "events received: 1", "event", "event X at y for domain z: {"] {
            assert!(read_event(line).is_none(), "{line:?}");
        }
    }
}
