//! A store that answers late, twice, with errors, or not at all: a proxy before an HTTP server.
//!
//! Each request goes to the server on a connection of its own. What befalls one in eight:
//!
//! | fault | the server | the client |
//! |---|---|---|
//! | late | does it after a while | gets its answer |
//! | twice | does it twice | gets the second answer |
//! | refused | never hears of it | 503 |
//! | lost | does it | 500, or a connection that ends without a word |
//! | silent | never hears of it | a connection that ends after a while |

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Longest time that the server, or the client, may stand still in the middle of something.
const STANDSTILL_MAX: Duration = Duration::from_secs(40);
const LATE: Duration = Duration::from_millis(150);
const SILENCE: Duration = Duration::from_millis(300);
/// One request in so many fares badly.
const ONE_IN: u64 = 8;

/// The proxy; ends with its drop.
pub struct Faulty {
    /// Where clients come to.
    pub addr: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    server: SocketAddr,
    ends: AtomicBool,
    dice: AtomicU64,
    faults: AtomicU64,
}

impl Faulty {
    /// Stands before a server; `seed` says what befalls the requests.
    pub fn before(server: SocketAddr, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            server,
            ends: AtomicBool::new(false),
            dice: AtomicU64::new(seed),
            faults: AtomicU64::new(0),
        });
        let own = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            for client in listener.incoming() {
                if own.ends.load(Ordering::SeqCst) {
                    return;
                }
                let (own, Ok(client)) = (Arc::clone(&own), client) else { continue };
                // Whoever breaks off is gone; the client sees the same.
                std::thread::spawn(move || drop(own.pass(&client)));
            }
        });
        Self { addr, shared, thread: Some(thread) }
    }

    /// Requests that fared badly.
    pub fn faults(&self) -> u64 {
        self.shared.faults.load(Ordering::SeqCst)
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::SeqCst);
        // To have it look.
        drop(TcpStream::connect(self.addr));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn roll(&self, sides: u64) -> u64 {
        let step = |x: u64| {
            let x = x ^ x << 13;
            let x = x ^ x >> 7;
            Some(x ^ x << 17)
        };
        let rolled = self.dice.fetch_update(Ordering::SeqCst, Ordering::SeqCst, step);
        (rolled.unwrap_or_default() >> 11) % sides
    }

    fn pass(&self, mut client: &TcpStream) -> std::io::Result<()> {
        client.set_read_timeout(Some(STANDSTILL_MAX))?;
        let Some(request) = read_request(client)? else { return Ok(()) };
        let is_good = self.roll(ONE_IN) > 0;
        self.faults.fetch_add(u64::from(!is_good), Ordering::SeqCst);
        let answer = match if is_good { 9 } else { self.roll(6) } {
            0 => {
                std::thread::sleep(LATE);
                self.ask(&request)?
            }
            1 => {
                self.ask(&request)?;
                self.ask(&request)?
            }
            2 => {
                b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec()
            }
            3 => {
                self.ask(&request)?;
                b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec()
            }
            4 => {
                self.ask(&request)?;
                vec![]
            }
            5 => {
                std::thread::sleep(SILENCE);
                vec![]
            }
            _ => self.ask(&request)?,
        };
        client.write_all(&answer)?;
        client.shutdown(Shutdown::Both)
    }

    /// Has the server do it, and gives its answer.
    fn ask(&self, request: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut server = TcpStream::connect(self.server)?;
        server.set_read_timeout(Some(STANDSTILL_MAX))?;
        server.write_all(request)?;
        let mut answer = Vec::new();
        server.read_to_end(&mut answer)?;
        Ok(answer)
    }
}

/// A request with its body, which asks for the connection to be closed behind it; `None`: none came.
fn read_request(mut client: &TcpStream) -> std::io::Result<Option<Vec<u8>>> {
    let (mut bytes, mut piece) = (Vec::new(), [0; 1 << 16]);
    let head = loop {
        if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        match client.read(&mut piece)? {
            0 => return Ok(None),
            read => bytes.extend_from_slice(&piece[..read]),
        }
    };
    let text = String::from_utf8_lossy(&bytes[..head]).into_owned();
    let is = |line: &&str, name: &str| line.to_ascii_lowercase().starts_with(name);
    let length = text.lines().find(|l| is(l, "content-length:")).map_or("0", |l| &l[15..]);
    let length: usize = length.trim().parse().map_err(std::io::Error::other)?;
    if text.lines().any(|l| is(&l, "expect:")) {
        client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    while bytes.len() < head + length {
        match client.read(&mut piece)? {
            0 => return Ok(None),
            read => bytes.extend_from_slice(&piece[..read]),
        }
    }
    let lines = text.split("\r\n").filter(|l| !is(l, "connection:") && !is(l, "expect:"));
    let mut request = String::new();
    for line in lines.take_while(|l| !l.is_empty()) {
        request.push_str(line);
        request.push_str("\r\n");
    }
    request.push_str("Connection: close\r\n\r\n");
    Ok(Some([request.as_bytes(), &bytes[head..head + length]].concat()))
}
