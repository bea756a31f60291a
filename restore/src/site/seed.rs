//! A site gets a group's journal from where it lies already: another site, a bucket, a disk that was
//! carried here. What the agent wrote since comes from the agent.
//!
//! What always holds: each record is checked before it is taken (I-12); one that was broken off goes on
//! where it was; nothing that the site has is changed, and a journal that isn't the same one is refused.

use super::settings::Settings;
use crate::error::{Error, Result};
use afterimage_journal::arrivals::Arrivals;
use afterimage_journal::feed::Feed;
use afterimage_journal::replica::{Replica, ReplicaOptions};
use afterimage_journal::storage::{RealStorage, Storage};
use afterimage_journal::wire::{Op, Sink, SinkError};
use afterimage_journal::{History, Seq, layout};
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// What came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Seeded {
    /// Bytes of records and files, holes left out.
    pub bytes: u64,
    /// The newest position.
    pub head: Seq,
    /// The site's copy takes nothing of an epoch below this one.
    pub epoch: u64,
}

/// Brings a journal to the site of a state directory: into its own `pool` directory.
///
/// # Errors
/// The site's daemon has the group open for an agent, the site holds another journal of that name or more
/// than is brought; the journal can't be read; there is no room.
pub fn seed(state: &Path, from: &History) -> Result<Seeded> {
    let name = &from.identity.name;
    let storage: Arc<dyn Storage> = RealStorage::shared();
    let dir = layout::journal_dir(state, name)?;
    let settings = Settings::load(state).map_err(|e| Error::Usage(e.to_string()))?;
    let mirror = settings.of(name).mirror;
    let options = ReplicaOptions { mirror, ..ReplicaOptions::at_home(&storage) };
    let mut replica = Replica::open(&storage, &dir, options)?;
    let mut feed = Feed::stored(from)?;
    let hello = feed.hello();
    let taken = |e: SinkError| Error::Usage(format!("the site doesn't take it: {e}"));
    let inventory = replica.open(&hello).map_err(taken)?;
    feed.start(&inventory, mirror)?;
    // Another site's notes of when records arrived there; without any, all arrives now.
    if let Ok(Some(noted)) = Arrivals::load(&**from.storage(), &from.dir) {
        replica.take_arrivals(&noted)?;
    }
    let mut seeded = Seeded { head: from.head, epoch: hello.epoch, ..Seeded::default() };
    loop {
        let op = match feed.fresh()? {
            Some(op) => op,
            None => match feed.background()? {
                Some(op) => op,
                None => break,
            },
        };
        if let Op::Bytes { bytes, .. } | Op::Put { bytes, .. } = &op {
            seeded.bytes += bytes.len() as u64;
        }
        replica.apply(op).map_err(taken)?;
        if let Some(ack) = replica.ack(Duration::ZERO).map_err(taken)? {
            feed.acked(&ack);
        }
    }
    // Files count once a sync is behind them.
    let last = Op::Sync { token: u64::MAX, watermark: from.head, wall_ns: 0 };
    replica.apply(last).map_err(taken)?;
    Ok(seeded)
}
