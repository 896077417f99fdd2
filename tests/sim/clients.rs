//! Clients: enqueues with and without keys, over several tenants and flows, and an operator who cancels, requeues,
//! purges, forgets keys and registers new versions. Some are slow: they hang up before the answer and ask again, or read
//! it when their supervisor is long gone. Every answer is held against the ledger.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tm_core::{
    api::{DlqAction, DlqOutcome, EnqueueRequest, ErrorKind, Reply},
    id::RunId,
    json::{Json, Payload},
    queue::effect::{Input, Ticket},
    time::Millis,
};

use crate::{
    coverage::Coverage,
    faults::{Fault, Without},
    flows::{self, FLOWS, TENANTS},
    ledger::Ledger,
    random::Random,
};

#[derive(Clone)]
struct Enqueue {
    tenant: &'static str,
    flow: &'static str,
    key: Option<String>,
    input: String,
    request: Box<EnqueueRequest>,
    /// The run of an answer that was never read.
    lost: Option<RunId>,
}

enum Asked {
    Enqueue(Enqueue),
    Bulk(Bulk),
    Other,
}

/// A requeue or purge.
struct Bulk {
    dry_run: bool,
    /// The entries that were there when all of them were asked for.
    all: Option<BTreeSet<String>>,
    outcomes: Vec<DlqOutcome>,
}

#[derive(Default)]
pub(crate) struct Clients {
    next: u64,
    asked: BTreeMap<Ticket, Asked>,
    /// Runs whose enqueue was acknowledged.
    pub(crate) acknowledged: BTreeMap<RunId, String>,
    inputs: BTreeMap<RunId, String>,
    version: u64,
    /// Enqueues whose answers were not read, to be asked again.
    again: Vec<Enqueue>,
    /// Answers that are read in a later turn.
    unread: Vec<(u64, Enqueue, RunId)>,
}

impl Clients {
    fn ticket(&mut self, asked: Asked) -> Ticket {
        self.next += 1;
        self.asked.insert(Ticket(self.next), asked);
        Ticket(self.next)
    }

    /// Registers every flow for the first tenant, and some for the others.
    pub(crate) fn register_all(&mut self, few: bool, inputs: &mut VecDeque<Input>) {
        let others = if few { [&FLOWS[..1], &FLOWS[..1]] } else { [&FLOWS[..4], &FLOWS[..2]] };
        for (tenant, flows) in TENANTS.into_iter().zip([&FLOWS[..], others[0], others[1]]) {
            for flow in flows {
                self.register(tenant, flow, inputs);
            }
        }
    }

    fn register(&mut self, tenant: &str, flow: &str, inputs: &mut VecDeque<Input>) {
        let def = Box::new(flows::flow(flow, self.version));
        let ticket = self.ticket(Asked::Other);
        inputs.push_back(Input::Register { ticket, tenant: tenant.into(), def, warnings: Vec::new() });
    }

    pub(crate) fn enqueue(&mut self, random: &mut Random, now: Millis, inputs: &mut VecDeque<Input>) {
        let flow = if random.chance(1) { "unknown" } else { random.pick(&FLOWS).copied().unwrap_or("single") };
        let tenant = random.pick(&TENANTS).copied().filter(|_| FLOWS[..2].contains(&flow)).unwrap_or("anton");
        let key = random.chance(50).then(|| format!("k{}", random.below(12)));
        let input = format!(r#"{{"flag":{},"n":{}}}"#, random.chance(50), random.below(3));
        let Ok(json) = Json::parse(&input) else { return };
        let at = random.chance(8).then(|| now.plus(random.below(300)));
        let request = EnqueueRequest {
            idempotency_key: key.clone(),
            at,
            delay_ms: random.chance(5).then(|| random.below(100)),
            priority: random.chance(30).then(|| u8::try_from(random.below(10)).unwrap_or(5)),
            ..EnqueueRequest::of(tenant, flow, json)
        };
        self.ask(Enqueue { tenant, flow, key, input, request: Box::new(request), lost: None }, inputs);
    }

    fn ask(&mut self, enqueue: Enqueue, inputs: &mut VecDeque<Input>) {
        let (request, input) = (enqueue.request.clone(), Payload::Inline(enqueue.request.input.clone()));
        let ticket = self.ticket(Asked::Enqueue(enqueue));
        inputs.push_back(Input::Enqueue { ticket, request, input });
    }

    /// Who hung up asks again.
    pub(crate) fn ask_again(&mut self, inputs: &mut VecDeque<Input>) {
        for enqueue in std::mem::take(&mut self.again) {
            self.ask(enqueue, inputs);
        }
    }

    pub(crate) fn redeploy(&mut self, random: &mut Random, inputs: &mut VecDeque<Input>) {
        self.version += 1;
        let tenant = random.pick(&TENANTS).copied().unwrap_or("anton");
        let flow = random.pick(&FLOWS).copied().unwrap_or("single");
        self.register(tenant, flow, inputs);
    }

    pub(crate) fn operate(&mut self, random: &mut Random, ledger: &Ledger, inputs: &mut VecDeque<Input>) {
        match random.below(100) {
            0..20 => {
                let last = self.acknowledged.keys().rev().nth(random.place(40)).map(ToString::to_string);
                let ticket = self.ticket(Asked::Other);
                inputs.push_back(Input::Cancel { ticket, id: last.unwrap_or_else(|| "01".into()) });
            }
            20..60 => {
                let letters: Vec<&String> = ledger.letters.iter().collect();
                let entry = random.pick(&letters).map_or_else(|| "dlq-none".into(), |entry| (*entry).clone());
                self.bulk(entry, (false, false), ledger, inputs);
            }
            60..72 => self.bulk("*".into(), (false, random.chance(15)), ledger, inputs),
            72..80 => {
                let entry = ledger.letters.iter().nth(random.place(5)).cloned().unwrap_or_else(|| "dlq-none".into());
                self.bulk(entry, (true, false), ledger, inputs);
            }
            80..84 => self.bulk("dlq-*".into(), (true, random.chance(15)), ledger, inputs),
            _ => {
                let tenant = random.pick(&TENANTS).copied().unwrap_or("anton");
                let flow = random.pick(&FLOWS).copied().unwrap_or("single");
                let key = format!("k{}", random.below(12));
                let ticket = self.ticket(Asked::Other);
                inputs.push_back(Input::ForgetKey { ticket, tenant: tenant.into(), flow: flow.into(), key });
            }
        }
    }

    /// Requeues or purges what the pattern names.
    fn bulk(
        &mut self,
        pattern: String,
        (purges, dry_run): (bool, bool),
        ledger: &Ledger,
        inputs: &mut VecDeque<Input>,
    ) {
        let all = pattern.contains('*').then(|| ledger.letters.clone());
        let action = DlqAction { pattern, all: all.is_some(), dry_run, ..DlqAction::default() };
        let ticket = self.ticket(Asked::Bulk(Bulk { dry_run, all, outcomes: Vec::new() }));
        inputs.push_back(if purges { Input::Purge { ticket, action } } else { Input::Requeue { ticket, action } });
    }

    /// Lets a client be slow with an answer; gives it back when it reads it now.
    pub(crate) fn is_slow(
        &mut self,
        random: &mut Random,
        (ticket, reply): (Ticket, &Reply),
        (turn, without): (u64, Without),
        coverage: &mut Coverage,
    ) -> bool {
        let chance = random.below(100);
        let Reply::Enqueued { run } = *reply else { return false };
        if without.has(Fault::SlowClient) || chance >= 6 {
            return false;
        }
        let Some(Asked::Enqueue(enqueue)) = self.asked.remove(&ticket) else { return false };
        if chance < 3 {
            coverage.fault("slow client", "reads the answer late");
            self.unread.push((turn + 1 + random.below(40), enqueue, run));
        } else {
            coverage.fault("slow client", "hangs up before the answer");
            // Without a key nobody could tell the second run from the first.
            if enqueue.key.is_some() {
                self.again.push(Enqueue { lost: Some(run), ..enqueue });
            }
        }
        true
    }

    /// The answers that are read in this turn, at whichever supervisor.
    pub(crate) fn read_late(&mut self, turn: u64, ledger: &Ledger, coverage: &mut Coverage) {
        let (due, rest) = std::mem::take(&mut self.unread).into_iter().partition(|(at, ..)| *at <= turn);
        self.unread = rest;
        let due: Vec<(u64, Enqueue, RunId)> = due;
        for (_, enqueue, run) in due {
            self.acknowledged(run, &enqueue, ledger);
            coverage.see("slow client", "the run is there");
        }
    }

    fn acknowledged(&mut self, run: RunId, enqueue: &Enqueue, ledger: &Ledger) {
        let found = ledger.runs.get(&run);
        let found = found.unwrap_or_else(|| panic!("run {run} is acknowledged and not in the log (I1)"));
        assert_eq!(ledger.tenant_of(run), Some((enqueue.tenant, enqueue.flow)));
        assert!(found.key == enqueue.key || found.key.is_none(), "run {run} lost its key");
        let before = self.acknowledged.insert(run, enqueue.flow.into());
        assert!(before.is_none(), "run {run} is acknowledged twice");
        self.inputs.insert(run, enqueue.input.clone());
    }

    /// Holds an answer against what is durable.
    pub(crate) fn answered(
        &mut self,
        ticket: Ticket,
        reply: Reply,
        ledger: &Ledger,
        now: Millis,
        coverage: &mut Coverage,
    ) {
        let Some(asked) = self.asked.remove(&ticket) else { panic!("request {ticket:?} is answered twice") };
        match (asked, reply) {
            (Asked::Bulk(mut bulk), Reply::DlqSome(some)) => {
                coverage.see("bulk action", "goes on in a later turn");
                bulk.take(some, ledger, coverage);
                self.asked.insert(ticket, Asked::Bulk(bulk));
            }
            (Asked::Bulk(mut bulk), Reply::DlqDone(last)) => {
                let parts = !bulk.outcomes.is_empty();
                bulk.take(last, ledger, coverage);
                bulk.is_done(ledger);
                coverage.see("bulk action", if parts { "is done in several turns" } else { "is done in one turn" });
            }
            (Asked::Bulk(bulk), Reply::Error(error)) => match error.kind {
                ErrorKind::Failed => assert!(bulk.outcomes.is_empty(), "{error:?}"),
                ErrorKind::Busy if bulk.outcomes.is_empty() => {
                    coverage.see("full disk means", "a bulk action is refused")
                }
                ErrorKind::Busy => coverage.see("full disk means", "a bulk action is broken off"),
                _ => panic!("a bulk action is refused: {error:?}"),
            },
            (Asked::Enqueue(enqueue), Reply::Enqueued { run }) => {
                self.acknowledged(run, &enqueue, ledger);
                coverage.see("enqueue", "new");
            }
            (Asked::Enqueue(Enqueue { tenant, flow, input, lost, .. }), Reply::Duplicate { run, .. }) => {
                assert_eq!(
                    ledger.tenant_of(run),
                    Some((tenant, flow)),
                    "a key answers with a run of another scope (I6)"
                );
                let first = self.inputs.get(&run);
                assert!(
                    first.is_none_or(|first| *first == input),
                    "a key answers although the input is another one (I6)"
                );
                coverage.see("enqueue", "duplicate");
                if lost == Some(run) {
                    coverage.see("slow client", "asks again and gets the same run");
                }
            }
            (Asked::Enqueue(Enqueue { tenant, flow, key, .. }), Reply::Error(error)) => match error.kind {
                ErrorKind::Invalid => coverage.see("enqueue", "unknown flow"),
                ErrorKind::Busy if error.message.contains("disk") => {
                    coverage.see("full disk means", "an enqueue is refused")
                }
                ErrorKind::Busy => coverage.see("enqueue", "full"),
                ErrorKind::Failed => {
                    let key = key.unwrap_or_default();
                    let holder = ledger.holder(tenant, flow, &key, Millis(now.0.saturating_sub(1)));
                    assert!(error.message.contains("another input"), "{error:?}");
                    // It may have lost the key later in the same turn, and another run taken it.
                    let named = |run: RunId| error.message.contains(&run.to_string());
                    let held = |run: &RunId| named(*run) && ledger.tenant_of(*run) == Some((tenant, flow));
                    let known = holder.is_none_or(named) || ledger.runs.keys().any(held);
                    assert!(known, "{error:?} names not {holder:?}");
                    coverage.see("enqueue", "key with another input");
                }
                _ => panic!("an enqueue is refused: {error:?}"),
            },
            (Asked::Enqueue(_), other) => panic!("an enqueue is answered with {other:?}"),
            (Asked::Bulk(_), other) => panic!("a bulk action is answered with {other:?}"),
            (_, Reply::Cancelled { .. }) => coverage.see("operator", "cancel"),
            (_, Reply::Registered { new: true, .. }) if self.version > 0 => coverage.see("operator", "register again"),
            _ => {}
        }
    }

    /// Nobody waits for an answer from a supervisor that is gone.
    pub(crate) fn restart(&mut self, coverage: &mut Coverage) {
        let begun = |asked: &Asked| matches!(asked, Asked::Bulk(bulk) if !bulk.outcomes.is_empty());
        if self.asked.values().any(begun) {
            coverage.see("bulk action", "a crash between two slices");
        }
        self.asked.clear();
    }
}

impl Bulk {
    /// What is told was done, durably.
    fn take(&mut self, outcomes: Vec<DlqOutcome>, ledger: &Ledger, coverage: &mut Coverage) {
        for outcome in outcomes {
            let entry = &outcome.entry_id;
            match (outcome.outcome.as_str(), outcome.why.as_deref()) {
                ("requeued" | "purged", _) => {
                    assert!(!self.dry_run && !ledger.letters.contains(entry), "entry {entry} is told and pending (I1)");
                }
                ("would requeue" | "would purge", _) => assert!(self.dry_run, "{outcome:?}"),
                ("skipped", Some("no longer pending")) => {
                    assert!(!ledger.letters.contains(entry), "entry {entry} is pending and was skipped");
                    coverage.see("bulk action", "another took an entry");
                }
                ("skipped", Some(_)) => coverage.see("operator", "requeue skipped: key held"),
                _ => panic!("{outcome:?}"),
            }
            self.outcomes.push(outcome);
        }
    }

    /// What was pending at the beginning is told, or others have taken it; nothing is told twice.
    fn is_done(&self, ledger: &Ledger) {
        let told: BTreeSet<&String> = self.outcomes.iter().map(|outcome| &outcome.entry_id).collect();
        assert_eq!(told.len(), self.outcomes.len(), "an entry is told twice");
        for entry in self.all.iter().flatten().filter(|entry| ledger.letters.contains(*entry)) {
            assert!(told.contains(entry), "entry {entry} was named, is pending, and is not told of");
        }
    }
}
