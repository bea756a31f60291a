//! What is needed to start a restored copy the way its guest was started: the command line as it
//! was, a script with the disks replaced, a libvirt definition with the disks replaced.
//!
//! Pure: texts from texts. What always holds: a script that still names one of the guest's own
//! images refuses to run, since starting it would write to that image; so does one that would use
//! something else of the host because the journal says so ([`host`]).

mod agent;
mod command_line;
mod devices;
mod host;
mod nbd;
mod option;
pub(crate) mod program;
mod script;
mod xml;

pub(crate) use agent::{Thaw, socket as agent_socket};
pub(crate) use command_line::{CommandLine, DEFAULT_PROGRAM, rewrite_to_resume};
pub(crate) use devices::Place;
pub use nbd::uri_part;
pub(crate) use nbd::{Export, over_nbd};
pub(crate) use option::{field, fields};

use crate::names::sanitised;
use crate::plan::{Format, Plan};
use crate::warm::GuestPlan;
use afterimage_journal::history::Point;
use afterimage_journal::meta::{Config, Guest, Volume};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A disk of the guest, and its restored image if it was wanted.
pub(crate) struct RestoredDisk<'a> {
    /// The volume.
    pub volume: &'a Volume,
    /// The image's absolute path.
    pub image: Option<PathBuf>,
}

impl RestoredDisk<'_> {
    /// The image's path as text, when both it and the original's are known.
    fn replacement(&self) -> Option<(&str, String)> {
        let image = self.image.as_ref()?.to_str()?.to_owned();
        (!self.volume.source.is_empty()).then_some((&*self.volume.source, image))
    }
}

/// A file to be written beside the images.
pub(crate) struct Text {
    /// Its name.
    pub file_name: String,
    /// Its content.
    pub content: String,
    /// Its permissions.
    pub mode: u32,
}

/// The disks of a guest, and where a plan puts them.
pub(crate) fn disks<'a>(
    config: &'a Config,
    guest: &str,
    plan: &Plan,
    dir: &Path,
) -> Vec<RestoredDisk<'a>> {
    let image = |volume: &Volume| {
        let planned = plan.volumes.iter().find(|v| v.volume.id == volume.id);
        planned.map(|v| dir.join(&v.file_name))
    };
    let own = config.disks().filter(|v| v.active && v.guest == guest);
    own.map(|volume| RestoredDisk { volume, image: image(volume) }).collect()
}

/// The texts for one guest, and what has to be said of them.
pub(crate) fn texts(
    guest: &Guest,
    disks: &[RestoredDisk<'_>],
    format: Format,
    point: Point,
    dir: &Path,
) -> (Vec<Text>, Vec<String>) {
    let name = sanitised(&guest.name);
    let place = Place { dir, name: &name, machine: None, is_public };
    let line = command_line::rewrite(&guest.command_line, disks, format, &place);
    let script = script::script(guest, &line, point);
    (all(guest, disks, format, Some(script), None), warnings(&line))
}

/// What has to be said of a command line, for people.
pub(crate) fn warnings(line: &CommandLine) -> Vec<String> {
    let mut all = Vec::new();
    if !line.asked.is_empty() {
        all.push(format!(
            "its start script refuses to run until you have looked at it: the journal has it use, \
             on this host, {}",
            line.asked.join(", ")
        ));
    }
    if !line.shown.is_empty() {
        all.push(format!("it reads files of this host: {}", line.shown.join(", ")));
    }
    all
}

/// Whether any user of this host may read a file.
pub(crate) fn is_public(path: &Path) -> bool {
    let Ok(path) = std::fs::canonicalize(path) else { return false };
    let mode = |path: &Path, is_kind: fn(&Metadata) -> bool| {
        std::fs::metadata(path).ok().filter(is_kind).map_or(0, |meta| meta.mode())
    };
    let reached = path.ancestors().skip(1).all(|dir| mode(dir, Metadata::is_dir) & 0o001 != 0);
    reached && mode(&path, Metadata::is_file) & 0o004 != 0
}

/// The texts for one guest that resumes.
pub(crate) fn warm_texts(
    guest: &Guest,
    disks: &[RestoredDisk<'_>],
    format: Format,
    point: Point,
    plan: &GuestPlan,
    dir: &Path,
) -> Vec<Text> {
    let images = disks.iter().filter_map(|d| d.image.clone()).collect();
    let memory = dir.join(&plan.file_name);
    let source = script::Source::File { memory: memory.clone(), images };
    let script = resume(guest, point, plan, source);
    all(guest, disks, format, script, Some(&memory))
}

/// The script that resumes a guest from a socket, which a command connects.
pub(crate) fn export_script(
    guest: &Guest,
    point: Point,
    plan: &GuestPlan,
    command: Vec<String>,
    live: bool,
) -> Option<String> {
    resume(guest, point, plan, script::Source::Socket { command, live })
}

fn resume(guest: &Guest, point: Point, plan: &GuestPlan, source: script::Source) -> Option<String> {
    let (pause_us, warnings) = (plan.memory.pause_us, &plan.warnings[..]);
    let resume = script::Resume { source, pause_us, warnings, thaw: plan.thaw.as_ref() };
    plan.line.as_ref().map(|line| script::resume_script(guest, line, point, &resume))
}

fn all(
    guest: &Guest,
    disks: &[RestoredDisk<'_>],
    format: Format,
    script: Option<String>,
    memory: Option<&Path>,
) -> Vec<Text> {
    let name = sanitised(&guest.name);
    let mut texts = Vec::new();
    if !guest.command_line.is_empty() {
        if let Ok(json) = serde_json::to_string_pretty(&guest.command_line) {
            texts.push(Text {
                file_name: format!("{name}.command-line.json"),
                content: json + "\n",
                mode: 0o600,
            });
        }
        texts.extend(script.map(|content| Text {
            file_name: format!("{name}.start.sh"),
            content,
            mode: 0o700,
        }));
    }
    if let Some(xml) = &guest.libvirt_xml {
        texts.push(Text {
            file_name: format!("{name}.xml"),
            content: xml::rewrite(xml, disks, format, memory),
            mode: 0o600,
        });
    }
    texts
}
