//! Which program a copy is run by. The journal only says what the original was run by, and may come from
//! anywhere: its word is taken for the kind of QEMU, never for a file.
//!
//! What always holds: the text here names a QEMU, without a directory or in one of the system's own.

use std::path::Path;

/// Directories that only the system's administrator puts programs into.
pub(crate) const SYSTEM_DIRS: &[&str] = &[
    "/usr/bin",
    "/usr/local/bin",
    "/usr/libexec",
    "/usr/lib/qemu",
    "/usr/sbin",
    "/usr/local/sbin",
    "/bin",
    "/sbin",
];

/// The name of a QEMU that emulates a system, if a program's path ends with one.
pub(crate) fn qemu_name(program: &str) -> Option<&str> {
    let name = program.rsplit('/').next()?;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let target = name.strip_prefix("qemu-system-").is_some_and(|target| !target.is_empty());
    ((target || ["qemu", "qemu-kvm", "kvm"].contains(&name)) && name.chars().all(is_plain))
        .then_some(name)
}

/// What a script may run in the place of the original's program.
///
/// # Errors
/// Why it is no QEMU.
pub(crate) fn in_script(program: &str) -> Result<String, String> {
    let Some(name) = qemu_name(program) else {
        return Err(format!("the program {program:?}, which is no QEMU"));
    };
    let dir = Path::new(program).parent().and_then(Path::to_str).unwrap_or_default();
    Ok(if SYSTEM_DIRS.contains(&dir) { program.to_owned() } else { name.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_names_a_kind_of_qemu_and_no_file() {
        for (program, runs) in [
            ("qemu-system-x86_64", Some("qemu-system-x86_64")),
            ("/usr/bin/qemu-system-x86_64", Some("/usr/bin/qemu-system-x86_64")),
            ("/usr/libexec/qemu-kvm", Some("/usr/libexec/qemu-kvm")),
            ("/opt/qemu/bin/qemu-system-aarch64", Some("qemu-system-aarch64")),
            ("/usr/bin/../../tmp/qemu-system-x86_64", Some("qemu-system-x86_64")),
            ("/proc/self/cwd/qemu-system-x86_64", Some("qemu-system-x86_64")),
            ("/proc/self/cwd/x", None),
            ("/bin/sh", None),
            ("qemu-system-", None),
            ("qemu-system-x86_64 -x", None),
            ("", None),
        ] {
            assert_eq!(in_script(program).ok().as_deref(), runs, "{program}");
        }
    }
}
