//! A real S3 server: seaweedfs, put below `target/s3` by `tests/guest/install.sh`. And the ops that the files
//! of a closed journal are, to fill a bucket with.

#![allow(dead_code, reason = "each test binary and bench uses a part of it")]

use afterimage_journal::format::align_up;
use afterimage_journal::format::record::HEADER_BYTES;
use afterimage_journal::format::unit_header::BLOCK_BYTES;
use afterimage_journal::pool::{FileName, Places};
use afterimage_journal::storage::{RealStorage, Storage};
use afterimage_journal::unit::{ScanEnd, read_unit};
use afterimage_journal::wire::{Hello, Op, Sink};
use afterimage_journal::{Seq, layout};
use afterimage_s3::S3Sink;
use afterimage_s3::store::{Bucket, Patience, Patient};
use afterimage_s3::url::S3Url;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest time that it takes to start, on a machine that has much to do.
const START_MAX: Duration = Duration::from_secs(60);
/// The bucket of every server.
pub const BUCKET: &str = "vault";
const KEY: &str = "AKIATEST";
const SECRET: &str = "not-a-secret";

/// A server on ports of its own, with one bucket. Ends with its drop.
pub struct Server {
    child: Child,
    host: Host,
    port: u16,
    _dir: tempfile::TempDir,
}

/// Where a server runs.
#[derive(Clone)]
pub struct Host {
    /// Its address, as its clients reach it.
    pub address: String,
    /// A network namespace that it and its clients are in; `None`: this process's own.
    pub namespace: Option<String>,
}

impl Host {
    fn local() -> Self {
        Self { address: "127.0.0.1".into(), namespace: None }
    }

    fn command(&self, program: &Path) -> Command {
        let Some(namespace) = &self.namespace else { return Command::new(program) };
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]).arg(program);
        command
    }

    /// Does something in its namespace: on a thread that goes there, as do those that it starts.
    fn inside<T: Send>(&self, task: impl FnOnce() -> T + Send) -> T {
        let Some(namespace) = &self.namespace else { return task() };
        let file = File::open(Path::new("/run/netns").join(namespace)).unwrap();
        std::thread::scope(|scope| {
            let there = scope.spawn(|| {
                let network = rustix::thread::LinkNameSpaceType::Network;
                rustix::thread::move_into_link_name_space(file.as_fd(), Some(network)).unwrap();
                task()
            });
            there.join().unwrap()
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGKILL: it takes half a minute to end when it is asked to.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn binary() -> PathBuf {
    // Of the workspace, whichever of its crates this is a part of.
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let found = root.ancestors().take(2).map(|d| d.join("target/s3/bin/weed")).find(|p| p.exists());
    found.unwrap_or_else(|| panic!("target/s3/bin/weed is missing: run tests/guest/install.sh"))
}

/// Ports that nobody has, of which the tenthousandth above is free too (the server takes it for gRPC).
fn ports<const N: usize>() -> [u16; N] {
    let mut held = Vec::new();
    let mut found = [0; N];
    for port in &mut found {
        loop {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            *port = listener.local_addr().unwrap().port();
            held.push(listener);
            if *port < 50_000
                && let Ok(other) = TcpListener::bind(("127.0.0.1", *port + 10_000))
            {
                held.push(other);
                break;
            }
        }
    }
    found
}

impl Server {
    /// Starts one and makes its bucket.
    pub fn start() -> Self {
        Self::start_at(&Host::local())
    }

    /// The same on a host of its own.
    pub fn start_at(host: &Host) -> Self {
        for _ in 0..3 {
            if let Some(server) = Self::try_start(host) {
                return server;
            }
        }
        panic!("seaweedfs did not start three times");
    }

    fn try_start(host: &Host) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("s3.json");
        let identity = format!(
            r#"{{"identities":[{{"name":"t","credentials":[{{"accessKey":"{KEY}","secretKey":"{SECRET}"}}],
            "actions":["Admin","Read","Write","List","Tagging"]}}]}}"#
        );
        std::fs::write(&config, identity).unwrap();
        let [master, volume, filer, port] = ports();
        let log = File::create(dir.path().join("log")).unwrap();
        let address = &host.address;
        let child = host
            .command(&binary())
            .arg("server")
            .arg(format!("-dir={}", dir.path().display()))
            .args([format!("-ip={address}"), format!("-ip.bind={address}")])
            .arg("-master.telemetry=false")
            .args(["-s3", "-s3.iam=false", "-s3.port.iceberg=0", "-s3.port.lance=0"])
            .args(["-volume.max=100", "-master.volumeSizeLimitMB=256"])
            .arg(format!("-s3.config={}", config.display()))
            .args([
                format!("-master.port={master}"),
                format!("-master.port.grpc={}", master + 10_000),
            ])
            .args([
                format!("-volume.port={volume}"),
                format!("-volume.port.grpc={}", volume + 10_000),
            ])
            .args([format!("-filer.port={filer}"), format!("-filer.port.grpc={}", filer + 10_000)])
            .args([format!("-s3.port={port}"), format!("-s3.port.grpc={}", port + 10_000)])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut server = Self { child, host: host.clone(), port, _dir: dir };
        let begin = Instant::now();
        while begin.elapsed() < START_MAX {
            if server.answers() {
                server.make_bucket();
                return Some(server);
            }
            // A port was taken meanwhile.
            if server.child.try_wait().unwrap().is_some() {
                return None;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        None
    }

    fn answers(&self) -> bool {
        let ask = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect((self.host.address.as_str(), self.port))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        self.host.inside(ask).is_ok_and(|text| text.contains("AccessDenied"))
    }

    fn make_bucket(&self) {
        let begin = Instant::now();
        loop {
            match self.host.inside(|| self.bucket().make()) {
                Ok(()) => return,
                Err(e) if begin.elapsed() > START_MAX => panic!("make bucket: {e}"),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    /// Where it listens.
    pub fn addr(&self) -> String {
        format!("{}:{}", self.host.address, self.port)
    }

    /// Where its bucket is, as an option.
    pub fn place(&self) -> String {
        format!("s3://{BUCKET}/site?endpoint=http://{}&region=test-1", self.addr())
    }

    /// The same, read.
    pub fn url(&self) -> S3Url {
        self.place().parse().unwrap()
    }

    /// A client with the server's credentials.
    pub fn bucket(&self) -> Bucket {
        // Each test is a process of its own under nextest; under cargo test all set the same values.
        // SAFETY: every thread that reads the environment is started by the client below.
        unsafe {
            std::env::set_var("AWS_ACCESS_KEY_ID", KEY);
            std::env::set_var("AWS_SECRET_ACCESS_KEY", SECRET);
            std::env::set_var("AWS_EC2_METADATA_DISABLED", "true");
        }
        Bucket::connect(&self.url()).unwrap()
    }

    /// The same, patient.
    pub fn patient(&self) -> Patient {
        let ms = Duration::from_millis;
        let patience = Patience { first: ms(10), longest: ms(500), whole: ms(10_000) };
        Patient::new(Arc::new(self.bucket()), patience)
    }
}

/// Hands out the ops that the files of a closed journal are, each with the highest number up to it: units as
/// the log's end in pieces of about `chunk_bytes`, others in pieces.
pub fn each_op(dir: &Path, chunk_bytes: u64, mut take: impl FnMut(Op, Seq)) {
    let storage: Arc<dyn Storage> = RealStorage::shared();
    let identity = layout::read_identity(dir).unwrap();
    let mut seq = 0;
    for found in Places::of(&storage, dir).unwrap().units().unwrap() {
        let unit = read_unit(&*storage, &found, identity.group.into_bytes(), None).unwrap();
        let FileName::Unit(number) = found.name else {
            pieces(&found.path, found.name, unit.index_crc).for_each(|op| take(op, seq));
            continue;
        };
        let file = std::fs::read(&found.path).unwrap();
        take(Op::Begin(Box::new(unit.header)), seq);
        let mut records = unit.records.clone();
        records.sort_by_key(|(at, _)| *at);
        let mut at = BLOCK_BYTES;
        for (i, (place, record)) in records.iter().enumerate() {
            seq = seq.max(record.seq);
            let end = align_up(place + HEADER_BYTES + u64::from(record.payload_bytes));
            if end - at >= chunk_bytes || i + 1 == records.len() {
                let bytes = file[at as usize..end as usize].to_vec();
                take(Op::Bytes { unit: number, at, bytes }, seq);
                at = end;
            }
        }
        if unit.end == ScanEnd::Sealed {
            take(Op::Seal { unit: number, end: at, index_crc: unit.index_crc }, seq);
        }
    }
}

/// A file in pieces, holes told by their length.
pub fn pieces(path: &Path, name: FileName, index_crc: u32) -> impl Iterator<Item = Op> + use<> {
    let file = std::fs::read(path).unwrap();
    let file_bytes = file.len() as u64;
    let mut ops = Vec::new();
    for (i, piece) in file.chunks(300_000).enumerate() {
        let used = piece.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
        let at = i as u64 * 300_000;
        let (bytes, len) = (piece[..used].to_vec(), piece.len() as u64);
        ops.push(Op::Put { name, file_bytes, at, bytes, len });
    }
    ops.push(Op::PutEnd { name, index_crc });
    ops.into_iter()
}

/// Brings a closed journal into a bucket, acknowledged.
pub fn bring(dir: &Path, sink: &mut S3Sink, chunk_bytes: u64) {
    let identity = layout::read_identity(dir).unwrap();
    sink.open(&Hello { identity, epoch: u64::MAX }).unwrap();
    let mut last = 0;
    each_op(dir, chunk_bytes, |op, seq| {
        sink.apply(op).unwrap();
        last = seq;
    });
    sink.apply(Op::Sync { token: 1, watermark: last, wall_ns: 1 }).unwrap();
    let begin = Instant::now();
    // Acks of files that became whole come before it.
    while sink.ack(Duration::from_secs(60)).unwrap().is_none_or(|ack| ack.watermark != last) {
        assert!(begin.elapsed() < Duration::from_secs(60), "not acknowledged within a minute");
    }
}
