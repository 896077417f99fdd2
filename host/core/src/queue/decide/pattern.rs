//! What a pattern names: an entry id, a task id, a run id, or a glob on entry ids.

use alloc::{string::String, vec::Vec};

use crate::{
    api::DlqAction,
    id::{RunId, TaskRef},
    queue::{decide::letter_of, state::State},
};

/// Whether the pattern can name several entries at once.
pub(crate) fn is_glob(pattern: &str) -> bool {
    pattern.contains(['*', '?'])
}

/// What every entry that a glob matches begins with.
pub(crate) fn literal_start(pattern: &str) -> &str {
    pattern.split(['*', '?']).next().unwrap_or("")
}

/// The pending dead letters that an action without a glob names, oldest first: one, or those of one run.
pub(crate) fn named(state: &State, action: &DlqAction) -> Vec<(String, TaskRef)> {
    let pattern = action.pattern.as_str();
    let mut found: Vec<(String, TaskRef)> = match state.letters.get(pattern) {
        Some(task) => alloc::vec![(pattern.into(), *task)],
        None => {
            let run = pattern.split('.').next().and_then(|id| id.parse::<RunId>().ok());
            let run = run.and_then(|run| state.runs.get(&run));
            let is_run = pattern.parse::<RunId>().is_ok();
            let letters = run.into_iter().flat_map(|run| run.letters());
            letters
                .filter(|(task, _)| is_run || state.task_name(*task) == pattern)
                .map(|(task, letter)| (letter.entry.clone(), task))
                .collect()
        }
    };
    found.retain(|(_, task)| is_wanted(state, *task, action));
    found.sort_unstable();
    found
}

/// Whether an action with a glob names this pending dead letter.
pub(crate) fn matches(state: &State, action: &DlqAction, entry: &str, task: TaskRef) -> bool {
    glob(action.pattern.as_bytes(), entry.as_bytes()) && is_wanted(state, task, action)
}

fn is_wanted(state: &State, task: TaskRef, action: &DlqAction) -> bool {
    let is_of_flow = |id: &String| {
        let flow = state.runs.get(&task.run).and_then(|run| state.flow_of(run));
        flow.is_some_and(|flow| flow.def.id == *id)
    };
    let has_code = |code: &String| {
        letter_of(state, task).is_some_and(|letter| letter.code == *code || letter.last_code.as_ref() == Some(code))
    };
    action.flow.as_ref().is_none_or(is_of_flow) && action.code.as_ref().is_none_or(has_code)
}

/// `*` is any text, `?` any one byte; linear in practice (the greedy two-pointer match).
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        if p < pattern.len() && (pattern[p] == b'?' || pattern[p] == text[t]) && pattern[p] != b'*' {
            p += 1;
            t += 1;
        } else if p < pattern.len() && pattern[p] == b'*' {
            star = Some((p, t));
            p += 1;
        } else if let Some((at, from)) = star {
            p = at + 1;
            t = from + 1;
            star = Some((at, from + 1));
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&b| b == b'*')
}

#[cfg(test)]
mod tests {
    use super::glob;

    #[test]
    fn globs_match_whole_ids() {
        assert!(glob(b"dlq-17*", b"dlq-1700-a") && glob(b"*", b"") && glob(b"a*b*c", b"axxbyyc") && glob(b"?", b"x"));
        assert!(!glob(b"dlq-17", b"dlq-1700-a") && !glob(b"a*b", b"abc") && !glob(b"?", b""));
    }
}
