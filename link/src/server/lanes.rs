//! What came and waits to be done: two lanes, fresh first, each bounded by what a client may have under
//! way; and what goes back.

use super::{BACKGROUND_BYTES_MAX, FRESH_BYTES_MAX};
use crate::error::{Error, Result};
use crate::frame::convert::Class;
use crate::frame::{HEAD_BYTES, Kind, encode, message as m};
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// Most bytes of answers that wait for a client that doesn't read.
const ANSWERS_BYTES_MAX: usize = 128 << 20;

/// A message that came.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) kind: Kind,
    pub(super) body: Vec<u8>,
}

impl Message {
    fn bytes(&self) -> u64 {
        (HEAD_BYTES + self.body.len()) as u64
    }
}

#[derive(Debug, Default)]
struct Lane {
    waiting: VecDeque<Message>,
    bytes: u64,
    done_bytes: u64,
}

#[derive(Debug, Default)]
struct State {
    fresh: Lane,
    background: Lane,
    answers: VecDeque<Vec<u8>>,
    answers_bytes: usize,
    credit_told: m::Credit,
    /// Nothing more is to be done.
    ended: bool,
    /// The worker said its last.
    finished: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    state: Mutex<State>,
    /// The worker waits for it.
    came: Condvar,
    /// The writer waits for it.
    answered: Notify,
}

impl Lanes {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Plain values, whole at every step.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a message with an op.
    ///
    /// # Errors
    /// The client has more under way than it may.
    pub(super) fn put(&self, kind: Kind, body: Vec<u8>) -> Result<()> {
        let class = Class::of_kind(kind);
        let class = class.ok_or_else(|| Error::Broken(format!("a message {kind:?} in between")))?;
        let message = Message { kind, body };
        let bytes = message.bytes();
        let mut state = self.lock();
        let (lane, most) = match class {
            Class::Fresh => (&mut state.fresh, FRESH_BYTES_MAX),
            Class::Background => (&mut state.background, BACKGROUND_BYTES_MAX),
        };
        if lane.bytes > 0 && lane.bytes + bytes > most {
            return Err(Error::Broken(format!("more than {most} bytes are under way")));
        }
        lane.bytes += bytes;
        lane.waiting.push_back(message);
        self.came.notify_one();
        Ok(())
    }

    /// The next message to be done; waits for one for so long. `None`: there is none yet.
    ///
    /// # Errors
    /// The link ended: what waits is not to be done.
    pub(super) fn next(&self, wait: Duration) -> std::result::Result<Option<Message>, Ended> {
        let take = |state: &mut State| {
            state.fresh.waiting.pop_front().or_else(|| state.background.waiting.pop_front())
        };
        let mut state = self.lock();
        if state.ended {
            return Err(Ended);
        }
        if let Some(message) = take(&mut state) {
            return Ok(Some(message));
        }
        let woken = self.came.wait_timeout(state, wait);
        state = woken.unwrap_or_else(PoisonError::into_inner).0;
        if state.ended { Err(Ended) } else { Ok(take(&mut state)) }
    }

    /// A message is done: the client may send as much again.
    pub(super) fn done(&self, kind: Kind, body_bytes: usize) {
        let bytes = (HEAD_BYTES + body_bytes) as u64;
        let mut state = self.lock();
        let lane = match Class::of_kind(kind) {
            Some(Class::Background) => &mut state.background,
            _ => &mut state.fresh,
        };
        lane.bytes -= bytes;
        lane.done_bytes += bytes;
        self.answered.notify_one();
    }

    /// Says something to the client.
    pub(super) fn answer(&self, frame: Vec<u8>) {
        let mut state = self.lock();
        state.answers_bytes += frame.len();
        if state.answers_bytes > ANSWERS_BYTES_MAX {
            state.ended = true;
            self.came.notify_all();
        } else {
            state.answers.push_back(frame);
        }
        self.answered.notify_one();
    }

    /// What is to be said next: answers, then how much was done. `None`: nothing.
    pub(super) fn next_answer(&self) -> Result<Option<Vec<u8>>> {
        let mut state = self.lock();
        if let Some(frame) = state.answers.pop_front() {
            state.answers_bytes -= frame.len();
            return Ok(Some(frame));
        }
        let credit = m::Credit {
            fresh_bytes: state.fresh.done_bytes,
            background_bytes: state.background.done_bytes,
        };
        if credit == state.credit_told {
            return Ok(None);
        }
        state.credit_told = credit;
        encode(Kind::Credit, &credit).map(Some)
    }

    /// Waits for something to be said.
    pub(super) async fn answered(&self) {
        self.answered.notified().await;
    }

    /// The worker says nothing more.
    pub(super) fn finish(&self) {
        self.lock().finished = true;
        self.answered.notify_one();
    }

    /// Whether the worker says nothing more.
    pub(super) fn is_finished(&self) -> bool {
        self.lock().finished
    }

    /// The link ended.
    pub(super) fn end(&self) {
        self.lock().ended = true;
        self.came.notify_all();
    }
}

/// The link ended.
#[derive(Debug)]
pub(super) struct Ended;
