//! All guests of this agent, and what the API asks of them.
//!
//! What always holds: guests of a group share one open journal; settings are on disk before a
//! guest counts as protected, and gone before it counts as not.

mod members;
mod memory;
mod opening;
#[cfg(test)]
mod queue_tests;
mod sites;
mod status;
mod wanted;

use crate::api::control::Reply;
use crate::api::{
    AgentInfo, ApiError, Control, GuestState, GuestStatus, MarkReply, MarkRequest, PoolAddRequest,
    PoolRemoveRequest, ProtectRequest, SetRequest,
};
use crate::group::Group;
use crate::guest::{Claims, Context, DETACHED, Face, Guest};
use crate::memory::checkpoint::Conductor;
use crate::pool::PoolKeeper;
use crate::settings::GuestSettings;
use crate::ship::GroupSettings;
use afterimage_guard::Worker;
use afterimage_journal::keeper::PoolGround;
use afterimage_journal::pool::{Added, PoolStatus};
use afterimage_journal::{Error, ErrorKind, Options};
use afterimage_planted as planted;
use opening::{Opening, refusal};
use status::Sampler;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, oneshot};
use wanted::{Change, keep};

/// Longest that `protect` waits for the first attach.
const FIRST_ATTACH_LIMIT: Duration = crate::guest::COMMAND_LIMIT;

/// How long a guest may keep the others waiting when the agent ends: within what the guard gives all.
const GUEST_STOP_LIMIT: Duration = Duration::from_secs(6);

/// The agent's engine.
pub struct Engine {
    state: PathBuf,
    options: Options,
    worker: Option<Worker>,
    stall_limit_ms: u64,
    since: jiff::Timestamp,
    guests: Mutex<BTreeMap<String, Entry>>,
    pool: PoolKeeper,
    /// Held while a group's sites are changed.
    site_changes: Mutex<()>,
    claims: Arc<Claims>,
}

struct Entry {
    guest: Guest,
    settings: GuestSettings,
    group: Arc<Group>,
    sampler: Arc<Sampler>,
    memory: Arc<Conductor>,
}

pub(crate) fn api(error: &afterimage_journal::Error) -> ApiError {
    match error.kind() {
        ErrorKind::FixInput => ApiError::usage(error.to_string()),
        ErrorKind::NotRestorable => ApiError::not_restorable(error.to_string()),
        _ => ApiError::other(error.to_string()),
    }
}

impl Engine {
    /// An engine over a state directory; starts the guests that it had.
    ///
    /// # Errors
    /// Settings can't be read.
    pub async fn start(
        state: &Path,
        options: Options,
        worker: Option<Worker>,
        stall_limit_ms: u64,
    ) -> afterimage_journal::Result<Arc<Self>> {
        let (at, storage) = (state.to_owned(), Arc::clone(&options.storage));
        let started = tokio::task::spawn_blocking(move || PoolKeeper::start(&at, &storage)).await;
        let pool = started.map_err(|e| Error::Invalid(format!("open the pool: {e}")))??;
        let options = pool.options(options);
        let engine = Arc::new(Self {
            state: state.to_owned(),
            pool,
            options,
            worker,
            stall_limit_ms,
            since: jiff::Timestamp::now(),
            guests: Mutex::new(BTreeMap::new()),
            site_changes: Mutex::new(()),
            claims: Arc::default(),
        });
        memory::schedule(&engine);
        let all = GuestSettings::load_all(state)?;
        for settings in all {
            let name = settings.name.clone();
            if let Err(error) = engine.add(settings, Opening::OrLater).await {
                tracing::error!(guest = name, %error, "not protected");
            }
        }
        Ok(engine)
    }

    /// Closes every session and journal.
    pub async fn stop(&self) {
        let mut guests = self.guests.lock().await;
        // All at once: each may wait for its own QEMU.
        let stops: Vec<_> = guests
            .values()
            .map(|e| {
                let guest = e.guest.clone();
                tokio::spawn(async move {
                    (
                        guest.face.name().to_owned(),
                        tokio::time::timeout(GUEST_STOP_LIMIT, guest.stop()).await,
                    )
                })
            })
            .collect();
        for stop in stops {
            match stop.await {
                Ok((_, Ok(Ok(())))) | Err(_) => {}
                Ok((guest, Ok(Err(error)))) => tracing::warn!(guest, %error, "stop"),
                Ok((guest, Err(_))) => {
                    tracing::warn!(guest, "not stopped within {GUEST_STOP_LIMIT:?}: left as it is");
                }
            }
        }
        let groups: Vec<_> = guests.values().map(|e| Arc::clone(&e.group)).collect();
        guests.clear();
        // All at once: each may wait for its sites.
        let closed = tokio::task::spawn_blocking(move || {
            std::thread::scope(|all| {
                for group in groups {
                    all.spawn(move || members::close(&group));
                }
            });
        });
        let _ = closed.await;
    }

    async fn add(
        &self,
        mut settings: GuestSettings,
        opening: Opening,
    ) -> Result<oneshot::Receiver<Result<(), ApiError>>, ApiError> {
        let mut guests = self.guests.lock().await;
        if guests.contains_key(&settings.name) {
            return Err(ApiError::usage(format!(
                "{} is protected already: change it with `afterimage set`, \
                 or `afterimage unprotect` it first",
                settings.name
            )));
        }
        let monitor = settings.monitor();
        if let Some(other) = guests.values().find(|e| e.settings.monitor() == monitor) {
            return Err(ApiError::usage(format!(
                "{monitor} is protected already, under the name {}",
                other.settings.name
            )));
        }
        let known = guests.values().find(|e| e.settings.group == settings.group);
        let (group, memory) = match known {
            Some(entry) => {
                opening.join(&entry.group, &mut settings)?;
                (Arc::clone(&entry.group), Arc::clone(&entry.memory))
            }
            None => {
                let (state, name) = (self.state.clone(), settings.group.clone());
                let (options, key_file) = (self.options.clone(), settings.key_file.clone());
                let open = move || opening.open(&state, &name, options, key_file.as_deref());
                let opened = tokio::task::spawn_blocking(open).await;
                let opened = opened.map_err(|e| ApiError::other(e.to_string()))?;
                let group = Arc::new(opened.map_err(|e| refusal(&e))?);
                if opening == Opening::OrLater {
                    let sites = GroupSettings::load(&self.state, &settings.group);
                    group.ship(&sites.map_err(|e| api(&e))?);
                }
                let unit_bytes = self.options.unit_bytes;
                group.set_ground(PoolGround::shared(self.pool.pool(), &settings.group, unit_bytes));
                self.pool.watch(&group);
                let memory = self.conductor(&group);
                (group, memory)
            }
        };
        let face = Face::new(&settings.name);
        if settings.detached {
            face.show(GuestState::Detached, Some(DETACHED.into()));
        }
        let context = Context {
            state: self.state.clone(),
            settings: settings.clone(),
            group: Arc::clone(&group),
            worker: self.worker.clone(),
            face,
            claims: Arc::clone(&self.claims),
        };
        let (guest, first) = Guest::start(context);
        let sampler = Sampler::start(Arc::clone(&group));
        let name = settings.group.clone();
        guests.insert(settings.name.clone(), Entry { guest, settings, group, sampler, memory });
        keep(self.pool.pool(), &guests, &name);
        sites::limit(&guests, &name);
        Ok(first)
    }

    /// Names of the guests that a name means: a guest, or all of a group.
    async fn named(&self, name: &str) -> Result<Vec<String>, ApiError> {
        let guests = self.guests.lock().await;
        if guests.contains_key(name) {
            return Ok(vec![name.to_owned()]);
        }
        let of_group: Vec<String> = guests
            .values()
            .filter(|e| e.settings.group == name)
            .map(|e| e.settings.name.clone())
            .collect();
        if of_group.is_empty() {
            let known: Vec<String> = guests.keys().cloned().collect();
            return Err(ApiError::unknown_name(name, &known));
        }
        Ok(of_group)
    }

    /// The guests' handles: no call to a guest is made under the lock.
    async fn handles(&self, names: &[String]) -> Vec<Guest> {
        let guests = self.guests.lock().await;
        names.iter().filter_map(|n| guests.get(n)).map(|e| e.guest.clone()).collect()
    }

    /// The guests of the first name's group, but for that one.
    async fn others_of_group(&self, names: &[String]) -> Vec<Guest> {
        let guests = self.guests.lock().await;
        let first = names.first();
        let group = first.and_then(|n| guests.get(n)).map(|e| e.settings.group.clone());
        guests
            .iter()
            .filter(|(n, e)| Some(*n) != first && Some(&e.settings.group) == group.as_ref())
            .map(|(_, e)| e.guest.clone())
            .collect()
    }

    async fn statuses(&self, names: &[String]) -> Vec<GuestStatus> {
        let guests = self.guests.lock().await;
        let counters = self.worker.as_ref().map(Worker::counters);
        names
            .iter()
            .filter_map(|n| guests.get(n))
            .map(|e| {
                status::of(&e.guest.face, &e.settings, &e.group, &e.sampler, counters, &e.memory)
            })
            .collect()
    }
}

impl Control for Arc<Engine> {
    fn protect(&self, request: ProtectRequest) -> Reply<'_, Vec<GuestStatus>> {
        let engine = Arc::clone(self);
        // A task of its own: a caller that goes away must not leave half of it behind.
        Box::pin(async move {
            let work = tokio::spawn(async move { engine.protect_guest(request).await });
            work.await.map_err(|e| ApiError::other(e.to_string()))?
        })
    }

    fn unprotect(&self, name: String, purge: bool) -> Reply<'_, ()> {
        let engine = Arc::clone(self);
        Box::pin(async move {
            let work = tokio::spawn(async move {
                for guest in engine.named(&name).await? {
                    if planted::is("settings-removed-beside-the-queue") {
                        GuestSettings::remove(&engine.state, &guest).map_err(|e| api(&e))?;
                    }
                    engine.drop_guest(&guest, purge).await?;
                }
                Ok(())
            });
            work.await.map_err(|e| ApiError::other(e.to_string()))?
        })
    }

    fn detach(&self, name: String) -> Reply<'_, Vec<GuestStatus>> {
        Box::pin(async move {
            let names = self.named(&name).await?;
            for guest in self.handles(&names).await {
                guest.detach().await?;
            }
            Ok(self.statuses(&names).await)
        })
    }

    fn attach(&self, name: String) -> Reply<'_, Vec<GuestStatus>> {
        Box::pin(async move {
            let names = self.named(&name).await?;
            for guest in self.handles(&names).await {
                guest.attach().await?;
            }
            Ok(self.statuses(&names).await)
        })
    }

    fn status(&self, name: Option<String>) -> Reply<'_, Vec<GuestStatus>> {
        Box::pin(async move {
            let names = match name {
                Some(name) => self.named(&name).await?,
                None => self.guests.lock().await.keys().cloned().collect(),
            };
            Ok(self.statuses(&names).await)
        })
    }

    fn mark(&self, name: String, request: MarkRequest) -> Reply<'_, MarkReply> {
        Box::pin(async move {
            let names = self.named(&name).await?;
            // One checkpoint stands for the whole group; a freeze is one guest's.
            if request.quiesce && names.len() > 1 {
                return Err(ApiError::usage(format!(
                    "{name} is a group of {} guests: mark one of them with --quiesce",
                    names.len()
                )));
            }
            if request.memory {
                return self.mark_memory(&names, request).await;
            }
            let guests = self.handles(&names).await;
            match guests.first() {
                Some(guest) => {
                    let made = guest.mark(request).await?;
                    // It is a checkpoint of the whole group: all of it has to be proved level.
                    for other in self.others_of_group(&names).await {
                        other.confirm(made.seq).await?;
                    }
                    Ok(made)
                }
                None => Err(ApiError::other(format!("{name} is gone"))),
            }
        })
    }

    fn set(&self, name: String, request: SetRequest) -> Reply<'_, Vec<GuestStatus>> {
        Box::pin(async move {
            let names = self.named(&name).await?;
            // All is checked before anything changes.
            // A name means a guest, or guests of one group.
            let group = self.group_of(names.first().map_or("", String::as_str)).await;
            let group = group.ok_or_else(|| ApiError::other(format!("{name} is gone")))?;
            let (add, remove) = (&request.sites, &request.no_sites);
            let at = (self.state.as_path(), group.name());
            let sites = sites::change_of(at, add, remove, request.rpo_alarm_ms)?;
            let change = Change::of(request, self.options.unit_bytes)?;
            change.check(&names, &*self.guests.lock().await)?;
            wanted::check_move(&change, &names, &*self.guests.lock().await)?;
            self.change_sites(&group, sites).await?;
            let mut guests = self.guests.lock().await;
            wanted::check_move(&change, &names, &guests)?;
            let mut changed = Vec::new();
            for name in &names {
                let Some(entry) = guests.get_mut(name) else { continue };
                let mut settings = entry.settings.clone();
                change.apply(&mut settings);
                // Queued under the lock: a guest gets its changes in the order in which they were made.
                let answer = entry.guest.queue_settings(settings.clone())?;
                // Said once: the guest's task knows whether it is used up.
                entry.settings = GuestSettings { accept_vm: false, ..settings };
                changed.push((entry.guest.clone(), answer, entry.settings.group.clone()));
            }
            let groups: Vec<_> = changed.iter().map(|(_, _, group)| group.clone()).collect();
            for group in groups {
                keep(self.pool.pool(), &guests, &group);
                sites::limit(&guests, &group);
            }
            drop(guests);
            for (guest, answer, _) in changed {
                guest.answer(answer).await?;
            }
            Ok(self.statuses(&names).await)
        })
    }

    fn pool(&self) -> Reply<'_, PoolStatus> {
        Box::pin(async move { Ok(self.pool.status()) })
    }

    fn pool_add(&self, request: PoolAddRequest) -> Reply<'_, Added> {
        Box::pin(self.pool.add(request))
    }

    fn pool_remove(&self, request: PoolRemoveRequest) -> Reply<'_, ()> {
        Box::pin(self.pool.remove(request))
    }

    fn info(&self) -> Reply<'_, AgentInfo> {
        Box::pin(async move {
            let guests = self.guests.lock().await;
            Ok(AgentInfo {
                version: env!("CARGO_PKG_VERSION").into(),
                worker_pid: std::process::id(),
                guard_pid: rustix::process::getppid()
                    .map_or(0, |p| p.as_raw_nonzero().get().unsigned_abs()),
                state: self.state.clone(),
                since: self.since,
                stall_limit_ms: self.stall_limit_ms,
                monitors: guests
                    .values()
                    .map(|e| (e.settings.name.clone(), e.settings.monitor()))
                    .collect(),
            })
        })
    }
}
