//! What is done with a client's ops: a thread that owns the group's sink while the link stands.

use super::lanes::{Ended, Lanes, Message};
use super::slot::{Held, Stop};
use super::{BACKGROUND_BYTES_MAX, FRESH_BYTES_MAX, Host};
use crate::error::Error;
use crate::frame::convert::{self, read_op};
use crate::frame::{Kind, encode, message as m};
use afterimage_journal::wire::{Ack, Hello, Op, Sink, SinkError};
use std::sync::Arc;
use std::time::Duration;

/// Longest that the worker waits without a look at acks.
const IDLE_WAIT: Duration = Duration::from_secs(1);
/// Time between two looks while one is owed.
const ACK_EVERY: Duration = Duration::from_millis(1);

/// Opens the sink and does what comes, until the link ends or the sink fails. The client is told which.
pub(super) fn run(
    host: &Arc<dyn Host>,
    held: Held,
    hello: (&Hello, u32),
    (lanes, stop): (&Lanes, &Stop),
) {
    if let Err(error) = work(host, held, hello, (lanes, stop)) {
        let (hello, _) = hello;
        tracing::warn!(group = hello.identity.name, %error, "the site takes no more");
        if let Ok(frame) = encode(Kind::Failed, &convert::failed_of(&error)) {
            lanes.answer(frame);
        }
    }
    lanes.finish();
}

fn work(
    host: &Arc<dyn Host>,
    mut held: Held,
    (hello, version): (&Hello, u32),
    (lanes, stop): (&Lanes, &Stop),
) -> Result<(), SinkError> {
    let sink = match held.as_mut() {
        Some(sink) => sink,
        None => held.insert(host.sink(&hello.identity.name)?),
    };
    let inventory = sink.open(hello)?;
    let welcome = m::Welcome {
        version,
        features: 0,
        program: convert::program(),
        fresh_bytes_max: FRESH_BYTES_MAX,
        background_bytes_max: BACKGROUND_BYTES_MAX,
        mirrors: sink.mirrors(),
    };
    lanes.answer(encode(Kind::Welcome, &welcome)?);
    for part in convert::parts_of(&inventory) {
        lanes.answer(encode(Kind::Held, &part)?);
    }
    drop(inventory);
    let mut worker = Worker { sink: sink.as_mut(), lanes, stop, asked: None, told: 0 };
    loop {
        match worker.step() {
            Ok(()) => {}
            Err(Stopped::Ended) => return Ok(()),
            Err(Stopped::Failed(error)) => return Err(error),
        }
    }
}

enum Stopped {
    Ended,
    Failed(SinkError),
}

impl From<Ended> for Stopped {
    fn from(_: Ended) -> Self {
        Self::Ended
    }
}

impl From<SinkError> for Stopped {
    fn from(error: SinkError) -> Self {
        Self::Failed(error)
    }
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Self {
        Self::Failed(error.into())
    }
}

struct Worker<'a> {
    sink: &'a mut dyn Sink,
    lanes: &'a Lanes,
    stop: &'a Stop,
    /// The newest sync that was asked for, and the token that was acknowledged.
    asked: Option<(u64, u64, u64)>,
    told: u64,
}

impl Worker<'_> {
    fn step(&mut self) -> Result<(), Stopped> {
        let owes = self.asked.is_some_and(|(token, ..)| self.told < token);
        if let Some(message) = self.lanes.next(if owes { ACK_EVERY } else { IDLE_WAIT })? {
            self.apply(message)?;
        }
        if let Some(ack) = self.sink.ack(Duration::ZERO)? {
            self.tell(&ack)?;
        }
        Ok(())
    }

    fn apply(&mut self, message: Message) -> Result<(), Stopped> {
        let Message { kind, body } = message;
        let op = read_op(kind, &body)?;
        let bytes = body.len();
        drop(body);
        let ends_file = matches!(op, Op::PutEnd { .. });
        match &op {
            Op::Sync { token, watermark, wall_ns } => {
                self.asked = Some((*token, *watermark, *wall_ns));
            }
            // A certificate is for appending; who may give files up is for the site to say.
            Op::Release(_) if !self.sink.mirrors() => {
                return Err(SinkError::Refused(
                    "an agent can't have this site give files up: it has a window of its own"
                        .into(),
                )
                .into());
            }
            _ => {}
        }
        self.stop.begin();
        self.sink.apply(op)?;
        self.lanes.done(kind, bytes);
        // A sync that was sent behind it may have passed it: then no other one comes while the source is
        // idle, and the agent would never hear that the file counts.
        if let (true, Some((token, watermark, wall_ns))) = (ends_file, self.asked) {
            self.sink.apply(Op::Sync { token, watermark, wall_ns })?;
        }
        Ok(())
    }

    fn tell(&mut self, ack: &Ack) -> Result<(), Stopped> {
        self.told = self.told.max(ack.token);
        for message in convert::acks_of(ack) {
            self.lanes.answer(encode(Kind::Ack, &message)?);
        }
        Ok(())
    }
}
