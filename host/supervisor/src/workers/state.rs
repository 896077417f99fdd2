//! What the pool knows of its processes, shared by the loop's thread and the thread that receives.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use rustix::fd::OwnedFd;
use tm_core::{
    id::{Attempt, TaskRef, WorkerId},
    queue::lanes::{ProfileNo, Want},
    time::Millis,
    wire::{Confinement, ExecuteInit, Init, Required, ToWorker},
};

use super::{
    child::{Child, ChildError},
    link::{Link, Outbox, PushError},
    pool::{Phase, WorkerView},
    profile::ProfileSpec,
    shares::Accounts,
};

/// Components that a worker keeps loaded beyond those in use.
pub(super) const LOADED_MAX: usize = 64;
/// Starts of one profile that may fail in a row.
const START_FAILURES_MAX: u32 = 3;
/// How long a profile waits after its workers could not start, in milliseconds.
pub(super) const BROKEN_PAUSE_MS: u64 = 30_000;
/// The first and the largest delay of a start after deaths in a row, in milliseconds.
const RESPAWN_MS: (u64, u64) = (100, 5_000);

/// One process.
#[derive(Debug)]
pub(super) struct Member {
    pub phase: Phase,
    pub profile: Option<ProfileNo>,
    pub tenant: String,
    /// None until the spawner is done.
    pub process: Option<Process>,
    pub outbox: Outbox,
    pub confinement: Option<Confinement>,
    pub concurrency: u32,
    pub running: BTreeMap<TaskRef, (Attempt, u32)>,
    /// Loaded components with the time of their last use.
    pub loaded: BTreeMap<u32, u64>,
    pub spent: bool,
    pub draining: bool,
    pub outdated: bool,
    pub was_ready: bool,
    pub idle_since: Instant,
    /// Stamped by the loop, so that a slow turn does not cost the profile its tenure.
    pub ready_since: Option<Millis>,
    pub started_at: Millis,
    pub memory_bytes: u64,
    /// Why it was killed; the first reason stays.
    pub why: Option<String>,
    /// Ended on purpose: its end says nothing about starts.
    pub by_us: bool,
    /// It said itself that it cannot become a worker.
    pub unable: bool,
    pub sizing: Required,
    pub memory_max_mb: u32,
    pub stack_max_kb: u32,
}

#[derive(Debug)]
pub(super) struct Process {
    pub child: Child,
    pub link: Arc<Link>,
}

impl Member {
    pub(super) fn new(now: Millis) -> Self {
        Self {
            phase: Phase::Spare,
            profile: None,
            tenant: String::new(),
            process: None,
            outbox: Outbox::default(),
            confinement: None,
            concurrency: 0,
            running: BTreeMap::new(),
            loaded: BTreeMap::new(),
            spent: false,
            draining: false,
            outdated: false,
            was_ready: false,
            idle_since: Instant::now(),
            ready_since: None,
            started_at: now,
            memory_bytes: 0,
            why: None,
            by_us: false,
            unable: false,
            sizing: Required::default(),
            memory_max_mb: 0,
            stack_max_kb: 0,
        }
    }

    /// Makes a spare process a worker of the profile; the first packet goes out with the next flush.
    pub(super) fn assign(
        &mut self,
        profile: ProfileNo,
        tenant: &str,
        init: ExecuteInit,
        fds: Vec<OwnedFd>,
    ) -> Result<(), PushError> {
        self.concurrency = init.concurrency;
        (self.sizing, self.memory_max_mb, self.stack_max_kb) = (init.required, init.memory_max_mb, init.stack_max_kb);
        self.outbox.push_init(&Init::Execute(init), fds)?;
        self.phase = Phase::Starting;
        self.profile = Some(profile);
        tenant.clone_into(&mut self.tenant);
        Ok(())
    }

    /// Kills the process; the receiving thread reaps it.
    pub(super) fn kill(&mut self, why: impl Into<String>) {
        self.why.get_or_insert_with(|| why.into());
        self.phase = Phase::Dying;
        if let Some(process) = &self.process {
            process.child.kill();
        }
    }

    /// Kills a process that is no longer wanted.
    pub(super) fn dismiss(&mut self, why: &str) {
        if self.phase != Phase::Dying {
            self.by_us = true;
            self.kill(why);
        }
    }

    /// Whether its pool is too small for what the profile needs by now.
    pub(super) fn is_outgrown_by(&self, spec: &ProfileSpec) -> bool {
        let (has, needs) = (&self.sizing, &spec.required);
        self.memory_max_mb < spec.memory_max_mb
            || self.stack_max_kb < spec.stack_max_kb
            || has.core_instances < needs.core_instances
            || has.memories < needs.memories
            || has.tables < needs.tables
            || has.table_elements_max < needs.table_elements_max
            || has.memory_min_bytes < needs.memory_min_bytes
            || has.instance_bytes < needs.instance_bytes
    }

    /// Steps that it may take now.
    pub(super) fn free(&self) -> u32 {
        let takes = self.phase == Phase::Ready && self.takes_tasks() && !self.outbox.is_crowded();
        if takes { self.room() } else { 0 }
    }

    fn takes_tasks(&self) -> bool {
        !self.spent && !self.draining && !self.outdated
    }

    fn room(&self) -> u32 {
        self.concurrency.saturating_sub(u32::try_from(self.running.len()).unwrap_or(u32::MAX))
    }

    pub(super) fn view(&self, worker: WorkerId, now: Millis) -> WorkerView {
        let idle_ms = u64::try_from(self.idle_since.elapsed().as_millis()).unwrap_or(u64::MAX);
        WorkerView {
            worker,
            phase: self.phase,
            profile: self.profile,
            running: u32::try_from(self.running.len()).unwrap_or(u32::MAX),
            free: if self.takes_tasks() && self.phase != Phase::Dying { self.room() } else { 0 },
            spent: self.spent || self.outdated,
            draining: self.draining,
            idle_since: Millis(now.0.saturating_sub(idle_ms)),
            ready_since: self.ready_since.unwrap_or(now),
        }
    }

    /// Sends what the socket takes; a broken link is a death. True when the rest waits for room.
    pub(super) fn send(&mut self) -> bool {
        let Some(process) = &self.process else { return false };
        if self.phase == Phase::Dying || self.outbox.is_empty() {
            return false;
        }
        match self.outbox.send(&process.link) {
            Ok(done) => !done,
            Err(error) => {
                // What the worker sent before its end is still received; the receiving thread sees the end itself.
                self.kill(error.to_string());
                false
            }
        }
    }

    /// Forgets the least recently used components that no running step needs; never `keep`.
    pub(super) fn unload_surplus(&mut self, keep: u32) -> Result<(), PushError> {
        while self.loaded.len() > LOADED_MAX {
            let mut used: BTreeSet<u32> = self.running.values().map(|(_, component)| *component).collect();
            used.insert(keep);
            let unused = self.loaded.iter().filter(|(component, _)| !used.contains(component));
            let Some(component) = unused.min_by_key(|(_, last)| **last).map(|(component, _)| *component) else { break };
            self.outbox.push(&ToWorker::Unload { component }, Vec::new())?;
            self.loaded.remove(&component);
        }
        Ok(())
    }
}

/// A finished order of the spawner.
pub(super) type Spawned = (WorkerId, Result<(Child, Link), ChildError>);

/// How starts went; decides when the next may happen.
#[derive(Debug, Default)]
pub(super) struct Starts {
    /// Starts in a row that failed, per profile; spare processes count under none.
    failed: BTreeMap<Option<ProfileNo>, u32>,
    any_ready: bool,
    /// Deaths since a step was last reported.
    deaths: u32,
    not_before: Option<Instant>,
    /// Profiles that are not tried for a while.
    pub broken: BTreeMap<ProfileNo, Instant>,
    /// Nothing can start any more.
    pub hopeless: bool,
}

/// What follows from a worker that never became ready.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    TryAgain,
    ProfileBroken,
    CannotStart,
}

impl Starts {
    /// A worker became ready.
    pub(super) fn ready(&mut self, profile: Option<ProfileNo>) {
        self.any_ready = true;
        self.failed.remove(&profile);
        self.failed.remove(&None);
    }

    /// A worker reported the end of a step: it is not the pool that is at fault.
    pub(super) fn reported(&mut self) {
        self.deaths = 0;
        self.not_before = None;
    }

    /// A worker that had been ready died by itself: the first is replaced at once, the next after a growing delay.
    pub(super) fn died(&mut self, now: Instant) {
        self.deaths += 1;
        if self.deaths > 1 {
            self.pause(now, self.deaths - 2);
        }
    }

    /// A worker ended before it was ready. `final_word`: it said itself that it never will be.
    pub(super) fn failed(&mut self, profile: Option<ProfileNo>, final_word: bool, now: Instant) -> Verdict {
        let count = self.failed.entry(profile).or_insert(0);
        *count += 1;
        let count = *count;
        self.pause(now, count - 1);
        if count < START_FAILURES_MAX && !final_word {
            return Verdict::TryAgain;
        }
        match profile {
            // Others became ready here: it is this profile that cannot.
            Some(profile) if self.any_ready => {
                self.failed.remove(&Some(profile));
                self.broken.insert(profile, now + std::time::Duration::from_millis(BROKEN_PAUSE_MS));
                Verdict::ProfileBroken
            }
            _ => {
                self.hopeless = true;
                Verdict::CannotStart
            }
        }
    }

    fn pause(&mut self, now: Instant, doublings: u32) {
        let (first, largest) = RESPAWN_MS;
        let ms = first.saturating_mul(1 << doublings.min(10)).min(largest);
        self.not_before = Some(now + std::time::Duration::from_millis(ms));
    }

    /// How long starts have to wait, in milliseconds; 0: not at all.
    pub(super) fn wait_ms(&self, now: Instant) -> u64 {
        let wait = self.not_before.map_or(0, |at| at.saturating_duration_since(now).as_millis());
        u64::try_from(wait).unwrap_or(u64::MAX)
    }
}

/// All that both threads know.
#[derive(Debug, Default)]
pub(super) struct State {
    pub members: BTreeMap<WorkerId, Member>,
    pub starts: Starts,
    /// Finished orders of the spawner that the receiving thread has not taken yet.
    pub spawned: Vec<Spawned>,
    /// Who is owed process time.
    pub accounts: Accounts,
    /// Ready tasks, when this was last looked at.
    pub ready: u64,
    /// Orders the last uses of components.
    pub clock: u64,
    /// Nothing is started any more; the receiving thread ends with the last process.
    pub stopping: bool,
}

impl State {
    pub(super) fn views(&self, now: Millis) -> Vec<WorkerView> {
        self.members.iter().map(|(&worker, member)| member.view(worker, now)).collect()
    }

    pub(super) fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Learns whose the wanted profiles are.
    pub(super) fn learn_tenants(
        &mut self,
        wants: &[Want],
        weights: &BTreeMap<String, u32>,
        profile_of: &dyn Fn(ProfileNo) -> Option<ProfileSpec>,
    ) {
        for profile in wants.iter().map(|want| want.profile) {
            if !self.accounts.knows(profile)
                && let Some(spec) = profile_of(profile)
            {
                let tenant = &spec.profile.tenant;
                self.accounts.learn(profile, tenant, weights.get(tenant).copied().unwrap_or(1));
            }
        }
    }

    /// Takes workers whose pool is too small for their profile's steps by now out of use.
    pub(super) fn mark_outgrown(&mut self, wants: &[Want], profile_of: &dyn Fn(ProfileNo) -> Option<ProfileSpec>) {
        for want in wants.iter().filter(|want| want.ready > 0) {
            let mut spec = None;
            let own = |member: &&mut Member| member.profile == Some(want.profile) && !member.outdated;
            for member in self.members.values_mut().filter(own) {
                let spec = spec.get_or_insert_with(|| profile_of(want.profile));
                member.outdated = spec.as_ref().is_some_and(|spec| member.is_outgrown_by(spec));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: Option<ProfileNo> = Some(ProfileNo(1));

    #[test]
    fn three_failed_starts_in_a_row_without_any_success_are_final() {
        let (mut starts, now) = (Starts::default(), Instant::now());
        assert_eq!(starts.failed(P, false, now), Verdict::TryAgain);
        assert_eq!(starts.wait_ms(now), 100);
        assert_eq!(starts.failed(P, false, now), Verdict::TryAgain);
        assert_eq!(starts.wait_ms(now), 200);
        assert_eq!(starts.failed(P, false, now), Verdict::CannotStart);
        assert!(starts.hopeless);
        assert_eq!(Starts::default().failed(P, true, now), Verdict::CannotStart);
    }

    #[test]
    fn when_others_became_ready_only_the_profile_is_broken() {
        let (mut starts, now) = (Starts::default(), Instant::now());
        starts.ready(Some(ProfileNo(2)));
        assert_eq!(starts.failed(P, true, now), Verdict::ProfileBroken);
        assert!(!starts.hopeless && starts.broken.contains_key(&ProfileNo(1)));
    }

    #[test]
    fn the_first_death_costs_no_delay_and_later_ones_a_growing_one_until_a_step_is_reported() {
        let (mut starts, now) = (Starts::default(), Instant::now());
        let waits: Vec<_> = (0..9)
            .map(|_| {
                starts.died(now);
                starts.wait_ms(now)
            })
            .collect();
        assert_eq!(waits, [0, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        starts.reported();
        assert_eq!(starts.wait_ms(now), 0);
        starts.died(now);
        assert_eq!(starts.wait_ms(now), 0);
    }
}
