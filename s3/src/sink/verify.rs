//! Reading a file back from the bucket, by the code that will restore from it.

use super::live::Live;
use super::ops::broken;
use crate::manifest::File;
use crate::storage::{Fetcher, Only, ReadOnly, Readable, read_at};
use afterimage_journal::Error;
use afterimage_journal::format::meta::Merged;
use afterimage_journal::pool::{FileName, Found};
use afterimage_journal::unit::{ScanEnd, UnitContents, read_merged, read_unit};
use afterimage_journal::wire::SinkError;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// A file as it is in the state; all of it that counts is in the bucket.
#[derive(Debug)]
struct Look {
    fetcher: Arc<Fetcher>,
    root: String,
    name: FileName,
    file: File,
}

impl Readable for Look {
    fn read(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let file = (self.name, &self.file);
        read_at(&self.fetcher, &self.root, file, buffer, at, None).map_err(crate::storage::io_error)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.file.file_bytes)
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(self.file.segments.iter().map(|s| s.object_bytes).sum())
    }
}

/// The records of a file of which all that was brought is in the bucket.
pub(super) fn read(live: &Live, name: FileName) -> Result<UnitContents, SinkError> {
    let Some(file) = live.state.files.get(&name).cloned() else {
        return Err(broken(name, "it did not begin"));
    };
    let path = PathBuf::from(format!("{}/{name}", live.root));
    let look = Look { fetcher: Arc::clone(&live.fetcher), root: live.root.clone(), name, file };
    let storage = Only(Arc::new(ReadOnly(look)));
    read_unit(&storage, &Found { name, path }, live.group, None).map_err(judge)
}

/// Whether a file is whole and what the source has; what a merged unit says of itself.
pub(super) fn whole(
    live: &Live,
    name: FileName,
    index_crc: u32,
) -> Result<Option<Merged>, SinkError> {
    let unit = read(live, name)?;
    if unit.end != ScanEnd::Sealed || unit.index_crc != index_crc {
        return Err(broken(name, "what came of it is not what the source has"));
    }
    match name {
        FileName::Unit(_) => Ok(None),
        FileName::Merged(..) => {
            read_merged(&*unit.file, &unit.path, &unit.header).map(Some).map_err(judge)
        }
    }
}

fn judge(error: Error) -> SinkError {
    match &error {
        Error::Io { source, .. } => match source.kind() {
            io::ErrorKind::TimedOut => SinkError::Away(error.to_string()),
            io::ErrorKind::PermissionDenied => SinkError::Refused(error.to_string()),
            _ => SinkError::Broken(error.to_string()),
        },
        _ => SinkError::Broken(error.to_string()),
    }
}
