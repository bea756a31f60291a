//! A readable shell script that starts a copy.

use super::agent::Thaw;
use super::command_line::CommandLine;
use crate::time::rfc3339;
use afterimage_journal::history::Point;
use afterimage_journal::meta::Guest;
use afterimage_journal::text::escaped;
use std::path::{Path, PathBuf};

/// Where a script gets the memory from.
pub(super) enum Source {
    /// A file, with the images that are of the same instant; all absolute.
    File {
        /// The stream.
        memory: PathBuf,
        /// The images.
        images: Vec<PathBuf>,
    },
    /// A command that makes descriptor 3 a socket with the stream, and becomes what follows it.
    Socket {
        /// Its words.
        command: Vec<String>,
        /// Whether the copy runs before its memory is there.
        live: bool,
    },
}

/// What a script resumes from.
pub(super) struct Resume<'a> {
    /// The memory.
    pub source: Source,
    /// How long the original stood still for it, microseconds.
    pub pause_us: u64,
    /// What may go wrong.
    pub warnings: &'a [String],
    /// What thaws the copy, if its file systems were frozen.
    pub thaw: Option<&'a Thaw>,
}

/// The script for a copy that boots.
pub(super) fn script(guest: &Guest, line: &CommandLine, point: Point) -> String {
    let head = format!(
        "#!/bin/sh\n\
         # Starts a copy of guest {} as it was at {} (seq {}).\n\
         # QEMU's arguments are the original's, with the images replaced. The copy has the\n\
         # original's network addresses: don't let both run on one network.\n",
        comment(&guest.name),
        rfc3339(point.wall_ns),
        point.seq
    );
    head + &remarks(guest, line) + "\n" + &check(line) + "exec " + &options(line) + " \"$@\"\n"
}

/// The script for a copy that goes on where its memory was written down.
pub(super) fn resume_script(
    guest: &Guest,
    line: &CommandLine,
    point: Point,
    resume: &Resume<'_>,
) -> String {
    let mut text = format!(
        "#!/bin/sh\n\
         # Resumes a copy of guest {} as it was at {} (seq {}), disks and memory.\n\
         # `cold` as the first argument: boots it from the disks alone. Other arguments go to QEMU:\n\
         # with -S the copy waits for `cont`.\n\
         # QEMU's arguments are the original's, with images and surroundings replaced. The copy\n\
         # has the original's network addresses: don't let both run on one network.\n\
         # The original stood still for {:.1} ms for this.\n",
        comment(&guest.name),
        rfc3339(point.wall_ns),
        point.seq,
        resume.pause_us as f64 / 1000.0
    );
    text += &remarks(guest, line);
    for warning in resume.warnings {
        text += &format!("# NOTE: {}\n", comment(warning));
    }
    text += &check(line);
    let thaw = resume.thaw.map_or_else(String::new, thaw);
    match &resume.source {
        Source::File { memory, images } => {
            let incoming = quoted(&format!("file:{}", memory.display()));
            text + "\nif [ \"${1-}\" = cold ]; then\n  shift\nelse\n"
                + &look(memory, images)
                + &thaw
                + &format!("  set -- -incoming {incoming} \"$@\"\nfi\nexec ")
                + &options(line)
                + " \"$@\"\n"
        }
        Source::Socket { command, live } => text + "\n" + &over_socket(line, command, *live, &thaw),
    }
}

/// What becomes QEMU with its memory at descriptor 3, or without for `cold`.
fn over_socket(line: &CommandLine, command: &[String], live: bool, thaw: &str) -> String {
    let command: Vec<String> = command.iter().map(|w| quoted(w)).collect();
    // With it QEMU asks for pages that the guest touches before they came.
    let live = if live { "-global migration.x-postcopy-ram=on " } else { "" };
    format!(
        "how=${{1-}}\n\
         if [ \"$how\" = cold ]; then shift; fi\n\
         set -- {} \"$@\"\n\
         if [ \"$how\" = cold ]; then exec \"$@\"; fi\n\
         {thaw}exec {} -- \"$@\" {live}-incoming fd:3\n",
        options(line),
        command.join(" ")
    )
}

/// What thaws the copy once it runs, beside QEMU, which becomes the process that this shell is.
fn thaw(thaw: &Thaw) -> String {
    let Some(socket) = &thaw.socket else {
        return "  echo \"not resumed: the checkpoint was made with its file systems frozen, and nothing can \
                thaw a copy: no guest agent's socket is among its options. Boot it: $0 cold\" >&2\n  \
                exit 1\n"
            .to_owned();
    };
    let (program, socket) = (quoted(&thaw.program.display().to_string()), quoted(socket));
    format!(
        "  # The checkpoint was made with its file systems frozen: they are thawed as soon as the copy runs.\n  \
           thaw={program}\n  \
           [ -x \"$thaw\" ] || thaw=$(command -v afterimage) || {{\n    \
             echo \"not resumed: its file systems are frozen, and afterimage, which thaws them, is not \
             installed here. Boot it: $0 cold\" >&2\n    \
             exit 1\n  \
           }}\n  \
           (\"$thaw\" thaw {socket} --of $$ </dev/null >&2 &)\n"
    )
}

/// What refuses to resume on disks that were written to since.
fn look(memory: &Path, images: &[PathBuf]) -> String {
    let images: Vec<String> = images.iter().map(|i| quoted(&i.to_string_lossy())).collect();
    let memory = quoted(&memory.to_string_lossy());
    format!(
        "  # Memory and disks of two moments would destroy what is on the disks.\n  \
           memory={memory}\n  \
           for disk in {}; do\n    \
             newer=$(find \"$disk\" -newer \"$memory\") || exit 1\n    \
             if [ -n \"$newer\" ]; then\n      \
               echo \"not resumed: $disk was written to after $memory, which belongs to it as it \
               was restored. Boot it: $0 cold; or restore again. (Copied since, and never started? \
               touch $memory)\" >&2\n      \
               exit 1\n    \
             fi\n  \
           done\n",
        images.join(" ")
    )
}

/// What is to be known of the arguments, as comments.
fn remarks(guest: &Guest, line: &CommandLine) -> String {
    let mut text = String::new();
    if !guest.qemu_version.is_empty() {
        text += &format!("# The original ran on QEMU {}.\n", comment(&guest.qemu_version));
    }
    if !line.dropped.is_empty() {
        text += "#\n# Left out, as it ties a copy to the original's surroundings:\n";
        for option in &line.dropped {
            text += &format!("#   {}\n", comment(&option.join(" ")));
        }
    }
    if !line.changed.is_empty() {
        text += "#\n# Replaced, for the same reason; the devices are the same:\n";
        for (old, new) in &line.changed {
            let (old, new) = (comment(&old.join(" ")), comment(&new.join(" ")));
            text += &format!("#   {old} -> {new}\n");
        }
    }
    if !line.shown.is_empty() {
        text += "#\n# It reads these files of the host:\n";
        for file in &line.shown {
            text += &format!("#   {}\n", comment(file));
        }
    }
    text
}

/// What refuses to run while something is named that only the operator can allow.
fn check(line: &CommandLine) -> String {
    images(line) + &of_host(line)
}

/// What refuses to run before somebody has looked at what the journal has it use.
fn of_host(line: &CommandLine) -> String {
    if line.asked.is_empty() {
        return String::new();
    }
    let list: Vec<String> = line.asked.iter().map(|s| comment(s)).collect();
    let message = format!(
        "not started: the journal that this comes from has the copy use, on this host: {}. If \
         you know the journal and mean that, remove these lines; else change the arguments below.",
        list.join(", ")
    );
    format!("echo {} >&2\nexit 1\n\n", quoted(&message))
}

/// What refuses to run while an original's image is named.
fn images(line: &CommandLine) -> String {
    if line.unreplaced.is_empty() {
        return String::new();
    }
    let list: Vec<String> = line.unreplaced.iter().map(|s| comment(s)).collect();
    let message = format!(
        "not started: these disks were not restored, or not found among the arguments: {}. \
         Put restored images in their place below, then remove these lines.",
        list.join(", ")
    );
    format!("echo {} >&2\nexit 1\n\n", quoted(&message))
}

/// The program and its options, one a line.
fn options(line: &CommandLine) -> String {
    let options: Vec<String> = line
        .kept
        .iter()
        .map(|o| o.iter().map(|a| quoted(a)).collect::<Vec<_>>().join(" "))
        .collect();
    options.join(" \\\n  ")
}

fn comment(text: &str) -> String {
    escaped(text).into_owned()
}

/// A word of the shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    /// What a script does that thaws first, where no other program is installed.
    fn run(what: &Thaw, dir: &Path) -> (Option<i32>, String, String) {
        let text = thaw(what) + "echo resumed\n";
        let mut shell = Command::new("/bin/sh");
        let output = shell.args(["-c", &text, "start.sh"]).env("PATH", dir).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    #[test]
    fn frozen_copy_is_resumed_only_with_somebody_to_thaw_it() {
        let dir = tempfile::tempdir().unwrap();
        let (program, told) = (dir.path().join("it's here"), dir.path().join("told"));
        let socket = Some("/c/a b.sock".to_owned());
        let nobody = Thaw { program: program.clone(), socket: None };
        let missing = Thaw { program: program.clone(), socket };
        for (thaw, why) in [(&nobody, "no guest agent's socket"), (&missing, "not installed")] {
            let (code, out, errors) = run(thaw, dir.path());
            assert_eq!((code, out.as_str()), (Some(1), ""), "{errors}");
            assert!(errors.contains(why) && errors.contains("start.sh cold"), "{errors}");
        }
        let script = format!("#!/bin/sh\necho \"$@\" > '{}'\n", told.display());
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
        let (code, out, errors) = run(&missing, dir.path());
        assert_eq!((code, out.as_str()), (Some(0), "resumed\n"), "{errors}");
        // The output is at its end only when the one that thaws has ended, too.
        let told = std::fs::read_to_string(told).unwrap();
        assert!(told.starts_with("thaw /c/a b.sock --of "), "{told}");
    }
}
