//! A file that gets its name when it is whole: `NAME.partial` until then, gone on failure.

use crate::error::{Error, Result};
use crate::folder::{self, Folder};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::Arc;

/// A file being written. Dropped before [`publish`], it is removed.
#[derive(Debug)]
pub(crate) struct Draft {
    /// It, open, and locked against another restore.
    pub file: File,
    /// Its path until it is whole, for people.
    pub partial: PathBuf,
    /// Its path then.
    pub path: PathBuf,
    folder: Arc<Folder>,
    partial_name: OsString,
    name: OsString,
    published: bool,
}

impl Draft {
    /// Creates `NAME.partial`; what a restore that ended midway left there is replaced.
    pub(crate) fn create(folder: &Arc<Folder>, name: &str, mode: u32) -> Result<Self> {
        let path = folder.path().join(name);
        let name = OsString::from(name);
        if folder.has(&name) {
            return Err(taken(&path));
        }
        let mut partial_name = name.clone();
        partial_name.push(".partial");
        let partial = folder.path().join(&partial_name);
        remove_abandoned(folder, &partial_name)?;
        let file = folder
            .create_new(&partial_name, mode)
            .map_err(|e| Error::target("create", &partial, e))?;
        let folder = Arc::clone(folder);
        let draft = Self { file, partial, path, folder, partial_name, name, published: false };
        // Without locks `create_new` still keeps two apart.
        folder::lock(&draft.file).map_err(|e| Error::target("lock", &draft.partial, e))?;
        Ok(draft)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published
            && let Err(e) = self.folder.remove(&self.partial_name)
        {
            tracing::warn!(file = %self.partial.display(), error = %e, "can't remove");
        }
    }
}

fn taken(path: &std::path::Path) -> Error {
    Error::Usage(format!(
        "{} exists and is left as it is: restore to another directory, or move it away",
        path.display()
    ))
}

/// Removes what an ended restore left; one that still runs holds the lock.
fn remove_abandoned(folder: &Folder, name: &OsStr) -> Result<()> {
    let partial = folder.path().join(name);
    let file = match folder.open_plain(name) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) if e.kind() == ErrorKind::InvalidData => {
            return Err(Error::Usage(format!(
                "{} is no regular file and is left as it is: restore to another directory, or move it away",
                partial.display()
            )));
        }
        Err(e) => return Err(Error::target("open", &partial, e)),
    };
    match folder::lock(&file) {
        Err(e) if e.kind() == ErrorKind::WouldBlock => Err(Error::Usage(format!(
            "another restore is writing {}: wait for it, or restore to another directory",
            partial.display()
        ))),
        // Removed by name, never truncated: the file may have got its final name just now.
        _ => match folder.remove(name) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::target("remove", &partial, e)),
            _ => Ok(()),
        },
    }
}

/// Gives all their final names, or none.
pub(crate) fn publish(folder: &Folder, drafts: &mut [Draft]) -> Result<()> {
    for i in 0..drafts.len() {
        let result = folder.rename(&drafts[i].partial_name, &drafts[i].name);
        if let Err(e) = result {
            for done in &mut drafts[..i] {
                done.published = false;
                let _ = folder.rename(&done.name, &done.partial_name);
            }
            return Err(if e.kind() == ErrorKind::AlreadyExists {
                taken(&drafts[i].path)
            } else {
                Error::target("name", &drafts[i].path, e)
            });
        }
        drafts[i].published = true;
    }
    folder.sync().map_err(|e| Error::target("sync", folder.path(), e))
}
