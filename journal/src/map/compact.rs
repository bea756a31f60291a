//! Making one run of several.

use super::piece::Piece;
use super::run::{Run, RunWriter};
use super::stack::Layer;
use super::sweep::{ByStart, Sweep};
use crate::VolumeId;
use crate::error::Result;

/// Merges layers into one run. `survived` sees every piece that goes in, ascending by (volume,
/// start): the bytes that it sees of a record are those that are not superseded within the
/// layers. Zero pieces go in like others: a copied record of a later unit may rank below them.
///
/// Memory: a buffer of at most 64 KiB a layer, and 2 MiB.
///
/// # Errors
/// A layer is damaged or can't be read, the run can't be written, or `survived` says to stop;
/// nothing is left.
pub fn compact(
    layers: &[Layer],
    mut writer: RunWriter,
    mut survived: impl FnMut(VolumeId, &Piece) -> Result<()>,
) -> Result<Run> {
    let cursors = layers.iter().map(Layer::all).collect();
    for placed in Sweep::new(ByStart::new(cursors)) {
        let (volume, piece) = placed?;
        survived(volume, &piece)?;
        writer.push(volume, &piece)?;
    }
    writer.finish()
}
