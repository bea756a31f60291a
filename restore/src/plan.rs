//! Deciding a restore: which records are read, in the journal's order, and where their bytes go.
//! Pure: a [`History`] and a wish go in, lists come out.
use crate::error::Result;
use afterimage_journal::History;
use afterimage_journal::history::Point;
/// The format of restored images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Plain bytes, holes where it is zero.
    #[default]
    Raw,
    /// QEMU's qcow2, version 3.
    Qcow2,
}
/// x
#[derive(Debug)]
pub struct Plan {}
/// x
#[derive(Debug)]
pub struct Read {}
/// x
#[derive(Debug)]
pub struct Write {}
/// x
#[derive(Debug)]
pub struct VolumePlan {}
/// x
/// # Errors
/// x
pub fn plan(_: &History, _: Point) -> Result<Plan> {
    Ok(Plan {})
}
