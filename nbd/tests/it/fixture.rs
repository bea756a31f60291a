//! What the tests share: a server in a directory of its own, processes that end with their
//! test, and a client that speaks the protocol by hand.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use afterimage_nbd::proto::flags::*;
use afterimage_nbd::proto::option::{InfoQuery, OptionHeader, OptionReply};
use afterimage_nbd::proto::reply::Reply;
use afterimage_nbd::proto::request::Request;
use afterimage_nbd::proto::{Mode, NBD_MAGIC, OPTION_MAGIC};
use afterimage_nbd::{
    Client, ClientOptions, CloseReason, ConnectionObserver, Export, Exports, Limits, MemoryExport,
    Observer, Server, ServerHandle,
};
use tempfile::TempDir;

/// How long a test waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Sends the reason of each closed connection to the test.
pub struct Reasons(Sender<CloseReason>);

impl Observer for Reasons {
    fn connected(&self, _fd: std::os::fd::BorrowedFd<'_>) -> Box<dyn ConnectionObserver> {
        Box::new(Self(self.0.clone()))
    }
}

impl ConnectionObserver for Reasons {
    fn closed(self: Box<Self>, reason: CloseReason) {
        let _ = self.0.send(reason);
    }
}

/// A server on a socket in a directory of its own.
pub struct Fixture {
    pub dir: TempDir,
    pub exports: Arc<Exports>,
    pub server: ServerHandle,
    pub reasons: Receiver<CloseReason>,
}

impl Fixture {
    pub fn new(export: impl Export + 'static) -> Self {
        Self::with_limits(export, Limits::default())
    }

    pub fn memory(bytes: usize) -> (Self, Arc<MemoryExport>) {
        let fixture = Self::new(MemoryExport::new(0));
        let memory = Arc::new(MemoryExport::new(bytes));
        fixture.exports.insert("", memory.clone());
        (fixture, memory)
    }

    pub fn with_limits(export: impl Export + 'static, limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let exports = Arc::new(Exports::single(Arc::new(export)));
        let (sender, reasons) = channel();
        let observer = Arc::new(Reasons(sender));
        let server =
            Server::listen(&dir.path().join("s"), exports.clone(), limits, observer).unwrap();
        Self { dir, exports, server, reasons }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket().display())
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.socket(), &ClientOptions::default()).unwrap()
    }

    pub fn raw(&self) -> Raw {
        Raw::over(UnixStream::connect(self.socket()).unwrap())
    }

    /// The reason of the next connection that is closed.
    pub fn reason(&self) -> CloseReason {
        self.reasons.recv_timeout(PATIENCE).expect("a connection closes")
    }

    /// Fails unless a fresh client is served.
    pub fn assert_serves(&self) {
        let mut client = self.client();
        let mut data = [0; 512];
        client.read(0, &mut data).unwrap();
        client.disconnect().unwrap();
    }
}

/// Runs a program to its end; fails loudly when it is missing or does not succeed.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = output(program, args);
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {args:?}: {}\n{out}\n{err}", output.status);
    out.into_owned()
}

pub fn output(program: &str, args: &[&str]) -> Output {
    Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        // Debian's Python modules belong to its own interpreter, which may not be the first.
        .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
        .output()
        .unwrap_or_else(|error| panic!("{program} cannot run ({error}); install what the tests need: libnbd-bin python3-libnbd nbdkit fio qemu-utils"))
}

/// A server process that listens from its first moment on, by socket activation, and ends with
/// its test.
pub struct Daemon(Child);

impl Daemon {
    pub fn listening_on(socket: &Path, program: &str, args: &[&str]) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let script = r#"exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" "$@""#;
        let child = Command::new("sh")
            .args(["-c", script, program])
            .args(args)
            .stdin(OwnedFd::from(listener))
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A client that sends what it is told, right or wrong.
pub struct Raw {
    pub stream: UnixStream,
    pub mode: Mode,
}

impl Raw {
    pub fn over(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self { stream, mode: Mode::Simple }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn take(&mut self, bytes: usize) -> Vec<u8> {
        let mut taken = vec![0; bytes];
        self.stream.read_exact(&mut taken).unwrap();
        taken
    }

    /// Reads to the end of the stream and gives what came.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
            other => {
                other.expect("the stream ends");
            }
        }
        rest
    }

    pub fn greet(mut self) -> Self {
        let greeting = self.take(18);
        assert_eq!(greeting[..8], NBD_MAGIC.to_be_bytes());
        assert_eq!(greeting[8..16], OPTION_MAGIC.to_be_bytes());
        self.send(&(CLIENT_FIXED_NEWSTYLE | CLIENT_NO_ZEROES).to_be_bytes());
        self
    }

    pub fn option(&mut self, option: u32, data: &[u8]) {
        let header = OptionHeader { option, length: data.len() as u32 };
        self.send(&header.encode());
        self.send(data);
    }

    pub fn answer(&mut self, option: u32) -> (u32, Vec<u8>) {
        let header = OptionReply::decode(&self.take(20)).unwrap().unwrap();
        assert_eq!(header.option, option);
        let data = self.take(header.length as usize);
        (header.kind, data)
    }

    /// The last answer to an option.
    pub fn last_answer(&mut self, option: u32) -> u32 {
        loop {
            let (kind, _) = self.answer(option);
            if kind == REP_ACK || kind & REP_ERROR != 0 {
                return kind;
            }
        }
    }

    /// Negotiates a mode and enters transmission on the default export.
    pub fn go(mut self, mode: Mode) -> Self {
        let offer = match mode {
            Mode::Simple => None,
            Mode::Structured => Some(OPT_STRUCTURED_REPLY),
            Mode::Extended => Some(OPT_EXTENDED_HEADERS),
        };
        if let Some(option) = offer {
            self.option(option, &[]);
            assert_eq!(self.last_answer(option), REP_ACK);
        }
        self.enter(mode)
    }

    /// Enters transmission on the default export, in a mode that was negotiated.
    pub fn enter(mut self, mode: Mode) -> Self {
        let query = InfoQuery { name: "", wanted: vec![INFO_BLOCK_SIZE] };
        self.option(OPT_GO, &query.encode());
        assert_eq!(self.last_answer(OPT_GO), REP_ACK);
        self.mode = mode;
        self
    }

    pub fn header(&self, command: u16, flags: u16, offset: u64, length: u64) -> Vec<u8> {
        let mut out = [0; 32];
        let request = Request { flags, command, cookie: 77, offset, length };
        let bytes = request.encode(self.mode, &mut out);
        out[..bytes].to_vec()
    }

    pub fn request(&mut self, command: u16, flags: u16, offset: u64, length: u64) {
        let header = self.header(command, flags, offset, length);
        self.send(&header);
    }

    /// The error number of the next reply, which brings no data.
    pub fn error(&mut self) -> u32 {
        let mut header = self.take(16);
        loop {
            match Reply::decode(self.mode, &header).unwrap() {
                Some((Reply::Simple { error, cookie }, _)) => {
                    assert_eq!(cookie, 77);
                    return error;
                }
                Some((Reply::Chunk(chunk), _)) => {
                    assert!(chunk.is_done() && chunk.cookie == 77);
                    let payload = self.take(chunk.length as usize);
                    let code = payload.first_chunk().copied().map_or(0, u32::from_be_bytes);
                    assert_eq!(chunk.is_error(), code != 0);
                    return code;
                }
                None => header.extend(self.take(4)),
            }
        }
    }
}

/// Bytes that differ from place to place and from seed to seed.
pub fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(bytes);
    out
}
