//! One ended run as one line of a results segment: `{"c":"<crc32c>","tenant":…,"flow":…,"run":{…}}`.
//!
//! The tenant and the flow stand in the line itself, so that a record says whose it is without the log.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, de::IgnoredAny};
use tm_core::{
    queue::{results::key_hash, run::FinishedRun, state::KeyName},
    record::codec::without_choices,
};

use super::super::{
    disk::{Disk, DiskError},
    sealed::{object, seal_into},
    segment::LINE_MAX_BYTES,
};

/// First read of a record; most are shorter.
const FIRST_BYTES: usize = 4096;

/// An ended run with its scope, to be written.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ResultLine<'a> {
    pub tenant: &'a str,
    pub flow: &'a str,
    pub run: &'a FinishedRun,
}

/// The same, as it was read.
#[derive(Debug, Deserialize)]
pub(super) struct Record {
    pub(super) tenant: String,
    pub(super) flow: String,
    pub(super) run: FinishedRun,
}

/// What a record of every format has, so that an older program can tell it from damage.
#[derive(Deserialize)]
struct Form {
    #[serde(rename = "tenant")]
    _tenant: String,
    #[serde(rename = "flow")]
    _flow: String,
    #[serde(rename = "run")]
    _run: BTreeMap<String, IgnoredAny>,
}

/// Why a line is no record.
#[derive(Debug)]
pub(super) enum BadRecord {
    /// It is not what was written.
    Damaged,
    /// It is, with the form of a record: of a program that writes what this one cannot read. In words.
    Unknown(String),
}

impl ResultLine<'_> {
    /// Appends the line.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        seal_into(self, out);
    }

    /// The hash of the run's key, when it has one.
    pub(super) fn key_hash(&self, secret: &[u8; 16]) -> Option<u64> {
        Some(key_hash(secret, self.tenant, self.flow, self.run.key.as_deref()?))
    }
}

impl Record {
    /// Reads a line with its newline.
    pub(super) fn parse(line: &[u8]) -> Result<Self, BadRecord> {
        let object = object(line).ok_or(BadRecord::Damaged)?;
        serde_json::from_slice(&object).map_err(|error| match serde_json::from_slice::<Form>(&object) {
            Ok(_) => BadRecord::Unknown(without_choices(&error)),
            Err(_) => BadRecord::Damaged,
        })
    }

    pub(super) fn line(&self) -> ResultLine<'_> {
        ResultLine { tenant: &self.tenant, flow: &self.flow, run: &self.run }
    }

    pub(super) fn has_key(&self, (tenant, flow, key): &KeyName) -> bool {
        *self.tenant == **tenant && self.flow == *flow && self.run.key.as_ref() == Some(key)
    }
}

/// The line that begins at `offset`, with its newline; empty when there is none.
pub(super) fn line_at<D: Disk>(disk: &D, file: &D::File, offset: u64) -> Result<Vec<u8>, DiskError> {
    let mut line = Vec::new();
    let mut more = FIRST_BYTES;
    loop {
        let held = line.len();
        line.resize(held + more, 0);
        let got = disk.read_at(file, offset + held as u64, &mut line[held..])?;
        line.truncate(held + got);
        if let Some(end) = memchr::memchr(b'\n', &line[held..]) {
            line.truncate(held + end + 1);
            return Ok(line);
        }
        if got < more || line.len() > LINE_MAX_BYTES {
            return Ok(Vec::new());
        }
        more = line.len();
    }
}
