//! Key files, and whether a key is a journal's.
//!
//! What always holds: a key file that others can read is refused; what was read of one is cleared when it
//! isn't needed any more, and none of it, nor its path, gets into a journal or a log.

use crate::error::{Error, Result};
use crate::format::cipher::{Cipher, KEY_BYTES, Key, check_text};
use crate::layout::{AES_256_GCM, Encryption, Identity};
use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, openat};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use zeroize::Zeroizing;

/// Bytes of a key as hex digits with a newline: the most that a key file has.
const FILE_BYTES_MAX: usize = 2 * KEY_BYTES + 1;
/// Permissions that nobody but the owner may have.
const OTHERS: u32 = 0o077;
const HOW: &str = "make one with `head -c 32 /dev/urandom > FILE; chmod 600 FILE`";

/// Reads a key file: 32 bytes, or 64 hex digits and perhaps a newline.
///
/// # Errors
/// It can't be read, is no regular file, is readable for others, or holds something else.
pub fn read(path: &Path) -> Result<Key> {
    let unusable = |why: String| Error::Unusable { path: path.to_owned(), why };
    // Without waiting for whoever may write to it, if it is a pipe.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let io = |e: rustix::io::Errno| Error::io("open key file", path, e);
    let file: File = openat(CWD, path, flags, Mode::empty()).map_err(io)?.into();
    let found = fstat(&file).map_err(io)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
        return Err(unusable("a key file is a regular file, and this is none".into()));
    }
    if found.st_mode & OTHERS != 0 {
        let mode = found.st_mode & 0o7777;
        let why = format!("its mode is {mode:03o}, so others can use the key: `chmod 600` it");
        return Err(unusable(why));
    }
    // One byte more shows that it is too long; never grown, which would leave a copy behind.
    let mut bytes = Zeroizing::new([0; FILE_BYTES_MAX + 1]);
    let mut filled = 0;
    while filled < bytes.len() {
        let read = (&file).read(&mut bytes[filled..]);
        match read.map_err(|e| Error::io("read key file", path, e))? {
            0 => break,
            count => filled += count,
        }
    }
    parse(&bytes[..filled]).ok_or_else(|| {
        unusable(format!("a key file holds 32 bytes, or 64 hex digits; this holds neither: {HOW}"))
    })
}

fn parse(text: &[u8]) -> Option<Key> {
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    if text.len() == KEY_BYTES {
        bytes.copy_from_slice(text);
        return Some(Key::new(bytes));
    }
    let digits = text.strip_suffix(b"\n").unwrap_or(text);
    if digits.len() != 2 * KEY_BYTES {
        return None;
    }
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(Key::new(bytes))
}

/// What a journal says of its key.
#[must_use]
pub fn describe(key: &Key) -> Encryption {
    Encryption { cipher: AES_256_GCM.into(), check: check_text(&key.check()) }
}

/// How a journal's data is read with this key, or without one.
///
/// # Errors
/// The key is not this journal's; the journal is not encrypted; this program doesn't know its cipher.
pub fn cipher(journal: &Path, identity: &Identity, key: Option<&Key>) -> Result<Cipher> {
    let unfit = |why| Error::KeyUnfit { journal: journal.to_owned(), why };
    let Some(encryption) = &identity.encryption else {
        return match key {
            None => Ok(Cipher::Plain),
            Some(_) => Err(unfit(
                "it is not encrypted, and can't be from now on: protect the guest in a new group, \
                 or remove this journal first (unprotect --purge)",
            )),
        };
    };
    if encryption.cipher != AES_256_GCM {
        return Err(unfit(
            "it is encrypted in a way that this program doesn't know: use a newer one",
        ));
    }
    match key {
        None => Ok(Cipher::Locked),
        Some(key) if describe(key) == *encryption => Ok(Cipher::Open(key.clone())),
        Some(_) => Err(unfit("it was encrypted with another one: find the key file it began with")),
    }
}

#[cfg(test)]
mod tests {
    use super::read;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    fn write(path: &Path, bytes: &[u8], mode: u32) {
        std::fs::write(path, bytes).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_key_is_32_bytes_or_their_hex_digits_and_shows_nothing_of_itself() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let raw: Vec<u8> = (0..32).map(|i| i * 7).collect();
        let hex: String = raw.iter().map(|b| format!("{b:02X}")).collect();
        write(&path, &raw, 0o600);
        let key = read(&path).unwrap();
        assert_eq!(format!("{key:?}"), "Key(..)");
        for text in [hex.clone(), hex.to_lowercase(), hex.clone() + "\n"] {
            write(&path, text.as_bytes(), 0o400);
            assert_eq!(read(&path).unwrap().check(), key.check());
            std::fs::remove_file(&path).unwrap();
        }
        for bytes in
            [&raw[1..], &hex.as_bytes()[1..], (hex.clone() + "\n\n").as_bytes(), b"", &[b'g'; 64]]
        {
            write(&path, bytes, 0o600);
            let refused = read(&path).unwrap_err().to_string();
            assert!(refused.contains("32 bytes") && refused.contains("chmod 600"), "{refused}");
        }
    }

    #[test]
    fn a_key_file_that_others_can_use_is_refused_and_so_is_what_is_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        for mode in [0o640, 0o604, 0o610, 0o602, 0o666] {
            write(&path, &[7; 32], mode);
            let refused = read(&path).unwrap_err().to_string();
            assert!(refused.contains(&format!("{mode:03o}")), "{refused}");
        }
        assert!(read(dir.path()).unwrap_err().to_string().contains("regular file"));
        assert!(read(&dir.path().join("none")).unwrap_err().to_string().contains("open key file"));
    }
}
