//! Inputs as text: one a line, in hex, `#` before a remark.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

/// Where the inputs of a target are kept.
#[must_use]
pub fn path(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(format!("{target}.hex"))
}

/// Where an input that broke a claim is kept.
#[must_use]
pub fn failure_path(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("failures").join(format!("{target}.hex"))
}

/// The inputs in a file; none when it isn't there.
///
/// # Errors
/// It can't be read, or a line is no hex.
pub fn read(path: &Path) -> io::Result<Vec<Vec<u8>>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let lines = text.lines().filter(|l| !l.starts_with('#'));
    lines.map(|line| from_hex(line.trim()).ok_or_else(|| io::Error::other(line))).collect()
}

/// Bytes of inputs that are kept of a target: what the repository carries.
const KEPT_BYTES_MAX: usize = 24 << 10;

/// Replaces the inputs in a file, shortest first and no more than can be carried.
///
/// # Errors
/// It can't be written.
pub fn write(path: &Path, inputs: &[Vec<u8>]) -> io::Result<()> {
    let mut inputs: Vec<_> = inputs.iter().collect();
    inputs.sort_by_key(|input| (input.len(), *input));
    inputs.dedup();
    let mut bytes = 0;
    inputs.retain(|input| {
        bytes += input.len();
        bytes <= KEPT_BYTES_MAX
    });
    let text: String = inputs.into_iter().map(|input| to_hex(input) + "\n").collect();
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    std::fs::write(path, text)
}

/// Two digits a byte.
#[must_use]
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The bytes of [`to_hex`].
#[must_use]
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()).collect()
}
