//! `queue.meta`: which segments there are. Derived, never the truth, and the witness of files that are gone.
//!
//! Segments are numbered without gaps from the oldest to the active one. A rotation writes this file in the background
//! once the new segment is durable, so that it never names a segment that was not there.

use serde::{Deserialize, Serialize};
use tm_core::record::codec::{FORMAT, SEGMENTS_END};

use super::{
    disk::{Disk, read_whole},
    log::LogError,
    recover::Found,
    sealed::{seal, unseal},
};

pub(super) const META: &str = "queue/queue.meta";
const META_MAX_BYTES: u64 = 64 * 1024;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Meta {
    pub(super) format: u32,
    pub(super) oldest_segment: u64,
    pub(super) active_segment: u64,
    /// The active segment's file was made at least this long.
    pub(super) room_bytes: u64,
}

impl Meta {
    /// The file when it is whole, by its own checksum.
    ///
    /// # Errors
    /// [`LogError::Newer`].
    pub(super) fn load<D: Disk>(disk: &D) -> Result<Option<Self>, LogError> {
        let Ok(bytes) = read_whole(disk, META, META_MAX_BYTES) else { return Ok(None) };
        let Some(value) = unseal::<serde_json::Value>(&bytes) else { return Ok(None) };
        match value.get("format").and_then(serde_json::Value::as_u64) {
            Some(format) if format > u64::from(FORMAT) => {
                Err(LogError::Newer { file: disk.shown(META), format, known: FORMAT })
            }
            _ => Ok(serde_json::from_value(value).ok().filter(|meta: &Self| meta.active_segment < SEGMENTS_END)),
        }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        seal(self)
    }

    /// What it says of the same segments as `other`; the room may have grown since.
    pub(super) fn names_the_same(&self, other: &Self) -> bool {
        (self.format, self.oldest_segment, self.active_segment)
            == (other.format, other.oldest_segment, other.active_segment)
    }
}

/// What opening makes of the segments: which one it goes on with, and what the file says then.
pub(super) struct Opened {
    /// The newest one is written to again; otherwise a new one begins.
    pub(super) resumes: bool,
    pub(super) meta: Meta,
}

/// A segment that is missing at the end is never begun a second time: the gap in the numbers goes on telling.
pub(super) fn opened(meta: Option<&Meta>, found: &[Found]) -> Opened {
    let newest = found.last().map_or(0, |last| last.no);
    let known = meta.map_or(0, |meta| meta.active_segment);
    let resumes = found.last().is_some_and(|last| !last.foreign) && known <= newest;
    let active_segment = if resumes { newest } else { newest.max(known) + 1 };
    let first = found.first().map_or(active_segment, |first| first.no);
    // Until a repair, or until nothing before them is needed, segments that are missing at the start stay missing.
    let oldest_segment = meta.map_or(first, |meta| meta.oldest_segment.min(first));
    let room_bytes = found.last().filter(|_| resumes).map_or(0, |last| last.file_bytes);
    Opened { resumes, meta: Meta { format: FORMAT, oldest_segment, active_segment, room_bytes } }
}
