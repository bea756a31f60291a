//! A real S3 server for tests: seaweedfs, put below `target/s3` by `tests/guest/install.sh`.

use crate::fixture::patience;
use afterimage_s3::store::{Bucket, Patient};
use afterimage_s3::url::S3Url;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longest time that it takes to start, on a machine that has much to do.
const START_MAX: Duration = Duration::from_secs(60);
pub const BUCKET: &str = "vault";
const KEY: &str = "AKIATEST";
const SECRET: &str = "not-a-secret";

/// A server on ports of its own, with one bucket. Ends with its drop.
pub struct Server {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGKILL: it takes half a minute to end when it is asked to.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn binary() -> PathBuf {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let path = root.join("target/s3/bin/weed");
    assert!(path.exists(), "{} is missing: run tests/guest/install.sh", path.display());
    path
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
        for _ in 0..3 {
            if let Some(server) = Self::try_start() {
                return server;
            }
        }
        panic!("seaweedfs did not start three times");
    }

    fn try_start() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("s3.json");
        let identity = format!(
            r#"{{"identities":[{{"name":"t","credentials":[{{"accessKey":"{KEY}","secretKey":"{SECRET}"}}],
            "actions":["Admin","Read","Write","List","Tagging"]}}]}}"#
        );
        std::fs::write(&config, identity).unwrap();
        let [master, volume, filer, port] = ports();
        let log = File::create(dir.path().join("log")).unwrap();
        let child = Command::new(binary())
            .arg("server")
            .arg(format!("-dir={}", dir.path().display()))
            .args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false"])
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
        let mut server = Self { child, port, _dir: dir };
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
            let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        ask().is_ok_and(|text| text.contains("AccessDenied"))
    }

    fn make_bucket(&self) {
        let begin = Instant::now();
        loop {
            match self.bucket().make() {
                Ok(()) => return,
                Err(e) if begin.elapsed() > START_MAX => panic!("make bucket: {e}"),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn url(&self) -> S3Url {
        let endpoint = self.endpoint();
        format!("s3://{BUCKET}/site?endpoint={endpoint}&region=test-1").parse().unwrap()
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

    pub fn patient(&self) -> Patient {
        let patience =
            afterimage_s3::store::Patience { whole: Duration::from_secs(10), ..patience() };
        Patient::new(Arc::new(self.bucket()), patience)
    }
}
