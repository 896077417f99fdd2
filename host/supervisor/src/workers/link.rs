//! The socket pair between the supervisor and one worker: packets of messages with their descriptors.
//!
//! What comes from a worker is hostile input. A packet that is too large, carries too many descriptors, holds anything but
//! [`FromWorker`] messages, or whose descriptors are not what its messages announce breaks the link, and a broken link ends
//! its worker.

use std::{collections::VecDeque, io::IoSlice, mem::MaybeUninit};

use rustix::{
    fd::{AsFd, BorrowedFd, OwnedFd},
    io::{Errno, IoSliceMut},
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType, recvmsg, sendmsg, shutdown, socketpair,
    },
};
use serde::Serialize;
use tm_core::{
    limits::{PACKET_MAX_BYTES, PACKET_MAX_FDS, PACKET_MAX_MESSAGES},
    wire::{
        Body, FromWorker, Init, Outcome,
        codec::{self, CodecError},
    },
};

use super::sealed::{self, SealedError};

/// Packets that wait for room in the socket, per worker, in bytes. Sixteen steps with inline inputs need 1 MiB.
pub const OUTBOX_MAX_BYTES: usize = 8 * 1024 * 1024;

/// Why a link cannot be used any more, or a message cannot be sent on it.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("cannot make a socket pair for a worker: {0}")]
    Make(Errno),
    #[error("the worker closed its socket")]
    Closed,
    #[error("cannot talk to the worker: {0}")]
    Io(Errno),
    #[error("the worker sent a packet of more than {PACKET_MAX_BYTES} bytes")]
    PacketTooLarge,
    #[error("the worker sent more than {PACKET_MAX_FDS} descriptors in one packet, or none is left for them here")]
    TooManyDescriptors,
    #[error("the worker sent a packet that does not hold messages: {0}")]
    Malformed(CodecError),
    #[error("the worker sent {actual} descriptors, its messages announce {announced}")]
    OtherDescriptors { announced: usize, actual: usize },
    #[error("the worker sent a bad descriptor: {0}")]
    BadDescriptor(SealedError),
}

/// Why a message was not taken; the link goes on.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    #[error(
        "a message of {size_bytes} bytes does not fit into a packet of {PACKET_MAX_BYTES}: its body must travel as a descriptor"
    )]
    TooLarge { size_bytes: usize },
    #[error("a message with {count} descriptors does not fit into a packet of {PACKET_MAX_FDS}")]
    TooManyDescriptors { count: usize },
    #[error("{OUTBOX_MAX_BYTES} bytes wait for the worker already")]
    Full,
    #[error("a message has no form in bytes: {0}")]
    Unwritable(CodecError),
}

/// One message of a worker with its descriptors.
#[derive(Debug)]
pub struct Received {
    pub message: FromWorker,
    pub fds: Vec<OwnedFd>,
}

/// One end of a socket pair, non-blocking.
#[derive(Debug)]
pub struct Link {
    socket: OwnedFd,
}

impl Link {
    /// Makes a pair: the supervisor's end and the descriptor for the worker (blocking, closed on exec).
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn pair() -> Result<(Self, OwnedFd), LinkError> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(LinkError::Make)?;
        rustix::io::ioctl_fionbio(&ours, true).map_err(LinkError::Make)?;
        Ok((Self { socket: ours }, theirs))
    }

    /// Receives one packet; `None` when none is there.
    ///
    /// # Errors
    /// Any error breaks the link: the peer is gone or does not keep the protocol.
    pub fn receive(&self, inbox: &mut Inbox) -> Result<Option<Vec<Received>>, LinkError> {
        let Some((bytes, fds)) = receive_raw(self.socket.as_fd(), inbox)? else { return Ok(None) };
        let messages: Vec<FromWorker> = codec::read(bytes).map_err(LinkError::Malformed)?;
        let announced = messages.iter().map(|message| descriptor_sizes(message).count()).sum();
        if announced != fds.len() {
            return Err(LinkError::OtherDescriptors { announced, actual: fds.len() });
        }
        let mut fds = fds.into_iter();
        let mut out = Vec::with_capacity(messages.len());
        for message in messages {
            let mut own = Vec::new();
            for size_bytes in descriptor_sizes(&message) {
                let fd = fds.next().ok_or(LinkError::TooManyDescriptors)?;
                sealed::check(&fd, size_bytes).map_err(LinkError::BadDescriptor)?;
                own.push(fd);
            }
            out.push(Received { message, fds: own });
        }
        Ok(Some(out))
    }

    /// Says that nothing more will be sent; a worker ends itself on that.
    pub fn finish(&self) {
        // Fails only when the peer is gone already.
        let _ = shutdown(&self.socket, Shutdown::Write);
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The announced sizes of a message's descriptors, in order.
fn descriptor_sizes(message: &FromWorker) -> impl Iterator<Item = u64> + use<> {
    match message {
        FromWorker::Compiled { size_bytes, .. } => Some(*size_bytes),
        FromWorker::Report(report) => match &report.outcome {
            Outcome::Succeeded { output: Body::Fd { size_bytes }, .. } => Some(*size_bytes),
            _ => None,
        },
        _ => None,
    }
    .into_iter()
}

/// Room for one received packet, kept between packets.
#[derive(Debug)]
pub struct Inbox {
    bytes: Box<[u8]>,
}

impl Default for Inbox {
    fn default() -> Self {
        Self { bytes: vec![0; PACKET_MAX_BYTES].into_boxed_slice() }
    }
}

pub(super) type RawPacket<'a> = (&'a [u8], Vec<OwnedFd>);

/// Receives one packet's bytes and descriptors.
pub(super) fn receive_raw<'a>(
    socket: BorrowedFd<'_>,
    inbox: &'a mut Inbox,
) -> Result<Option<RawPacket<'a>>, LinkError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(&mut inbox.bytes)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => break received,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::CONNRESET) => return Err(LinkError::Closed),
            Err(errno) => return Err(LinkError::Io(errno)),
        }
    };
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(LinkError::TooManyDescriptors);
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(LinkError::PacketTooLarge);
    }
    // An empty packet cannot be told from the end of the stream, and neither keeps the protocol.
    if received.bytes == 0 {
        return Err(LinkError::Closed);
    }
    Ok(Some((&inbox.bytes[..received.bytes], fds)))
}

#[derive(Debug, Default)]
struct Packet {
    bytes: Vec<u8>,
    messages: usize,
    fds: Vec<OwnedFd>,
    /// Nothing may be added.
    alone: bool,
}

/// Messages on their way to one worker, batched into as few packets as the bounds allow.
#[derive(Debug, Default)]
pub struct Outbox {
    packets: VecDeque<Packet>,
    size_bytes: usize,
}

impl Outbox {
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// Whether so much waits that the worker should get no more work.
    #[must_use]
    pub fn is_crowded(&self) -> bool {
        self.size_bytes > OUTBOX_MAX_BYTES / 2
    }

    /// Adds a message to the last packet, or to a new one when it does not fit.
    ///
    /// # Errors
    /// When the message can never fit, or too much waits already; nothing was added then.
    pub fn push<T: Serialize>(&mut self, message: &T, fds: Vec<OwnedFd>) -> Result<(), PushError> {
        let bytes = codec::write(message).map_err(PushError::Unwritable)?;
        self.check(bytes.len(), fds.len())?;
        let fits = self.packets.back().is_some_and(|last| {
            !last.alone
                && last.messages < PACKET_MAX_MESSAGES
                && last.bytes.len() + bytes.len() <= PACKET_MAX_BYTES
                && last.fds.len() + fds.len() <= PACKET_MAX_FDS
        });
        if !fits {
            self.packets.push_back(Packet::default());
        }
        if let Some(last) = self.packets.back_mut() {
            last.bytes.extend_from_slice(&bytes);
            last.messages += 1;
            last.fds.extend(fds);
            self.size_bytes += bytes.len();
        }
        Ok(())
    }

    /// Adds the first message of a worker, which travels alone in its packet.
    ///
    /// # Errors
    /// As [`Outbox::push`].
    pub fn push_init(&mut self, init: &Init, fds: Vec<OwnedFd>) -> Result<(), PushError> {
        self.push(init, fds)?;
        if let Some(last) = self.packets.back_mut() {
            last.alone = true;
        }
        Ok(())
    }

    fn check(&self, size_bytes: usize, count: usize) -> Result<(), PushError> {
        if size_bytes > PACKET_MAX_BYTES {
            return Err(PushError::TooLarge { size_bytes });
        }
        if count > PACKET_MAX_FDS {
            return Err(PushError::TooManyDescriptors { count });
        }
        if self.size_bytes + size_bytes > OUTBOX_MAX_BYTES {
            return Err(PushError::Full);
        }
        Ok(())
    }

    /// Sends what the socket takes without waiting; true when nothing is left.
    ///
    /// # Errors
    /// Any error breaks the link.
    pub fn send(&mut self, link: &Link) -> Result<bool, LinkError> {
        while let Some(packet) = self.packets.front() {
            match send_raw(link.as_fd(), &packet.bytes, &packet.fds) {
                Ok(()) => {
                    self.size_bytes -= packet.bytes.len();
                    self.packets.pop_front();
                }
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => return Err(LinkError::Closed),
                Err(errno) => return Err(LinkError::Io(errno)),
            }
        }
        Ok(true)
    }
}

/// Sends one packet; never raises SIGPIPE.
pub(super) fn send_raw(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[OwnedFd]) -> Result<(), Errno> {
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(Errno::TOOMANYREFS);
    }
    loop {
        match sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
#[path = "tests/link.rs"]
mod tests;
