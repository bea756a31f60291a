//! A site on a port of its own, with sinks that note what they are told.

use afterimage_journal::layout::Identity;
use afterimage_journal::wire::{Ack, Hello, Inventory, Op, Sink, SinkError};
use afterimage_link::identity::{Credentials, Site};
use afterimage_link::server::{Connection, Counts, Host, Server};
use afterimage_link::{TlsSink, TlsTarget, redeem};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use uuid::Uuid;

pub const GROUP: &str = "shop";

/// What a group's sink saw, and how it behaves.
#[derive(Default)]
pub struct Notes {
    pub hellos: Vec<Hello>,
    pub ops: Vec<Op>,
    pub inventory: Inventory,
    pub acks: Vec<Ack>,
    pub mirrors: bool,
    /// How long an op takes.
    pub slow: Duration,
    /// What the next op is answered with.
    pub fails: Option<SinkError>,
    pub links: Vec<(Connection, Option<String>)>,
}

#[derive(Clone, Default)]
pub struct Noted(pub Arc<Mutex<Notes>>);

impl Sink for Noted {
    fn open(&mut self, hello: &Hello) -> Result<Inventory, SinkError> {
        let mut notes = self.0.lock().unwrap();
        let highest = notes.hellos.iter().map(|h| h.epoch).max().unwrap_or(0);
        if hello.epoch < highest {
            return Err(SinkError::Refused(format!("epoch {} is below {highest}", hello.epoch)));
        }
        notes.hellos.push(hello.clone());
        Ok(notes.inventory.clone())
    }

    fn apply(&mut self, op: Op) -> Result<(), SinkError> {
        let slow = self.0.lock().unwrap().slow;
        std::thread::sleep(slow);
        let mut notes = self.0.lock().unwrap();
        if let Some(error) = notes.fails.take() {
            return Err(error);
        }
        match &op {
            Op::Sync { token, watermark, .. } => {
                let (token, watermark) = (*token, *watermark);
                notes.acks.push(Ack { token, watermark, whole: vec![] });
            }
            Op::PutEnd { name, .. } => {
                let last = notes.acks.last().cloned().unwrap_or_default();
                notes.acks.push(Ack { whole: vec![*name], ..last });
            }
            _ => {}
        }
        notes.ops.push(op);
        Ok(())
    }

    fn ack(&mut self, _wait: Duration) -> Result<Option<Ack>, SinkError> {
        let mut notes = self.0.lock().unwrap();
        Ok((!notes.acks.is_empty()).then(|| notes.acks.remove(0)))
    }

    fn mirrors(&self) -> bool {
        self.0.lock().unwrap().mirrors
    }
}

/// All groups in one sink's notes.
impl Host for Noted {
    fn sink(&self, _group: &str) -> Result<Box<dyn Sink>, SinkError> {
        Ok(Box::new(self.clone()))
    }

    fn connected(&self, _group: &str, connection: &Connection) {
        self.0.lock().unwrap().links.push((connection.clone(), None));
    }

    fn disconnected(&self, _group: &str, why: &str) {
        if let Some(last) = self.0.lock().unwrap().links.last_mut() {
            last.1 = Some(why.to_owned());
        }
    }
}

pub struct Bed {
    pub dir: TempDir,
    pub site: Arc<Site>,
    pub server: Arc<Server>,
    pub noted: Noted,
    pub addr: SocketAddr,
    end: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Bed {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let site = Arc::new(Site::open_or_make(&dir.path().join("site")).unwrap());
        let noted = Noted::default();
        let server = Server::new(Arc::clone(&site), Arc::new(noted.clone()));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let (end, ends) = oneshot::channel();
        let serving = Arc::clone(&server);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener).unwrap();
                serving.serve(listener, async { drop(ends.await) }).await;
            });
        });
        Self { dir, site, server, noted, addr, end: Some(end), thread: Some(thread) }
    }

    pub fn credentials_dir(&self, name: &str) -> PathBuf {
        self.dir.path().join("agent").join(name)
    }

    /// Enrolls an agent for a group; its credentials lie in `name`.
    pub fn enroll(&self, group: &str, name: &str) -> Credentials {
        let invitation = self.site.enroll(group, 600).unwrap();
        redeem(&self.addr.to_string(), &invitation, &self.credentials_dir(name)).unwrap()
    }

    pub fn sink(&self, name: &str) -> TlsSink {
        self.sink_at(self.addr, name)
    }

    pub fn sink_at(&self, addr: SocketAddr, name: &str) -> TlsSink {
        let credentials = self.credentials_dir(name);
        TlsSink::new(TlsTarget { addr: addr.to_string(), credentials })
    }

    /// A sink of an enrolled agent, open.
    pub fn open(&self) -> TlsSink {
        self.enroll(GROUP, "a");
        let mut sink = self.sink("a");
        sink.open(&hello(GROUP, 1)).unwrap();
        sink
    }

    pub fn messages(&self) -> u64 {
        self.server.counts().messages.load(Ordering::Relaxed)
    }

    fn counts(&self) -> &Counts {
        self.server.counts()
    }

    pub fn notes<T>(&self, look: impl FnOnce(&mut Notes) -> T) -> T {
        look(&mut self.noted.0.lock().unwrap())
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub fn hello(group: &str, epoch: u64) -> Hello {
    let identity = Identity {
        format: 1,
        group: Uuid::from_u128(7),
        name: group.into(),
        unit_bytes: 1 << 20,
        encryption: None,
    };
    Hello { identity, epoch }
}

/// Waits until it is so.
#[track_caller]
pub fn until(what: &str, limit: Duration, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < limit, "{what} did not come to be in {limit:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
