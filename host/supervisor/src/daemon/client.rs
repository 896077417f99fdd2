//! The client's side of `tm.sock`, blocking: for the command line.

use std::{
    io::{self, BufRead, BufReader, IoSlice},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    event::PollFlags,
    io::Errno,
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
};
use tm_core::{
    api::{Reply, Request},
    limits::{API_LINE_MAX_BYTES, PACKET_MAX_FDS},
};

use super::{
    listen::{self, SOCKET_NAME},
    patience::{GIVE_UP, Patience},
};

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
    /// It is stopped, or waits for its disk, and answers nobody: it is not known whether it will do what it was asked.
    #[error("the supervisor of {} has not answered for {seconds} s", queue_dir.display())]
    Silent { queue_dir: PathBuf, seconds: u64 },
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
    queue_dir: PathBuf,
    patience: Patience,
}

impl Client {
    /// Connects to the supervisor of a queue.
    ///
    /// # Errors
    /// [`ClientError::NotRunning`], [`ClientError::StaleSocket`], [`ClientError::Silent`], or what the system said.
    pub fn connect(queue_dir: &Path) -> Result<Self, ClientError> {
        match listen::connect(queue_dir) {
            Ok(stream) => Ok(Self {
                stream: BufReader::with_capacity(64 * 1024, stream),
                queue_dir: queue_dir.to_owned(),
                patience: Patience::default(),
            }),
            Err(error) => Err(match error.kind() {
                io::ErrorKind::WouldBlock => silent(queue_dir, GIVE_UP),
                io::ErrorKind::NotFound => ClientError::NotRunning { queue_dir: queue_dir.to_owned() },
                io::ErrorKind::ConnectionRefused => ClientError::StaleSocket { queue_dir: queue_dir.to_owned() },
                _ => ClientError::Connect { path: queue_dir.join(SOCKET_NAME), source: error },
            }),
        }
    }

    /// Has `notice` called, with the queue's folder, the first time that the supervisor answers nobody for a while.
    pub fn on_silence(&mut self, notice: fn(&Path)) {
        self.patience.notice = notice;
    }

    /// One request and its answer. May take as long as the supervisor lives and answers others.
    ///
    /// # Errors
    /// When the connection fails, or nobody is answered for 30 s; a refusal is an answer ([`Reply::Error`]).
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
                match self.write(&batch) {
                    // The answers to what was taken can still be read, and then why there are no more.
                    Err(ClientError::Io(error)) if is_closed(&error) => {}
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
        let mut rest = line;
        for group in fds.chunks(PACKET_MAX_FDS) {
            // Descriptors travel with at least one byte; a request is longer than it has groups.
            let count = self.send_some(&rest[..1], group)?;
            rest = &rest[count..];
        }
        self.write(rest)
    }

    fn write(&mut self, mut rest: &[u8]) -> Result<(), ClientError> {
        while !rest.is_empty() {
            let count = self.send_some(rest, &[])?;
            rest = &rest[count..];
        }
        Ok(())
    }

    /// Sends what the connection takes, at least a byte. Returns how many bytes.
    fn send_some(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize, ClientError> {
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_MAX_FDS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(fds));
            }
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match sendmsg(self.stream.get_ref(), &[IoSlice::new(bytes)], &mut control, flags) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT)?,
                sent => return Ok(sent.map_err(io::Error::from)?),
            }
        }
    }

    fn wait(&mut self, wanted: PollFlags) -> Result<(), ClientError> {
        if self.patience.wait(self.stream.get_ref().as_fd(), wanted, &self.queue_dir)? {
            return Ok(());
        }
        Err(silent(&self.queue_dir, self.patience.give_up))
    }

    fn receive(&mut self) -> Result<Reply, ClientError> {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            if self.stream.buffer().is_empty() {
                self.wait(PollFlags::IN)?;
            }
            let some = match self.stream.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                some => some?,
            };
            if some.is_empty() {
                return Err(ClientError::Closed);
            }
            let taken = memchr::memchr(b'\n', some).map_or(some.len(), |end| end + 1);
            line.extend_from_slice(&some[..taken]);
            self.stream.consume(taken);
        }
        match serde_json::from_slice(&line).map_err(ClientError::Answer)? {
            Reply::Stopping => Err(ClientError::NotTaken),
            reply => Ok(reply),
        }
    }
}

fn silent(queue_dir: &Path, silence: Duration) -> ClientError {
    ClientError::Silent { queue_dir: queue_dir.to_owned(), seconds: silence.as_secs() }
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
