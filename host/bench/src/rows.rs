//! The rows by number, in the order in which they are measured.

mod alone;
mod cold;
mod flows;
mod hostile;
mod idle;
mod process;
mod sandbox;
mod throughput;

use crate::{Outcome, report::Report, site::Site};

pub(crate) struct Row {
    /// The figures that it yields.
    pub(crate) numbers: &'static [u8],
    pub(crate) what: &'static str,
    pub(crate) run: fn(&Site, &mut Report) -> Outcome<()>,
}

pub(crate) const ROWS: &[Row] = &[
    Row { numbers: &[1, 2], what: "durable sandboxed tasks, 256 in flight", run: throughput::run },
    Row { numbers: &[3], what: "a durable task alone", run: alone::run },
    Row { numbers: &[8, 16], what: "a fresh sandbox in a confined worker", run: sandbox::run },
    Row { numbers: &[6, 7], what: "tm enqueue as a process, and a batch", run: process::run },
    Row { numbers: &[14, 17], what: "an idle pool", run: idle::run },
    Row { numbers: &[9, 10, 11, 12], what: "a million runs: cold start, memory, throughput, turns", run: cold::run },
    Row { numbers: &[4], what: "a flow of 10 steps", run: flows::chain },
    Row { numbers: &[5], what: "10,000 runs of 5 steps at once", run: flows::many },
    Row { numbers: &[13], what: "10,000 steps asleep at once", run: flows::asleep },
    Row { numbers: &[15], what: "from 1 worker to 2", run: flows::scaling },
    Row { numbers: &[18], what: "beside a tenant's hostile tasks", run: hostile::run },
];
