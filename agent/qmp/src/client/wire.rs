//! Lines off a socket, with a limit.
//!
//! A monitor's messages are lines of JSON. The other side decides how long one gets, so the
//! buffer is bounded here, before anything is parsed.

use std::io;

use tokio::io::{AsyncBufRead, AsyncBufReadExt};

/// What a read of one line came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// A whole line, without its end.
    Whole(Vec<u8>),
    /// The other side closed the connection; what it had begun to say.
    End(Vec<u8>),
    /// The line is longer than the limit; its beginning.
    TooLong(Vec<u8>),
}

/// Reads lines into a buffer that outlives a dropped future.
#[derive(Debug)]
pub(crate) struct Lines<R> {
    from: R,
    begun: Vec<u8>,
    line_bytes_max: usize,
}

impl<R: AsyncBufRead + Unpin> Lines<R> {
    pub(crate) fn new(from: R, line_bytes_max: usize) -> Self {
        Lines { from, begun: Vec::new(), line_bytes_max }
    }

    /// The next line. Cancel-safe: what was read stays for the next call.
    pub(crate) async fn next(&mut self) -> io::Result<Line> {
        loop {
            let available = self.from.fill_buf().await?;
            if available.is_empty() {
                return Ok(Line::End(std::mem::take(&mut self.begun)));
            }
            let end = available.iter().position(|&b| b == b'\n');
            let taken = end.unwrap_or(available.len());
            if self.begun.len() + taken > self.line_bytes_max {
                return Ok(Line::TooLong(std::mem::take(&mut self.begun)));
            }
            self.begun.extend_from_slice(&available[..taken]);
            self.from.consume(end.map_or(taken, |e| e + 1));
            if end.is_some() {
                if self.begun.last() == Some(&b'\r') {
                    self.begun.pop();
                }
                return Ok(Line::Whole(std::mem::take(&mut self.begun)));
            }
        }
    }

    /// What has been read of a line that has no end yet.
    pub(crate) fn begun(&self) -> &[u8] {
        &self.begun
    }
}

/// The beginning of what somebody said, fit for a message.
pub(crate) fn excerpt(bytes: &[u8]) -> String {
    const SHOWN_BYTES: usize = 60;
    let shown = bytes.get(..SHOWN_BYTES).unwrap_or(bytes);
    let more = if bytes.len() > SHOWN_BYTES { "..." } else { "" };
    format!("\"{}\"{more}", shown.escape_ascii())
}
