//! What is needed to start a restored copy the way its guest was started: the command line as it
//! was, a script with the disks replaced, a libvirt definition with the disks replaced.
//!
//! Pure: texts from texts. What always holds: a script that still names one of the guest's own
//! images refuses to run, since starting it would write to that image.

mod command_line;
mod script;
mod xml;

use crate::names::sanitised;
use crate::plan::Format;
use afterimage_journal::history::Point;
use afterimage_journal::meta::{Guest, Volume};
use std::path::PathBuf;

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

/// The texts for one guest.
pub(crate) fn texts(
    guest: &Guest,
    disks: &[RestoredDisk<'_>],
    format: Format,
    point: Point,
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
        let line = command_line::rewrite(&guest.command_line, disks, format);
        texts.push(Text {
            file_name: format!("{name}.start.sh"),
            content: script::script(guest, &line, point),
            mode: 0o700,
        });
    }
    if let Some(xml) = &guest.libvirt_xml {
        texts.push(Text {
            file_name: format!("{name}.xml"),
            content: xml::rewrite(xml, disks, format),
            mode: 0o600,
        });
    }
    texts
}
