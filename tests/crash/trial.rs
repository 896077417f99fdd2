//! One queue over several crashes, and the checks at the end of each round.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use tm_core::{
    api::{Reply, RunState},
    id::RunId,
};
use tm_supervisor::daemon::Client;

use crate::{
    client::request_of,
    history::History,
    house::{Home, Supervisor, eventually},
    log,
};

/// Attempts that the log names.
#[derive(Clone, Copy, Default)]
pub(crate) struct Count {
    pub(crate) starts: u64,
    /// Those that a worker's death or a restart has ended.
    pub(crate) lost: u64,
}

pub(crate) struct Trial {
    pub(crate) home: Home,
    /// Everything that clients recorded, over all rounds of this queue.
    acked: BTreeMap<String, RunId>,
    /// What the log held when a clean stop compacted it last.
    pub(crate) compacted: History,
    /// What it held at the end of the last round.
    before: Count,
}

impl Trial {
    pub(crate) fn new() -> Self {
        Self { home: Home::new(), acked: BTreeMap::new(), compacted: History::default(), before: Count::default() }
    }

    /// The keys of the rounds before this one.
    pub(crate) fn keys(&self) -> BTreeMap<String, RunId> {
        self.acked.clone()
    }

    /// Takes the acknowledgements of a client: one key, one run, however often it was asked.
    pub(crate) fn take(&mut self, acks: Vec<(String, RunId)>) {
        for (key, run) in acks {
            let known = *self.acked.entry(key.clone()).or_insert(run);
            assert_eq!(known, run, "key {key} was acknowledged with two runs");
        }
    }

    /// Lets the queue run empty, asks all of it, stops the supervisor, and asks the files. Returns the attempts of
    /// this round.
    pub(crate) fn settle(&mut self, supervisor: Supervisor, keys: &[String]) -> Count {
        eventually("the queue is empty", || supervisor.stats(&self.home).depth == 0);
        self.duplicates(keys);
        let (succeeded, totals) = self.totals();
        // The stop may compact the log.
        let history = log::read(&self.home.roots(), &self.compacted);
        let oldest = log::oldest_segment(&self.home.roots());
        supervisor.stop(&self.home);
        if log::oldest_segment(&self.home.roots()) > oldest {
            self.compacted = history.clone();
        }

        self.home.tm(&["queue", "verify"]);
        log::assert_done(&history);
        assert_eq!(history.keys, self.acked, "the log holds other runs than those that were acknowledged");
        assert_eq!(succeeded, self.acked.len() as u64, "runs that succeeded: {totals}");
        assert_eq!(totals["tasks_started"], history.starts, "{totals}");
        assert_eq!(totals["tasks_succeeded"], succeeded, "{totals}");
        assert_eq!(self.totals().1, totals, "the totals without a supervisor");
        self.listed();
        let Count { starts, lost } = self.before;
        self.before = Count { starts: history.starts, lost: history.lost };
        Count { starts: history.starts - starts, lost: history.lost - lost }
    }

    /// Every acknowledged key of the round is taken, by the run that was acknowledged.
    fn duplicates(&self, keys: &[String]) {
        let mut client = Client::connect(&self.home.roots().queue).expect("a connection");
        let requests = keys.iter().map(|key| request_of(key));
        let mut answers = 0;
        let asked = client.pipeline(requests, |place, reply| {
            answers += 1;
            let key = &keys[place];
            match reply {
                Reply::Duplicate { run, state: RunState::Succeeded, result: Some(_) } => {
                    assert_eq!(Some(&run), self.acked.get(key), "key {key} is taken by another run");
                }
                other => panic!("key {key}, acknowledged as {:?}, is answered {other:?}", self.acked.get(key)),
            }
        });
        asked.expect("answers");
        assert_eq!(answers, keys.len());
    }

    /// The runs that succeeded, and all totals; whatever must be nothing is nothing.
    fn totals(&self) -> (u64, Value) {
        let stats: Value = serde_json::from_str(&self.home.tm(&["queue", "stats", "--json"])).expect("JSON");
        let totals = stats["totals"].clone();
        assert_eq!((&stats["depth"], &stats["dlq_pending"]), (&0.into(), &0.into()), "{stats}");
        for nothing in ["runs_failed", "runs_cancelled", "tasks_dead", "orphans"] {
            assert_eq!(totals[nothing], 0, "{nothing}: {stats}");
        }
        assert_eq!(totals["runs_enqueued"], totals["runs_succeeded"], "{stats}");
        (totals["runs_succeeded"].as_u64().expect("a count"), totals)
    }

    /// `tm queue ls` names exactly the acknowledged runs, each once and succeeded.
    fn listed(&self) {
        let text = self.home.tm(&["queue", "ls", "--state", "all", "--limit", "0", "--json"]);
        let mut runs = BTreeSet::new();
        for line in text.lines() {
            let row: Value = serde_json::from_str(line).expect("JSON");
            assert_eq!(row["state"], "succeeded", "{row}");
            let run: RunId = row["run_id"].as_str().and_then(|id| id.parse().ok()).expect("a run");
            assert!(runs.insert(run), "run {run} is listed twice");
        }
        assert_eq!(runs, self.acked.values().copied().collect(), "tm queue ls");
    }
}
