//! Whether the bucket still has what it was given: it may be emptied, put back to an older state, or lose
//! objects to a lifecycle rule, and answers every later write all the same.
//!
//! What always holds:
//! * before each commit, and every few seconds while there is nothing to commit, the writer asks for its own
//!   last manifest: one that is gone ends the opening, and the next one compares anew;
//! * all objects are compared with a listing at the first opening of a process, after each loss, and daily; a
//!   listing only raises the question, the object itself is asked for;
//! * a file of which an object is gone leaves the state, so that it is sent again.

use super::live::{Live, lost};
use super::{chain_error, store_error};
use crate::manifest::{Found, Remains};
use crate::store::Patient;
use afterimage_journal::pool::FileName;
use afterimage_journal::wire::SinkError;
use afterimage_planted as planted;
use std::collections::{BTreeSet, HashSet};
use std::time::{Duration, Instant};

/// Time between two audits of all objects.
pub(super) const AUDIT_EVERY: Duration = Duration::from_secs(24 * 3600);

/// An audit under way: objects that are named, by key, and how far the listing is.
#[derive(Debug)]
pub(super) struct Audit {
    named: Vec<(String, FileName, [u8; 16])>,
    at: usize,
    after: String,
    lost: BTreeSet<FileName>,
}

impl Live {
    /// Ends the opening when the newest manifest that it knows is not there any more.
    pub fn look(&mut self) -> Result<(), SinkError> {
        self.looked_at = Instant::now();
        let number = self.state.number;
        if number == 0 || planted::is("bucket-never-looked-at") {
            return Ok(());
        }
        if self.store.has(&self.manifest_key(number)).map_err(store_error)? {
            return Ok(());
        }
        // Whoever has the journal now deletes what the one before wrote.
        self.check_owner()?;
        Err(SinkError::Broken(format!(
            "{} is gone, though nothing of ours deleted it: the bucket was emptied or put back, or a \
                 lifecycle rule removes objects. What is missing there is sent again. Take such rules off {}",
            self.manifest_key(number),
            self.root
        )))
    }

    /// Whether nobody else took the journal over.
    fn check_owner(&self) -> Result<(), SinkError> {
        let theirs = match self.chain.find().map_err(chain_error)? {
            Found::Nothing => return Ok(()),
            Found::State(state) => (state.epoch, state.number),
            Found::Broken(remains) => (remains.epoch, remains.number),
        };
        let is_ours = theirs.0 <= self.epoch && theirs.1 <= self.state.number;
        if is_ours { Ok(()) } else { Err(lost(&self.root, self.epoch, theirs.0)) }
    }

    fn begin_audit(&self) -> Audit {
        let mut named = Vec::new();
        for (name, file) in &self.state.files {
            let there = file.segments.iter().filter(|s| !self.is_on_its_way(&s.random));
            named.extend(there.map(|s| (s.key(*name), *name, s.random)));
        }
        named.sort_unstable();
        Audit { named, at: 0, after: String::new(), lost: BTreeSet::new() }
    }

    /// Looks for all objects; whether they are there. Files that lack one leave the state.
    pub fn audit_all(&mut self) -> Result<bool, SinkError> {
        let mut audit = self.begin_audit();
        while !self.audit_page(&mut audit)? {}
        for name in &audit.lost {
            tracing::error!(root = self.root, file = %name, "objects of it are gone: it is sent again");
            self.give_up(*name);
        }
        if !audit.lost.is_empty() {
            // Numbers are missing now: until all of it came again, none is said to be there.
            (self.state.watermark, self.state.record_wall_ns) = (0, 0);
            self.sync = (0, 0, 0);
            self.background_since.get_or_insert_with(Instant::now);
        }
        Ok(audit.lost.is_empty())
    }

    /// A page of the daily audit, when it is time.
    pub fn audit_on(&mut self) -> Result<(), SinkError> {
        let mut audit = match self.audit.take() {
            Some(audit) => audit,
            None if self.audited_at.elapsed() >= self.options.audit_every => self.begin_audit(),
            None => return Ok(()),
        };
        if !self.audit_page(&mut audit)? {
            self.audit = Some(audit);
            return Ok(());
        }
        self.audited_at = Instant::now();
        match audit.lost.len() {
            0 => Ok(()),
            count => Err(SinkError::Broken(format!(
                "objects of {count} files below {} are gone, though nothing of ours deleted them: does a \
                 lifecycle rule remove them? Take it off; these files are sent again",
                self.root
            ))),
        }
    }

    /// Compares one page of the listing; whether it was the last.
    fn audit_page(&self, audit: &mut Audit) -> Result<bool, SinkError> {
        let below = format!("{}/", self.root);
        let prefix = format!("{below}object/");
        let page = self.store.list(&prefix, &audit.after, false).map_err(store_error)?;
        let there: HashSet<&str> =
            page.keys.iter().filter_map(|k| k.strip_prefix(&below)).collect();
        let last = page.keys.last().and_then(|k| k.strip_prefix(&below)).unwrap_or_default();
        let is_last = !page.more || page.keys.is_empty();
        while let Some((key, name, random)) = audit.named.get(audit.at) {
            if !is_last && key.as_str() > last {
                break;
            }
            audit.at += 1;
            let file = self.state.files.get(name);
            let is_named = file.is_some_and(|f| f.segments.iter().any(|s| s.random == *random));
            if !there.contains(key.as_str())
                && is_named
                && !self.store.has(&format!("{below}{key}")).map_err(store_error)?
            {
                audit.lost.insert(*name);
            }
        }
        audit.after = page.keys.last().cloned().unwrap_or_default();
        Ok(is_last)
    }
}

/// What a journal begins anew with where the chain of its manifests is broken: behind all that is there, with
/// the openings whose objects nothing names any more.
pub(super) fn begin_anew(
    store: &Patient,
    root: &str,
    remains: &Remains,
) -> Result<crate::manifest::State, SinkError> {
    tracing::error!(
        root,
        why = remains.why,
        "manifests of the bucket are lost or damaged: all is sent again"
    );
    let mut state = remains.state();
    let prefix = format!("{root}/object/");
    let mut after = String::new();
    loop {
        let page = store.list(&prefix, &after, true).map_err(store_error)?;
        let opening = |key: &String| {
            let name = key.strip_prefix(&prefix)?.trim_end_matches('/');
            let (epoch, number) = name.split_once('-')?;
            Some((epoch.parse().ok()?, number.parse().ok()?))
        };
        state.unswept.extend(page.keys.iter().filter_map(opening));
        match page.keys.last() {
            Some(last) if page.more => after.clone_from(last),
            _ => return Ok(state),
        }
    }
}
