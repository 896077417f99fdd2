//! What is kept for a while although nothing needs it, within two bounds: its age, and the size of all of it together.

use tm_core::time::Millis;

/// How long and how much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// What was changed longer ago goes.
    pub max_age_ms: u64,
    /// All of it together; what was changed longest ago goes first.
    pub max_bytes: u64,
}

/// Something that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept<T> {
    /// When it was changed last, by the file system's clock.
    pub modified: Millis,
    pub bytes: u64,
    pub what: T,
}

/// What goes, oldest first, and what stays.
#[must_use]
pub fn surplus<T>(mut kept: Vec<Kept<T>>, bounds: Bounds, now: Millis) -> (Vec<Kept<T>>, Vec<Kept<T>>) {
    kept.sort_by_key(|kept| kept.modified);
    let mut bytes: u64 = kept.iter().map(|kept| kept.bytes).sum();
    let goes = kept.iter().take_while(|kept| {
        let is_over = now.since(kept.modified) > bounds.max_age_ms || bytes > bounds.max_bytes;
        bytes -= kept.bytes;
        is_over
    });
    let stays = kept.split_off(goes.count());
    (kept, stays)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_old_goes_and_then_the_oldest_until_the_rest_fits() {
        let all = [(500, 10), (100, 40), (300, 20), (400, 30)];
        let kept = || all.iter().map(|&(at, bytes)| Kept { modified: Millis(at), bytes, what: at }).collect::<Vec<_>>();
        for (max_age_ms, max_bytes, goes) in [
            (1000, 100, &[][..]),
            (1000, 99, &[100]),
            (1000, 60, &[100]),
            (1000, 59, &[100, 300]),
            (650, 1000, &[100, 300]),
            (650, 0, &[100, 300, 400, 500]),
            (0, 1000, &[100, 300, 400, 500]),
        ] {
            let (gone, stays) = surplus(kept(), Bounds { max_age_ms, max_bytes }, Millis(1000));
            assert_eq!(gone.iter().map(|kept| kept.what).collect::<Vec<_>>(), goes, "{max_age_ms} {max_bytes}");
            assert_eq!(gone.len() + stays.len(), 4);
        }
        let ahead = vec![Kept { modified: Millis(2000), bytes: 1, what: () }];
        assert_eq!(surplus(ahead, Bounds { max_age_ms: 0, max_bytes: 1 }, Millis(1000)).1.len(), 1, "of a clock ahead");
    }
}
