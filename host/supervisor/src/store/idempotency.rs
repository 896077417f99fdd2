//! `idempotency.json`: the newest keys, for people and tools. Derived from the log, never read back.

use serde::Serialize;
use tm_core::{api::RunState, id::RunId, time::Millis};

use super::disk::{Disk, Later};

const PATH: &str = "idempotency/idempotency.json";
/// Keys in the file, at most.
pub const ROWS_MAX: usize = 10_000;
/// While keys change, the file is written at most this often.
pub const EVERY_MS: u64 = 30_000;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyRow {
    pub tenant: String,
    pub flow_id: String,
    pub key: String,
    pub run_id: RunId,
    pub state: RunState,
    /// When the key is free again; none while the run is unfinished.
    pub expires_at: Option<Millis>,
}

#[derive(Serialize)]
struct Snapshot {
    written_at: Millis,
    keys: Vec<KeyRow>,
}

pub struct KeyFile<D: Disk> {
    disk: D,
    changed: bool,
    written_at: Option<Millis>,
}

impl<D: Disk> KeyFile<D> {
    #[must_use]
    pub const fn new(disk: D) -> Self {
        Self { disk, changed: true, written_at: None }
    }

    /// A key was taken, ended or forgotten.
    pub const fn note(&mut self) {
        self.changed = true;
    }

    /// When the file is to be written next; none while nothing changed.
    #[must_use]
    pub fn due_at(&self) -> Option<Millis> {
        self.changed.then(|| self.written_at.map_or(Millis(0), |at| at.plus(EVERY_MS)))
    }

    /// Writes the file in the background; takes at most [`ROWS_MAX`] rows.
    pub fn write(&mut self, now: Millis, newest_first: impl Iterator<Item = KeyRow>) {
        let snapshot = Snapshot { written_at: now, keys: newest_first.take(ROWS_MAX).collect() };
        let mut bytes = serde_json::to_vec(&snapshot).unwrap_or_default();
        bytes.push(b'\n');
        self.disk.later(Later::Derive { path: PATH.into(), bytes });
        (self.changed, self.written_at) = (false, Some(now));
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::disk::{MemDisk, read_whole},
        *,
    };

    #[test]
    fn the_file_is_bounded_and_written_at_most_every_thirty_seconds() {
        let disk = MemDisk::default();
        let mut file = KeyFile::new(disk.clone());
        assert_eq!(file.due_at(), Some(Millis(0)));
        let row = |n: u32| KeyRow {
            tenant: "default".into(),
            flow_id: "f".into(),
            key: n.to_string(),
            run_id: RunId(n.into()),
            state: RunState::Active,
            expires_at: None,
        };
        file.write(Millis(1000), (0..20_000).map(row));
        assert_eq!(file.due_at(), None);
        file.note();
        assert_eq!(file.due_at(), Some(Millis(31_000)));
        let json: serde_json::Value = serde_json::from_slice(&read_whole(&disk, PATH, 1 << 30).unwrap()).unwrap();
        assert_eq!(json["keys"].as_array().unwrap().len(), ROWS_MAX);
        assert_eq!(json["keys"][0]["key"], "0");
    }
}
