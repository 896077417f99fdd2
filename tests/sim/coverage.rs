//! What the seeds did: every fault in every phase, every transition of a task. Something that never happened was never
//! tested, so the run fails when a listed combination is missing.

use std::collections::BTreeMap;

#[derive(Clone, Debug, Default)]
pub(crate) struct Coverage {
    counts: BTreeMap<(&'static str, &'static str), u64>,
    kinds: BTreeMap<&'static str, u64>,
    pub(crate) turns: u64,
    pub(crate) faults: u64,
    pub(crate) runs: u64,
    pub(crate) frames: u64,
    pub(crate) crash_points: u64,
    pub(crate) seeds: u64,
}

impl Coverage {
    pub(crate) fn fault(&mut self, fault: &'static str, phase: &'static str) {
        self.faults += 1;
        *self.kinds.entry(fault).or_default() += 1;
        self.see(fault, phase);
    }

    pub(crate) fn see(&mut self, what: &'static str, place: &'static str) {
        *self.counts.entry((what, place)).or_default() += 1;
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (key, count) in &other.counts {
            *self.counts.entry(*key).or_default() += count;
        }
        for (kind, count) in &other.kinds {
            *self.kinds.entry(kind).or_default() += count;
        }
        self.turns += other.turns;
        self.faults += other.faults;
        self.runs += other.runs;
        self.frames += other.frames;
        self.crash_points += other.crash_points;
        self.seeds += other.seeds;
    }

    /// One line: the faults by kind.
    pub(crate) fn kinds(&self) -> String {
        self.kinds.iter().map(|(kind, count)| format!("{kind} {count}")).collect::<Vec<_>>().join(", ")
    }

    /// The listed combinations that never happened.
    pub(crate) fn missing(&self) -> Vec<String> {
        required()
            .filter(|key| !self.counts.contains_key(key))
            .map(|(what, place)| format!("{what}: {place}"))
            .collect()
    }

    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        let mut before = "";
        for ((what, place), count) in &self.counts {
            if *what != before {
                text.push_str(&format!("{what}\n"));
                before = what;
            }
            text.push_str(&format!("  {place:<44} {count:>9}\n"));
        }
        text
    }
}

/// Where the power can go, or the process die.
const STOPS: &[&str] = &[
    "before decide",
    "reserving room",
    "syncing reserved room",
    "writing a commit",
    "syncing a commit",
    "beginning a segment",
    "making a segment ahead",
    "giving back room",
    "writing a derived file",
    "filing a dead letter",
    "archiving a dead letter",
    "removing a segment",
    "keeping results",
    "after sync, before effects",
    "between effects",
    "during recovery",
];

const REQUIRED: &[(&str, &[&str])] = &[
    ("power loss", STOPS),
    ("process killed", STOPS),
    ("torn write", &["writing a commit", "reserving room"]),
    ("unsynced bytes lost", &["writing a commit", "syncing a commit", "reserving room", "during recovery"]),
    ("directory entry lost", &["a file made", "a file renamed", "a file removed"]),
    ("slow sync", &["syncing a commit", "syncing reserved room", "filing a dead letter"]),
    ("failed read", &["of a segment", "of another file"]),
    (
        "bit rot",
        &[
            "in a segment",
            "in an index",
            "in a results segment",
            "in an index of results",
            "in a pending dead letter",
            "in an archived dead letter",
            "in another derived file",
        ],
    ),
    ("bit rot means", &["the record is named", "the queue goes on and drains"]),
    ("second supervisor", &["while one runs", "both start at once"]),
    (
        "slow client",
        &[
            "hangs up before the answer",
            "reads the answer late",
            "asks again and gets the same run",
            "the run is there",
        ],
    ),
    ("crash point", &["writing a commit", "syncing a commit", "reserving room", "during recovery"]),
    (
        "failed sync",
        &["syncing a commit", "syncing reserved room", "beginning a segment", "keeping results", "during recovery"],
    ),
    (
        "full disk",
        &["before a turn", "reserving room", "beginning a segment", "making a segment ahead", "keeping results"],
    ),
    ("a segment made ahead", &["is taken", "is given back"]),
    (
        "full disk means",
        &["an enqueue is refused", "nothing is leased", "an attempt ends all the same", "a bulk action is refused"],
    ),
    ("made beside the loop", &["is due", "comes in slices", "is begun again", "comes for a run that was cancelled"]),
    (
        "bulk action",
        &[
            "is done in one turn",
            "goes on in a later turn",
            "is done in several turns",
            "another took an entry",
            "a crash between two slices",
        ],
    ),
    ("worker death", &["idle", "one step runs", "several steps run"]),
    (
        "late report",
        &["its worker is gone", "its run was cancelled", "its run was over its time", "its supervisor is another one"],
    ),
    ("duplicate report", &["in the same turn", "in a later turn"]),
    ("forged report", &["another worker's task", "a stale attempt", "an attempt to come", "an unknown run"]),
    ("clock jump", &["forward", "back", "the wall is set forward", "the wall is set back"]),
    ("enqueue", &["new", "duplicate", "key with another input", "unknown flow", "full"]),
    ("operator", &["cancel", "requeue", "purge", "forget key", "register again", "requeue skipped: key held"]),
    ("recovery", &["state is the same as before"]),
    ("compaction", &["a run copied", "results kept", "results forgotten", "removing a segment", "removing results"]),
    (
        "task",
        &[
            "waiting -> ready",
            "waiting -> delayed",
            "waiting -> held",
            "waiting -> skipped",
            "waiting -> dead",
            "waiting -> cancelled",
            "held -> ready",
            "held -> cancelled",
            "ready -> leased",
            "ready -> dead",
            "ready -> cancelled",
            "delayed -> leased",
            "delayed -> cancelled",
            "leased -> succeeded",
            "leased -> ready (released)",
            "leased -> ready (lost)",
            "leased -> delayed",
            "leased -> dead",
            "leased -> cancelled",
            "dead -> ready",
            "dead -> waiting",
            "dead -> cancelled",
        ],
    ),
    ("run", &["active -> stalled", "stalled -> active", "succeeded", "failed", "cancelled"]),
];

fn required() -> impl Iterator<Item = (&'static str, &'static str)> {
    REQUIRED.iter().flat_map(|(what, places)| places.iter().map(|place| (*what, *place)))
}
