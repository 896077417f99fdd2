//! Clients: enqueues with and without keys, over several tenants and flows, and an operator who cancels, requeues,
//! purges, forgets keys and registers new versions. Every answer is held against the ledger.

use std::collections::{BTreeMap, VecDeque};

use tm_core::{
    api::{DlqAction, EnqueueRequest, ErrorKind, Reply},
    id::RunId,
    json::{Json, Payload},
    queue::effect::{Input, Ticket},
    time::Millis,
};

use crate::{
    coverage::Coverage,
    flows::{self, FLOWS, TENANTS},
    ledger::Ledger,
    random::Random,
};

enum Asked {
    Enqueue { tenant: &'static str, flow: &'static str, key: Option<String>, input: String },
    Other,
    Requeue,
}

#[derive(Default)]
pub(crate) struct Clients {
    next: u64,
    asked: BTreeMap<Ticket, Asked>,
    /// Runs whose enqueue was acknowledged.
    pub(crate) acknowledged: BTreeMap<RunId, String>,
    inputs: BTreeMap<RunId, String>,
    version: u64,
}

impl Clients {
    fn ticket(&mut self, asked: Asked) -> Ticket {
        self.next += 1;
        self.asked.insert(Ticket(self.next), asked);
        Ticket(self.next)
    }

    /// Registers every flow for every tenant.
    pub(crate) fn register_all(&mut self, inputs: &mut VecDeque<Input>) {
        for (tenant, flows) in TENANTS.into_iter().zip([&FLOWS[..], &FLOWS[..4], &FLOWS[..2]]) {
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
            tenant: tenant.into(),
            flow: flow.into(),
            input: json.clone(),
            idempotency_key: key.clone(),
            headers: None,
            trace: None,
            at,
            delay_ms: random.chance(5).then(|| random.below(100)),
            priority: random.chance(30).then(|| u8::try_from(random.below(10)).unwrap_or(5)),
            env: Vec::new(),
        };
        let ticket = self.ticket(Asked::Enqueue { tenant, flow, key, input });
        inputs.push_back(Input::Enqueue { ticket, request: Box::new(request), input: Payload::Inline(json) });
    }

    pub(crate) fn operate(&mut self, random: &mut Random, ledger: &Ledger, inputs: &mut VecDeque<Input>) {
        let action = |pattern: String| DlqAction { pattern, ..DlqAction::default() };
        match random.below(100) {
            0..20 => {
                let last = self.acknowledged.keys().rev().nth(random.place(40)).map(ToString::to_string);
                let ticket = self.ticket(Asked::Other);
                inputs.push_back(Input::Cancel { ticket, id: last.unwrap_or_else(|| "01".into()) });
            }
            20..60 => {
                let letters: Vec<&String> = ledger.letters.iter().collect();
                let entry = random.pick(&letters).map_or_else(|| "dlq-none".into(), |entry| (*entry).clone());
                let ticket = self.ticket(Asked::Requeue);
                inputs.push_back(Input::Requeue { ticket, action: action(entry) });
            }
            60..65 => {
                let ticket = self.ticket(Asked::Requeue);
                let action = DlqAction { all: true, ..action("*".into()) };
                inputs.push_back(Input::Requeue { ticket, action });
            }
            65..80 => {
                let entry = ledger.letters.iter().nth(random.place(5)).cloned().unwrap_or_else(|| "dlq-none".into());
                let ticket = self.ticket(Asked::Other);
                inputs.push_back(Input::Purge { ticket, action: action(entry) });
            }
            80..90 => {
                let tenant = random.pick(&TENANTS).copied().unwrap_or("anton");
                let flow = random.pick(&FLOWS).copied().unwrap_or("single");
                let key = format!("k{}", random.below(12));
                let ticket = self.ticket(Asked::Other);
                inputs.push_back(Input::ForgetKey { ticket, tenant: tenant.into(), flow: flow.into(), key });
            }
            _ => {
                self.version += 1;
                let tenant = random.pick(&TENANTS).copied().unwrap_or("anton");
                let flow = random.pick(&FLOWS).copied().unwrap_or("single");
                self.register(tenant, flow, inputs);
            }
        }
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
            (Asked::Enqueue { tenant, flow, key, input }, Reply::Enqueued { run }) => {
                let found = ledger
                    .runs
                    .get(&run)
                    .unwrap_or_else(|| panic!("run {run} is acknowledged and not in the log (I1)"));
                assert_eq!(ledger.tenant_of(run), Some((tenant, flow)));
                assert!(found.key == key || found.key.is_none(), "run {run} lost its key");
                assert!(self.acknowledged.insert(run, flow.into()).is_none(), "run {run} is acknowledged twice");
                self.inputs.insert(run, input);
                coverage.see("enqueue", "new");
            }
            (Asked::Enqueue { tenant, flow, input, .. }, Reply::Duplicate { run, .. }) => {
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
            }
            (Asked::Enqueue { tenant, flow, key, .. }, Reply::Error(error)) => match error.kind {
                ErrorKind::Invalid => coverage.see("enqueue", "unknown flow"),
                ErrorKind::Busy if error.message.contains("disk") => {
                    coverage.see("full disk means", "an enqueue is refused")
                }
                ErrorKind::Busy => coverage.see("enqueue", "full"),
                ErrorKind::Failed => {
                    let key = key.unwrap_or_default();
                    let holder = ledger.holder(tenant, flow, &key, Millis(now.0.saturating_sub(1)));
                    assert!(error.message.contains("another input"), "{error:?}");
                    assert!(
                        holder.is_none_or(|run| error.message.contains(&run.to_string())),
                        "{error:?} names not {holder:?}"
                    );
                    coverage.see("enqueue", "key with another input");
                }
                _ => panic!("an enqueue is refused: {error:?}"),
            },
            (Asked::Enqueue { .. }, other) => panic!("an enqueue is answered with {other:?}"),
            (Asked::Requeue, Reply::DlqDone(outcomes)) => {
                for outcome in outcomes {
                    if outcome.outcome == "skipped" {
                        coverage.see("operator", "requeue skipped: key held");
                    }
                }
            }
            (_, Reply::Cancelled { .. }) => coverage.see("operator", "cancel"),
            (_, Reply::Registered { new: true, .. }) if self.version > 0 => coverage.see("operator", "register again"),
            _ => {}
        }
    }

    /// Nobody waits for an answer from a supervisor that is gone.
    pub(crate) fn restart(&mut self) {
        self.asked.clear();
    }
}
