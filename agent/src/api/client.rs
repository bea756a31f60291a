//! The API's client, blocking: what a command needs, one connection a call.
//!
//! What always holds: connecting, sending and each wait for bytes have a time limit, and an answer
//! is taken only when it is whole.

use super::types::{
    AgentInfo, ApiError, GuestStatus, MarkReply, MarkRequest, PoolAddRequest, PoolRemoveRequest,
    ProtectRequest, SetRequest,
};
use super::{BODY_BYTES_MAX, socket_path};
use afterimage_journal::pool::{Added, PoolStatus};
use afterimage_journal::text::escaped;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the agent may take to accept a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// How long an ordinary call may take. A worker that hangs is restarted long before.
const CALL_LIMIT: Duration = Duration::from_secs(15);
/// How long a call may take that speaks with QEMU, virsh, a guest agent or a site.
const GUEST_CALL_LIMIT: Duration = Duration::from_secs(120);
/// For calls that have all of a group's memory read and stored.
const MEMORY_CALL_LIMIT: Duration = Duration::from_secs(3600);
/// How long a question is asked again while nobody answers: a worker starts in milliseconds.
const RESTART_LIMIT: Duration = Duration::from_millis(800);
const RESTART_PAUSE: Duration = Duration::from_millis(40);
/// Largest head of an answer, in bytes.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// The agent of a state directory.
#[derive(Debug, Clone)]
pub struct Client {
    state: PathBuf,
    connect_limit: Duration,
}

impl Client {
    /// The agent of this state directory; connects at each call.
    #[must_use]
    pub fn new(state: &Path) -> Self {
        Self { state: state.to_owned(), connect_limit: CONNECT_LIMIT }
    }

    /// Its state directory.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Whether an agent takes connections there.
    #[must_use]
    pub fn is_running(&self) -> bool {
        connect(&socket_path(&self.state), self.connect_limit).is_ok()
    }

    /// [`super::Control::info`].
    ///
    /// # Errors
    /// No agent answers, or its own.
    pub fn info(&self) -> Result<AgentInfo, ApiError> {
        self.call("GET", "/v1/info", None::<&()>, CALL_LIMIT)
    }

    /// [`super::Control::status`].
    ///
    /// # Errors
    /// No agent answers, or its own.
    pub fn status(&self, name: Option<&str>) -> Result<Vec<GuestStatus>, ApiError> {
        let path = name.map_or_else(|| "/v1/guests".to_owned(), |n| guest_path(n, ""));
        self.call("GET", &path, None::<&()>, CALL_LIMIT)
    }

    /// [`super::Control::protect`].
    ///
    /// # Errors
    /// No agent answers, or its own.
    pub fn protect(&self, request: &ProtectRequest) -> Result<Vec<GuestStatus>, ApiError> {
        self.call("POST", "/v1/guests", Some(request), GUEST_CALL_LIMIT)
    }

    /// [`super::Control::set`].
    ///
    /// # Errors
    /// No agent answers, or its own.
    pub fn set(&self, name: &str, request: &SetRequest) -> Result<Vec<GuestStatus>, ApiError> {
        self.call("PATCH", &guest_path(name, ""), Some(request), GUEST_CALL_LIMIT)
    }

    /// [`super::Control::unprotect`].
    ///
    /// # Errors
    /// No agent answers, or its own.
    pub fn unprotect(&self, name: &str, purge: bool) -> Result<(), ApiError> {
        let path = guest_path(name, if purge { "?purge=true" } else { "" });
        self.call("DELETE", &path, None::<&()>, GUEST_CALL_LIMIT)
    }

    /// [`super::Control::detach`].
    ///
    /// # Errors
    /// No agent answers, or its own.
    pub fn detach(&self, name: &str) -> Result<Vec<GuestStatus>, ApiError> {
        self.call("POST", &guest_path(name, "/detach"), None::<&()>, GUEST_CALL_LIMIT)
    }

    /// [`super::Control::attach`].
    ///
    /// # Errors
    /// No agent answers, or its own.
    pub fn attach(&self, name: &str) -> Result<Vec<GuestStatus>, ApiError> {
        self.call("POST", &guest_path(name, "/attach"), None::<&()>, GUEST_CALL_LIMIT)
    }

    /// [`super::Control::mark`].
    ///
    /// # Errors
    /// No agent answers, or its own.
    pub fn mark(&self, name: &str, request: &MarkRequest) -> Result<MarkReply, ApiError> {
        let limit = if request.memory { MEMORY_CALL_LIMIT } else { GUEST_CALL_LIMIT };
        self.call("POST", &guest_path(name, "/mark"), Some(request), limit)
    }

    /// [`super::Control::pool`].
    ///
    /// # Errors
    /// No agent answers, or its own.
    pub fn pool(&self) -> Result<PoolStatus, ApiError> {
        self.call("GET", "/v1/pool", None::<&()>, CALL_LIMIT)
    }

    /// [`super::Control::pool_add`].
    ///
    /// # Errors
    /// No agent answers, or its own.
    pub fn pool_add(&self, request: &PoolAddRequest) -> Result<Added, ApiError> {
        self.call("POST", "/v1/pool/add", Some(request), CALL_LIMIT)
    }

    /// [`super::Control::pool_remove`].
    ///
    /// # Errors
    /// No agent answers, or its own.
    pub fn pool_remove(&self, request: &PoolRemoveRequest) -> Result<(), ApiError> {
        self.call("POST", "/v1/pool/remove", Some(request), CALL_LIMIT)
    }

    fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: Option<&Q>,
        limit: Duration,
    ) -> Result<A, ApiError> {
        let body = match body.map(serde_json::to_vec).transpose() {
            Ok(body) => body.unwrap_or_default(),
            Err(e) => return Err(ApiError::other(format!("encode the request: {e}"))),
        };
        let begin = Instant::now();
        let answer = loop {
            let (error, failed) = match self.try_call(method, path, &body, begin + limit) {
                Ok(answer) => break answer,
                Err(Failure::Connect(e)) => (self.unreached(&e), e),
                Err(Failure::Exchange(e)) => (self.broken(&e, limit), e),
            };
            // A question can be asked again while a worker that was killed is started anew.
            let passing = matches!(
                failed.kind(),
                io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::ConnectionReset
                    | io::ErrorKind::BrokenPipe
                    | io::ErrorKind::UnexpectedEof
            );
            if method != "GET" || !passing || begin.elapsed() > RESTART_LIMIT {
                return Err(error);
            }
            std::thread::sleep(RESTART_PAUSE);
        };
        if answer.status == 200 {
            return read(&answer.body).map_err(|e| self.odd(&e.to_string()));
        }
        let error = read(&answer.body);
        Err(error.unwrap_or_else(|_| {
            let text = String::from_utf8_lossy(&answer.body);
            let text: String = text.chars().take(200).collect();
            self.odd(&format!("status {}: {text}", answer.status))
        }))
    }

    fn try_call(
        &self,
        method: &str,
        path: &str,
        body: &[u8],
        deadline: Instant,
    ) -> Result<Answer, Failure> {
        let socket = socket_path(&self.state);
        let stream = connect(&socket, self.connect_limit).map_err(Failure::Connect)?;
        exchange(&stream, method, path, body, deadline).map_err(Failure::Exchange)
    }

    fn unreached(&self, e: &io::Error) -> ApiError {
        let state = self.state.display();
        let start = format!("start it with `afterimage agent --state {state}`");
        ApiError::not_reachable(match e.kind() {
            io::ErrorKind::NotFound => {
                format!("no agent is running on {state} (there is no api.sock): {start}")
            }
            io::ErrorKind::ConnectionRefused => {
                format!("no agent is running on {state} (nobody listens on api.sock): {start}")
            }
            io::ErrorKind::PermissionDenied => format!(
                "{state}/api.sock may not be opened by this user: run as the agent's user, or root"
            ),
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => format!(
                "the agent on {state} took no connection within {} ms: it hangs; its guard \
                 restarts it, so try again (its log says more)",
                self.connect_limit.as_millis()
            ),
            _ => format!("connect to {state}/api.sock: {e}"),
        })
    }

    fn broken(&self, e: &io::Error, limit: Duration) -> ApiError {
        let state = self.state.display();
        ApiError::not_reachable(match e.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => format!(
                "the agent on {state} did not answer within {} s; what was asked for may still \
                 happen: see `afterimage status`",
                limit.as_secs()
            ),
            _ => format!(
                "the agent on {state} went away while it was asked ({e}); what was asked for may \
                 have happened: see `afterimage status`"
            ),
        })
    }

    fn odd(&self, what: &str) -> ApiError {
        ApiError::other(format!(
            "the agent on {} answered what this command can't read ({what}): are both of the \
             same version?",
            self.state.display()
        ))
    }
}

fn guest_path(name: &str, rest: &str) -> String {
    let mut path = String::from("/v1/guests/");
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            path.push(char::from(byte));
        } else {
            path.push_str(&format!("%{byte:02X}"));
        }
    }
    path + rest
}

/// Connects within a limit: a unix socket whose queue is full would block for good.
pub(super) fn connect(socket: &Path, limit: Duration) -> io::Result<UnixStream> {
    let address = SocketAddrUnix::new(socket)?;
    let fd = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    sockopt::set_socket_timeout(&fd, sockopt::Timeout::Send, Some(limit))?;
    rustix::net::connect(&fd, &address)?;
    Ok(UnixStream::from(fd))
}

enum Failure {
    Connect(io::Error),
    Exchange(io::Error),
}

struct Answer {
    status: u16,
    body: Vec<u8>,
}

fn exchange(
    mut stream: &UnixStream,
    method: &str,
    path: &str,
    body: &[u8],
    deadline: Instant,
) -> io::Result<Answer> {
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: afterimage\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat())?;
    let mut received = Vec::new();
    let mut chunk = [0; 16 << 10];
    loop {
        if let Some(answer) = parse(&received)? {
            return Ok(answer);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut chunk) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => received.extend_from_slice(&chunk[..count]),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// The answer, once all of it is there. The server names the length of each of its bodies.
fn parse(received: &[u8]) -> io::Result<Option<Answer>> {
    let odd = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let Some(head_bytes) = received.windows(4).position(|w| w == b"\r\n\r\n") else {
        if received.len() > HEAD_BYTES_MAX {
            return Err(odd("its answer has no end of head"));
        }
        return Ok(None);
    };
    let head = std::str::from_utf8(&received[..head_bytes]).map_err(|_| odd("not HTTP"))?;
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let status = first
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split(' ').nth(1)?.parse().ok())
        .ok_or_else(|| odd("not HTTP"))?;
    let length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse::<usize>().ok())
        .ok_or_else(|| odd("its answer names no length"))?;
    if length > BODY_BYTES_MAX {
        return Err(odd("its answer is too large"));
    }
    let body = &received[head_bytes + 4..];
    Ok((body.len() >= length).then(|| Answer { status, body: body[..length].to_vec() }))
}

/// Reads an answer. It holds what guests, their agents, QEMU and sites said: from here on it is only shown.
fn read<T: DeserializeOwned>(body: &[u8]) -> serde_json::Result<T> {
    let mut value = serde_json::from_slice(body)?;
    make_shown(&mut value);
    serde_json::from_value(value)
}

fn make_shown(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::String(text) => *text = escaped(text).into_owned(),
        serde_json::Value::Array(all) => all.iter_mut().for_each(make_shown),
        serde_json::Value::Object(object) => object.values_mut().for_each(make_shown),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_only_when_it_is_whole() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
        for cut in 0..whole.len() {
            assert!(parse(&whole[..cut]).unwrap().is_none(), "{cut}");
        }
        let answer = parse(whole).unwrap().unwrap();
        assert_eq!((answer.status, answer.body.as_slice()), (200, b"hello".as_slice()));
        for bad in ["SSH-2.0\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(parse(&[b'x'; HEAD_BYTES_MAX + 1]).is_err());
        assert!(parse(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n").is_err());
    }

    #[test]
    fn a_name_cannot_leave_its_segment() {
        assert_eq!(guest_path("a/../b?c", "/mark"), "/v1/guests/a%2F..%2Fb%3Fc/mark");
    }
}
