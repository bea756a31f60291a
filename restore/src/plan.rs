//! Deciding a restore: which volumes, as of which point, under which names. Pure: no file is touched.
//!
//! What always holds: only volumes that were whole at the point are in it (I-4, I-5).

use crate::error::{Error, Result};
use crate::names;
use crate::refusal;
use afterimage_journal::history::Point;
use afterimage_journal::meta::{CopyCause, Volume};
use afterimage_journal::{History, Seq};

/// The format of restored images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Plain bytes, holes where it is zero.
    #[default]
    Raw,
    /// QEMU's qcow2, version 3.
    Qcow2,
}

impl Format {
    /// QEMU's name of the format, and the images' file name extension.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// Which volumes are wanted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Selection<'a> {
    /// Those of this guest; `None`: of all.
    pub guest: Option<&'a str>,
    /// Those that one of these names (node, disk identity, UUID, image file, GUEST/NODE); empty:
    /// all.
    pub disks: &'a [String],
}

/// A volume of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumePlan {
    /// The volume as configured at the point.
    pub volume: Volume,
    /// Name of its image.
    pub file_name: String,
}

/// A restore, decided: what is read and written for it follows from the journal's map, a part of a
/// volume at a time ([`crate::Batches`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The point.
    pub point: Point,
    /// The volumes, in the order of their ids.
    pub volumes: Vec<VolumePlan>,
    /// Volumes (GUEST/NODE) that were not asked for by name and were not whole at the point.
    pub skipped: Vec<String>,
}

impl Plan {
    /// Size of all volumes, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.volumes.iter().fold(0, |sum, v| sum.saturating_add(v.volume.bytes))
    }
}

/// Plans a restore of a point.
///
/// # Errors
/// The point is not restorable, or a selected volume was not whole there; a selection matches
/// nothing, or more than one volume.
pub fn plan(
    history: &History,
    point: Point,
    selection: Selection<'_>,
    format: Format,
) -> Result<Plan> {
    let ranges = refusal::ranges(history, selection.guest);
    if !ranges.iter().any(|r| r.from <= point.seq && point.seq <= r.to) {
        return Err(Error::NotRestorable {
            what: format!("seq:{} is not a recovery point", point.seq),
            nearest: refusal::nearest(history, &ranges, point.seq),
        });
    }
    let (chosen, skipped) = choose(history, point.seq, selection)?;
    let file_names = names::image_names(&chosen, format);
    let volumes = chosen.into_iter().zip(file_names);
    let volumes = volumes
        .map(|(volume, file_name)| VolumePlan { volume: volume.clone(), file_name })
        .collect();
    Ok(Plan { point, volumes, skipped })
}

/// Whether a volume's every block was known at a position: its guest had a session, and its first
/// copy was not still under way.
fn is_whole(history: &History, volume: &Volume, seq: Seq) -> bool {
    let session = history
        .sessions
        .iter()
        .any(|s| s.guest == volume.guest && s.from <= seq && s.to.is_none_or(|to| seq <= to));
    let ended = |c: &afterimage_journal::history::CopyState| c.ended.is_some_and(|e| e <= seq);
    // A first copy that was cut off may have been finished by comparing.
    let mut full = history
        .copies
        .values()
        .filter(|c| c.volume == volume.id && c.cause != CopyCause::Bitmap && c.as_of <= seq)
        .peekable();
    session && (full.peek().is_none() || full.any(ended))
}

/// A volume's name in messages.
pub(crate) fn shown(volume: &Volume) -> String {
    format!("{}/{}", volume.guest, volume.node)
}

/// The wanted volumes that were whole at a position, in the order of their ids, and the names of
/// those that were not and were not asked for by name.
///
/// # Errors
/// One that was asked for was not whole; a name is no disk's, or more than one's.
pub(crate) fn choose<'h>(
    history: &'h History,
    seq: Seq,
    selection: Selection<'_>,
) -> Result<(Vec<&'h Volume>, Vec<String>)> {
    let mut all = history.disks_at(seq);
    all.retain(|v| selection.guest.is_none_or(|g| v.guest == g));
    all.sort_by_key(|v| v.id);
    let wanted = select(&all, selection.disks)?;
    let (whole, rest): (Vec<_>, Vec<_>) =
        wanted.into_iter().partition(|v| is_whole(history, v, seq));
    let named = !selection.disks.is_empty();
    if let Some(missing) = rest.first().filter(|_| named || whole.is_empty()) {
        let ranges = refusal::ranges(history, Some(&missing.guest));
        return Err(Error::NotRestorable {
            what: format!("the first copy of {} had not ended at seq:{seq}", shown(missing)),
            nearest: refusal::nearest(history, &ranges, seq),
        });
    }
    if whole.is_empty() {
        return Err(Error::NotRestorable {
            what: format!("no disk was protected at seq:{seq}"),
            nearest: refusal::nearest(history, &refusal::ranges(history, selection.guest), seq),
        });
    }
    Ok((whole, rest.into_iter().map(shown).collect()))
}

fn select<'h>(all: &[&'h Volume], disks: &[String]) -> Result<Vec<&'h Volume>> {
    if disks.is_empty() {
        return Ok(all.to_vec());
    }
    let list = || all.iter().map(|v| described(v)).collect::<Vec<_>>().join("; ");
    let mut chosen: Vec<&Volume> = Vec::new();
    for wanted in disks {
        let found: Vec<&&Volume> = all.iter().filter(|v| is_named(v, wanted)).collect();
        match found[..] {
            [] => {
                return Err(Error::Usage(format!(
                    "there is no disk {wanted:?}; disks: {}",
                    list()
                )));
            }
            [one] if chosen.iter().any(|c| c.id == one.id) => {}
            [one] => chosen.push(one),
            _ => {
                return Err(Error::Usage(format!(
                    "{wanted:?} is more than one disk: say GUEST/NODE; disks: {}",
                    list()
                )));
            }
        }
    }
    chosen.sort_by_key(|v| v.id);
    Ok(chosen)
}

fn is_named(volume: &Volume, wanted: &str) -> bool {
    let mut names = vec![shown(volume), volume.uuid.to_string()];
    names.extend([volume.node.clone(), volume.disk.clone(), volume.source.clone()]);
    if let Some((_, file)) = volume.source.rsplit_once('/') {
        names.push(file.to_owned());
    }
    !wanted.is_empty() && names.iter().any(|n| n == wanted)
}

fn described(volume: &Volume) -> String {
    let mut text = shown(volume);
    if volume.disk != volume.node {
        text += &format!(" ({})", volume.disk);
    }
    if !volume.source.is_empty() {
        text += &format!(" on {}", volume.source);
    }
    text
}
