//! A file of the journal, put together from segments; what no segment holds reads as zeroes.

use super::fetch::{FetchError, Fetcher, Place};
use crate::manifest::{File, Segment, State};
use crate::object::FRAME_BYTES;
use crate::store::StoreError;
use afterimage_journal::pool::FileName;
use std::io;
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;

/// The error that a reader sees.
pub(crate) fn io_error(error: FetchError) -> io::Error {
    let kind = match &error {
        FetchError::Store(StoreError::NotFound(_)) => io::ErrorKind::NotFound,
        FetchError::Store(StoreError::Refused(_)) => io::ErrorKind::PermissionDenied,
        FetchError::Store(StoreError::Unclear(_)) => io::ErrorKind::TimedOut,
        FetchError::Store(_) => io::ErrorKind::Other,
        FetchError::Damaged { .. } => io::ErrorKind::InvalidData,
    };
    io::Error::new(kind, error)
}

/// The object of a segment.
pub(super) fn place(root: &str, name: FileName, segment: &Segment) -> Place {
    Place {
        key: format!("{root}/{}", segment.key(name)),
        random: segment.random,
        bytes: segment.bytes,
        object_bytes: segment.object_bytes,
    }
}

/// Reads a part of a file as it is in a state; behind its end nothing is read.
pub(crate) fn read_at(
    fetcher: &Arc<Fetcher>,
    root: &str,
    (name, file): (FileName, &File),
    buffer: &mut [u8],
    at: u64,
    behind: Option<&State>,
) -> Result<usize, FetchError> {
    let left = file.file_bytes.saturating_sub(at);
    let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
    let buffer = &mut buffer[..wanted];
    let end = at + wanted as u64;
    buffer.fill(0);
    let first = file.segments.partition_point(|s| s.end() <= at);
    for (i, segment) in file.segments.iter().enumerate().skip(first) {
        if segment.at >= end {
            break;
        }
        let place = place(root, name, segment);
        let (from, to) = (at.max(segment.at), end.min(segment.end()));
        let mut next = from;
        while next < to {
            let within = next - segment.at;
            let number = (within / FRAME_BYTES as u64) as usize;
            let skip = (within % FRAME_BYTES as u64) as usize;
            let some = (FRAME_BYTES - skip).min((to - next) as usize);
            let start = (next - at) as usize;
            let wanted = &mut buffer[start..start + some];
            let in_order = fetcher.read(&place, number, skip, wanted)?;
            if let (true, Some(state)) = (in_order, behind) {
                fetcher.ahead(following(root, state, name, i));
            }
            next += some as u64;
        }
    }
    Ok(wanted)
}

/// The objects behind a segment, in the order of the log.
fn following<'s>(
    root: &'s str,
    state: &'s State,
    name: FileName,
    segment: usize,
) -> impl Iterator<Item = Place> + 's {
    let own = state.files.get(&name).map(|f| (name, f, segment + 1));
    let others = state.files.range((Excluded(name), Unbounded)).map(|(n, f)| (*n, f, 0));
    own.into_iter().chain(others).flat_map(move |(name, file, skip)| {
        file.segments.iter().skip(skip).map(move |s| place(root, name, s))
    })
}
