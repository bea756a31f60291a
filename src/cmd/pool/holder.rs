//! Who has the pool: an agent, a site's daemon, or nobody, and then it is changed here.

use super::direct;
use crate::failure::Outcome;
use crate::state::StateArgs;
use afterimage_agent::api::{Client, ErrorKind, PoolAddRequest, PoolRemoveRequest};
use afterimage_journal::layout;
use afterimage_journal::pool::{Added, Limit, Pool, PoolStatus};
use afterimage_journal::storage::RealStorage;
use afterimage_restore::site::Daemon;
use std::path::Path;

/// See the module.
pub enum Holder<'a> {
    Agent(Client),
    Site(Daemon),
    Nobody(&'a StateArgs),
}

impl<'a> Holder<'a> {
    /// Whoever has that of a state directory.
    pub fn of(state: &'a StateArgs) -> Self {
        let client = state.client();
        if client.is_running() {
            return Self::Agent(client);
        }
        Daemon::find(&state.state).map_or(Self::Nobody(state), Self::Site)
    }

    /// Adds or changes a member; `dir` is an absolute path.
    pub fn add(&self, dir: &Path, limit: Limit) -> Outcome<Added> {
        match self {
            Self::Agent(client) => {
                Ok(client.pool_add(&PoolAddRequest { dir: dir.to_owned(), limit })?)
            }
            Self::Site(daemon) => Ok(daemon.pool_add(dir, limit)?),
            Self::Nobody(state) => direct::add(&state.state, dir, limit),
        }
    }

    /// Forgets a member, or begins to drain it; whether the rest happens in the background.
    pub fn remove(&self, dir: &Path, lost: bool) -> Outcome<bool> {
        match self {
            Self::Agent(client) => {
                client.pool_remove(&PoolRemoveRequest { dir: dir.to_owned(), lost })?;
            }
            Self::Site(daemon) => daemon.pool_remove(dir, lost)?,
            Self::Nobody(state) => {
                direct::remove(&state.state, dir, lost)?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// How the pool is.
    pub fn status(&self) -> Outcome<PoolStatus> {
        match self {
            Self::Agent(client) => match client.pool() {
                // It ended in between.
                Err(e) if e.kind == ErrorKind::NotReachable => Self::look(client.state()),
                answered => Ok(answered?),
            },
            Self::Site(daemon) => Ok(daemon.pool()?),
            Self::Nobody(state) => Self::look(&state.state),
        }
    }

    fn look(state: &Path) -> Outcome<PoolStatus> {
        crate::state::check(state)?;
        let home = layout::pool_dir(state);
        let pool = Pool::look(&RealStorage::shared(), &home).map_err(direct::failed)?;
        Ok(pool.status())
    }
}
