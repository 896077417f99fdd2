//! What a pattern names: an entry id, a task id, a run id, or a glob on entry ids.

use alloc::{string::String, vec::Vec};

use crate::{
    api::DlqAction,
    id::{RunId, TaskRef},
    queue::{decide::letter_of, state::State},
};

/// The pending dead letters that an action names, oldest first.
pub(crate) fn matches(state: &State, action: &DlqAction) -> Vec<(String, TaskRef)> {
    let pattern = action.pattern.as_str();
    let run: Option<RunId> = pattern.parse().ok();
    state
        .letters
        .iter()
        .filter(|(entry, task)| {
            let named = entry.as_str() == pattern
                || run == Some(task.run)
                || state.task_name(**task) == pattern
                || (pattern.contains(['*', '?']) && glob(pattern.as_bytes(), entry.as_bytes()));
            named && filtered(state, **task, action)
        })
        .map(|(entry, task)| (entry.clone(), *task))
        .collect()
}

/// Whether the pattern can name several entries at once.
pub(crate) fn is_glob(pattern: &str) -> bool {
    pattern.contains(['*', '?'])
}

fn filtered(state: &State, task: TaskRef, action: &DlqAction) -> bool {
    let flow = state.runs.get(&task.run).and_then(|run| state.flow_of(run));
    let letter = letter_of(state, task);
    action.flow.as_ref().is_none_or(|id| flow.is_some_and(|flow| flow.def.id == *id))
        && action.code.as_ref().is_none_or(|code| {
            letter.is_some_and(|letter| letter.code == *code || letter.last_code.as_ref() == Some(code))
        })
}

/// `*` is any text, `?` any one byte; linear in practice (the greedy two-pointer match).
pub(crate) fn glob(pattern: &[u8], text: &[u8]) -> bool {
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
