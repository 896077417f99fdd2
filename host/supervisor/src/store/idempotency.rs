//! `idempotency.json`: the newest keys, for people and tools. Derived from the log, never read back.
//!
//! It is made over several turns of the loop, each of which looks at a bounded number of keys: a queue may hold a
//! million. So it tells of no one moment; each row was true when it was written.

use std::{
    collections::BTreeMap,
    ops::{
        Bound::{Excluded, Unbounded},
        ControlFlow,
    },
};

use serde::Serialize;
use tm_core::{
    api::RunState,
    id::RunId,
    queue::{
        results::{Ended, Shelved},
        state::{KeyName, State},
    },
    time::Millis,
};

use super::disk::{Disk, Later};

const PATH: &str = "idempotency/idempotency.json";
/// Keys in the file, at most.
const ROWS_MAX: usize = 10_000;
/// While keys change, the file is made at most this often.
const EVERY_MS: u64 = 30_000;
/// Keys that one turn looks at: below half a millisecond.
const LOOKS_PER_TURN: usize = 4096;
/// Rows that one turn writes: about as much.
const ROWS_PER_TURN: usize = 512;
/// Results that one turn reads, and all turns for one file: those without a key are read too.
const RESULTS_PER_TURN: usize = 64;
const RESULTS_MAX: usize = 2 * ROWS_MAX;

#[derive(Serialize)]
struct Row<'a> {
    tenant: &'a str,
    flow_id: &'a str,
    key: &'a str,
    run_id: RunId,
    state: RunState,
    /// When the key is free again; none while the run is unfinished.
    expires_at: Option<Millis>,
}

pub struct KeyFile<D: Disk> {
    disk: D,
    /// Keys, and runs that ended, when the file was begun last.
    seen: Option<(usize, u64)>,
    begun_at: Option<Millis>,
    making: Option<Making>,
}

/// Keys by their runs, and when they are free again where a result says so.
type Keys = BTreeMap<RunId, (KeyName, Option<Millis>)>;

/// A file that is being made.
enum Making {
    /// The newest keys among those up to the last one looked at.
    Looking {
        last: Option<KeyName>,
        newest: Keys,
    },
    /// And those of results that left memory, from the newest run down to this one.
    Reading {
        newest: Keys,
        below: RunId,
        read: usize,
    },
    Writing {
        rest: Keys,
        bytes: Vec<u8>,
    },
}

impl<D: Disk> KeyFile<D> {
    #[must_use]
    pub const fn new(disk: D) -> Self {
        Self { disk, seen: None, begun_at: None, making: None }
    }

    /// Goes on with the file, or begins it when keys have changed and it is time. The disk gets it in the background.
    ///
    /// Returns when to come again although nothing happened.
    pub fn turn(&mut self, ended: Ended<'_>) -> Option<Millis> {
        let Ended { state, results, now } = ended;
        if self.making.is_none() {
            let seen = (state.keys.len(), state.totals.runs_succeeded + state.totals.runs_failed);
            if self.seen == Some(seen) || (self.seen.is_none() && state.keys.is_empty() && results.key_count() == 0) {
                return None;
            }
            let due = self.begun_at.map_or(Millis(0), |begun| begun.plus(EVERY_MS));
            if now < due {
                return Some(due);
            }
            (self.seen, self.begun_at) = (Some(seen), Some(now));
        }
        let making = self.making.take().unwrap_or(Making::Looking { last: None, newest: BTreeMap::new() });
        self.making = self.go_on(making, ended);
        self.making.is_some().then_some(now)
    }

    fn go_on(&self, making: Making, ended: Ended<'_>) -> Option<Making> {
        let Ended { state, results, now } = ended;
        let writing =
            |rest| Making::Writing { rest, bytes: format!(r#"{{"written_at":{},"keys":["#, now.0).into_bytes() };
        match making {
            Making::Looking { last, mut newest } => {
                let from = last.as_ref().map_or(Unbounded, Excluded);
                let mut keys = state.keys.range::<KeyName, _>((from, Unbounded));
                let mut last = None;
                for (name, &run) in keys.by_ref().take(LOOKS_PER_TURN) {
                    last = Some(name);
                    if is_newer(&newest, run) {
                        take(&mut newest, run, (name.clone(), None));
                    }
                }
                Some(match last.filter(|_| keys.next().is_some()) {
                    Some(last) => Making::Looking { last: Some(last.clone()), newest },
                    None if results.key_count() == 0 => writing(newest),
                    None => Making::Reading { newest, below: RunId(u128::MAX), read: 0 },
                })
            }
            Making::Reading { mut newest, below, read } => {
                let (mut looked, mut last) = (0, None);
                results.range(RunId(0), below, &mut |run| {
                    if !is_newer(&newest, run) {
                        return ControlFlow::Break(());
                    }
                    (looked, last) = (looked + 1, run.0.checked_sub(1).map(RunId));
                    if let Some(Ok(Shelved { tenant, flow, run: ended })) = results.run(run)
                        && let Some(key) = ended.key
                        && ended.expires_at > now
                    {
                        take(&mut newest, run, ((tenant.into(), flow, key), Some(ended.expires_at)));
                    }
                    if looked < RESULTS_PER_TURN { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
                });
                let more = looked == RESULTS_PER_TURN && read + looked < RESULTS_MAX;
                Some(match last.filter(|_| more) {
                    Some(below) => Making::Reading { newest, below, read: read + looked },
                    None => writing(newest),
                })
            }
            Making::Writing { mut rest, mut bytes } => {
                for _ in 0..ROWS_PER_TURN {
                    let Some((run, (name, expires_at))) = rest.pop_last() else { break };
                    write_row(state, run, &name, expires_at, &mut bytes);
                }
                if !rest.is_empty() {
                    return Some(Making::Writing { rest, bytes });
                }
                bytes.extend_from_slice(b"]}\n");
                self.disk.later(Later::Derive { path: PATH.into(), bytes });
                None
            }
        }
    }
}

fn is_newer(newest: &Keys, run: RunId) -> bool {
    newest.len() < ROWS_MAX || newest.first_key_value().is_some_and(|(oldest, _)| run > *oldest)
}

fn take(newest: &mut Keys, run: RunId, key: (KeyName, Option<Millis>)) {
    newest.entry(run).or_insert(key);
    if newest.len() > ROWS_MAX {
        newest.pop_first();
    }
}

/// Nothing when the key was freed meanwhile.
fn write_row(state: &State, run: RunId, name: &KeyName, expires_at: Option<Millis>, bytes: &mut Vec<u8>) {
    let holder = state.keys.get(name);
    let was_freed = match expires_at {
        None => holder != Some(&run),
        Some(_) => holder.is_some_and(|other| *other != run) || state.freed_keys.contains_key(&run),
    };
    if was_freed {
        return;
    }
    let (tenant, flow_id, key) = name;
    let row = Row {
        tenant,
        flow_id,
        key,
        run_id: run,
        state: state.runs.get(&run).map_or(RunState::Succeeded, |run| run.state),
        expires_at: expires_at.or(state.finished.get(&run).map(|run| run.expires_at)),
    };
    if bytes.last() != Some(&b'[') {
        bytes.push(b',');
    }
    // A row has nothing that JSON cannot say.
    let _ = serde_json::to_writer(bytes, &row);
}

#[cfg(test)]
mod tests {
    use tm_core::{
        id::FlowNo,
        queue::{
            results::{NoResults, ResultsMark},
            run::FinishedRun,
        },
    };

    use super::{
        super::{
            disk::{MemDisk, read_whole},
            results::{ResultLine, ResultStore},
        },
        *,
    };

    fn state(keys: std::ops::Range<u32>) -> State {
        let mut state = State::default();
        for n in keys {
            // Names in another order than ages.
            let name = format!("{:010}", n.wrapping_mul(2_654_435_761));
            state.keys.insert(("default".into(), "f".into(), name), RunId(n.into()));
        }
        state
    }

    fn turn(file: &mut KeyFile<MemDisk>, now: u64, state: &State) -> Option<Millis> {
        file.turn(Ended { state, results: &NoResults, now: Millis(now) })
    }

    /// Turns until nothing is left to do at `now`; how many that took.
    fn make(file: &mut KeyFile<MemDisk>, now: u64, state: &State) -> usize {
        let mut turns = 1;
        while turn(file, now, state) == Some(Millis(now)) {
            turns += 1;
        }
        turns
    }

    fn read(disk: &MemDisk) -> serde_json::Value {
        serde_json::from_slice(&read_whole(disk, PATH, 1 << 30).unwrap()).unwrap()
    }

    #[test]
    fn the_newest_keys_are_written_in_slices_newest_first() {
        let disk = MemDisk::default();
        let mut file = KeyFile::new(disk.clone());
        let turns = make(&mut file, 1000, &state(0..25_000));
        assert_eq!(turns, 25_000_usize.div_ceil(LOOKS_PER_TURN) + ROWS_MAX.div_ceil(ROWS_PER_TURN));
        let json = read(&disk);
        let keys = json["keys"].as_array().unwrap();
        assert_eq!((keys.len(), json["written_at"].as_u64()), (ROWS_MAX, Some(1000)));
        for (row, run) in keys.iter().zip((0..25_000_u128).rev()) {
            assert_eq!(row["run_id"], RunId(run).to_string());
        }
    }

    #[test]
    fn while_keys_change_the_file_is_made_every_thirty_seconds() {
        let disk = MemDisk::default();
        let mut file = KeyFile::new(disk.clone());
        assert_eq!(turn(&mut file, 1000, &State::default()), None);
        make(&mut file, 1000, &state(0..1));
        assert_eq!(turn(&mut file, 2000, &state(0..1)), None);
        assert_eq!(turn(&mut file, 3000, &state(0..2)), Some(Millis(31_000)));
        assert_eq!(read(&disk)["keys"].as_array().unwrap().len(), 1);
        make(&mut file, 31_000, &state(0..2));
        assert_eq!(read(&disk)["keys"].as_array().unwrap().len(), 2);
        make(&mut file, 70_000, &state(0..0));
        assert_eq!(read(&disk)["keys"], serde_json::json!([]));
    }

    #[test]
    fn keys_of_results_that_left_memory_are_told_too() {
        let disk = MemDisk::default();
        let mut results = ResultStore::write(disk.clone(), [7; 16], &ResultsMark::default(), 1 << 20).unwrap();
        let run = |no: u128, key: Option<&str>, expires_at| FinishedRun {
            id: RunId(no),
            flow: FlowNo(1),
            state: RunState::Succeeded,
            priority: 5,
            enqueued_at: Millis(1),
            ended_at: Millis(2),
            expires_at: Millis(expires_at),
            output: None,
            key: key.map(Into::into),
            input_digest: None,
            exec_ms: 1,
            letter: None,
            tasks: Vec::new(),
        };
        let mut runs: Vec<_> = (0..200).map(|no| run(no, (no % 2 == 0).then_some("k"), 900)).collect();
        runs.push(run(300, Some("expired"), 4));
        runs.push(run(301, Some("freed"), 900));
        results.append(runs.iter().map(|run| ResultLine { tenant: "t", flow: "f", run })).unwrap();
        let mut state = State::default();
        state.freed_keys.insert(RunId(301), Millis(900));
        let mut file = KeyFile::new(disk.clone());
        while file.turn(Ended { state: &state, results: &results, now: Millis(5) }) == Some(Millis(5)) {}
        let json = read(&disk);
        let keys = json["keys"].as_array().unwrap();
        assert_eq!(keys.len(), 100);
        assert_eq!(
            (keys[0]["run_id"].clone(), keys[0]["expires_at"].as_u64()),
            (RunId(198).to_string().into(), Some(900))
        );
    }

    #[test]
    fn a_key_that_is_freed_between_two_slices_is_left_out() {
        let disk = MemDisk::default();
        let mut file = KeyFile::new(disk.clone());
        let mut state = state(0..3);
        assert_eq!(turn(&mut file, 5, &state), Some(Millis(5)));
        state.keys.retain(|_, run| run.0 != 2);
        make(&mut file, 5, &state);
        let runs: Vec<_> = read(&disk)["keys"].as_array().unwrap().iter().map(|row| row["run_id"].clone()).collect();
        assert_eq!(runs, [RunId(1).to_string(), RunId(0).to_string()]);
    }
}
