//! What a watchdog is told, and in what order.

use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use afterimage_nbd::proto::Mode;
use afterimage_nbd::proto::flags::*;
use afterimage_nbd::proto::option::InfoQuery;
use afterimage_nbd::{
    CloseReason, ConnectionObserver, Exports, Limits, MemoryExport, Observer, Server,
};
use rustix::net::RecvFlags;

use crate::fixture::{PATIENCE, Raw};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Connected,
    Exporting,
    Waiting,
    Received,
    Sending,
    Replied,
    Closed,
}

struct Log(Sender<Call>);

impl Log {
    fn note(&self, call: Call) {
        let _ = self.0.send(call);
    }
}

impl Observer for Log {
    fn connected(&self, fd: BorrowedFd<'_>) -> Box<dyn ConnectionObserver> {
        assert!(fd.try_clone_to_owned().is_ok());
        self.note(Call::Connected);
        Box::new(Self(self.0.clone()))
    }
}

impl ConnectionObserver for Log {
    fn exporting(&self, name: &str) {
        assert_eq!(name, "");
        self.note(Call::Exporting);
    }
    fn waiting(&self) {
        self.note(Call::Waiting);
    }
    fn received(&self) {
        self.note(Call::Received);
    }
    fn sending(&self) {
        self.note(Call::Sending);
    }
    fn replied(&self) {
        self.note(Call::Replied);
    }
    fn closed(self: Box<Self>, reason: CloseReason) {
        assert!(matches!(reason, CloseReason::Disconnected), "{reason:?}");
        self.note(Call::Closed);
    }
}

fn next(calls: &Receiver<Call>) -> Call {
    calls.recv_timeout(PATIENCE).expect("the observer is called")
}

#[test]
fn a_batch_is_received_answered_and_waited_after_in_that_order() {
    let exports = Arc::new(Exports::single(Arc::new(MemoryExport::new(1 << 20))));
    let (sender, calls) = channel();
    let dir = tempfile::tempdir().unwrap();
    let observer = Arc::new(Log(sender));
    let server =
        Server::listen(&dir.path().join("s"), exports, Limits::default(), observer).unwrap();
    let stream = UnixStream::connect(dir.path().join("s")).unwrap();
    let mut raw = Raw::over(stream).greet().go(Mode::Simple);
    assert_eq!(next(&calls), Call::Connected);
    while next(&calls) != Call::Exporting {}
    // The client hears of that afterwards.
    assert_eq!([next(&calls), next(&calls)], [Call::Sending, Call::Replied]);
    // One request, one batch: whole, it is answered before the next wait.
    for _ in 0..3 {
        assert_eq!(next(&calls), Call::Waiting);
        raw.request(CMD_FLUSH, 0, 0, 0);
        assert_eq!(raw.error(), 0);
        let batch = [next(&calls), next(&calls), next(&calls)];
        assert_eq!(batch, [Call::Received, Call::Sending, Call::Replied]);
    }
    // Three requests in one send are one batch.
    assert_eq!(next(&calls), Call::Waiting);
    raw.send(&raw.header(CMD_TRIM, 0, 0, 512).repeat(3));
    for _ in 0..3 {
        assert_eq!(raw.error(), 0);
    }
    assert_eq!(
        [next(&calls), next(&calls), next(&calls)],
        [Call::Received, Call::Sending, Call::Replied]
    );
    // A flush may take long: what came before it is answered first, and the flush still counts.
    assert_eq!(next(&calls), Call::Waiting);
    let flush = raw.header(CMD_FLUSH, 0, 0, 0);
    raw.send(&[raw.header(CMD_TRIM, 0, 0, 512), flush].concat());
    assert_eq!((raw.error(), raw.error()), (0, 0));
    let answered = [Call::Received, Call::Sending, Call::Replied];
    for call in [answered, answered].concat() {
        assert_eq!(next(&calls), call);
    }
    // Half a payload: the server waits, and says so, before the rest comes.
    assert_eq!(next(&calls), Call::Waiting);
    raw.request(CMD_WRITE, 0, 0, 100_000);
    assert_eq!([next(&calls), next(&calls)], [Call::Received, Call::Waiting]);
    raw.send(&[1; 100_000]);
    assert_eq!(raw.error(), 0);
    while next(&calls) != Call::Replied {}
    assert_eq!(next(&calls), Call::Waiting);
    raw.request(CMD_DISC, 0, 0, 0);
    assert_eq!([next(&calls), next(&calls)], [Call::Received, Call::Closed]);
    server.shutdown();
}

/// Looks, when an export is chosen, whether the client has heard of that already.
struct Early {
    stream: Mutex<Option<UnixStream>>,
    heard: Sender<bool>,
}

struct EarlyOf(Arc<Early>);

impl Observer for EarlyOf {
    fn connected(&self, _fd: BorrowedFd<'_>) -> Box<dyn ConnectionObserver> {
        Box::new(Self(Arc::clone(&self.0)))
    }
}

impl ConnectionObserver for EarlyOf {
    fn exporting(&self, _name: &str) {
        let stream = self.0.stream.lock().unwrap();
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let read = rustix::net::recv(stream.as_ref().unwrap(), &mut [0_u8; 1], flags);
        self.0.heard.send(read != Err(rustix::io::Errno::AGAIN)).unwrap();
    }
}

#[test]
fn export_is_noted_before_its_client_hears_that_it_may_write() {
    let exports = Arc::new(Exports::single(Arc::new(MemoryExport::new(4096))));
    let dir = tempfile::tempdir().unwrap();
    let (heard, has_heard) = channel();
    let early = Arc::new(Early { stream: Mutex::new(None), heard });
    let observer = Arc::new(EarlyOf(Arc::clone(&early)));
    let _server =
        Server::listen(&dir.path().join("s"), exports, Limits::default(), observer).unwrap();
    for option in [OPT_GO, OPT_EXPORT_NAME] {
        let mut raw = Raw::over(UnixStream::connect(dir.path().join("s")).unwrap()).greet();
        *early.stream.lock().unwrap() = Some(raw.stream.try_clone().unwrap());
        let data = match option {
            OPT_GO => InfoQuery { name: "", wanted: vec![] }.encode(),
            _ => Vec::new(),
        };
        raw.option(option, &data);
        assert!(!has_heard.recv_timeout(PATIENCE).unwrap(), "option {option} was answered before");
    }
}
