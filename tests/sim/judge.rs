//! Copies of the disk are opened and judged beside the history, which goes on as if nothing had happened: as a crash
//! would have left it (crash points), and with a bit changed (bit rot).

use std::collections::{BTreeSet, VecDeque};

use tm_core::{
    queue::{check::check, event::Event, results::Ended, state::State},
    record::codec,
};
use tm_supervisor::{
    store::{
        disk::Disk,
        dlq::{Dlq, Place},
        recover::Recovery,
    },
    turn::Turn,
};

use crate::{
    disk::{CrashPoint, SimDisk},
    faults::Without,
    history::{BULK_SLICE, FINISHED_MAX, History, ITEMS_SLICE, RESERVE, SECRET},
    letters,
    opening::{assert_same, image},
    random::Random,
    storage::Storage,
    world::World,
};

const DRAIN_TURNS_MAX: u64 = 5_000;
/// Where bits change, segments more often than others.
const ROTTEN: [&str; 9] = [
    "in a segment",
    "in a segment",
    "in a segment",
    "in an index",
    "in a results segment",
    "in an index of results",
    "in a pending dead letter",
    "in an archived dead letter",
    "in another derived file",
];

/// A turn around a crash point: the frames that it wrote, and the state before it, if that is to be compared.
pub(crate) struct Around<'h> {
    pub(crate) written: &'h [u8],
    pub(crate) before: Option<&'h State>,
    pub(crate) after: Option<&'h State>,
}

impl History {
    fn open_copy(&self, storage: Storage) -> (SimDisk, Dlq<SimDisk>, Turn<SimDisk>, Recovery) {
        let disk = SimDisk::holding(storage);
        let dlq = Dlq::open(disk.clone()).unwrap_or_else(|error| panic!("the dead letters do not open: {error}"));
        let opened = Turn::open(disk.clone(), self.log_options(), self.rules(), SECRET, self.now);
        let (turn, recovery) = opened.unwrap_or_else(|error| panic!("the queue does not open: {error}"));
        let turn = turn
            .with_reserve(RESERVE)
            .with_finished_max(FINISHED_MAX)
            .with_bulk_slice(BULK_SLICE)
            .with_items_slice(ITEMS_SLICE);
        (disk, dlq, turn, recovery)
    }

    /// Opens the disk as each crash would have left it: what was promised must be there, and nothing may look damaged.
    pub(crate) fn judge_crash_points(&mut self, points: Vec<CrashPoint>, around: &Around<'_>) {
        let most = self.ledger.sequence_after(around.written).max(self.ledger.written_to());
        let promised = |bytes: usize| self.ledger.sequence_after(&around.written[..bytes]);
        let floors: Vec<u64> = points.iter().map(|point| promised(point.promised_bytes)).collect();
        for (point, floor) in points.into_iter().zip(floors) {
            let CrashPoint { storage, what, phase, operation, .. } = point;
            self.world.coverage.crash_points += 1;
            self.world.coverage.see("crash point", phase.name());
            let place = format!("{} after operation {operation} ({})", what.name(), phase.name());
            let (_, dlq, turn, recovery) = self.open_copy(storage);
            assert!(recovery.damaged.is_empty(), "{place} left damage behind (I11): {:?}", recovery.damaged);
            let next = recovery.next_sequence;
            assert!(next >= floor, "{place}: record {next} is not there, all below {floor} had effects (I1, I6)");
            assert!(next <= most, "{place}: {next} records are there, {most} were written");
            self.judge_state(turn.ended(self.now), &place, None);
            judge_letters(&dlq, turn.ended(self.now), &place);
            let same = match next {
                _ if next == most => around.after,
                _ if next == self.ledger.next_sequence => around.before,
                _ => None,
            };
            if let (Some(same), Some(_)) = (same, around.before) {
                assert_same(&image(same, self.latest), &image(&turn.state, self.latest), &place);
                self.world.coverage.see("crash point means", "state is the same as before");
            }
        }
    }

    /// Every rule holds, and whatever was acknowledged is there, but for what hung on the `lost` record. Without that
    /// record the events after it may say what no rule foresees; such a state must still drain.
    pub(crate) fn judge_state(&self, ended: Ended<'_>, place: &str, lost: Option<u64>) {
        let broken = if lost.is_none() { check(ended.state) } else { Vec::new() };
        assert!(broken.is_empty(), "{place}: {broken:#?}");
        // What was over before the clock went back may be gone.
        let latest = self.now.max(self.latest);
        for run in self.clients.acknowledged.keys() {
            if ended.knows(*run) {
                continue;
            }
            let Some(known) = self.ledger.runs.get(run) else {
                panic!("{place}: run {run} was acknowledged and is not in the log (I6)")
            };
            assert!(
                known.expires_at.is_some_and(|at| at <= latest)
                    || lost.is_some_and(|record| self.ledger.hangs_on(*run, record)),
                "{place}: acknowledged run {run} is lost (I6)"
            );
        }
    }

    /// Changes one bit somewhere on a copy of the disk.
    pub(crate) fn rot(&mut self) {
        let random = &mut self.random;
        let mut storage = self.disk.inner().storage.clone();
        storage.forget_unnamed();
        let kind = random.pick(&ROTTEN).copied().unwrap_or("in a segment");
        let logs = kind == "in a segment";
        let files: Vec<(String, usize)> = storage
            .paths()
            .filter(|(path, id)| kind_of(path) == kind && storage.file(*id).cache.len() > 0)
            .map(|(path, id)| (path.to_owned(), id))
            .collect();
        let Some((path, id)) = random.pick(&files).cloned() else { return };
        let content = storage.file(id).cache.clone();
        // Mostly where records are, rarely in reserved room.
        let within = if random.chance(95) { content.data().len() as u64 } else { content.len() };
        let (offset, bit) = (random.below(within), u8::try_from(random.below(8)).unwrap_or(0));
        let victim = record_at(content.data(), offset).filter(|_| logs);
        storage.rot(id, offset, bit);
        let place =
            format!("bit {bit} of byte {offset} of {path} changed, in record {:?}", victim.as_ref().map(|(no, _)| no));
        self.world.coverage.fault("bit rot", kind);
        let drains = random.chance(25);
        let (disk, dlq, mut turn, recovery) = self.open_copy(storage);
        let lost = victim.as_ref().map(|(sequence, _)| *sequence);
        self.judge_damage(&recovery, lost, logs, &place);
        if kind == "in a results segment" {
            self.judge_results(&turn, &place);
        } else {
            self.judge_state(turn.ended(self.now), &place, lost);
        }
        if !path.starts_with("dlq/") && lost.is_none() && kind != "in a results segment" {
            judge_letters(&dlq, turn.ended(self.now), &place);
        }
        if lost.is_some() {
            let holds = check(&turn.state).is_empty();
            self.world.coverage.see("bit rot means", if holds { "every rule holds" } else { "a rule is bent" });
        }
        if victim.is_some_and(|(_, events)| runs_again(&events, &turn.state)) {
            self.world.coverage.see("bit rot means", "a step that had succeeded runs again");
        }
        if drains {
            self.drain_copy(&disk, &mut turn, &place);
        }
    }

    /// A changed byte costs at most one result, which says so itself.
    fn judge_results(&mut self, turn: &Turn<SimDisk>, place: &str) {
        let ended = turn.ended(self.now);
        let acknowledged = self.clients.acknowledged.keys();
        let damaged = acknowledged.clone().filter(|run| matches!(ended.run(**run), Some(Err(_)))).count();
        // Without an index it is gone from the one that is made.
        let expired =
            |run| self.ledger.runs.get(run).is_some_and(|run| run.expires_at.is_some_and(|at| at <= self.now));
        let gone = acknowledged.filter(|run| !ended.knows(**run) && !expired(*run)).count();
        assert!(damaged + gone <= 1, "{place}: {damaged} results cannot be read, {gone} are gone (I11)");
        if damaged == 1 {
            self.world.coverage.see("bit rot means", "the result says that it is damaged");
        }
    }

    /// At most one record is lost, and named; the newest one of all cannot be told from one that was never finished.
    fn judge_damage(&mut self, recovery: &Recovery, lost: Option<u64>, in_log: bool, place: &str) {
        let end = self.ledger.next_sequence;
        for damage in &recovery.damaged {
            assert!(in_log, "{place}: damage of the log is named: {damage:?}");
            if let Some((first, last)) = damage.lost {
                assert_eq!(Some(first), lost, "{place}: another record is named: {damage:?}");
                assert_eq!(first, last, "{place}: more than one record is named: {damage:?}");
                self.world.coverage.see("bit rot means", "the record is named");
            }
        }
        // The last record of a segment is named where it stood and where it is missed.
        assert!(recovery.damaged.len() <= 2, "{place}: {:?}", recovery.damaged);
        match end - recovery.next_sequence.min(end) {
            0 => {}
            1 if lost == Some(end - 1) => self.world.coverage.see("bit rot means", "the newest record is cut off"),
            more => panic!("{place}: {more} records are missing at the end (I11)"),
        }
    }

    /// The queue goes on with what is left: everything ends or stalls.
    fn drain_copy(&mut self, disk: &SimDisk, turn: &mut Turn<SimDisk>, place: &str) {
        let mut world = World::new(Random::new(self.random.next()), disk.clone(), Without::default());
        world.kind = true;
        let mut now = self.now;
        let mut inputs: VecDeque<_> = turn.recover().into();
        for _ in 0..DRAIN_TURNS_MAX {
            now = now.plus(20);
            world.arrivals(now, &mut inputs);
            world.write_letters(&turn.state, &mut inputs);
            turn.turn(now, &mut inputs, &mut world)
                .unwrap_or_else(|error| panic!("{place}: the loop stopped: {error}"));
            now = now.max(turn.state.last_at);
            if inputs.is_empty() && turn.state.depth() == 0 && !turn.has_made() && world.is_quiet() {
                return self.world.coverage.see("bit rot means", "the queue goes on and drains");
            }
        }
        panic!("{place}: the queue does not drain: depth {}", turn.state.depth());
    }
}

/// Each dead letter that is said to be filed has its file; files of those that were requeued or purged are archived.
pub(crate) fn judge_letters<D: Disk>(dlq: &Dlq<D>, ended: Ended<'_>, place: &str) {
    let state = ended.state;
    dlq.catch_up(ended).unwrap_or_else(|error| panic!("{place}: {error}"));
    let files = letters::ids(dlq, Place::Pending);
    let filed = state.runs.values().flat_map(|run| run.letters()).filter(|(_, letter)| letter.filed);
    for (_, letter) in filed {
        assert!(files.contains(&letter.entry), "{place}: entry {} is filed and has no file", letter.entry);
    }
    for id in files.iter().filter(|id| !state.letters.contains_key(*id)) {
        let run = dlq.read(Place::Pending, id).map(|entry| entry.run_id);
        let known = run.as_ref().is_ok_and(|run| ended.knows(*run));
        assert!(!known, "{place}: entry {id} was consumed and its file says that it is pending");
    }
}

/// The record that a byte belongs to: its sequence and what it says.
fn record_at(data: &[u8], offset: u64) -> Option<(u64, Vec<Event>)> {
    let offset = usize::try_from(offset).ok()?;
    let begin = data.get(..offset)?.iter().rposition(|&byte| byte == b'\n').map_or(0, |place| place + 1);
    let end = data[offset..].iter().position(|&byte| byte == b'\n').map_or(data.len(), |place| offset + place);
    let (sequence, frame) = codec::decode(data.get(begin..end)?).ok()?;
    Some((sequence, frame.events))
}

fn runs_again(lost: &[Event], state: &State) -> bool {
    let ended: BTreeSet<_> = lost
        .iter()
        .filter_map(|event| match event {
            Event::Succeeded(succeeded) => Some(succeeded.task),
            _ => None,
        })
        .collect();
    state.indexes.leases.values().flatten().any(|task| ended.contains(task))
}

fn kind_of(path: &str) -> &'static str {
    let results = path.starts_with("queue/results-");
    match path.rsplit_once('.').map_or(path, |(_, end)| end) {
        "log" if results => "in a results segment",
        "idx" if results => "in an index of results",
        "log" => "in a segment",
        "idx" => "in an index",
        "json" if path.starts_with("dlq/pending") => "in a pending dead letter",
        "json" if path.starts_with("dlq/") => "in an archived dead letter",
        _ => "in another derived file",
    }
}
