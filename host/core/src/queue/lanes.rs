//! Ready tasks in fair order: lanes per step, profiles of workers, turns of tenants.
//!
//! A lane holds the ready tasks of one step of one flow: they share tenant, profile and component, so whether they can
//! run now is one question. Within a tenant the lane with the best head is next; between tenants deficit round robin
//! decides (Shreedhar & Varghese 1995, quantum = weight, cost = 1 task).

use alloc::{
    collections::{BTreeMap, BTreeSet},
    string::String,
    vec::Vec,
};
use core::ops::Bound::{Excluded, Included, Unbounded};
use serde::{Deserialize, Serialize};

use crate::{
    flow::spec::{FlowDef, Mode, StepDef},
    id::{FlowNo, TaskRef, WorkerId},
    limits::PRIORITY_MAX,
    time::Millis,
};

/// What a worker process may touch: the steps of one profile share processes, and no others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Profile {
    pub tenant: String,
    /// Host folders, absolute and resolved, sorted.
    pub folders: Vec<(String, Mode)>,
}

impl Profile {
    /// The profile that a step needs.
    #[must_use]
    pub fn of(tenant: &str, step: &StepDef) -> Self {
        let mut folders: BTreeMap<&str, Mode> = BTreeMap::new();
        for files in &step.grants.files {
            let mode = folders.entry(&files.host).or_insert(files.mode);
            *mode = (*mode).max(files.mode);
        }
        Self { tenant: tenant.into(), folders: folders.into_iter().map(|(host, mode)| (host.into(), mode)).collect() }
    }
}

/// A profile's number in this process; not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProfileNo(pub u32);

/// Room in one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    pub worker: WorkerId,
    pub profile: ProfileNo,
    pub free: u32,
    /// No step runs in it: it may take a task that must run alone.
    pub idle: bool,
}

/// What a profile's ready tasks want of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    pub profile: ProfileNo,
    pub ready: u64,
    /// When the oldest of them became ready.
    pub since: Millis,
}

/// The order among ready tasks: larger priority first, then older, then by id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    inverse_priority: u8,
    pub since: Millis,
    pub task: TaskRef,
}

impl Rank {
    #[must_use]
    pub const fn new(priority: u8, since: Millis, task: TaskRef) -> Self {
        Self { inverse_priority: PRIORITY_MAX.saturating_sub(priority), since, task }
    }
}

/// The ready tasks of one step of one flow.
#[derive(Clone, Debug)]
pub struct Lane {
    pub flow: FlowNo,
    pub step: u16,
    pub tenant: u32,
    pub profile: ProfileNo,
    pub ready: BTreeSet<Rank>,
    /// Suspects: each runs alone.
    pub solo: BTreeSet<Rank>,
}

/// All lanes. Derived from the runs, never stored.
#[derive(Clone, Debug, Default)]
pub struct Lanes {
    lanes: Vec<Lane>,
    by_step: BTreeMap<(FlowNo, u16), u32>,
    profiles: Vec<Profile>,
    profile_nos: BTreeMap<Profile, ProfileNo>,
    tenants: Vec<String>,
    tenant_nos: BTreeMap<String, u32>,
    /// Lanes with a ready task, by tenant.
    busy: BTreeMap<u32, BTreeSet<u32>>,
    len: u64,
}

impl Lanes {
    /// Makes the lanes of a flow's steps.
    pub fn register(&mut self, flow: FlowNo, tenant: &str, def: &FlowDef) {
        for (step, place) in def.steps.iter().zip(0u16..) {
            // Compaction says again what is registered.
            if self.by_step.contains_key(&(flow, place)) {
                continue;
            }
            let profile = self.profile_no(Profile::of(tenant, step));
            let tenant = self.tenant_no(tenant);
            let no = u32::try_from(self.lanes.len()).unwrap_or(u32::MAX);
            let (ready, solo) = (BTreeSet::new(), BTreeSet::new());
            self.lanes.push(Lane { flow, step: place, tenant, profile, ready, solo });
            self.by_step.insert((flow, place), no);
        }
    }

    fn profile_no(&mut self, profile: Profile) -> ProfileNo {
        if let Some(no) = self.profile_nos.get(&profile) {
            return *no;
        }
        let no = ProfileNo(u32::try_from(self.profiles.len()).unwrap_or(u32::MAX));
        self.profiles.push(profile.clone());
        self.profile_nos.insert(profile, no);
        no
    }

    fn tenant_no(&mut self, tenant: &str) -> u32 {
        if let Some(no) = self.tenant_nos.get(tenant) {
            return *no;
        }
        let no = u32::try_from(self.tenants.len()).unwrap_or(u32::MAX);
        self.tenants.push(tenant.into());
        self.tenant_nos.insert(tenant.into(), no);
        no
    }

    pub(crate) fn insert(&mut self, flow: FlowNo, rank: Rank, solo: bool) {
        let Some(&no) = self.by_step.get(&(flow, rank.task.step)) else { return };
        let lane = &mut self.lanes[no as usize];
        let set = if solo { &mut lane.solo } else { &mut lane.ready };
        self.len += u64::from(set.insert(rank));
        self.busy.entry(lane.tenant).or_default().insert(no);
    }

    pub(crate) fn remove(&mut self, flow: FlowNo, rank: Rank) {
        let Some(&no) = self.by_step.get(&(flow, rank.task.step)) else { return };
        let lane = &mut self.lanes[no as usize];
        self.len -= u64::from(lane.ready.remove(&rank)) + u64::from(lane.solo.remove(&rank));
        if lane.ready.is_empty()
            && lane.solo.is_empty()
            && let Some(busy) = self.busy.get_mut(&lane.tenant)
        {
            busy.remove(&no);
            if busy.is_empty() {
                self.busy.remove(&lane.tenant);
            }
        }
    }

    /// Ready tasks in all.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[must_use]
    pub fn profile(&self, no: ProfileNo) -> Option<&Profile> {
        self.profiles.get(no.0 as usize)
    }

    /// The lane of a step.
    #[must_use]
    pub fn lane(&self, flow: FlowNo, step: u16) -> Option<&Lane> {
        self.by_step.get(&(flow, step)).map(|&no| &self.lanes[no as usize])
    }

    /// Lanes that hold a ready task.
    pub fn busy(&self) -> impl Iterator<Item = &Lane> {
        self.busy.values().flatten().map(|&no| &self.lanes[no as usize])
    }

    /// When the oldest ready task became ready.
    #[must_use]
    pub fn oldest(&self) -> Option<Millis> {
        // Within a lane ranks sort by priority first: the first of each priority is the oldest of it.
        self.busy().flat_map(|lane| [&lane.ready, &lane.solo]).filter_map(oldest_of).min()
    }

    /// What the runnable ready tasks want, by profile.
    #[must_use]
    pub fn wants(&self, runnable: &dyn Fn(FlowNo, u16) -> bool) -> Vec<Want> {
        let mut wants: BTreeMap<ProfileNo, Want> = BTreeMap::new();
        for lane in self.busy().filter(|lane| runnable(lane.flow, lane.step)) {
            let since = [&lane.ready, &lane.solo].into_iter().filter_map(oldest_of).min().unwrap_or(Millis::MAX);
            let want = wants.entry(lane.profile).or_insert(Want { profile: lane.profile, ready: 0, since });
            want.ready += (lane.ready.len() + lane.solo.len()) as u64;
            want.since = want.since.min(since);
        }
        wants.into_values().collect()
    }

    pub(crate) fn tenant(&self, no: u32) -> Option<&str> {
        self.tenants.get(no as usize).map(String::as_str)
    }

    pub(crate) fn lanes_of(&self, tenant: u32) -> impl Iterator<Item = &Lane> {
        self.busy.get(&tenant).into_iter().flatten().map(|&no| &self.lanes[no as usize])
    }
}

fn oldest_of(set: &BTreeSet<Rank>) -> Option<Millis> {
    let mut oldest: Option<Millis> = None;
    let mut from = *set.first()?;
    loop {
        oldest = Some(oldest.map_or(from.since, |o| o.min(from.since)));
        let next = Rank { inverse_priority: from.inverse_priority + 1, since: Millis(0), task: SMALLEST };
        match set.range(next..).next() {
            Some(&rank) => from = rank,
            None => return oldest,
        }
    }
}

const SMALLEST: TaskRef = TaskRef { run: crate::id::RunId(0), step: 0, item: None };

/// Whose turn it is. Lives beside the state, in memory only: a restart begins a new round.
#[derive(Clone, Debug, Default)]
pub struct FairOrder {
    deficit: BTreeMap<u32, u64>,
    current: Option<u32>,
}

impl FairOrder {
    /// The tenants in the order in which they may take the next task: the current one while its deficit lasts.
    pub(crate) fn order<'a>(&self, lanes: &'a Lanes) -> impl Iterator<Item = u32> + use<'a> {
        let (from, until) = match self.current {
            Some(current) if self.deficit.get(&current).is_some_and(|&left| left > 0) => (Included(current), current),
            Some(current) => (Excluded(current), current.saturating_add(1)),
            None => (Unbounded, 0),
        };
        lanes.busy.range((from, Unbounded)).chain(lanes.busy.range(..until)).map(|(&no, _)| no)
    }

    /// Records that `tenant` took one task.
    pub(crate) fn took(&mut self, tenant: u32, weight: u32) {
        if self.current == Some(tenant) && self.deficit.get(&tenant).is_some_and(|&left| left > 0) {
            if let Some(left) = self.deficit.get_mut(&tenant) {
                *left -= 1;
            }
        } else {
            if let Some(before) = self.current {
                self.deficit.remove(&before);
            }
            self.current = Some(tenant);
            self.deficit.insert(tenant, u64::from(weight.max(1)) - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::RunId;

    fn task(run: u128) -> TaskRef {
        TaskRef { run: RunId(run), step: 0, item: None }
    }

    #[test]
    fn larger_priority_first_then_older() {
        let mut ranks =
            [Rank::new(5, Millis(2), task(2)), Rank::new(9, Millis(3), task(3)), Rank::new(5, Millis(1), task(1))];
        ranks.sort();
        assert_eq!(ranks.map(|rank| rank.task.run.0), [3, 1, 2]);
    }

    #[test]
    fn weights_share_the_turns() {
        let mut lanes = Lanes::default();
        for tenant in 0..3u32 {
            lanes.tenant_no(&alloc::format!("t{tenant}"));
            lanes.busy.entry(tenant).or_default().insert(0);
        }
        let (mut fair, mut taken) = (FairOrder::default(), [0u32; 3]);
        for _ in 0..60 {
            let tenant = fair.order(&lanes).next().unwrap();
            fair.took(tenant, [1, 3, 2][tenant as usize]);
            taken[tenant as usize] += 1;
        }
        assert_eq!(taken, [10, 30, 20]);
    }

    #[test]
    fn the_oldest_is_found_behind_larger_priorities() {
        let set = BTreeSet::from([
            Rank::new(9, Millis(50), task(1)),
            Rank::new(3, Millis(7), task(2)),
            Rank::new(3, Millis(9), task(3)),
        ]);
        assert_eq!(oldest_of(&set), Some(Millis(7)));
    }
}
