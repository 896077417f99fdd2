//! How long a client waits for a supervisor that says nothing.
//!
//! An answer may take as long as it must: a run ends when it ends, a component is inspected first. A supervisor that
//! lives answers others meanwhile. So whoever hears nothing asks, by a connection of its own, who answers: an answer
//! there means to go on waiting; none means that the supervisor is stopped, or waits for its disk.

use std::{
    io,
    os::{fd::BorrowedFd, unix::net::UnixStream},
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{SendFlags, send},
};

use super::listen;

/// A disk that does not answer is reset by the kernel after 30 s, its default timeout of a SCSI command: a sync that
/// meets that still ends.
pub(super) const GIVE_UP: Duration = Duration::from_secs(30);
const QUIET: Duration = Duration::from_secs(2);
/// `Request::Ping` as a line.
const PING: &[u8] = b"\"Ping\"\n";

#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// So long a silence is nothing unusual; after it the supervisor is asked who answers, and has as long for that.
    pub(super) quiet: Duration,
    /// So long a silence, to everybody, is not waited out.
    pub(super) give_up: Duration,
    /// Called once, when nobody was answered, with the queue's folder.
    pub(super) notice: fn(&Path),
    pub(super) noticed: bool,
}

impl Default for Patience {
    fn default() -> Self {
        Self { quiet: QUIET, give_up: GIVE_UP, notice: |_| {}, noticed: false }
    }
}

impl Patience {
    /// Waits until a connection can be read or written, as `wanted` says. `false`: the supervisor was silent for too long.
    ///
    /// # Errors
    /// What the system said.
    pub(super) fn wait(&mut self, own: BorrowedFd<'_>, wanted: PollFlags, queue_dir: &Path) -> io::Result<bool> {
        loop {
            let begun = Instant::now();
            if any_ready(&mut [PollFd::from_borrowed_fd(own, wanted)], begun + self.quiet)? {
                return Ok(true);
            }
            let probe = match ping(queue_dir) {
                Ok(probe) => Some(probe),
                // Its connections wait to be taken.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
                // The socket is gone or another's: only its own connection tells whether the supervisor is.
                Err(_) => continue,
            };
            let mut both = vec![PollFd::from_borrowed_fd(own, wanted)];
            both.extend(probe.as_ref().map(|probe| PollFd::new(probe, PollFlags::IN)));
            if !any_ready(&mut both, begun + 2 * self.quiet)? {
                if !std::mem::replace(&mut self.noticed, true) {
                    (self.notice)(queue_dir);
                }
                if !any_ready(&mut both, begun + self.give_up)? {
                    return Ok(false);
                }
            }
        }
    }
}

/// A connection on which somebody was asked who answers.
fn ping(queue_dir: &Path) -> io::Result<UnixStream> {
    let probe = listen::connect(queue_dir)?;
    send(&probe, PING, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
    Ok(probe)
}

/// Whether one of them can be used, or has ended, before `until`.
fn any_ready(fds: &mut [PollFd<'_>], until: Instant) -> io::Result<bool> {
    loop {
        let left = Timespec::try_from(until.saturating_duration_since(Instant::now())).map_err(io::Error::other)?;
        match poll(fds, Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tm_core::api::Request;

    use super::*;

    #[test]
    fn the_ping_is_the_request() {
        assert!(matches!(serde_json::from_slice(PING.trim_ascii_end()), Ok(Request::Ping)));
    }
}
