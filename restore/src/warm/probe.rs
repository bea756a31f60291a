//! Whether an accelerator really runs a guest here: `/dev/kvm` may be there and guests hang all the
//! same.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a boot sector may take; a tenth of it is usual.
pub const BOOT_MAX: Duration = Duration::from_secs(10);
/// Most of QEMU's own words that are read, in bytes.
const WORDS_BYTES_MAX: u64 = 4096;
/// What QEMU's exit device makes of the value that the boot sector writes to it.
const EXIT_CODE: i32 = (0x10 << 1) | 1;
/// mov dx, 0x501; mov al, 0x10; out dx, al; hlt; jmp to the hlt.
const PROGRAM: [u8; 9] = [0xba, 0x01, 0x05, 0xb0, 0x10, 0xee, 0xf4, 0xeb, 0xfd];

/// How a boot sector fared whose only deed is to end QEMU.
#[derive(Debug, PartialEq, Eq)]
pub enum Boot {
    /// As it should.
    Ran,
    /// QEMU ended by itself, with these words.
    Ended(String),
    /// It was ended after [`BOOT_MAX`].
    Hung,
}

/// Runs a boot sector in a QEMU, for [`BOOT_MAX`] at most.
///
/// # Errors
/// The program can't be started; there is no place for a temporary file.
pub fn boot(program: &OsStr, accel: &str, cpu: &str) -> std::io::Result<Boot> {
    let mut sector = [0; 512];
    sector[..PROGRAM.len()].copy_from_slice(&PROGRAM);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    let mut image = tempfile::NamedTempFile::new()?;
    image.write_all(&sector)?;
    let drive = format!("file={},format=raw,if=ide", image.path().display());
    let words = tempfile::NamedTempFile::new()?;
    let mut qemu = Command::new(program)
        .args(["-no-user-config", "-nodefaults", "-display", "none", "-m", "32", "-no-reboot"])
        .args(["-machine", "pc", "-accel", accel, "-cpu", cpu])
        .args(["-device", "isa-debug-exit,iobase=0x501,iosize=2", "-drive", &drive])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(words.reopen()?)
        .spawn()?;
    let begin = Instant::now();
    loop {
        if let Some(status) = qemu.try_wait()? {
            if status.code() == Some(EXIT_CODE) {
                return Ok(Boot::Ran);
            }
            let mut text = String::new();
            words.reopen()?.take(WORDS_BYTES_MAX).read_to_string(&mut text)?;
            return Ok(Boot::Ended(text.lines().next().unwrap_or("no word").to_owned()));
        }
        if begin.elapsed() > BOOT_MAX {
            qemu.kill()?;
            qemu.wait()?;
            return Ok(Boot::Hung);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_sector_ends_qemu_where_guests_run() {
        assert_eq!(boot("qemu-system-x86_64".as_ref(), "tcg", "max").unwrap(), Boot::Ran);
    }
}
