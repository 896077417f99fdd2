//! The client's side of `tm.sock`, blocking: for the command line.

use std::{
    io::{self, BufRead, BufReader, IoSlice, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tm_core::{
    api::{Reply, Request},
    limits::{API_LINE_MAX_BYTES, PACKET_MAX_FDS},
};

use super::listen::{self, SOCKET_NAME};

/// Requests ahead of their answers; below what the supervisor takes of one connection, so that it always reads.
const PIPELINED_MAX: usize = 512;

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no socket: nobody owns the queue, or its owner is only starting. Decided by the queue's lock.
    #[error("no supervisor runs for {}", queue_dir.display())]
    NotRunning { queue_dir: PathBuf },
    /// The socket of a supervisor that is gone; the next one replaces it.
    #[error("the supervisor of {} is gone and left its socket", queue_dir.display())]
    StaleSocket { queue_dir: PathBuf },
    #[error("cannot reach the supervisor at {}: {source}", path.display())]
    Connect { path: PathBuf, source: io::Error },
    /// The supervisor stops, or died before it read the request: nothing was done.
    #[error("the supervisor stops and did not take the request")]
    NotTaken,
    /// It is not known whether the request was carried out.
    #[error("the supervisor closed the connection before it answered")]
    Closed,
    #[error("the connection to the supervisor failed: {0}")]
    Io(#[from] io::Error),
    #[error("the request has {size_bytes} bytes, at most {API_LINE_MAX_BYTES} are allowed")]
    TooLarge { size_bytes: usize },
    #[error("the supervisor's answer is not understood: {0}")]
    Answer(serde_json::Error),
    #[error("the request cannot be written as JSON: {0}")]
    Request(serde_json::Error),
}

/// One connection.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the supervisor of a queue.
    ///
    /// # Errors
    /// [`ClientError::NotRunning`], [`ClientError::StaleSocket`], or what the system said.
    pub fn connect(queue_dir: &Path) -> Result<Self, ClientError> {
        match listen::connect(queue_dir) {
            Ok(stream) => Ok(Self { stream: BufReader::with_capacity(64 * 1024, stream) }),
            Err(error) => Err(match error.kind() {
                io::ErrorKind::NotFound => ClientError::NotRunning { queue_dir: queue_dir.to_owned() },
                io::ErrorKind::ConnectionRefused => ClientError::StaleSocket { queue_dir: queue_dir.to_owned() },
                _ => ClientError::Connect { path: queue_dir.join(SOCKET_NAME), source: error },
            }),
        }
    }

    /// One request and its answer.
    ///
    /// # Errors
    /// When the connection fails; a refusal is an answer ([`Reply::Error`]).
    pub fn call(&mut self, request: &Request) -> Result<Reply, ClientError> {
        self.call_with(request, &[])
    }

    /// One request with descriptors ([`Request::Register`]) and its answer.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn call_with(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Reply, ClientError> {
        self.ask(request, fds)?.whole(|| self.more())
    }

    /// One request and its first answer, which may be a part ([`Reply::is_part`]): then [`Client::more`] has the next.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn ask(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Reply, ClientError> {
        let sent = self.send(&line_of(request)?, fds);
        self.received(sent)
    }

    /// The first answer to the only request that is due.
    fn received(&mut self, sent: Result<(), ClientError>) -> Result<Reply, ClientError> {
        match sent {
            // Its end was not written, so it was not taken; the reason may wait to be read.
            Err(ClientError::Io(error)) if is_closed(&error) => self.receive().map_err(|_| ClientError::NotTaken),
            Err(error) => Err(error),
            Ok(()) => self.receive().map_err(|error| match error {
                // A peer that closes resets the connection when it left something unread: the end of this line.
                ClientError::Io(error) if error.kind() == io::ErrorKind::ConnectionReset => ClientError::NotTaken,
                ClientError::Io(error) if is_closed(&error) => ClientError::Closed,
                error => error,
            }),
        }
    }

    /// The next answer to a request that was taken.
    ///
    /// # Errors
    /// [`ClientError::Closed`] when its supervisor died: some of it was carried out.
    pub fn more(&mut self) -> Result<Reply, ClientError> {
        self.receive().map_err(|error| match error {
            ClientError::Io(error) if is_closed(&error) => ClientError::Closed,
            ClientError::NotTaken => ClientError::Closed,
            error => error,
        })
    }

    /// Many requests, sent ahead of their answers; `answered` gets each answer with its request's number, in order.
    ///
    /// # Errors
    /// As [`Client::call`], at the first request that fails; those before it were answered. After
    /// [`ClientError::NotTaken`] none of the others was carried out, after [`ClientError::Closed`] some may have been.
    pub fn pipeline(
        &mut self,
        requests: impl IntoIterator<Item = Request>,
        mut answered: impl FnMut(usize, Reply),
    ) -> Result<(), ClientError> {
        let mut requests = requests.into_iter();
        let (mut sent, mut received) = (0, 0);
        let mut batch = Vec::new();
        loop {
            while sent - received < PIPELINED_MAX && batch.len() < 64 * 1024 {
                let Some(request) = requests.next() else { break };
                batch.extend_from_slice(&line_of(&request)?);
                sent += 1;
            }
            if !batch.is_empty() {
                match self.stream.get_mut().write_all(&batch) {
                    // The answers to what was taken can still be read, and then why there are no more.
                    Err(error) if is_closed(&error) => {}
                    written => written?,
                }
                batch.clear();
            }
            if received == sent {
                return Ok(());
            }
            answered(received, self.receive_next()?);
            received += 1;
            // What has arrived with it is taken before more is sent.
            while received < sent && self.stream.buffer().contains(&b'\n') {
                answered(received, self.receive_next()?);
                received += 1;
            }
        }
    }

    /// The next answer of several that are due.
    fn receive_next(&mut self) -> Result<Reply, ClientError> {
        let first = self.receive().map_err(|error| match error {
            ClientError::Io(error) if is_closed(&error) => ClientError::Closed,
            error => error,
        })?;
        first.whole(|| self.more())
    }

    fn send(&mut self, line: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        let stream = self.stream.get_mut();
        let mut rest = line;
        for group in fds.chunks(PACKET_MAX_FDS) {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_MAX_FDS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            control.push(SendAncillaryMessage::ScmRights(group));
            // Descriptors travel with at least one byte; a request is longer than it has groups.
            let count = sendmsg(stream.as_fd(), &[IoSlice::new(&rest[..1])], &mut control, SendFlags::NOSIGNAL)
                .map_err(io::Error::from)?;
            rest = &rest[count..];
        }
        Ok(stream.write_all(rest)?)
    }

    fn receive(&mut self) -> Result<Reply, ClientError> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            return Err(ClientError::Closed);
        }
        match serde_json::from_slice(&line).map_err(ClientError::Answer)? {
            Reply::Stopping => Err(ClientError::NotTaken),
            reply => Ok(reply),
        }
    }
}

fn is_closed(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

fn line_of(request: &Request) -> Result<Vec<u8>, ClientError> {
    let mut line = serde_json::to_vec(request).map_err(ClientError::Request)?;
    if line.len() > API_LINE_MAX_BYTES {
        return Err(ClientError::TooLarge { size_bytes: line.len() });
    }
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
