//! One ended run as one line of a results segment: `{"c":"<crc32c>","tenant":…,"flow":…,"run":{…}}`.
//!
//! The tenant and the flow stand in the line itself, so that a record says whose it is without the log.

use serde::{Deserialize, Serialize};
use tm_core::queue::{results::key_hash, run::FinishedRun, state::KeyName};

use super::super::{
    disk::{Disk, DiskError},
    sealed::{seal_into, unseal},
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
    /// Reads a line with its newline; `None` when it is not whole, byte for byte.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        unseal(line)
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
