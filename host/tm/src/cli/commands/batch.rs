//! `tm enqueue --batch`: JSON lines in, one reply line each, in order.
//!
//! Lines that have arrived go out together, at most [`CHUNK_MAX`]; their replies are printed before reading may block: a
//! slow producer sees the reply of each line before it writes the next, a fast one is pipelined.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, BufWriter, Read as _, Write},
    path::Path,
};

use serde::{Deserialize, Serialize};
use tm_core::{
    api::{EnqueueRequest, Reply, Request},
    id::RunId,
    json::Json,
    limits::{INPUT_MAX_BYTES, PRIORITY_MAX},
};

use super::enqueue::Template;
use crate::cli::{
    client::Session,
    exit::{End, Failure, Outcome, reason},
    render, values,
};

const CHUNK_MAX: usize = 512;
const CHUNK_MAX_BYTES: usize = 1024 * 1024;
/// A line: an input with its envelope.
const LINE_MAX_BYTES: u64 = INPUT_MAX_BYTES + 64 * 1024;

/// One line of a batch.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Line {
    #[serde(default)]
    input: Option<Json>,
    #[serde(default)]
    idempotency_key: Option<String>,
    #[serde(default)]
    headers: Option<Json>,
    #[serde(default)]
    priority: Option<u8>,
    #[serde(default)]
    delay: Option<String>,
}

impl Line {
    /// This line's run: what the line does not say, the flags say.
    pub(crate) fn over(self, template: &Template) -> Result<(Template, Json), Failure> {
        let mut own = template.clone();
        if let Some(headers) = self.headers {
            own.headers = Some(values::object(headers.get(), "headers")?);
        }
        if let Some(delay) = self.delay {
            let delay_ms =
                values::duration_ms(&delay).map_err(|reason| Failure::usage(format!("delay '{delay}': {reason}")))?;
            (own.delay_ms, own.at) = (Some(delay_ms), None);
        }
        if let Some(priority) = self.priority {
            if priority > PRIORITY_MAX {
                return Err(Failure::usage(format!("priority {priority} is not within 0 to {PRIORITY_MAX}")));
            }
            own.priority = Some(priority);
        }
        if let Some(key) = self.idempotency_key {
            own.idempotency_key = Some(values::key(&key, "idempotency_key")?);
        }
        let input = self.input.ok_or_else(|| Failure::usage("the line has no 'input'"))?;
        Ok((own, values::is_object(input, "input")?))
    }
}

#[derive(Serialize)]
struct ReplyLine<'a> {
    id: Option<RunId>,
    status: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

/// Opens the file of a batch; `-` is standard input.
///
/// # Errors
/// The file cannot be opened.
pub(crate) fn open(path: &Path) -> Result<BufReader<Box<dyn io::Read>>, Failure> {
    let source: Box<dyn io::Read> =
        if path == Path::new("-") {
            Box::new(io::stdin())
        } else {
            Box::new(File::open(path).map_err(|error| {
                Failure::usage(format!("cannot read the batch {}: {}", path.display(), reason(&error)))
            })?)
        };
    Ok(BufReader::with_capacity(CHUNK_MAX_BYTES, source))
}

/// Sends every line and prints every reply; exit 1 when a line was refused.
pub(crate) fn run(
    mut source: BufReader<Box<dyn io::Read>>,
    session: &mut Session<'_>,
    mut request: impl FnMut(Line) -> Result<EnqueueRequest, Failure>,
) -> Outcome {
    let mut out = BufWriter::new(io::stdout().lock());
    let (mut text, mut number, mut refused) = (Vec::new(), 0_u64, 0_u64);
    loop {
        let mut chunk = Vec::new();
        let mut bytes = 0;
        let mut problem = Ok(());
        let mut ended = false;
        while chunk.len() < CHUNK_MAX && bytes < CHUNK_MAX_BYTES && (chunk.is_empty() || has_line(&source)) {
            number += 1;
            match read_line(&mut source, &mut text, number) {
                Ok(0) => ended = true,
                Ok(_) if text.trim_ascii().is_empty() => continue,
                Ok(length) => {
                    let line = parse(&text);
                    chunk.push(line.and_then(&mut request).map_err(|why| format!("line {number}: {why}")));
                    bytes += length;
                    continue;
                }
                Err(failure) => problem = Err(failure),
            }
            break;
        }
        refused += answer(chunk, session, &mut out)?;
        out.flush()?;
        problem?;
        if ended {
            return Ok(if refused == 0 { End::Done } else { End::Failed });
        }
    }
}

/// What is wrong with a line, with the column: its number in the batch is the caller's to say.
fn parse(text: &[u8]) -> Result<Line, Failure> {
    serde_json::from_slice(text).map_err(|error| {
        let whole = error.to_string();
        let why = whole.split(" at line ").next().unwrap_or_default();
        Failure::usage(if error.column() == 0 { why.to_owned() } else { format!("column {}: {why}", error.column()) })
    })
}

/// Whether a whole line can be read without waiting for the producer.
fn has_line(source: &BufReader<Box<dyn io::Read>>) -> bool {
    source.buffer().contains(&b'\n')
}

fn read_line(source: &mut impl BufRead, text: &mut Vec<u8>, number: u64) -> Result<usize, Failure> {
    text.clear();
    let length = source
        .take(LINE_MAX_BYTES + 1)
        .read_until(b'\n', text)
        .map_err(|error| Failure::io("read the batch at", Path::new(&format!("line {number}")), &error))?;
    if length as u64 > LINE_MAX_BYTES {
        return Err(values::too_large(&format!("line {number} of the batch")));
    }
    Ok(length)
}

/// Enqueues what can be, and prints one line each, in order. Returns how many were refused.
fn answer(
    chunk: Vec<Result<EnqueueRequest, String>>,
    session: &mut Session<'_>,
    out: &mut impl Write,
) -> Result<u64, Failure> {
    let mut places = Vec::with_capacity(chunk.len());
    let mut requests = Vec::with_capacity(chunk.len());
    for line in chunk {
        places.push(line.map(|request| requests.push(Request::Enqueue(Box::new(request)))));
    }
    let mut replies = Vec::with_capacity(requests.len());
    let mut asked = session.ask_all(&requests, &mut replies);
    let mut replies = replies.into_iter();
    let mut refused = 0;
    for place in places {
        let line = match place {
            Err(why) => Err(why),
            Ok(()) => match replies.next() {
                Some(Reply::Enqueued { run }) => Ok((run, "enqueued")),
                Some(Reply::Duplicate { run, .. }) => Ok((run, "duplicate")),
                Some(Reply::Error(error)) => Err(Failure::from(error).message),
                Some(other) => return Err(Failure::unexpected("an enqueue", &other)),
                None => {
                    // What was answered before has been printed.
                    out.flush()?;
                    std::mem::replace(&mut asked, Ok(()))?;
                    return Err(Failure::failed("the supervisor did not answer every line"));
                }
            },
        };
        let line = match &line {
            Ok((run, status)) => ReplyLine { id: Some(*run), status, error: None },
            Err(why) => {
                refused += 1;
                ReplyLine { id: None, status: "refused", error: Some(why) }
            }
        };
        render::json_line(out, &line)?;
    }
    asked?;
    Ok(refused)
}
