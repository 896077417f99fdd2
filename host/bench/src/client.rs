//! The load generator: requests of the product's own protocol, pipelined on a few connections by one thread.
//!
//! A run is enqueued on one connection and waited for on another, since answers come in the order of the requests: each
//! enqueue's answer is its durable acceptance, each wait's answer the durable result.

use std::{
    collections::VecDeque,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::{fd::AsFd as _, unix::net::UnixStream},
    path::Path,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, poll};
use tm_core::{
    api::{EnqueueRequest, Reply, Request, RunState},
    json::Json,
};

use crate::{Outcome, percentiles::Percentiles};

const SOCKET: &str = "tm.sock";
const READ_BYTES: usize = 64 * 1024;

/// One request at a time.
pub(crate) struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// # Errors
    /// When nobody listens.
    pub(crate) fn connect(queue: &Path) -> Outcome<Self> {
        Ok(Self { stream: BufReader::new(UnixStream::connect(queue.join(SOCKET))?) })
    }

    /// # Errors
    /// When the connection fails, or the request is refused.
    pub(crate) fn call(&mut self, request: &Request) -> Outcome<Reply> {
        self.stream.get_mut().write_all(&line(request)?)?;
        let mut text = String::new();
        self.stream.read_line(&mut text)?;
        match serde_json::from_str(&text)? {
            Reply::Error(error) => Err(error.message.into()),
            reply => Ok(reply),
        }
    }
}

fn line(request: &Request) -> Outcome<Vec<u8>> {
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    Ok(line)
}

/// What is enqueued again and again.
pub(crate) struct Work<'a> {
    pub(crate) tenant: &'a str,
    pub(crate) flow: &'a str,
    pub(crate) input: &'a str,
    pub(crate) priority: Option<u8>,
    pub(crate) delay_ms: Option<u64>,
}

impl<'a> Work<'a> {
    pub(crate) fn of(flow: &'a str, input: &'a str) -> Self {
        Self { tenant: "default", flow, input, priority: None, delay_ms: None }
    }

    fn line(&self) -> Outcome<Vec<u8>> {
        line(&Request::Enqueue(Box::new(EnqueueRequest {
            delay_ms: self.delay_ms,
            priority: self.priority,
            ..EnqueueRequest::of(self.tenant, self.flow, Json::parse(self.input)?)
        })))
    }
}

/// When the generator stops letting new runs in.
#[derive(Clone, Copy)]
pub(crate) enum Until {
    /// This long after the warm-up, of which nothing is counted.
    Passed { warm_up: Duration, span: Duration },
    /// So many runs.
    Count(u64),
}

pub(crate) struct Measured {
    pub(crate) finished: u64,
    pub(crate) span: Duration,
    /// From the enqueue to the answer that tells the durable result.
    pub(crate) latency: Percentiles,
}

impl Measured {
    pub(crate) fn per_second(&self) -> f64 {
        self.finished as f64 / self.span.as_secs_f64()
    }
}

/// A pair of connections.
struct Lane {
    enqueues: Pipe,
    waits: Pipe,
    /// Enqueues that are not answered yet, then waits, oldest first.
    asked: VecDeque<Instant>,
    waiting: VecDeque<Instant>,
}

/// One connection, its unread rest and what is to be sent.
struct Pipe {
    stream: UnixStream,
    rest: Vec<u8>,
    out: Vec<u8>,
}

impl Pipe {
    fn connect(queue: &Path) -> Outcome<Self> {
        Ok(Self { stream: UnixStream::connect(queue.join(SOCKET))?, rest: Vec::new(), out: Vec::new() })
    }

    fn send(&mut self) -> Outcome<()> {
        self.stream.write_all(&self.out)?;
        self.out.clear();
        Ok(())
    }

    /// What has arrived, line by line.
    fn receive(&mut self, buffer: &mut [u8], mut each: impl FnMut(&[u8]) -> Outcome<()>) -> Outcome<()> {
        let count = self.stream.read(buffer)?;
        if count == 0 {
            return Err("the supervisor closed the connection".into());
        }
        self.rest.extend_from_slice(&buffer[..count]);
        let Some(end) = self.rest.iter().rposition(|&byte| byte == b'\n') else { return Ok(()) };
        for line in self.rest[..end].split(|&byte| byte == b'\n') {
            each(line)?;
        }
        self.rest.drain(..=end);
        Ok(())
    }
}

/// Keeps `in_flight` runs under way on `lanes` pairs of connections, each counted when its result is durable.
/// `warm` is called when counting begins.
///
/// # Errors
/// When a request is refused, a run does not succeed, or the connection fails.
pub(crate) fn load(
    queue: &Path,
    work: &Work<'_>,
    in_flight: usize,
    lanes: usize,
    until: Until,
    warm: &mut dyn FnMut() -> Outcome<()>,
) -> Outcome<Measured> {
    let request = work.line()?;
    let mut buffer = vec![0; READ_BYTES];
    let mut lanes = (0..lanes.min(in_flight))
        .map(|_| {
            let (enqueues, waits) = (Pipe::connect(queue)?, Pipe::connect(queue)?);
            Ok(Lane { enqueues, waits, asked: VecDeque::new(), waiting: VecDeque::new() })
        })
        .collect::<Outcome<Vec<Lane>>>()?;
    let (warm_up, span, mut left) = match until {
        Until::Passed { warm_up, span } => (warm_up, span, u64::MAX),
        Until::Count(count) => (Duration::ZERO, Duration::MAX, count),
    };
    let mut free = in_flight;
    let start = Instant::now();
    let mut measured_from: Option<Instant> = None;
    let (mut finished, mut latency, mut under_way) = (0_u64, Percentiles::default(), 0_usize);
    loop {
        let now = Instant::now();
        if measured_from.is_none() && now - start >= warm_up {
            warm()?;
            (measured_from, finished, latency) = (Some(Instant::now()), 0, Percentiles::default());
        }
        if measured_from.is_some_and(|from| now - from >= span) || (left == 0 && under_way == 0) {
            let span = measured_from.map_or(Duration::ZERO, |from| from.elapsed());
            return Ok(Measured { finished, span, latency });
        }
        let shares = lanes.len();
        for (place, lane) in lanes.iter_mut().enumerate() {
            let share = free / shares + usize::from(place < free % shares);
            for _ in 0..share.min(usize::try_from(left).unwrap_or(usize::MAX)) {
                lane.enqueues.out.extend_from_slice(&request);
                lane.asked.push_back(now);
                left -= 1;
                under_way += 1;
            }
            lane.enqueues.send()?;
        }
        free = 0;
        let mut ready: Vec<PollFd<'_>> = lanes
            .iter()
            .flat_map(|lane| [lane.enqueues.stream.as_fd(), lane.waits.stream.as_fd()])
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        poll(&mut ready, None)?;
        let readable: Vec<bool> = ready.iter().map(|fd| !fd.revents().is_empty()).collect();
        for (lane, readable) in lanes.iter_mut().zip(readable.chunks_exact(2)) {
            let Lane { enqueues, waits, asked, waiting } = lane;
            if readable[1] {
                waits.receive(&mut buffer, |line| {
                    succeeded(line)?;
                    let since = waiting.pop_front().ok_or("an answer to no question")?;
                    latency.add(since.elapsed());
                    (finished, free, under_way) = (finished + 1, free + 1, under_way - 1);
                    Ok(())
                })?;
            }
            if readable[0] {
                enqueues.receive(&mut buffer, |line| {
                    // Only the id is needed of `{"Enqueued":{"run":"ID"}}`.
                    let id =
                        line.strip_prefix(br#"{"Enqueued":{"run":""#).and_then(|rest| rest.strip_suffix(br#""}}"#));
                    let id = id.ok_or_else(|| format!("not enqueued: {}", String::from_utf8_lossy(line)))?;
                    waits.out.extend_from_slice(br#"{"Wait":{"run":""#);
                    waits.out.extend_from_slice(id);
                    waits.out.extend_from_slice(b"\"}}\n");
                    waiting.push_back(asked.pop_front().ok_or("an answer to no question")?);
                    Ok(())
                })?;
                waits.send()?;
            }
        }
    }
}

fn succeeded(line: &[u8]) -> Outcome<()> {
    // The whole answer is read only when it is not the expected one.
    if line.starts_with(br#"{"Ended":{"#) && line.windows(20).any(|part| part == br#""status":"succeeded""#) {
        return Ok(());
    }
    match serde_json::from_slice::<Reply>(line)? {
        Reply::Ended(end) if end.status == RunState::Succeeded => Ok(()),
        other => Err(format!("a run did not succeed: {other:?}").into()),
    }
}

/// Enqueues `count` runs without waiting for their results.
///
/// # Errors
/// When one is refused.
pub(crate) fn enqueue(queue: &Path, work: &Work<'_>, count: usize) -> Outcome<()> {
    const AHEAD: usize = 512;
    let request = work.line()?;
    let mut pipe = Pipe::connect(queue)?;
    let mut buffer = vec![0; READ_BYTES];
    let (mut sent, mut answered) = (0, 0);
    while answered < count {
        while sent < count && sent - answered < AHEAD {
            pipe.out.extend_from_slice(&request);
            sent += 1;
        }
        pipe.send()?;
        pipe.receive(&mut buffer, |line| {
            answered += 1;
            if line.starts_with(br#"{"Enqueued""#) {
                return Ok(());
            }
            Err(format!("not enqueued: {}", String::from_utf8_lossy(line)).into())
        })?;
    }
    Ok(())
}
