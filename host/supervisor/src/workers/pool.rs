//! Which worker process serves which profile: decided from what is wanted and what runs, without any effect.
//!
//! At most `num` processes serve profiles at one time; a process that is being killed counts until it is reaped. Free
//! places go to whoever has work for them, and so do those of idle workers that nobody needs. Beyond that, a profile
//! below its share that was kept waiting ([`Accounts`]) takes a place of one above its share: the worker gets no more
//! tasks and is replaced once it is empty. A worker keeps its place for a time that follows its profile's share
//! ([`TENURE_MS`]), so that it gets something done.

use std::collections::{BTreeMap, BTreeSet};

use tm_core::{
    id::WorkerId,
    queue::lanes::{ProfileNo, Want},
    time::Millis,
};

use super::shares::Accounts;

/// How long a worker serves the profile with the largest share before another one may take its place. For smaller shares
/// it is as much less, so that their turns come more often. Half of it is waited for before a place is taken.
pub const TENURE_MS: u64 = 250;
/// The least of it: a multiple of what replacing a worker costs, which is 1 to 2 ms for a confined one.
pub const TENURE_MIN_MS: u64 = 50;
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
    /// Tasks that it may still take.
    pub free: u32,
    /// Takes no more tasks: it had its one (isolation per task), or its profile has outgrown it.
    pub spent: bool,
    /// Gets no more work because another profile waits for its place.
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

    /// The profile whose tasks it takes, or would if it were not draining.
    fn serves(&self) -> Option<ProfileNo> {
        self.profile.filter(|_| !self.spent && matches!(self.phase, Phase::Starting | Phase::Ready))
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

/// Decides what to start, retire and drain. A want without ready tasks is a hint: it fills free places and never takes
/// one away.
#[must_use]
pub fn plan(wants: &[Want], workers: &[WorkerView], accounts: &Accounts, shape: Shape, now: Millis) -> Plan {
    let mut planner = Planner::new(wants, workers, accounts, shape, now);
    planner.retire_spent();
    // While starts have to wait, no place is made either.
    if shape.may_start {
        planner.fill();
        planner.await_coming();
        planner.replace_idle();
        planner.share_out();
        planner.keep_spares();
    }
    planner.plan
}

struct Planner<'a> {
    /// Those with ready tasks first, then those that were served least recently.
    wants: Vec<&'a Want>,
    workers: &'a [WorkerView],
    accounts: &'a Accounts,
    shape: Shape,
    now: Millis,
    /// Places that each profile may hold now that all these want some.
    shares: BTreeMap<ProfileNo, f64>,
    /// Workers that serve or will serve each profile, draining ones with them.
    have: BTreeMap<ProfileNo, u64>,
    running: BTreeMap<ProfileNo, u64>,
    retired: BTreeSet<WorkerId>,
    spares: Vec<WorkerId>,
    live: u64,
    /// Places that become free without more being done.
    coming: u64,
    plan: Plan,
}

impl<'a> Planner<'a> {
    fn new(wants: &'a [Want], workers: &'a [WorkerView], accounts: &'a Accounts, shape: Shape, now: Millis) -> Self {
        let shares = accounts.shares(wants, workers, shape.num);
        let mut wants: Vec<_> = wants.iter().collect();
        wants.sort_by_key(|want| (want.ready == 0, accounts.last_served(want.profile), want.since, want.profile));
        let (mut have, mut running) = (BTreeMap::new(), BTreeMap::new());
        for (worker, profile) in workers.iter().filter_map(|worker| Some((worker, worker.serves()?))) {
            *have.entry(profile).or_insert(0) += 1;
            *running.entry(profile).or_insert(0) += u64::from(worker.running);
        }
        let count = |of: &dyn Fn(&WorkerView) -> bool| workers.iter().filter(|worker| of(worker)).count() as u64;
        Self {
            wants,
            workers,
            accounts,
            shape,
            now,
            shares,
            have,
            running,
            retired: BTreeSet::new(),
            spares: workers.iter().filter(|w| w.phase == Phase::Spare).map(|w| w.worker).collect(),
            live: count(&|worker| worker.phase != Phase::Spare),
            coming: count(&|worker| worker.phase == Phase::Dying || (worker.spent && !worker.idle())),
            plan: Plan::default(),
        }
    }

    fn have(&self, profile: ProfileNo) -> u64 {
        self.have.get(&profile).copied().unwrap_or(0)
    }

    fn share(&self, profile: ProfileNo) -> f64 {
        self.shares.get(&profile).copied().unwrap_or(0.0)
    }

    /// Places that the profile has too little of; negative above its share.
    fn lacks(&self, profile: ProfileNo) -> f64 {
        let lacks = self.share(profile) - self.have(profile) as f64;
        // What rounding leaves of a whole place.
        if lacks.abs() < 1e-9 { 0.0 } else { lacks }
    }

    /// How long the profile was kept from its share, and would be for another tenure if nothing changes: the next place
    /// goes to the largest, and the smallest gives one.
    fn standing_ms(&self, profile: ProfileNo) -> f64 {
        let owed_ms = self.accounts.owed_ms(profile) + self.lacks(profile) * TENURE_MS as f64;
        owed_ms / self.share(profile).max(f64::MIN_POSITIVE)
    }

    fn tenure_ms(&self, profile: ProfileNo) -> u64 {
        let largest = self.shares.values().fold(f64::MIN_POSITIVE, |largest, share| largest.max(*share));
        let tenure_ms = TENURE_MS as f64 * self.share(profile) / largest;
        (tenure_ms.round() as u64).max(TENURE_MIN_MS)
    }

    /// Whether the profile has ready tasks and fewer workers than it could use: one for each of its tasks.
    fn is_short(&self, want: &Want) -> bool {
        let running = self.running.get(&want.profile).copied().unwrap_or(0);
        want.ready > 0 && self.have(want.profile) < want.ready.saturating_add(running)
    }

    fn short(&self) -> impl Iterator<Item = &'a Want> {
        self.wants.iter().copied().filter(|want| self.is_short(want))
    }

    /// The one of these that the next place is for.
    fn foremost<'b>(&self, wants: impl Iterator<Item = &'b Want>) -> Option<&'b Want> {
        wants.min_by(|a, b| self.standing_ms(b.profile).total_cmp(&self.standing_ms(a.profile)))
    }

    fn gets_place(&mut self, profile: ProfileNo) {
        *self.have.entry(profile).or_insert(0) += 1;
    }

    fn gives_place(&mut self, worker: &WorkerView) {
        self.retired.insert(worker.worker);
        if let Some(profile) = worker.serves() {
            self.have.entry(profile).and_modify(|have| *have -= 1);
        }
    }

    fn retire(&mut self, worker: &WorkerView) {
        self.plan.actions.push(Action::Retire { worker: worker.worker });
        self.gives_place(worker);
    }

    fn retire_spent(&mut self) {
        for worker in self.workers.iter().filter(|worker| worker.spent && worker.idle()) {
            self.retire(worker);
            self.coming += 1;
        }
    }

    /// Gives free places away: to those with more tasks than workers, then to those who only hint.
    fn fill(&mut self) {
        while self.live < u64::from(self.shape.num) {
            let hint = || self.wants.iter().copied().min_by_key(|want| self.have(want.profile));
            let Some(&Want { profile, .. }) = self.foremost(self.short()).or_else(hint) else { return };
            self.plan.actions.push(Action::Start { profile, spare: self.spares.pop() });
            self.gets_place(profile);
            self.live += 1;
        }
    }

    /// Counts on places that come without more being done.
    fn await_coming(&mut self) {
        for _ in 0..self.coming {
            let Some(&Want { profile, .. }) = self.foremost(self.short()) else { return };
            self.gets_place(profile);
        }
    }

    /// Replaces idle workers that nobody needs, the longest idle one first; for an additional place, only one that was
    /// idle for a while.
    fn replace_idle(&mut self) {
        let ready: BTreeSet<_> = self.wants.iter().filter(|want| want.ready > 0).map(|want| want.profile).collect();
        let needed = |worker: &WorkerView| worker.profile.is_some_and(|profile| ready.contains(&profile));
        let mut unneeded: Vec<_> = self
            .workers
            .iter()
            .filter(|worker| worker.idle() && !self.retired.contains(&worker.worker) && !needed(worker))
            .collect();
        unneeded.sort_by_key(|worker| (worker.idle_since, worker.worker));
        let (mut unneeded, mut patient) = (unneeded.into_iter().peekable(), BTreeSet::new());
        while let Some(worker) = unneeded.peek().copied()
            && let Some(want) = self.foremost(self.short().filter(|want| !patient.contains(&want.profile)))
        {
            let profile = want.profile;
            let from = worker.idle_since.plus(if self.have(profile) == 0 { 0 } else { SPARE_IDLE_MS });
            if self.now < from {
                self.plan.again(from);
                patient.insert(profile);
            } else {
                self.retire(worker);
                self.gets_place(profile);
                unneeded.next();
            }
        }
    }

    /// Gives places of profiles above their share to those below it; a worker whose place nobody takes any more goes on.
    fn share_out(&mut self) {
        let mut waiting: Vec<_> = self.short().map(|want| (self.standing_ms(want.profile), want)).collect();
        waiting.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        for (_, want) in waiting {
            while self.is_short(want) && self.take(want.profile) {
                self.gets_place(want.profile);
            }
        }
        for worker in self.workers {
            if worker.draining && worker.serves().is_some() && !self.retired.contains(&worker.worker) {
                self.plan.actions.push(Action::Keep { worker: worker.worker });
            }
        }
    }

    /// Takes the place of a profile above its share, for one below it that waited for half a tenure of that profile, so
    /// that accounts swing to both sides by as much; of the one furthest above, the worker that is empty soonest.
    fn take(&mut self, profile: ProfileNo) -> bool {
        let lacks = self.lacks(profile);
        if lacks <= 0.0 {
            return false;
        }
        let waited_ms = self.accounts.owed_ms(profile) / lacks;
        let mut ripe = Vec::new();
        for worker in self.workers.iter().filter(|w| w.phase == Phase::Ready && !self.retired.contains(&w.worker)) {
            let Some(giver) = worker.serves().filter(|giver| self.lacks(*giver) < 0.0) else { continue };
            let tenure_ms = self.tenure_ms(giver);
            let waits_until = self.now.plus((tenure_ms as f64 / 2.0 - waited_ms).ceil().max(0.0) as u64);
            // One that is draining gave its place already.
            let serves_until = if worker.draining { self.now } else { worker.ready_since.plus(tenure_ms) };
            if self.now < waits_until || self.now < serves_until {
                self.plan.again(waits_until.max(serves_until));
            } else {
                ripe.push((worker, self.standing_ms(giver)));
            }
        }
        let rank = |worker: &WorkerView| (worker.running, worker.ready_since, worker.worker);
        let taken = ripe.into_iter().min_by(|(a, a_stands), (b, b_stands)| {
            b.draining.cmp(&a.draining).then(a_stands.total_cmp(b_stands)).then(rank(a).cmp(&rank(b)))
        });
        let Some((worker, _)) = taken else { return false };
        if worker.idle() {
            self.retire(worker);
        } else {
            if !worker.draining {
                self.plan.actions.push(Action::Drain { worker: worker.worker });
            }
            self.gives_place(worker);
        }
        true
    }

    fn keep_spares(&mut self) {
        for _ in self.spares.len()..self.shape.warm_pool as usize {
            self.plan.actions.push(Action::StartSpare);
        }
    }
}

#[cfg(test)]
#[path = "tests/pool.rs"]
mod tests;
