//! What can be asked of a running daemon at its socket: a line of JSON each way, one question a connection.
//!
//! What always holds: questions and answers are bounded, in bytes and in time; few are answered at a time,
//! and one that hangs (a member's disk, say) doesn't keep the others from an answer.

use super::groups::Groups;
use super::socket_path;
use super::status::SiteGroupStatus;
use afterimage_journal::pool::{Added, Limit, Pool, PoolStatus, PoolThread};
use afterimage_journal::{Error, ErrorKind};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;

/// How long who asks may take to ask, and to read the answer.
const ASKER_LIMIT: Duration = Duration::from_secs(5);
/// How long the daemon may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// Longest question, in bytes: a path has 4096.
const QUESTION_BYTES_MAX: u64 = 64 << 10;
/// Longest answer, in bytes.
const ANSWER_BYTES_MAX: u64 = 16 << 20;
/// Most questions that are answered at a time.
const QUESTIONS_MAX: usize = 8;
/// How long nobody is listened to after the socket failed.
const PAUSE: Duration = Duration::from_secs(1);

/// A question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "kebab-case", deny_unknown_fields)]
enum Question {
    /// How are the groups? [`SiteGroupStatus`] each.
    Status,
    /// How is the pool? [`PoolStatus`].
    Pool,
    /// As [`Pool::add`]: [`Added`].
    PoolAdd {
        dir: PathBuf,
        #[serde(default)]
        limit: Limit,
    },
    /// As [`Pool::remove`]: nothing.
    PoolRemove {
        dir: PathBuf,
        #[serde(default)]
        lost: bool,
    },
}

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// The exit code of a command that ends with it: 2 wrong usage, 4 not reachable, 1 anything else.
    pub code: u8,
    /// For people.
    pub message: String,
}

impl Refusal {
    fn not_reachable(message: String) -> Self {
        Self { code: 4, message }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let code = match error.kind() {
            ErrorKind::FixInput => 2,
            ErrorKind::Retry => 4,
            _ => 1,
        };
        Self { code, message: error.to_string() }
    }
}

type Answer<T> = Result<T, Refusal>;

/// The daemon of a state directory, to be asked; connects at each question.
#[derive(Debug, Clone)]
pub struct Daemon {
    socket: PathBuf,
}

impl Daemon {
    /// The one of this state directory, if it runs.
    #[must_use]
    pub fn find(state: &Path) -> Option<Self> {
        let socket = socket_path(state);
        UnixStream::connect(&socket).is_ok().then_some(Self { socket })
    }

    /// How the groups are, as far as the daemon alone knows it.
    ///
    /// # Errors
    /// It doesn't answer.
    pub fn status(&self) -> Answer<Vec<SiteGroupStatus>> {
        self.ask(&Question::Status)
    }

    /// How the pool is.
    ///
    /// # Errors
    /// It doesn't answer.
    pub fn pool(&self) -> Answer<PoolStatus> {
        self.ask(&Question::Pool)
    }

    /// As [`Pool::add`]; `dir` is an absolute path.
    ///
    /// # Errors
    /// As there, or it doesn't answer.
    pub fn pool_add(&self, dir: &Path, limit: Limit) -> Answer<Added> {
        self.ask(&Question::PoolAdd { dir: dir.to_owned(), limit })
    }

    /// As [`Pool::remove`]; the daemon goes on to drain it.
    ///
    /// # Errors
    /// As there, or it doesn't answer.
    pub fn pool_remove(&self, dir: &Path, lost: bool) -> Answer<()> {
        self.ask(&Question::PoolRemove { dir: dir.to_owned(), lost })
    }

    fn ask<T: DeserializeOwned>(&self, question: &Question) -> Answer<T> {
        let told = self.exchange(question).map_err(|e| {
            Refusal::not_reachable(format!(
                "the site's daemon doesn't answer at {}: {e}",
                self.socket.display()
            ))
        })?;
        serde_json::from_slice::<Answer<T>>(&told).unwrap_or_else(|e| {
            Err(Refusal::not_reachable(format!("the site's daemon answers something else: {e}")))
        })
    }

    fn exchange(&self, question: &Question) -> io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_write_timeout(Some(ASKER_LIMIT))?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        let mut line = serde_json::to_vec(question)?;
        line.push(b'\n');
        stream.write_all(&line)?;
        let mut told = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut told)?;
        Ok(told)
    }
}

/// What a daemon has to answer from.
pub(super) struct Host {
    pub(super) groups: Arc<Groups>,
    pub(super) pool: Arc<Pool>,
    pub(super) thread: PoolThread,
}

impl Host {
    /// Blocking.
    fn answer(&self, line: &[u8]) -> Vec<u8> {
        let question = serde_json::from_slice::<Question>(line).map_err(|e| Refusal {
            code: 2,
            message: format!("the site doesn't know the question: {e}"),
        });
        let told = question.and_then(|question| self.told(&question));
        // Plain values of ours have a JSON form.
        serde_json::to_vec(&told).unwrap_or_default()
    }

    fn told(&self, question: &Question) -> Answer<serde_json::Value> {
        let told = match question {
            Question::Status => serde_json::to_value(self.groups.status()),
            Question::Pool => serde_json::to_value(self.pool.status()),
            Question::PoolAdd { dir, limit } => {
                let added = self.pool.add(dir, *limit)?;
                self.thread.wake();
                serde_json::to_value(added)
            }
            Question::PoolRemove { dir, lost } => {
                // What it says of a member is to be true now.
                self.pool.tend();
                self.pool.remove(dir, *lost)?;
                self.thread.wake();
                Ok(serde_json::Value::Null)
            }
        };
        told.map_err(|e| Refusal { code: 1, message: format!("encode the answer: {e}") })
    }
}

/// Answers until it is dropped.
pub(super) async fn serve(listener: UnixListener, host: Arc<Host>) {
    let room = Arc::new(Semaphore::new(QUESTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let host = Arc::clone(&host);
        tokio::spawn(async move {
            converse(stream, host).await;
            drop(permit);
        });
    }
}

async fn converse(stream: tokio::net::UnixStream, host: Arc<Host>) {
    let (read, mut write) = stream.into_split();
    let mut line = Vec::new();
    let mut asked = BufReader::new(read.take(QUESTION_BYTES_MAX));
    // Who connects and leaves only wanted to know whether a daemon runs.
    match tokio::time::timeout(ASKER_LIMIT, asked.read_until(b'\n', &mut line)).await {
        Ok(Ok(bytes)) if bytes > 0 => {}
        _ => return,
    }
    let answered = tokio::task::spawn_blocking(move || host.answer(&line)).await;
    if let Ok(answer) = answered {
        let _ = tokio::time::timeout(ASKER_LIMIT, write.write_all(&answer)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_have_one_form() {
        let line = r#"{"ask":"pool-add","dir":"/b","limit":{"bytes":5}}"#;
        let asked: Question = serde_json::from_str(line).unwrap();
        assert_eq!(asked, Question::PoolAdd { dir: "/b".into(), limit: Limit::Bytes(5) });
        assert_eq!(serde_json::to_string(&asked).unwrap(), line);
        for wrong in
            [r#"{"ask":"pool-ad"}"#, r#"{"ask":"pool-remove","dir":"/b","lots":true}"#, "[]"]
        {
            assert!(serde_json::from_str::<Question>(wrong).is_err(), "{wrong}");
        }
        let refused: Answer<()> =
            serde_json::from_str(r#"{"Err":{"code":2,"message":"no"}}"#).unwrap();
        assert_eq!(refused.unwrap_err().code, 2);
    }
}
