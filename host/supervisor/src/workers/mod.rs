//! Worker processes: started, handed their folders and tasks, watched, replaced and reaped.
//!
//! [`Pool`] is for the loop's thread; its methods never wait for a worker. A second thread receives ([`receive`]), a
//! third starts processes ([`child`]). What a worker says is typed and bounded here; whether it may say it is the
//! core's decision (I3).

pub mod child;
pub mod compile;
mod contract;
pub mod link;
pub mod pool;
pub mod profile;
mod receive;
pub mod sealed;
pub mod shares;
mod state;
pub mod watch;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use rustix::fd::OwnedFd;
use tm_core::{
    api::WorkerRow,
    id::{Attempt, TaskRef, WorkerId},
    queue::lanes::{ProfileNo, Slot, Want},
    spin::Spin,
    time::Millis,
    wire::{Start, ToWorker},
};

pub use self::contract::{NotHanded, PoolError, PoolEvent, PoolSettings};
pub use crate::config::Isolation;

use self::{
    child::Spawner,
    link::Inbox,
    pool::{Action, Phase, Plan, Shape},
    profile::{ProfileError, ProfileSpec, Sizing, open_profile, share_mb},
    receive::{Receiver, Shared},
    state::{Member, State},
    watch::{Watch, WatchSettings},
};

/// The worker processes of one supervisor.
pub struct Pool {
    settings: PoolSettings,
    sizing: Sizing,
    shared: Arc<Shared>,
    spawner: Arc<Spawner>,
    emit: Arc<dyn Fn(PoolEvent) + Send + Sync>,
    receiver: Option<thread::JoinHandle<()>>,
    /// Disconnected once the receiving thread has ended.
    receiving: mpsc::Receiver<()>,
    next_worker: u64,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Pool {
    /// Starts the receiving thread; processes come with the first [`Pool::want`]. `events` runs on that thread (and
    /// once in a while within `want`); it may wait, which makes workers wait, but not while the pool is stopped.
    ///
    /// # Errors
    /// When the process may have no more threads or descriptors.
    pub fn start(
        settings: PoolSettings,
        spawner: Arc<Spawner>,
        events: Box<dyn Fn(PoolEvent) + Send + Sync>,
    ) -> Result<Self, PoolError> {
        let shared = Arc::new(Shared::new().map_err(PoolError::Wait)?);
        let emit: Arc<dyn Fn(PoolEvent) + Send + Sync> = Arc::from(events);
        let watch_settings = WatchSettings {
            heartbeat_ms: settings.heartbeat_ms,
            heartbeat_timeout_ms: settings.heartbeat_timeout_ms,
            start_timeout_ms: settings.start_timeout_ms,
        };
        let sizing = Sizing {
            concurrency: if settings.isolation == Isolation::Task { 1 } else { settings.concurrency },
            heartbeat_ms: settings.heartbeat_ms,
            allow_weaker: settings.allow_weaker,
            share_mb: settings.memory_max_bytes.map(|bytes| share_mb(bytes, settings.num)),
        };
        let receiver = Receiver {
            shared: Arc::clone(&shared),
            emit: Arc::clone(&emit),
            watch: Watch::new(watch_settings, 0, u64::from(std::process::id())),
            epoch: Instant::now(),
            allow_weaker: settings.allow_weaker,
            share_mb: sizing.share_mb,
            inbox: Inbox::default(),
            spin: Spin::on(thread::available_parallelism().map_or(1, usize::from)),
            in_flight: 0,
            links: BTreeMap::new(),
        };
        let (held, receiving) = mpsc::channel();
        let receiver = thread::Builder::new()
            .name("tm-workers".into())
            .spawn(move || {
                receiver.run();
                drop(held);
            })
            .map_err(PoolError::Thread)?;
        Ok(Self { settings, sizing, shared, spawner, emit, receiver: Some(receiver), receiving, next_worker: 1 })
    }

    /// Room in confined workers.
    #[must_use]
    pub fn slots(&self) -> Vec<Slot> {
        let state = self.shared.lock();
        let room = |(&worker, member): (&WorkerId, &Member)| {
            let (profile, free) = (member.profile?, member.free());
            (free > 0).then_some(Slot { worker, profile, free, idle: member.running.is_empty() })
        };
        state.members.iter().filter_map(room).collect()
    }

    /// Starts, replaces and drains workers so that `wants` are served. A want without ready tasks is a hint that fills
    /// free places. Returns when to call again although nothing happened.
    pub fn want(
        &mut self,
        wants: &[Want],
        profile_of: &dyn Fn(ProfileNo) -> Option<ProfileSpec>,
        now_ms: u64,
    ) -> Option<Millis> {
        let (now, instant) = (Millis(now_ms), Instant::now());
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        if state.stopping || state.starts.hopeless {
            return None;
        }
        state.starts.broken.retain(|_, until| *until > instant);
        let wants: Vec<Want> =
            wants.iter().filter(|want| !state.starts.broken.contains_key(&want.profile)).copied().collect();
        state.mark_outgrown(&wants, profile_of);
        state.ready = wants.iter().map(|want| want.ready).sum();
        state.learn_tenants(&wants, &self.settings.weights, profile_of);
        for member in state.members.values_mut().filter(|member| member.phase == Phase::Ready) {
            member.ready_since.get_or_insert(now);
        }
        state.accounts.settle(now);
        let views = state.views(now);
        let wait_ms = state.starts.wait_ms(instant);
        let shape = Shape { num: self.settings.num, warm_pool: self.settings.warm_pool, may_start: wait_ms == 0 };
        let Plan { actions, again_at } = pool::plan(&wants, &views, &state.accounts, shape, now);
        let (mut events, acts) = (Vec::new(), !actions.is_empty());
        for action in actions {
            self.perform(&mut state, action, profile_of, now, &mut events);
        }
        let views = if acts { state.views(now) } else { views };
        state.accounts.observe(&wants, &views);
        let broken_ms = state.starts.broken.values().map(|until| until.saturating_duration_since(instant).as_millis());
        let broken_at = broken_ms.min().map(|ms| now.plus(u64::try_from(ms).unwrap_or(u64::MAX).saturating_add(1)));
        drop(state);
        events.into_iter().for_each(|event| (self.emit)(event));
        let waited_at = (wait_ms > 0).then(|| now.plus(wait_ms.saturating_add(1)));
        [again_at, broken_at, waited_at].into_iter().flatten().min()
    }

    fn perform(
        &mut self,
        state: &mut State,
        action: Action,
        profile_of: &dyn Fn(ProfileNo) -> Option<ProfileSpec>,
        now: Millis,
        events: &mut Vec<PoolEvent>,
    ) {
        match action {
            Action::Start { profile, spare } => {
                let Some(spec) = profile_of(profile) else { return };
                if let Err(reason) = self.start_worker(state, profile, &spec, spare, now) {
                    let until = Instant::now() + Duration::from_millis(state::BROKEN_PAUSE_MS);
                    state.starts.broken.insert(profile, until);
                    events.push(PoolEvent::ProfileBroken { profile, reason });
                }
            }
            Action::StartSpare => {
                let worker = self.order(state);
                state.members.insert(worker, Member::new(now));
            }
            Action::Retire { worker } => {
                if let Some(member) = state.members.get_mut(&worker) {
                    member.dismiss("was replaced");
                }
            }
            Action::Drain { worker } | Action::Keep { worker } => {
                if let Some(member) = state.members.get_mut(&worker) {
                    member.draining = matches!(action, Action::Drain { .. });
                }
            }
        }
    }

    fn start_worker(
        &mut self,
        state: &mut State,
        profile: ProfileNo,
        spec: &ProfileSpec,
        spare: Option<WorkerId>,
        now: Millis,
    ) -> Result<(), String> {
        let (init, fds) = open_profile(spec, &self.sizing, self.settings.user.as_ref())
            .map_err(|error: ProfileError| error.to_string())?;
        let mut fresh = Member::new(now);
        let spare = spare.and_then(|worker| Some((worker, state.members.get_mut(&worker)?)));
        let is_fresh = spare.is_none();
        let (worker, member) = spare.unwrap_or((WorkerId(self.next_worker), &mut fresh));
        member.started_at = now;
        member.assign(profile, &spec.profile.tenant, init, fds).map_err(|error| error.to_string())?;
        if is_fresh {
            let worker = self.order(state);
            state.members.insert(worker, fresh);
        } else if member.send() {
            self.room_needed(worker, member);
        } else {
            // The receiving thread starts the clock for ready.
            self.shared.wake();
        }
        state.accounts.served(profile);
        Ok(())
    }

    /// Orders a process from the spawner; the receiving thread takes it over.
    fn order(&mut self, state: &mut State) -> WorkerId {
        let worker = WorkerId(self.next_worker);
        self.next_worker += 1;
        let shared = Arc::clone(&self.shared);
        let ordered = self.spawner.order(None, move |made| {
            shared.lock().spawned.push((worker, made));
            shared.wake();
        });
        if let Err(error) = ordered {
            state.spawned.push((worker, Err(error)));
            self.shared.wake();
        }
        worker
    }

    fn room_needed(&self, worker: WorkerId, member: &Member) {
        if let Some(process) = &member.process {
            self.shared.watch_room(worker, &process.link, true);
        }
    }

    /// Whether the worker has the component, so that [`Pool::load`] is not needed.
    #[must_use]
    pub fn has_loaded(&self, worker: WorkerId, component: u32) -> bool {
        self.shared.lock().members.get(&worker).is_some_and(|member| member.loaded.contains_key(&component))
    }

    /// Has a worker load a native artefact (a sealed memory file); nothing happens when it has it already. Components
    /// that were not used for the longest time are forgotten beyond 64.
    pub fn load(&mut self, worker: WorkerId, component: u32, native: OwnedFd) {
        let mut state = self.shared.lock();
        let tick = state.tick();
        let Some(member) = state.members.get_mut(&worker).filter(|member| member.phase == Phase::Ready) else { return };
        if member.loaded.contains_key(&component) {
            return;
        }
        // A message that does not fit is not loaded, and the start that follows is refused by the worker.
        if member.outbox.push(&ToWorker::Load { component }, vec![native]).is_ok() {
            member.loaded.insert(component, tick);
            if let Err(error) = member.unload_surplus(component) {
                tracing::debug!(worker = worker.0, %error, "a component stays loaded");
            }
        }
    }

    /// Hands a task to a worker; it goes out with the next [`Pool::flush`].
    ///
    /// # Errors
    /// When the worker is gone or the message does not fit: the guest never ran, and the caller undoes the start.
    pub fn start_task(&mut self, worker: WorkerId, start: Start, fds: Vec<OwnedFd>) -> Result<(), NotHanded> {
        let isolation = self.settings.isolation;
        let mut state = self.shared.lock();
        let tick = state.tick();
        let member = state
            .members
            .get_mut(&worker)
            .filter(|member| member.phase == Phase::Ready && !member.spent)
            .ok_or(NotHanded::Gone(worker))?;
        let (task, attempt, component) = (start.task, start.attempt, start.component);
        member.outbox.push(&ToWorker::Start(Box::new(start)), fds)?;
        member.running.insert(task, (attempt, component));
        member.loaded.entry(component).and_modify(|last| *last = tick);
        member.spent |= isolation == Isolation::Task;
        Ok(())
    }

    /// Sets an attempt's cancel flag; the worker stops it after the grace.
    pub fn cancel(&mut self, worker: WorkerId, task: TaskRef, attempt: Attempt, grace_ms: u64) {
        let mut state = self.shared.lock();
        let Some(member) = state.members.get_mut(&worker) else { return };
        if let Err(error) = member.outbox.push(&ToWorker::Cancel { task, attempt, grace_ms }, Vec::new()) {
            // It takes nothing any more, so it cannot be asked.
            member.dismiss(&format!("did not read: {error}"));
        }
    }

    /// Sends what was handed over, in as few packets as fit. What a worker's socket does not take follows by itself.
    pub fn flush(&mut self) {
        let mut state = self.shared.lock();
        for (&worker, member) in &mut state.members {
            if member.send()
                && let Some(process) = &member.process
            {
                self.shared.watch_room(worker, &process.link, true);
            }
        }
    }

    /// Frees the slot of a task whose end was decided.
    pub fn ended(&mut self, worker: WorkerId, task: TaskRef) {
        let mut state = self.shared.lock();
        let Some(member) = state.members.get_mut(&worker) else { return };
        if member.running.remove(&task).is_some() && member.running.is_empty() {
            member.idle_since = Instant::now();
        }
    }

    /// Kills a worker; [`PoolEvent::Gone`] follows once it is reaped.
    pub fn kill(&mut self, worker: WorkerId) {
        if let Some(member) = self.shared.lock().members.get_mut(&worker) {
            member.dismiss("was killed by its supervisor");
        }
    }

    /// The workers that serve a profile, for `ps`.
    #[must_use]
    pub fn rows(&self) -> Vec<WorkerRow> {
        let state = self.shared.lock();
        let ready = state.members.iter().filter(|(_, member)| member.phase == Phase::Ready);
        ready
            .map(|(worker, member)| WorkerRow {
                worker: worker.0,
                pid: member.process.as_ref().map_or(0, |process| process.child.pid()),
                tenant: member.tenant.clone(),
                running: u32::try_from(member.running.len()).unwrap_or(u32::MAX),
                started_at: member.started_at,
                missing: member.confinement.as_ref().map(|found| found.missing.clone()).unwrap_or_default(),
                memory_bytes: member.memory_bytes,
            })
            .collect()
    }

    /// The most memory that the pools of all confined workers can hold, in bytes.
    #[must_use]
    pub fn memory_bound_bytes(&self) -> u64 {
        let state = self.shared.lock();
        state.members.values().filter_map(|member| member.confinement.as_ref()).map(|c| c.memory_bound_bytes).sum()
    }

    /// Ends all processes: closes the sockets so that workers end by themselves, kills after `grace` what is left, and
    /// returns once every process is reaped.
    pub fn stop(mut self, grace: Duration) {
        self.end(grace);
    }

    fn end(&mut self, grace: Duration) {
        let Some(receiver) = self.receiver.take() else { return };
        {
            let mut state = self.shared.lock();
            state.stopping = true;
            for member in state.members.values_mut() {
                match &member.process {
                    Some(process) if !grace.is_zero() => process.link.finish(),
                    _ => member.dismiss("was stopped"),
                }
            }
        }
        self.shared.wake();
        // Nothing is ever sent: this returns when the thread has ended, or after the grace.
        let _ = self.receiving.recv_timeout(grace);
        for member in self.shared.lock().members.values_mut() {
            member.dismiss("was stopped");
        }
        self.shared.wake();
        if receiver.join().is_err() {
            tracing::error!("the thread that receives from workers panicked");
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.end(Duration::ZERO);
    }
}

#[cfg(test)]
mod tests;
