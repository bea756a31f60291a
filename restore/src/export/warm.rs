//! Export of a checkpoint with memory: its disks over NBD, each guest's stream over a socket, and a
//! script that resumes a copy on both. Nothing is copied first.

use super::memory::{How, MemoryServer};
use super::{ExportOptions, ExportedMemory, Exporting, check_socket, not_listening, serve};
use crate::error::{Error, Result};
use crate::names::sanitised;
use crate::open::Recovery;
use crate::plan::Format;
use crate::restore::RestoreOptions;
use crate::start::{self, Export};
use crate::warm::{GuestPlan, Host, WarmPlan, WarmPoint, plan_warm};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
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
    script: Option<PathBuf>,
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(script) = &self.script
            && let Err(error) = fs::remove_file(script)
        {
            tracing::warn!(path = %script.display(), %error, "can't remove the script");
        }
    }
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
                write_script(&path, &text)?;
                served.script = Some(path);
            }
        }
        exporting.report.memories.push(ExportedMemory {
            guest: guest.memory.guest.clone(),
            socket: at,
            live_socket: live_at,
            script: served.script.clone(),
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

/// Writes a script; only another one may have its place.
fn write_script(path: &Path, text: &str) -> Result<()> {
    let failed = |e| Error::export("write", path, e);
    match fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(failed(e)),
        Ok(old) if old.starts_with(SCRIPT_BEGIN) => fs::remove_file(path).map_err(failed)?,
        Ok(_) => {
            return Err(Error::Usage(format!(
                "{} exists and is left as it is: move it, or choose another --socket",
                path.display()
            )));
        }
    }
    let mut options = fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o700).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(failed)
}
