//! Export of a checkpoint with memory: its disks over NBD, each guest's stream over a socket, and a
//! script that resumes a copy on both. Nothing is copied first.

use super::memory::{How, MemoryServer};
use super::{ExportOptions, ExportedMemory, Exporting, check_socket, not_listening, serve};
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::names::sanitised;
use crate::open::Recovery;
use crate::plan::Format;
use crate::restore::RestoreOptions;
use crate::start::{self, Export};
use crate::warm::{GuestPlan, Host, WarmPlan, WarmPoint, plan_warm};
use std::ffi::OsString;
use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What begins every script of an export: one that ended by SIGKILL leaves its own behind.
const SCRIPT_BEGIN: &[u8] = b"#!/bin/sh\n# Resumes a copy of guest ";

/// How memory is exported.
#[derive(Debug, Clone, Default)]
pub struct WarmExport {
    /// The socket of the only guest's memory; `None`: the disks' with `.memory` behind it, or
    /// `.GUEST.memory` for several.
    pub socket: Option<PathBuf>,
    /// A command that connects to the socket in its next argument, as descriptor 3, and becomes the
    /// program in those behind `--`.
    pub fetch: Vec<String>,
    /// A copy waits until all of its memory is there, where it could run at once too.
    pub preload: bool,
}

/// A guest's memory, served, and its script. Dropped, both are gone.
pub(super) struct Served {
    servers: Vec<MemoryServer>,
    script: Option<Script>,
}

/// Serves the disks of a checkpoint over NBD, and its memory.
///
/// # Errors
/// As [`super::export`] and [`plan_warm`].
pub fn export_warm(
    recovery: Recovery,
    point: &WarmPoint,
    options: &ExportOptions,
    warm: &WarmExport,
    host: &dyn Host,
) -> Result<Exporting> {
    let guests = point.guests.len();
    if warm.socket.is_some() && guests > 1 {
        return Err(Error::Usage(format!(
            "a socket for memory is one guest's, and these are {guests}: leave it out, and each \
             gets one beside the disks'"
        )));
    }
    let socket = std::path::absolute(&options.socket)
        .map_err(|e| Error::export("find", &options.socket, e))?;
    let beside = socket.parent().unwrap_or(Path::new("/")).to_owned();
    let disks = options.disks.clone();
    let planned = RestoreOptions { to: beside.clone(), disks, format: Format::Raw };
    let plan = plan_warm(&recovery, point, &planned, host)?;
    let recovery = Arc::new(recovery);
    let (mut exporting, touched) = serve(&recovery, point.point, options)?;
    exporting.report.warnings.clone_from(&plan.warnings);
    for guest in &plan.guests {
        let tail = |what: &str| {
            let part = sanitised(&guest.memory.guest);
            let tail = if guests > 1 { format!(".{part}.{what}") } else { format!(".{what}") };
            let mut path = socket.as_os_str().to_owned();
            path.push(tail);
            PathBuf::from(path)
        };
        let at = warm.socket.clone().map_or_else(|| Ok(tail("memory")), std::path::absolute);
        let at = at.map_err(|e| Error::export("find", &socket, e))?;
        let live_at = (guest.unlive.is_none() && !warm.preload).then(|| {
            let mut path = at.clone().into_os_string();
            path.push(".live");
            PathBuf::from(path)
        });
        if let Some(why) = guest.unlive.as_ref().filter(|_| !warm.preload) {
            let name = &guest.memory.guest;
            let text = format!("{name}: a copy runs only once all of its memory is there: {why}");
            exporting.report.warnings.push(text);
        }
        let mut served = Served { servers: Vec::new(), script: None };
        let sockets = [(Some(&at), How::Stream), (live_at.as_ref(), How::Live)];
        for (at, how) in sockets.into_iter().filter_map(|(at, how)| Some((at?, how))) {
            check_socket(at)?;
            let bound = afterimage_nbd::bind(at).map_err(|e| not_listening(at, e))?;
            let (recovery, marks) = (Arc::clone(&recovery), touched.clone());
            let server =
                MemoryServer::start(bound, recovery, point.clone(), guest.clone(), how, marks)
                    .map_err(|e| Error::export("listen on", at, e))?;
            served.servers.push(server);
        }
        if options.writable {
            let from = live_at.as_ref().unwrap_or(&at).display().to_string();
            let command = ([&warm.fetch[..], &[from]].concat(), live_at.is_some());
            let text = script(&recovery, &plan, guest, &exporting, &socket, &beside, command);
            if let Some(text) = text {
                let path = tail("start.sh");
                served.script = Some(Script::write(&path, &text)?);
            }
        }
        exporting.report.memories.push(ExportedMemory {
            guest: guest.memory.guest.clone(),
            socket: at,
            live_socket: live_at,
            script: served.script.as_ref().map(|script| script.path.clone()),
        });
        exporting.memory.push(served);
    }
    Ok(exporting)
}

/// The script, its images replaced by the exports.
fn script(
    recovery: &Recovery,
    plan: &WarmPlan,
    guest: &GuestPlan,
    exporting: &Exporting,
    socket: &Path,
    beside: &Path,
    (command, live): (Vec<String>, bool),
) -> Option<String> {
    let config = recovery.history.config_at(plan.point.point.seq)?;
    let known = config.guests.iter().find(|g| g.name == guest.memory.guest)?;
    let mut guest = guest.clone();
    let line = guest.line.as_mut()?;
    let exported = plan.disks.volumes.iter().zip(&exporting.report.exports);
    let exports: Vec<Export> = exported
        .map(|(volume, export)| Export {
            stands: beside.join(&volume.file_name).display().to_string(),
            name: export.name.clone(),
        })
        .collect();
    start::over_nbd(line, socket, &exports);
    start::export_script(known, plan.point.point, &guest, command, live)
}

/// A script that is there until this is dropped.
struct Script {
    path: PathBuf,
    folder: Folder,
    name: OsString,
    file: File,
}

impl Script {
    /// Writes a script; only another one may have its place.
    fn write(path: &Path, text: &str) -> Result<Self> {
        let failed = |e| Error::export("write", path, e);
        let name =
            path.file_name().ok_or_else(|| failed(ErrorKind::InvalidInput.into()))?.to_owned();
        let folder = Folder::open(path.parent().unwrap_or(Path::new("/"))).map_err(failed)?;
        let foreign = || {
            Error::Usage(format!(
                "{} exists and is left as it is: move it, or choose another --socket",
                path.display()
            ))
        };
        match folder.open_plain(&name) {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) if e.kind() == ErrorKind::InvalidData => return Err(foreign()),
            Err(e) => return Err(failed(e)),
            Ok(mut old) => {
                let mut begin = [0; SCRIPT_BEGIN.len()];
                if old.read_exact(&mut begin).is_err() || begin != *SCRIPT_BEGIN {
                    return Err(foreign());
                }
                folder.remove_if(&name, &old).map_err(failed)?;
            }
        }
        let mut made = folder.create_new(&name, 0o700).map_err(failed)?;
        made.write_all(text.as_bytes()).map_err(failed)?;
        // Nobody can run what is open for writing: "text file busy".
        let file = folder.open_plain(&name).map_err(failed)?;
        if !Folder::is_one(&made, &file).map_err(failed)? {
            return Err(foreign());
        }
        Ok(Self { path: path.to_owned(), folder, name, file })
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        if let Err(error) = self.folder.remove_if(&self.name, &self.file) {
            tracing::warn!(path = %self.path.display(), %error, "can't remove the script");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn script_replaces_a_script_only_and_removes_only_itself() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.start.sh");
        let text = format!("{}new", String::from_utf8_lossy(SCRIPT_BEGIN));
        let old = dir.path().join("old");
        fs::write(&old, &text).unwrap();
        fs::copy(&old, &path).unwrap();
        drop(Script::write(&path, &text).unwrap());
        assert!(!path.exists());

        // A link to a script is not ours, and a FIFO has nobody wait.
        let fifo =
            || assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let link = || std::os::unix::fs::symlink(&old, &path).unwrap();
        let other = || fs::write(&path, "mine").unwrap();
        for put in [&fifo as &dyn Fn(), &link, &other] {
            put();
            let refused = Script::write(&path, &text).err().unwrap().to_string();
            assert!(refused.contains("is left as it is"), "{refused}");
            fs::remove_file(&path).unwrap();
        }
        assert_eq!(fs::read_to_string(&old).unwrap(), text);

        let script = Script::write(&path, &text).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "of somebody else").unwrap();
        drop(script);
        assert_eq!(fs::read_to_string(&path).unwrap(), "of somebody else");
    }
}
