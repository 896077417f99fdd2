//! A failing history made small: as few turns as bisection finds, then without every kind of fault that it does not need.

use crate::{
    faults::Fault,
    history::Plan,
    soak::{Failure, attempt},
};

/// The smallest history found that fails, perhaps in another way than the first.
pub(crate) fn shrink(failure: Failure) -> Failure {
    let mut least = fewer_turns(failure);
    for fault in Fault::ALL {
        let plan = Plan { without: least.plan.without.and(fault), ..least.plan };
        if let Err(failed) = attempt(plan) {
            least = failed;
        }
    }
    fewer_turns(least)
}

fn fewer_turns(failure: Failure) -> Failure {
    let mut least = failure;
    // What came after the turn that failed never happened.
    let turns = least.plan.turns.min(least.turn + 1);
    if let Err(failed) = attempt(Plan { turns, ..least.plan }) {
        least = failed;
    }
    let (mut passes, mut fails) = (0, least.plan.turns);
    while passes + 1 < fails {
        let middle = passes.midpoint(fails);
        match attempt(Plan { turns: middle, ..least.plan }) {
            Ok(_) => passes = middle,
            Err(failed) => (fails, least) = (middle, failed),
        }
    }
    least
}

/// The one command that runs this history again.
pub(crate) fn command(plan: &Plan) -> String {
    let Plan { seed, turns, without, points_every } = plan;
    let mut command = format!("./scripts/soak --seed {seed} --turns {turns} --points {points_every}");
    let without = without.to_string();
    if !without.is_empty() {
        command.push_str(&format!(" --without {without}"));
    }
    command
}
