//! A TCP proxy that can become slow, go silent, or break.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[derive(Default)]
struct How {
    /// Nothing is forwarded any more, nothing is closed.
    silent: AtomicBool,
    /// Bytes a second towards the site; 0: no limit.
    rate: AtomicU64,
    /// Bytes that went towards the site.
    bytes: AtomicU64,
    streams: Mutex<Vec<TcpStream>>,
    end: AtomicBool,
}

pub struct Proxy {
    pub addr: SocketAddr,
    how: Arc<How>,
}

impl Proxy {
    pub fn new(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let how = Arc::new(How::default());
        let of_thread = Arc::clone(&how);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if of_thread.end.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(site) = TcpStream::connect(to) else { continue };
                for (from, to, up) in [(&client, &site, true), (&site, &client, false)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let how = Arc::clone(&of_thread);
                    std::thread::spawn(move || forward(from, to, &how, up));
                }
                of_thread.streams.lock().unwrap().extend([client, site]);
            }
        });
        Self { addr, how }
    }

    pub fn set_silent(&self) {
        self.how.silent.store(true, Ordering::Relaxed);
    }

    pub fn set_rate(&self, bytes_per_s: u64) {
        self.how.rate.store(bytes_per_s, Ordering::Relaxed);
    }

    /// Bytes that the kernel holds on the way to the site.
    pub fn between(&self) -> u64 {
        let streams = self.how.streams.lock().unwrap();
        streams.iter().map(|s| rustix::io::ioctl_fionread(s).unwrap_or(0)).sum()
    }

    pub fn bytes(&self) -> u64 {
        self.how.bytes.load(Ordering::Relaxed)
    }

    pub fn cut(&self) {
        for stream in self.how.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.how.end.store(true, Ordering::Relaxed);
        self.cut();
        drop(TcpStream::connect(self.addr));
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, how: &How, up: bool) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(got) = from.read(&mut buffer) {
        while how.silent.load(Ordering::Relaxed) && !how.end.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(50));
        }
        if got == 0 || to.write_all(&buffer[..got]).is_err() {
            break;
        }
        if up {
            how.bytes.fetch_add(got as u64, Ordering::Relaxed);
            let rate = how.rate.load(Ordering::Relaxed);
            if let Some(us) = (got as u64 * 1_000_000).checked_div(rate) {
                std::thread::sleep(Duration::from_micros(us));
            }
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
