//! Who is owed process time: tenants share the places by weight, kept as accounts of their profiles.
//!
//! A share is what a profile may hold of the places: tenants share by weight, the profiles of a tenant equally, and
//! what one cannot use is the others' (max-min fairness). An account rises by the share and falls by what is held,
//! in milliseconds of one place. So the accounts of all add up to nothing, and whoever holds more than its share now
//! pays with time later: fractions of a place come out right over time. A credit ends when there is nothing left to
//! do; a debt is paid while others are served.

use std::collections::BTreeMap;

use tm_core::{
    queue::lanes::{ProfileNo, Want},
    time::Millis,
};

use super::pool::WorkerView;

/// How far back accounts reach: nobody owes, or is owed, more than its share of this time.
const MEMORY_MS: f64 = 60_000.0;

/// Whose a profile is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Party {
    tenant: u32,
    weight: u32,
}

/// What a profile holds of the places, and what it could use.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Claim {
    party: Party,
    held: u64,
    most: u64,
}

impl Claim {
    fn used(&self) -> u64 {
        self.held.min(self.most)
    }
}

/// The accounts of all profiles, in memory only: a restart begins with none.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    tenants: BTreeMap<String, u32>,
    parties: BTreeMap<ProfileNo, Party>,
    /// The order in which profiles last got a worker.
    served: BTreeMap<ProfileNo, u64>,
    owed_ms: BTreeMap<ProfileNo, f64>,
    /// What holds since `at`.
    claims: BTreeMap<ProfileNo, Claim>,
    at: Millis,
}

impl Accounts {
    #[must_use]
    pub fn knows(&self, profile: ProfileNo) -> bool {
        self.parties.contains_key(&profile)
    }

    /// Learns whose a profile is. Weights of one tenant are the same for all its profiles.
    pub fn learn(&mut self, profile: ProfileNo, tenant: &str, weight: u32) {
        let next = u32::try_from(self.tenants.len()).unwrap_or(u32::MAX);
        let tenant = *self.tenants.entry(tenant.to_owned()).or_insert(next);
        self.parties.insert(profile, Party { tenant, weight: weight.max(1) });
    }

    /// A profile got a worker.
    pub fn served(&mut self, profile: ProfileNo) {
        let next = self.served.values().max().map_or(1, |last| last + 1);
        self.served.insert(profile, next);
    }

    /// When a profile last got a worker, as a count that rises; 0 for never.
    #[must_use]
    pub fn last_served(&self, profile: ProfileNo) -> u64 {
        self.served.get(&profile).copied().unwrap_or(0)
    }

    /// What a profile was kept from, in milliseconds of one place; negative when it had more than its share.
    #[must_use]
    pub fn owed_ms(&self, profile: ProfileNo) -> f64 {
        self.owed_ms.get(&profile).copied().unwrap_or(0.0)
    }

    /// Books the time until `now` by what was last [observed](Self::observe).
    pub fn settle(&mut self, now: Millis) {
        let passed_ms = now.since(self.at) as f64;
        self.at = self.at.max(now);
        let mut claims = self.claims.clone();
        claims.retain(|_, claim| claim.most > 0);
        self.owed_ms.retain(|profile, owed| claims.contains_key(profile) || *owed < 0.0);
        for profile in self.owed_ms.keys() {
            // Who owes and has nothing to do pays with the place that it could have.
            let Some(&party) = self.parties.get(profile) else { continue };
            claims.entry(*profile).or_insert(Claim { party, held: 0, most: 1 });
        }
        let places: u64 = claims.values().map(Claim::used).sum();
        if places == 0 || passed_ms <= 0.0 {
            return;
        }
        let shares = shared(&claims, places as f64);
        for (profile, share) in &shares {
            let owed = self.owed_ms.entry(*profile).or_insert(0.0);
            *owed += (share - claims[profile].used() as f64) * passed_ms;
        }
        // What a dropped credit or a bound left over is everybody's, so that nobody waits for a debt that none can pay.
        let over: f64 = self.owed_ms.values().sum();
        for (profile, share) in &shares {
            let most = MEMORY_MS * share;
            self.owed_ms.entry(*profile).and_modify(|owed| {
                *owed = (*owed - over * share / places as f64).clamp(-most, most);
            });
        }
    }

    /// Says what holds from now on, until it is said again.
    pub fn observe(&mut self, wants: &[Want], workers: &[WorkerView]) {
        self.claims = self.claims_of(wants, workers);
    }

    /// What each profile that could use a place may hold when there are so many.
    #[must_use]
    pub(super) fn shares(&self, wants: &[Want], workers: &[WorkerView], places: u32) -> BTreeMap<ProfileNo, f64> {
        shared(&self.claims_of(wants, workers), f64::from(places))
    }

    fn claims_of(&self, wants: &[Want], workers: &[WorkerView]) -> BTreeMap<ProfileNo, Claim> {
        #[derive(Default)]
        struct Seen {
            ready: u64,
            free: u64,
            busy: u64,
            held: u64,
        }
        let mut seen: BTreeMap<ProfileNo, Seen> = BTreeMap::new();
        for want in wants {
            seen.entry(want.profile).or_default().ready = want.ready;
        }
        for (worker, profile) in workers.iter().filter_map(|worker| Some((worker, worker.profile?))) {
            // One that is being killed too: each pays for the exchanges that it causes.
            let seen = seen.entry(profile).or_default();
            seen.held += 1;
            seen.busy += u64::from(worker.running > 0);
            seen.free += u64::from(worker.free);
        }
        let claim = |(profile, seen): (ProfileNo, Seen)| {
            let party = *self.parties.get(&profile)?;
            // Tasks that fit into its workers start now; each of the others could use a further one.
            let left = seen.ready.saturating_sub(seen.free);
            let most = if left > 0 { seen.held + left } else { seen.held.min(seen.busy + seen.ready) };
            Some((profile, Claim { party, held: seen.held, most }))
        };
        seen.into_iter().filter_map(claim).collect()
    }
}

/// Shares places out among tenants, and each tenant's among its profiles.
fn shared(claims: &BTreeMap<ProfileNo, Claim>, places: f64) -> BTreeMap<ProfileNo, f64> {
    let mut tenants: BTreeMap<u32, Vec<Part<ProfileNo>>> = BTreeMap::new();
    let mut weights = BTreeMap::new();
    for (&profile, claim) in claims {
        weights.insert(claim.party.tenant, f64::from(claim.party.weight));
        let part = Part { whose: profile, weight: 1.0, most: claim.most as f64 };
        tenants.entry(claim.party.tenant).or_default().push(part);
    }
    let part = |(&tenant, profiles): (&u32, &Vec<Part<ProfileNo>>)| {
        let most = profiles.iter().map(|part| part.most).sum();
        Part { whose: tenant, weight: weights[&tenant], most }
    };
    let shares = share_out(tenants.iter().map(part).collect(), places);
    shares.flat_map(|(tenant, share)| share_out(tenants.remove(&tenant).unwrap_or_default(), share)).collect()
}

struct Part<T> {
    whose: T,
    weight: f64,
    most: f64,
}

/// Max-min fairness: whoever wants less than its part by weight gets it whole, what is left is shared by the others.
fn share_out<T: Copy + Ord>(mut parts: Vec<Part<T>>, places: f64) -> impl Iterator<Item = (T, f64)> {
    parts.sort_by(|a, b| (a.most / a.weight).total_cmp(&(b.most / b.weight)).then(a.whose.cmp(&b.whose)));
    let (mut left, mut weights) = (places, parts.iter().map(|part| part.weight).sum::<f64>());
    parts.into_iter().map(move |part| {
        let share = part.most.min(left * part.weight / weights);
        left -= share;
        weights -= part.weight;
        (part.whose, share)
    })
}

/// Sets an account, so that a single decision can be tested.
#[cfg(test)]
impl Accounts {
    pub(super) fn owing(mut self, profile: ProfileNo, owed_ms: f64) -> Self {
        self.owed_ms.insert(profile, owed_ms);
        self
    }
}

#[cfg(test)]
#[path = "tests/shares.rs"]
mod tests;
