//! Facts of this machine that decide whether a guest can be resumed on it. Each is found within a
//! time limit: QEMU may hang where KVM does.

use super::fit::{Facts, Kvm, Program};
use super::probe::{BOOT_MAX, Boot, boot};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long QEMU may take to say what it is.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Most of an answer that is read, in bytes.
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// A machine that guests may be resumed on.
pub trait Host {
    /// The program that runs a guest which ran on `wanted`, as its journal says.
    ///
    /// # Errors
    /// There is none, and what to do.
    fn program(&self, wanted: &str) -> Result<PathBuf, String> {
        super::program::find(wanted)
    }

    /// What it is like for a guest that runs on this QEMU, with KVM or without.
    fn facts(&self, program: &str, kvm: bool) -> Facts;
}

/// The machine that this runs on.
#[derive(Debug, Clone, Copy, Default)]
pub struct ThisHost;

impl Host for ThisHost {
    fn facts(&self, program: &str, kvm: bool) -> Facts {
        let found = program_of(program);
        let is_there = !matches!(found, Program::Missing(_));
        Facts {
            program: found,
            kvm: if kvm && is_there { kvm_of(program) } else { Kvm::NotAsked },
            memory_available_bytes: memory_available(),
            is_root: rustix::process::geteuid().is_root(),
            has_userfault: has_userfault(),
        }
    }
}

fn program_of(program: &str) -> Program {
    match answer(program, &["--version"]) {
        Err(e) => Program::Missing(e.to_string()),
        Ok(text) => Program::Found {
            version: version(&text),
            machines: answer(program, &["-machine", "help"])
                .map(|t| machines(&t))
                .unwrap_or_default(),
        },
    }
}

/// The first number with dots in a text, as three numbers.
pub(super) fn version(text: &str) -> Option<[u32; 3]> {
    let word = text.split_whitespace().find(|w| w.starts_with(|c: char| c.is_ascii_digit()))?;
    let mut numbers = word.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    let mut next = || numbers.next().and_then(Result::ok);
    Some([next()?, next()?, next().unwrap_or(0)])
}

fn machines(text: &str) -> Vec<String> {
    let first = |line: &str| line.split_whitespace().next().map(str::to_owned);
    text.lines().skip(1).filter_map(first).collect()
}

/// What a program writes to its standard output, when it ends by itself in time.
fn answer(program: &str, args: &[&str]) -> io::Result<String> {
    let out = tempfile::tempfile()?;
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stderr(Stdio::null()).stdout(out.try_clone()?);
    let mut child = command.spawn()?;
    if !ended(&mut child)? {
        return Err(io::Error::other(format!("it didn't answer in {} s", ANSWER_MAX.as_secs())));
    }
    let mut text = String::new();
    io::Seek::rewind(&mut &out)?;
    out.take(ANSWER_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

fn ended(child: &mut Child) -> io::Result<bool> {
    let begin = Instant::now();
    while child.try_wait()?.is_none() {
        if begin.elapsed() > ANSWER_MAX {
            child.kill()?;
            child.wait()?;
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(true)
}

fn kvm_of(program: &str) -> Kvm {
    if let Err(e) = File::options().read(true).write(true).open("/dev/kvm") {
        return Kvm::Unusable(format!("/dev/kvm can't be opened: {e}"));
    }
    let name = Path::new(program).file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let is_pc = name.contains("x86_64") || name.contains("qemu-kvm") || name == "kvm";
    if !is_pc || std::env::consts::ARCH != "x86_64" {
        // The boot sector is a PC's.
        return Kvm::Works;
    }
    match boot(program.as_ref(), "kvm", "host") {
        Ok(Boot::Ran) => Kvm::Works,
        Ok(Boot::Ended(why)) => Kvm::Unusable(format!("QEMU fails on it: {why}")),
        Ok(Boot::Hung) => Kvm::Unusable(format!("a guest on it hangs ({} s)", BOOT_MAX.as_secs())),
        Err(e) => Kvm::Unusable(format!("it could not be tried: {e}")),
    }
}

/// As QEMU finds it: by the device, else by the system call, which is root's unless it is allowed to all.
fn has_userfault() -> bool {
    if File::options().read(true).write(true).open("/dev/userfaultfd").is_ok() {
        return true;
    }
    let allowed = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd");
    allowed.is_ok_and(|text| text.trim() == "1" || rustix::process::geteuid().is_root())
}

fn memory_available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemu_says_what_it_is() {
        let facts = ThisHost.facts("qemu-system-x86_64", false);
        let Program::Found { version: Some(version), machines } = facts.program else {
            panic!("{facts:?}")
        };
        assert!(version >= [8, 2, 0], "{version:?}");
        assert!(machines.iter().any(|m| m == "q35"), "{machines:?}");
        assert!(facts.memory_available_bytes > Some(1 << 20));
        let missing = ThisHost.facts("/nonexistent/qemu", true);
        assert!(matches!(missing.program, Program::Missing(_)) && missing.kvm == Kvm::NotAsked);
    }

    #[test]
    fn versions_are_read_from_what_programs_say() {
        let cases = [
            ("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds)", Some([10, 0, 2])),
            ("10.0.2", Some([10, 0, 2])),
            ("8.2.2 (qemu-8.2.2-1.el9)", Some([8, 2, 2])),
            ("9.1", Some([9, 1, 0])),
            ("QEMU emulator", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(version(text), expected, "{text}");
        }
    }
}
