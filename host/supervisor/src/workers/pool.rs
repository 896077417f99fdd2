//! Which worker process serves which profile: decided from what is wanted and what runs, without any effect.
//!
//! At most `num` processes serve profiles at one time; a process that is being killed counts until it is reaped. A
//! profile with ready tasks and without a worker takes a free place, else the place of the longest idle worker that
//! nobody needs; when it has waited for [`OVERDUE_MS`], a worker of another profile gets no more work and is replaced
//! once it is empty. Places go to the profile that was served least recently, so a long backlog starves nobody, and a
//! profile that got a worker keeps it for [`TENURE_MS`], so that it gets something done.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use tm_core::{
    id::WorkerId,
    queue::lanes::{ProfileNo, Want},
    time::Millis,
};

/// A profile without a worker that has waited longer gets the next worker that becomes free.
pub const OVERDUE_MS: u64 = 250;
/// How long a worker serves a profile that still has work before it may be taken for an overdue one.
pub const TENURE_MS: u64 = 250;
/// How long a worker must have been idle before another profile may take it as an additional one.
pub const SPARE_IDLE_MS: u64 = 250;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Started, without a profile.
    Spare,
    /// Has a profile, is not confined yet.
    Starting,
    Ready,
    /// Killed, not reaped yet.
    Dying,
}

/// What the plan needs to know of one process.
#[derive(Clone, Copy, Debug)]
pub struct WorkerView {
    pub worker: WorkerId,
    pub phase: Phase,
    pub profile: Option<ProfileNo>,
    pub running: u32,
    /// Takes no more tasks: it had its one (isolation per task), or its profile has outgrown it.
    pub spent: bool,
    /// Gets no more work because an overdue profile waits for its place.
    pub draining: bool,
    /// Since when nothing runs in it; means nothing while something does.
    pub idle_since: Millis,
    /// Since when it can serve its profile.
    pub ready_since: Millis,
}

impl WorkerView {
    fn idle(&self) -> bool {
        self.phase == Phase::Ready && self.running == 0
    }

    fn serves(&self, profile: ProfileNo) -> bool {
        self.profile == Some(profile)
            && !self.spent
            && !self.draining
            && matches!(self.phase, Phase::Starting | Phase::Ready)
    }
}

/// The shape of the pool.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub num: u32,
    pub warm_pool: u32,
    /// False while a start has to wait after failures.
    pub may_start: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Starts a worker for the profile, from a spare process when there is one.
    Start { profile: ProfileNo, spare: Option<WorkerId> },
    /// Starts a process without a profile.
    StartSpare,
    /// Kills a worker in which nothing runs; its place is given away once it is reaped.
    Retire { worker: WorkerId },
    /// Gives the worker no more tasks, so that its place becomes free.
    Drain { worker: WorkerId },
    /// Gives a draining worker tasks again.
    Keep { worker: WorkerId },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub actions: Vec<Action>,
    /// When to plan again although nothing happened.
    pub again_at: Option<Millis>,
}

impl Plan {
    fn again(&mut self, at: Millis) {
        self.again_at = Some(self.again_at.map_or(at, |earlier| earlier.min(at)));
    }
}

/// Decides what to start, retire and drain. `served` says in which order profiles last got a worker. A want without
/// ready tasks is a hint: it fills free places and never takes one away.
#[must_use]
pub fn plan(
    wants: &[Want],
    workers: &[WorkerView],
    served: &BTreeMap<ProfileNo, u64>,
    shape: Shape,
    now: Millis,
) -> Plan {
    let mut planner = Planner::new(wants, workers, served, shape, now);
    planner.retire_spent();
    planner.fill();
    planner.replace();
    planner.widen();
    planner.keep_spares();
    planner.plan
}

struct Planner<'a> {
    wants: Vec<&'a Want>,
    workers: &'a [WorkerView],
    shape: Shape,
    now: Millis,
    /// Workers that serve or will serve each profile.
    have: BTreeMap<ProfileNo, u64>,
    running: BTreeMap<ProfileNo, u64>,
    retired: BTreeSet<WorkerId>,
    spares: Vec<WorkerId>,
    live: u64,
    /// Places that become free once a process is reaped.
    freeing: u64,
    plan: Plan,
}

impl<'a> Planner<'a> {
    fn new(
        wants: &'a [Want],
        workers: &'a [WorkerView],
        served: &BTreeMap<ProfileNo, u64>,
        shape: Shape,
        now: Millis,
    ) -> Self {
        let mut wants: Vec<_> = wants.iter().collect();
        wants.sort_by_key(|want| {
            (want.ready == 0, served.get(&want.profile).copied().unwrap_or(0), want.since, want.profile)
        });
        let (mut have, mut running) = (BTreeMap::new(), BTreeMap::new());
        for worker in workers {
            if let Some(profile) = worker.profile {
                *have.entry(profile).or_insert(0) += u64::from(worker.serves(profile));
                *running.entry(profile).or_insert(0) += u64::from(worker.running);
            }
        }
        let count = |phase| workers.iter().filter(|worker| worker.phase == phase).count() as u64;
        Self {
            wants,
            workers,
            shape,
            now,
            have,
            running,
            retired: BTreeSet::new(),
            spares: workers.iter().filter(|w| w.phase == Phase::Spare).map(|w| w.worker).collect(),
            live: workers.len() as u64 - count(Phase::Spare),
            freeing: count(Phase::Dying),
            plan: Plan::default(),
        }
    }

    fn have(&self, profile: ProfileNo) -> u64 {
        self.have.get(&profile).copied().unwrap_or(0)
    }

    /// Workers that the profile could use: one for each of its tasks.
    fn demand(&self, want: &Want) -> u64 {
        want.ready.saturating_add(self.running.get(&want.profile).copied().unwrap_or(0))
    }

    fn ready(&self, profile: Option<ProfileNo>) -> u64 {
        self.wants.iter().find(|want| Some(want.profile) == profile).map_or(0, |want| want.ready)
    }

    fn retire(&mut self, worker: &WorkerView) {
        self.plan.actions.push(Action::Retire { worker: worker.worker });
        self.retired.insert(worker.worker);
        self.freeing += 1;
        if let Some(profile) = worker.profile
            && worker.serves(profile)
        {
            self.have.entry(profile).and_modify(|have| *have -= 1);
        }
    }

    fn retire_spent(&mut self) {
        for worker in self.workers.iter().filter(|worker| worker.spent && worker.idle()) {
            self.retire(worker);
        }
    }

    /// Gives free places away: first to those without a worker, then to those with more tasks than workers, then to
    /// those who only hint.
    fn fill(&mut self) {
        while self.shape.may_start && self.live < u64::from(self.shape.num) {
            let starving = self.wants.iter().find(|want| want.ready > 0 && self.have(want.profile) == 0);
            let short = || {
                let short = self.wants.iter().filter(|want| want.ready > 0);
                short.filter(|want| self.have(want.profile) < self.demand(want)).min_by_key(|w| self.have(w.profile))
            };
            let hint = || self.wants.iter().min_by_key(|want| self.have(want.profile));
            let Some(want) = starving.or_else(short).or_else(hint) else { return };
            let profile = want.profile;
            self.plan.actions.push(Action::Start { profile, spare: self.spares.pop() });
            *self.have.entry(profile).or_insert(0) += 1;
            self.live += 1;
        }
    }

    /// Makes places for profiles that have ready tasks and no worker.
    fn replace(&mut self) {
        let starving: Vec<&Want> =
            self.wants.iter().copied().filter(|w| w.ready > 0 && self.have(w.profile) == 0).collect();
        let mut draining: Vec<&WorkerView> =
            self.workers.iter().filter(|w| w.draining && w.phase == Phase::Ready && !w.spent).collect();
        draining.sort_by_key(|worker| (worker.running, worker.worker));
        let mut promised = self.freeing + self.workers.iter().filter(|w| w.spent && !w.idle()).count() as u64;
        let mut drained = draining.into_iter();
        for want in starving {
            if promised > 0 {
                promised -= 1;
                continue;
            }
            if let Some(unneeded) = self.longest_idle_unneeded(0) {
                self.retire(unneeded);
                continue;
            }
            if self.now.since(want.since) <= OVERDUE_MS {
                self.plan.again(want.since.plus(OVERDUE_MS + 1));
                continue;
            }
            if let Some(worker) = drained.find(|worker| !self.retired.contains(&worker.worker)) {
                if worker.idle() {
                    self.retire(worker);
                }
                continue;
            }
            if let Some(victim) = self.victim(want.profile) {
                if victim.idle() {
                    self.retire(victim);
                } else {
                    self.plan.actions.push(Action::Drain { worker: victim.worker });
                    self.retired.insert(victim.worker);
                    if let Some(profile) = victim.profile {
                        self.have.entry(profile).and_modify(|have| *have -= 1);
                    }
                }
            }
        }
        for worker in drained.filter(|worker| !self.retired.contains(&worker.worker)) {
            self.plan.actions.push(Action::Keep { worker: worker.worker });
        }
    }

    /// Gives a profile with more tasks than workers the place of a worker that nobody has needed for a while.
    fn widen(&mut self) {
        if self.freeing > 0 || !self.shape.may_start {
            return;
        }
        let short = self
            .wants
            .iter()
            .any(|want| want.ready > 0 && self.have(want.profile) > 0 && self.have(want.profile) < self.demand(want));
        if !short {
            return;
        }
        if let Some(unneeded) = self.longest_idle_unneeded(SPARE_IDLE_MS) {
            self.retire(unneeded);
        } else if let Some(next) = self.longest_idle_unneeded(0) {
            self.plan.again(next.idle_since.plus(SPARE_IDLE_MS));
        }
    }

    /// The longest idle worker whose profile has nothing ready.
    fn longest_idle_unneeded(&self, idle_ms: u64) -> Option<&'a WorkerView> {
        self.workers
            .iter()
            .filter(|worker| worker.idle() && !self.retired.contains(&worker.worker))
            .filter(|worker| self.ready(worker.profile) == 0 && self.now.since(worker.idle_since) >= idle_ms)
            .min_by_key(|worker| (worker.idle_since, worker.worker))
    }

    /// The worker that an overdue profile takes: of the profile with most workers, the one that is empty soonest.
    fn victim(&mut self, overdue: ProfileNo) -> Option<&'a WorkerView> {
        let (now, mut again) = (self.now, None::<Millis>);
        let victim = self
            .workers
            .iter()
            .filter(|w| w.profile != Some(overdue) && w.phase == Phase::Ready)
            .filter(|w| !w.spent && !w.draining && !self.retired.contains(&w.worker))
            .filter(|w| {
                let until = w.ready_since.plus(TENURE_MS);
                if now < until {
                    again = Some(again.map_or(until, |earlier| earlier.min(until)));
                }
                now >= until
            })
            .min_by_key(|w| (Reverse(w.profile.map(|p| self.have(p))), w.running, w.ready_since, w.worker));
        if let (None, Some(at)) = (victim, again) {
            self.plan.again(at);
        }
        victim
    }

    fn keep_spares(&mut self) {
        if self.shape.may_start {
            for _ in self.spares.len()..self.shape.warm_pool as usize {
                self.plan.actions.push(Action::StartSpare);
            }
        }
    }
}

#[cfg(test)]
#[path = "tests/pool.rs"]
mod tests;
