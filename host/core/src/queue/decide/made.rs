//! What is made beside the loop, because it may be large: inputs of fan-outs, inputs from large outputs, and the lists of
//! fan-outs' outputs.
//!
//! The state says for which steps ([`Indexes::due`](crate::queue::indexes::Indexes)), an [`Effect::Make`] asks the shell once,
//! [`Making::make`] runs wherever the shell likes, and [`Arrival`] takes what was made into the log, a slice at a time.
//! A crash forgets what was made; the start asks again. Tasks of a fan-out exist once its last slice is in the log.

use alloc::{boxed::Box, vec::Vec};

use crate::{
    flow::{
        advance::{Blobs, Inputs, Next},
        evaluate::{Evaluate, EvaluateFault},
    },
    id::{RunId, TaskRef},
    json::{Json, Payload},
    queue::{
        decide::{Desk, World},
        effect::{Effect, Input, Step},
        event::Event,
        run::{Phase, Run, StepDone, StepRun},
        state::{Registered, State},
    },
};

/// Inputs of a fan-out that one slice takes, at most, unless its caller wants fewer.
pub const ITEMS_PER_SLICE: usize = 512;
/// A slice ends at this many bytes of inputs, but has one at least.
const SLICE_BYTES: u64 = 256 * 1024;
/// What a record has beside a payload that stands in it.
const PAYLOAD_BYTES: u64 = 160;

/// All that is needed to make something, taken out of the state.
#[derive(Clone, Debug)]
pub struct Making {
    pub run: RunId,
    pub step: u16,
    what: What,
}

#[derive(Clone, Debug)]
enum What {
    /// What becomes of the step; of the run that alone which the step needs.
    Next { run: Box<Run>, flow: Registered },
    /// The list of a fan-out's outputs.
    List { outputs: Vec<Payload> },
}

/// What was made.
#[derive(Clone, Debug)]
pub enum Made {
    Next(Result<Next, EvaluateFault>),
    List(Result<Payload, EvaluateFault>),
}

impl Making {
    /// None when nothing is to be made for the step.
    fn of(state: &State, run: RunId, step: u16) -> Option<Self> {
        let found = state.runs.get(&run)?;
        let what = match found.steps.get(usize::from(step))? {
            StepRun::Due(_) => {
                let flow = state.flow_of(found)?.clone();
                let needs = &flow.def.steps.get(usize::from(step))?.needs;
                What::Next { run: Box::new(with_outputs(found, needs)), flow }
            }
            StepRun::Fan(fan) if fan.is_full() => {
                let outputs = fan.tasks.iter().filter_map(|task| match &task.phase {
                    Phase::Succeeded(success) => Some(success.output.clone()),
                    _ => None,
                });
                What::List { outputs: outputs.collect() }
            }
            _ => return None,
        };
        Some(Self { run, step, what })
    }

    /// Makes it. Needs no state and may take long: seconds, for a fan-out of 10,000 computed inputs.
    #[must_use]
    pub fn make(&self, evaluate: &dyn Evaluate, blobs: &dyn Blobs) -> Made {
        match &self.what {
            What::Next { run, flow } => {
                let inputs = Inputs { run, def: &flow.def, evaluate, blobs };
                match flow.def.steps.get(usize::from(self.step)) {
                    Some(step) => Made::Next(inputs.next(step)),
                    None => Made::Next(Ok(Next::Skipped)),
                }
            }
            What::List { outputs } => Made::List(crate::flow::advance::list(outputs, blobs)),
        }
    }
}

/// The run with nothing of its steps but the outputs of `needs`.
fn with_outputs(run: &Run, needs: &[u16]) -> Run {
    let step = |(place, step): (u16, &StepRun)| match step {
        StepRun::Done(done) if needs.contains(&place) => {
            StepRun::Done(Box::new(StepDone { output: done.output.clone(), items: done.items, tasks: Vec::new() }))
        }
        StepRun::Skipped => StepRun::Skipped,
        _ => StepRun::Waiting,
    };
    Run {
        id: run.id,
        flow: run.flow,
        state: run.state,
        priority: run.priority,
        enqueued_at: run.enqueued_at,
        input: run.input.clone(),
        extra: None,
        steps: (0u16..).zip(run.steps.iter()).map(step).collect(),
        home: run.home,
    }
}

/// What a starting supervisor asks for: all that a predecessor was making.
pub fn unmade(state: &mut State) -> Vec<Effect> {
    let due: Vec<(RunId, u16)> = state.indexes.due.difference(&state.asked).copied().collect();
    let makings = due.iter().filter_map(|&(run, step)| Making::of(state, run, step)).map(Effect::Make).collect();
    state.asked.extend(due);
    makings
}

/// Something made, on its way into the log.
#[derive(Clone, Debug)]
pub struct Arrival {
    run: RunId,
    step: u16,
    made: Option<Made>,
    /// Inputs of a fan-out, with the number of the first one that is not in the log yet.
    items: Vec<Payload>,
    from: usize,
    is_fan: bool,
}

impl Arrival {
    /// What `input` brings.
    ///
    /// # Errors
    /// The input, when it is another one.
    pub fn of(input: Input) -> Result<Self, Input> {
        let Input::Made { run, step, made } = input else { return Err(input) };
        let (items, made, is_fan) = match made {
            Made::Next(Ok(Next::Fanned(items))) => (items, None, true),
            made => (Vec::new(), Some(made), false),
        };
        Ok(Self { run, step, made, items, from: 0, is_fan })
    }

    #[must_use]
    pub const fn is_through(&self) -> bool {
        self.made.is_none() && !self.is_fan
    }

    /// The most that the next slice, of `most` items, writes, beside decisions that follow from it.
    #[must_use]
    pub fn bytes(&self, most: usize) -> u64 {
        let made = match &self.made {
            Some(Made::Next(Ok(Next::Ready(payload))) | Made::List(Ok(payload))) => written_bytes(payload),
            _ => 0,
        };
        made + self.items[self.from..self.end(most)].iter().map(written_bytes).sum::<u64>()
    }

    /// How much of `most` items the next slice is.
    #[must_use]
    pub fn cost(&self, most: usize) -> usize {
        (self.end(most) - self.from).max(1)
    }

    /// Takes the next slice of at most `most` items into the log. What nobody waits for any more is dropped.
    pub fn slice(&mut self, state: &mut State, world: World<'_>, most: usize) -> Step {
        let mut desk = Desk::new(state, world);
        self.take(&mut desk, most);
        desk.done()
    }

    /// All slices at once, for who takes no turns.
    pub(crate) fn whole(mut self, desk: &mut Desk<'_>) {
        while !self.is_through() {
            self.take(desk, ITEMS_PER_SLICE);
        }
    }

    /// The end of the next slice among the items.
    fn end(&self, most: usize) -> usize {
        let mut bytes = 0;
        let fits = |item: &&Payload| {
            bytes += written_bytes(item);
            bytes <= SLICE_BYTES
        };
        let rest = &self.items[self.from..];
        let count = rest.iter().take(most).take_while(fits).count();
        self.from + count.max(rest.len().min(1))
    }

    fn take(&mut self, desk: &mut Desk<'_>, most: usize) {
        let (run, step) = (self.run, self.step);
        let slot = desk.state.runs.get(&run).and_then(|run| run.steps.get(usize::from(step)));
        if let Some(made) = self.made.take() {
            match (made, slot) {
                (Made::Next(next), Some(StepRun::Due(_))) => desk.became(run, step, next),
                (Made::List(list), Some(StepRun::Fan(fan))) if fan.is_full() => desk.listed(run, step, list),
                _ => return,
            }
            return desk.advance(run);
        }
        let said = match slot {
            Some(StepRun::Due(due)) => Some(due.inputs.len()),
            _ => None,
        };
        // A list that was begun again begins with its first input.
        if said != Some(self.from) && !(said.is_some() && self.from == 0) {
            self.is_fan = false;
            return;
        }
        let end = self.end(most);
        let inputs = self.items[self.from..end].to_vec();
        let from = u32::try_from(self.from).unwrap_or(u32::MAX);
        self.from = end;
        if end < self.items.len() {
            return desk.fact(Event::FanInputs { run, step, from, inputs });
        }
        self.is_fan = false;
        desk.fanned(run, step, from, inputs);
        desk.advance(run);
    }
}

/// Of a payload in a record.
fn written_bytes(payload: &Payload) -> u64 {
    PAYLOAD_BYTES
        + match payload {
            Payload::Inline(json) => json.size_bytes(),
            Payload::Blob(_) => 0,
        }
}

impl Desk<'_> {
    /// Asks for what is made for a step, unless it was asked for.
    pub(crate) fn ask(&mut self, run: RunId, step: u16) {
        if !self.state.asked.contains(&(run, step))
            && let Some(making) = Making::of(self.state, run, step)
        {
            self.state.asked.insert((run, step));
            self.effect(Effect::Make(making));
        }
    }

    /// What becomes of a step whose needs are met.
    pub(crate) fn became(&mut self, run: RunId, step: u16, next: Result<Next, EvaluateFault>) {
        match next {
            Ok(Next::Ready(input)) => {
                let own = self.state.runs.get(&run).map(|run| &run.input);
                let input = Some(input).filter(|input| own != Some(input));
                self.fact(Event::StepReady { run, step, input });
            }
            Ok(Next::Fanned(inputs)) => self.fanned(run, step, 0, inputs),
            Ok(Next::Skipped) => self.fact(Event::StepSkipped { run, step }),
            Err(fault) => self.fault(TaskRef { run, step, item: None }, &fault),
        }
    }

    /// The tasks of a fan-out come to be, of all inputs up to the last; none of them is done at once.
    fn fanned(&mut self, run: RunId, step: u16, from: u32, inputs: Vec<Payload>) {
        let is_empty = from == 0 && inputs.is_empty();
        self.fact(Event::StepFanned { run, step, from, inputs });
        if is_empty {
            let output = Payload::Inline(Json::of::<[u8]>(&[]));
            self.fact(Event::FanDone { run, step, output });
        }
    }

    fn listed(&mut self, run: RunId, step: u16, list: Result<Payload, EvaluateFault>) {
        match list {
            Ok(output) => self.fact(Event::FanDone { run, step, output }),
            Err(fault) => self.fault(TaskRef { run, step, item: None }, &fault),
        }
    }
}
