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
    id::{FlowNo, RunId, TaskRef, WorkerId},
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

/// The order among ready tasks: larger priority first, then older, then by id. Packed into 32 bytes, because every ready
/// task has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// The inverse of the priority above [`SINCE_BITS`] of the time.
    order: u64,
    /// Of the run's id, the upper half first.
    run: [u64; 2],
    /// The step above 33 bits of the item, which count from 1; 0 is none.
    place: u64,
}

/// Two million years in milliseconds.
const SINCE_BITS: u32 = 56;
const ITEM_BITS: u32 = 33;

impl Rank {
    #[must_use]
    pub fn new(priority: u8, since: Millis, task: TaskRef) -> Self {
        let inverse_priority = u64::from(PRIORITY_MAX.saturating_sub(priority));
        let since = since.0.min((1 << SINCE_BITS) - 1);
        let TaskRef { run, step, item } = task;
        let item = item.map_or(0, |item| u64::from(item) + 1);
        Self {
            order: inverse_priority << SINCE_BITS | since,
            run: [(run.0 >> 64) as u64, run.0 as u64],
            place: u64::from(step) << ITEM_BITS | item,
        }
    }

    /// When it became ready.
    #[must_use]
    pub const fn since(self) -> Millis {
        Millis(self.order & ((1 << SINCE_BITS) - 1))
    }

    #[must_use]
    pub fn task(self) -> TaskRef {
        let [high, low] = self.run;
        let item = self.place & ((1 << ITEM_BITS) - 1);
        TaskRef {
            run: RunId(u128::from(high) << 64 | u128::from(low)),
            step: (self.place >> ITEM_BITS) as u16,
            item: item.checked_sub(1).map(|item| item as u32),
        }
    }

    /// The smallest of the next smaller priority.
    const fn below(self) -> Self {
        Self { order: ((self.order >> SINCE_BITS) + 1) << SINCE_BITS, run: [0; 2], place: 0 }
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
        let Some(&no) = self.by_step.get(&(flow, rank.task().step)) else { return };
        let lane = &mut self.lanes[no as usize];
        let set = if solo { &mut lane.solo } else { &mut lane.ready };
        self.len += u64::from(set.insert(rank));
        self.busy.entry(lane.tenant).or_default().insert(no);
    }

    pub(crate) fn remove(&mut self, flow: FlowNo, rank: Rank) {
        let Some(&no) = self.by_step.get(&(flow, rank.task().step)) else { return };
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
        oldest = Some(oldest.map_or(from.since(), |oldest| oldest.min(from.since())));
        match set.range(from.below()..).next() {
            Some(&rank) => from = rank,
            None => return oldest,
        }
    }
}

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

    fn task(run: u128) -> TaskRef {
        TaskRef { run: RunId(run), step: 0, item: None }
    }

    #[test]
    fn larger_priority_first_then_older() {
        let mut ranks =
            [Rank::new(5, Millis(2), task(2)), Rank::new(9, Millis(3), task(3)), Rank::new(5, Millis(1), task(1))];
        ranks.sort();
        assert_eq!(ranks.map(|rank| rank.task().run.0), [3, 1, 2]);
    }

    #[test]
    fn a_rank_is_small_and_sorts_and_reads_as_what_it_was_made_of() {
        assert_eq!(size_of::<Rank>(), 32);
        let mut all = Vec::new();
        for priority in [9, 5, 0] {
            for since in [0, 1, 1_700_000_000_000, (1 << 56) - 1] {
                for run in [0, 1, 1 << 64, u128::MAX] {
                    for step in [0, 1, u16::MAX] {
                        for item in [None, Some(0), Some(u32::MAX)] {
                            all.push((priority, Millis(since), TaskRef { run: RunId(run), step, item }));
                        }
                    }
                }
            }
        }
        let ranks: Vec<_> = all.iter().map(|&(priority, since, task)| Rank::new(priority, since, task)).collect();
        assert!(ranks.is_sorted());
        let read: Vec<_> = ranks.iter().map(|rank| (rank.since(), rank.task())).collect();
        assert!(all.iter().map(|&(_, since, task)| (since, task)).eq(read));
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
