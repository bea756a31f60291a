//! The journal's map runs: which are there, and making those that are missing.
//!
//! What always holds: runs are derived; one that can't be read is removed and made anew. A run is made
//! of records that count: void numbers of ended epochs are left out.

use crate::Seq;
use crate::catalogue::Catalogue;
use crate::error::{Error, Result};
use crate::format::meta::EpochStart;
use crate::format::record::{Kind, Record};
use crate::history::{Unit, void_above};
use crate::map::levels::{Plan, UnitRow, plan};
use crate::map::{Layer, MemRun, Run, RunName, RunWriter, Span, compact, record_pieces};
use crate::storage::Storage;
use crate::unit::{ScanEnd, read_unit};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

/// See the module.
pub(super) struct Runs {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    group: Uuid,
    runs: Vec<Arc<Run>>,
}

impl Runs {
    /// Opens all runs of a journal.
    pub fn open(storage: &Arc<dyn Storage>, dir: &Path, group: Uuid) -> Result<Self> {
        let names = storage.list(dir).map_err(|e| Error::io("list journal", dir, e))?;
        let mut names: Vec<RunName> = names.iter().filter_map(|n| RunName::parse(n)).collect();
        names.sort_unstable();
        let mut runs = Vec::new();
        for path in names.iter().map(|n| dir.join(n.to_string())) {
            match Run::open(storage, &path, group) {
                Ok(run) => runs.push(Arc::new(run)),
                Err(Error::BadRun { .. }) => remove(storage, &path)?,
                Err(e) => return Err(e),
            }
        }
        Ok(Self { storage: Arc::clone(storage), dir: dir.to_owned(), group, runs })
    }

    /// Removes base runs beyond the base's end: their maker was killed before the catalogue followed,
    /// and where the base ends next may lie before them.
    pub fn drop_ahead(&mut self, floor: Seq) -> Result<()> {
        let is_ahead = |r: &Arc<Run>| r.span().is_base() && r.span().last_seq > floor;
        for path in self.runs.iter().filter(|r| is_ahead(r)).map(|r| r.path()) {
            remove(&self.storage, path)?;
        }
        self.runs.retain(|r| !is_ahead(r));
        Ok(())
    }

    /// The newest base run.
    pub fn base(&self) -> Option<&Arc<Run>> {
        let bases = self.runs.iter().filter(|r| r.span().is_base());
        bases.max_by_key(|r| (r.span().last_unit, r.span().last_seq))
    }

    /// The runs that are not the base's.
    pub fn levels(&self) -> impl Iterator<Item = &Arc<Run>> {
        self.runs.iter().filter(|r| !r.span().is_base())
    }

    /// Number of runs.
    pub fn count(&self) -> u64 {
        self.runs.len() as u64
    }

    /// Bytes of all runs.
    pub fn bytes(&self) -> u64 {
        self.runs.iter().map(|r| r.bytes()).sum()
    }

    fn spans(&self) -> Vec<Span> {
        self.runs.iter().map(|r| *r.span()).collect()
    }

    /// Builds the next level run that is wanted; `false`: none is.
    pub fn build_one(&mut self, catalogue: &Catalogue, epochs: &[EpochStart]) -> Result<bool> {
        let rows: Vec<UnitRow> = catalogue.units().iter().map(|u| row_of(u, catalogue)).collect();
        let Plan { build: Some(build), .. } = plan(&self.spans(), &rows) else { return Ok(false) };
        let mut layers: Vec<Layer> =
            build.runs.iter().map(|&i| Layer::from(Arc::clone(&self.runs[i]))).collect();
        for &i in &build.units {
            layers.push(self.layer_of(&catalogue.units()[i], catalogue, epochs)?);
        }
        self.make(&build.span, &layers, |_, _| Ok(()))?;
        Ok(true)
    }

    /// Makes a run of layers.
    pub fn make(
        &mut self,
        span: &Span,
        layers: &[Layer],
        survived: impl FnMut(crate::VolumeId, &crate::map::Piece) -> Result<()>,
    ) -> Result<()> {
        let writer = RunWriter::create(&self.storage, &self.dir, self.group, span)?;
        match compact(layers, writer, survived) {
            Ok(run) => {
                self.runs.retain(|r| r.span().name() != span.name());
                self.runs.push(Arc::new(run));
                Ok(())
            }
            Err(Error::BadRun { path, at, why }) => {
                // Derived: the next step makes it anew, of what it was made of.
                tracing::warn!(run = %path.display(), at, why, "a map run is damaged, and made anew");
                self.runs.retain(|r| r.path() != path);
                remove(&self.storage, &path)
            }
            Err(e) => Err(e),
        }
    }

    /// The longest level run over units from `first` on, and none above `last`.
    pub fn reaching(&self, first: u64, last: u64) -> Option<&Arc<Run>> {
        let fits = self.runs.iter().filter(|r| {
            let span = r.span();
            !span.is_base() && span.first_unit == first && span.last_unit <= last
        });
        fits.max_by_key(|r| r.span().last_unit)
    }

    /// What a unit's own index says.
    pub fn layer_of(
        &self,
        unit: &Unit,
        catalogue: &Catalogue,
        epochs: &[EpochStart],
    ) -> Result<Layer> {
        let records = self.records_of(unit, epochs)?;
        let as_of = |copy| catalogue.facts.copies.get(&copy).map(|c| c.as_of);
        let pieces = record_pieces(&records, as_of).collect();
        Ok(Layer::from(Arc::new(MemRun::build(pieces))))
    }

    /// The records of a sealed unit that count, by number.
    pub fn records_of(&self, unit: &Unit, epochs: &[EpochStart]) -> Result<Vec<Record>> {
        let contents =
            read_unit(self.storage.as_ref(), &unit.found(), self.group.into_bytes(), None)?;
        if contents.end != ScanEnd::Sealed {
            let why = "its index is damaged".into();
            return Err(Error::Unusable { path: unit.path.clone(), why });
        }
        let valid_to = void_above(epochs, unit.header.epoch);
        let records = contents.records.into_iter().map(|(_, r)| r);
        Ok(records.filter(|r| r.seq <= valid_to && r.kind != Kind::Merged).collect())
    }

    /// Takes out the runs that no position at or behind the base run's edge needs, to be given up.
    pub fn take_useless(&mut self, catalogue: &Catalogue) -> Vec<PathBuf> {
        let rows: Vec<UnitRow> = catalogue.units().iter().map(|u| row_of(u, catalogue)).collect();
        let useless = plan(&self.spans(), &rows).delete;
        let paths = useless.iter().map(|&i| self.runs[i].path().to_owned()).collect();
        let mut index = 0;
        self.runs.retain(|_| {
            index += 1;
            !useless.contains(&(index - 1))
        });
        paths
    }
}

pub(super) fn row_of(unit: &Unit, catalogue: &Catalogue) -> UnitRow {
    let (first, last) = unit.name.numbers();
    let (first_seq, last_seq) = match unit.last_seq {
        0 => (1, 0),
        last_seq => (unit.first_seq, last_seq),
    };
    UnitRow { first, last, first_seq, last_seq, sealed: last_seq < catalogue.settled_below() }
}

fn remove(storage: &Arc<dyn Storage>, path: &Path) -> Result<()> {
    match storage.remove(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove map run", path, e)),
        _ => Ok(()),
    }
}
