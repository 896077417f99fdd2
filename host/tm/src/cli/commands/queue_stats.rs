//! `tm queue stats`: how much waits and how long.

use std::{
    io::{self, Write as _},
    thread,
    time::Duration,
};

use tm_core::api::{Reply, Request};

use crate::cli::{
    args::StatsArgs,
    client::{Need, Session},
    exit::{End, Failure, Outcome},
    render,
};

pub(crate) fn run(args: &StatsArgs) -> Outcome {
    loop {
        // Opened anew each time: between two looks a supervisor may start or stop.
        let mut session = Session::open(&args.folders, args.backend.queue, Need::Read)?;
        match session.ask(&Request::Stats)? {
            Reply::Stats(stats) => {
                let mut out = io::stdout().lock();
                render::stats(&mut out, &stats, args.json.json)?;
                out.flush()?;
            }
            other => return Err(Failure::unexpected("stats", &other)),
        }
        drop(session);
        let Some(interval_ms) = args.watch else { return Ok(End::Done) };
        thread::sleep(Duration::from_millis(interval_ms));
    }
}
