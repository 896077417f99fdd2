//! What a client sends, made into requests: bytes cut into lines, lines read, descriptors given to the requests that name them.

use std::os::fd::OwnedFd;

use tm_core::{
    api::Request,
    limits::{API_LINE_MAX_BYTES, STEPS_PER_FLOW_MAX},
};

use super::lines::Lines;

/// Descriptors that came ahead of their line.
const FDS_WAITING_MAX: usize = 2 * STEPS_PER_FLOW_MAX;

/// What one client sent and was not taken yet.
#[derive(Debug, Default)]
pub struct Requests {
    lines: Lines,
    fds: Vec<OwnedFd>,
}

impl Requests {
    /// Where to receive to; [`Requests::received`] says how much it became.
    pub fn room(&mut self) -> &mut [u8] {
        self.lines.room()
    }

    /// `count` bytes came, and the descriptors that were beside them.
    pub fn received(&mut self, count: usize, fds: Vec<OwnedFd>) {
        self.lines.received(count);
        self.fds.extend(fds);
    }

    /// The next whole request with its descriptors: for a [`Request::Register`] one per component. None until more comes.
    ///
    /// # Errors
    /// In words for the client when a line is no request, or its descriptors did not come.
    pub fn take(&mut self) -> Option<Result<(Request, Vec<OwnedFd>), String>> {
        let line = self.lines.next()?;
        Some(parse(self.lines.get(line), &mut self.fds))
    }

    /// What is beyond the bounds of a connection, in words for the client. Ask when [`Requests::take`] has no more.
    #[must_use]
    pub fn excess(&self) -> Option<String> {
        if self.lines.waiting() > API_LINE_MAX_BYTES {
            return Some(format!("a request has at most {API_LINE_MAX_BYTES} bytes"));
        }
        let more = self.fds.len() > FDS_WAITING_MAX;
        more.then(|| format!("more than {FDS_WAITING_MAX} descriptors came without a request for them"))
    }
}

fn parse(line: &[u8], waiting: &mut Vec<OwnedFd>) -> Result<(Request, Vec<OwnedFd>), String> {
    let request: Request = serde_json::from_slice(line).map_err(|error| format!("not a request: {error}"))?;
    let wanted = match &request {
        Request::Register(register) => register.components.len(),
        _ => 0,
    };
    if waiting.len() < wanted {
        return Err(format!("{wanted} components came with {} descriptors", waiting.len()));
    }
    let fds = waiting.drain(..wanted).collect();
    Ok((request, fds))
}
