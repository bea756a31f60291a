//! The line protocol with the host, over the virtio-serial port `ai.port`.
//!
//! Host to guest: `ROLE COMMAND [key=value]...`, or a bare `hello` or `poweroff`. Guest to host:
//! `ROLE EVENT [key=value]...`. What is said while no host is connected is lost; `hello` asks for
//! the `ready` line again.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

const PORT_NAME: &str = "ai.port";
const LINE_BYTES_MAX: usize = 4096;

/// The guest's end of the port; lines from several threads do not mix.
pub struct Port {
    file: Mutex<File>,
}

impl Port {
    /// Opens the port, which appears some time after its driver was loaded.
    pub fn open() -> io::Result<(Self, Lines)> {
        let path = wait_for_named_port(PORT_NAME, Duration::from_secs(5)).ok_or_else(|| {
            io::Error::other(format!(
                "no virtio-serial port named {PORT_NAME}: start QEMU with one"
            ))
        })?;
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let lines = Lines { file: file.try_clone()?, pending: Vec::new() };
        Ok((Self { file: Mutex::new(file) }, lines))
    }

    /// Sends one line. Nobody listening is not an error.
    pub fn say(&self, line: &str) {
        let mut file = self.file.lock().unwrap();
        let _ = file.write_all(format!("{line}\n").as_bytes());
    }
}

/// The lines that the host sends.
pub struct Lines {
    file: File,
    pending: Vec<u8>,
}

impl Lines {
    /// Waits for the next line.
    pub fn next(&mut self) -> String {
        loop {
            if let Some(end) = self.pending.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return String::from_utf8_lossy(&line).trim().to_owned();
            }
            if self.pending.len() > LINE_BYTES_MAX {
                self.pending.clear();
            }
            let mut chunk = [0; 512];
            match self.file.read(&mut chunk) {
                Ok(count) if count > 0 => self.pending.extend_from_slice(&chunk[..count]),
                // No host is connected: there is no event to wait for.
                _ => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }
}

/// The device of the virtio-serial port called `name`, if there is one within `limit`.
pub fn wait_for_named_port(name: &str, limit: Duration) -> Option<String> {
    let begin = Instant::now();
    loop {
        for entry in fs::read_dir("/sys/class/virtio-ports").into_iter().flatten().flatten() {
            let given = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if given.trim() == name {
                return Some(format!("/dev/{}", entry.file_name().to_string_lossy()));
            }
        }
        if begin.elapsed() >= limit {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The value of `key=` among the words of a command or of the kernel's command line.
pub fn value<'a>(words: &'a str, key: &str) -> Option<&'a str> {
    words.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

/// As [`value`], for a number; what is no number counts as not given.
pub fn number(words: &str, key: &str) -> Option<u64> {
    value(words, key)?.parse().ok()
}
