//! The order that `needs` puts the steps of a flow into, and the cycles for which there is none.

use alloc::{
    collections::{BTreeMap, BTreeSet},
    string::String,
    vec,
    vec::Vec,
};

use crate::flow::spec::FlowSpec;

/// Cycles that are named at once.
const CYCLES_MAX: usize = 16;

/// The places of the steps so that each stands after what it needs; otherwise in the order of the text.
///
/// Steps of a cycle, and needs that do not exist, are left out: [`validate`](super::validate::validate) names them.
#[must_use]
pub fn topological_order(flow: &FlowSpec) -> Vec<usize> {
    let places: BTreeMap<&str, usize> =
        flow.steps.iter().enumerate().rev().map(|(place, step)| (step.id.as_str(), place)).collect();
    let mut open: Vec<usize> = vec![0; flow.steps.len()];
    let mut dependents: Vec<Vec<usize>> = vec![Vec::new(); flow.steps.len()];
    for (place, step) in flow.steps.iter().enumerate() {
        let needs: BTreeSet<usize> = step.needs.iter().filter_map(|need| places.get(need.as_str()).copied()).collect();
        open[place] = needs.len();
        needs.into_iter().for_each(|need| dependents[need].push(place));
    }
    let mut ready: BTreeSet<usize> = (0..open.len()).filter(|&place| open[place] == 0).collect();
    let mut order = Vec::with_capacity(open.len());
    while let Some(place) = ready.pop_first() {
        order.push(place);
        for &dependent in &dependents[place] {
            open[dependent] -= 1;
            if open[dependent] == 0 {
                ready.insert(dependent);
            }
        }
    }
    order
}

/// Cycles, each by the place of one of its steps and its path, `a needs b needs a`: without the last need of each
/// there would be none. At most [`CYCLES_MAX`] of them.
pub(super) fn cycles(flow: &FlowSpec, places: &BTreeMap<&str, usize>) -> Vec<(usize, String)> {
    let needs = |place: usize| flow.steps[place].needs.iter().filter_map(|need| places.get(need.as_str()).copied());
    let mut found = Vec::new();
    let mut seen: BTreeSet<usize> = BTreeSet::new();
    for first in 0..flow.steps.len() {
        if !seen.insert(first) {
            continue;
        }
        // The way from the first step down to where the walk is, each with the needs that it has not looked at.
        let mut trail = vec![(first, needs(first).collect::<BTreeSet<_>>())];
        while let Some((_, open)) = trail.last_mut() {
            let Some(next) = open.pop_first() else {
                trail.pop();
                continue;
            };
            if let Some(start) = trail.iter().position(|&(place, _)| place == next) {
                let steps = trail[start..].iter().map(|&(place, _)| place).chain([next]);
                let names: Vec<&str> = steps.map(|place| flow.steps[place].id.as_str()).collect();
                found.push((next, names.join(" needs ")));
                if found.len() == CYCLES_MAX {
                    return found;
                }
            } else if seen.insert(next) {
                trail.push((next, needs(next).collect()));
            }
        }
    }
    found
}
