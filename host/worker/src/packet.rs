//! Packets over the socket pair: messages and the descriptors that they count.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{MemfdFlags, SealFlags},
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use tm_core::{
    limits::{PACKET_MAX_BYTES, PACKET_MAX_FDS},
    wire::codec,
};

/// A packet could not be taken or given.
#[derive(Debug, thiserror::Error)]
pub enum PacketError {
    #[error("socket of the supervisor: {0}")]
    Socket(#[from] Errno),
    #[error("packet of the supervisor is longer than {PACKET_MAX_BYTES} bytes")]
    TooLong,
    #[error("packet of the supervisor: {0}")]
    NotMessages(#[from] codec::CodecError),
    #[error("packet counts {counted} descriptors and brings {brought}")]
    Descriptors { counted: usize, brought: usize },
}

/// One received packet. Descriptors are taken in the order in which the messages count them.
pub struct Packet<'a> {
    bytes: &'a [u8],
    pub fds: std::vec::IntoIter<OwnedFd>,
}

impl Packet<'_> {
    /// # Errors
    /// When its bytes are not such messages.
    pub fn messages<T: DeserializeOwned>(&self) -> Result<Vec<T>, PacketError> {
        Ok(codec::read(self.bytes)?)
    }

    /// The next descriptor.
    ///
    /// # Errors
    /// When the messages count more than came.
    pub fn fd(&mut self) -> Result<OwnedFd, PacketError> {
        self.fds.next().ok_or(PacketError::Descriptors { counted: PACKET_MAX_FDS, brought: 0 })
    }
}

/// The receiving end's buffer, one per process.
pub struct Receiver {
    buffer: Vec<u8>,
}

impl Receiver {
    #[must_use]
    pub fn new() -> Self {
        Self { buffer: vec![0; PACKET_MAX_BYTES] }
    }

    /// One packet; `None` when the supervisor closed its end.
    ///
    /// # Errors
    /// `Socket(AGAIN)` when the socket does not block and nothing waits.
    pub fn receive(&mut self, socket: BorrowedFd<'_>) -> Result<Option<Packet<'_>>, PacketError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut parts = [IoSliceMut::new(&mut self.buffer)];
            match rustix::net::recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(Errno::INTR) => {}
                other => break other?,
            }
        };
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            return Err(PacketError::TooLong);
        }
        if received.bytes == 0 {
            return Ok(None);
        }
        Ok(Some(Packet { bytes: &self.buffer[..received.bytes], fds: fds.into_iter() }))
    }
}

impl Default for Receiver {
    fn default() -> Self {
        Self::new()
    }
}

/// Sends one packet whole; a SOCK_SEQPACKET send is atomic, so threads need no lock.
///
/// # Errors
/// `AGAIN` when the socket does not block and the supervisor does not read.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[OwnedFd]) -> Result<(), Errno> {
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&borrowed));
    }
    loop {
        match rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            other => return other.map(drop),
        }
    }
}

/// Sends messages as one packet, for the start and the compile role, where one packet holds all.
///
/// # Errors
/// As [`send`].
pub fn send_messages<T: Serialize>(socket: BorrowedFd<'_>, messages: &[T], fds: &[OwnedFd]) -> Result<(), PacketError> {
    let mut bytes = Vec::new();
    for message in messages {
        bytes.extend_from_slice(&codec::write(message)?);
    }
    Ok(send(socket, &bytes, fds)?)
}

/// Bytes as a sealed memfd: neither side can change or shrink it afterwards.
///
/// # Errors
/// When the kernel has no room.
pub fn sealed(name: &str, bytes: &[u8]) -> Result<OwnedFd, Errno> {
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut rest = bytes;
    while !rest.is_empty() {
        match rustix::io::write(&fd, rest) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
    rustix::fs::seek(&fd, rustix::fs::SeekFrom::Start(0))?;
    Ok(fd)
}

/// The whole of a descriptor from byte 0, at most `max_bytes`.
///
/// # Errors
/// When it cannot be read; `FBIG` when it is longer.
pub fn read_whole(fd: BorrowedFd<'_>, max_bytes: u64) -> Result<Vec<u8>, Errno> {
    let size = u64::try_from(rustix::fs::fstat(fd)?.st_size).unwrap_or(u64::MAX);
    if size > max_bytes {
        return Err(Errno::FBIG);
    }
    let mut bytes = vec![0; usize::try_from(size).map_err(|_| Errno::FBIG)?];
    let mut filled = 0;
    while filled < bytes.len() {
        match rustix::io::pread(fd, &mut bytes[filled..], filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}
