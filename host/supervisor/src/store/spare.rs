//! The next segment, made beside the loop: written full of newlines and synced, so that beginning it is a rename.

use super::disk::{self, Beside, Disk, DiskError, How, Later};

const PATH: &str = "queue/segment.spare";
/// Written between two syncs: commits of the log wait behind it on the disk.
const STEP_BYTES: u64 = 256 * 1024;

/// What is ready, or being made, for the next rotation.
pub(super) enum Spare {
    None,
    Making {
        bytes: u64,
        beside: Beside,
    },
    Made {
        bytes: u64,
    },
    /// It could not be made, or was given back because the disk is full: not before the next rotation.
    Not,
}

impl Spare {
    /// Begins to make one, unless that was done.
    pub(super) fn prepare<D: Disk>(&mut self, disk: &D, bytes: u64) {
        if matches!(self, Self::None) {
            let beside = disk.beside(Box::new(move |disk| make(disk, bytes)));
            *self = Self::Making { bytes, beside };
        }
    }

    /// Whether one is not ready yet.
    pub(super) fn is_making<D: Disk>(&mut self, disk: &D) -> bool {
        let Self::Making { bytes, beside } = self else { return false };
        match beside.poll() {
            None => return true,
            Some(Ok(())) => *self = Self::Made { bytes: *bytes },
            Some(Err(error)) => {
                tracing::debug!(%error, "the next segment could not be made ahead");
                *self = Self::Not;
                disk.later(Later::Unlink { path: PATH.into() });
            }
        }
        false
    }

    /// Waits until it is ready, or is not to be.
    fn finish<D: Disk>(&mut self, disk: &D) -> Option<u64> {
        while self.is_making(disk) {
            disk.settle();
        }
        match self {
            Self::Made { bytes } => Some(*bytes),
            _ => None,
        }
    }

    /// Names it `path`, durably, with `room` bytes of newlines in it or more. `None`: there is none, or no room for that.
    ///
    /// # Errors
    /// When it is not known which names are on the disk.
    pub(super) fn take<D: Disk>(
        &mut self,
        disk: &D,
        path: &str,
        room: u64,
    ) -> Result<Option<(D::File, u64)>, DiskError> {
        let made = self.finish(disk);
        *self = Self::None;
        let Some(bytes) = made else { return Ok(None) };
        let file = disk.open(PATH, How::Write)?;
        // More was asked for since it was begun.
        let more = if room > bytes {
            disk::blank(disk, &file, bytes, room - bytes).and_then(|()| disk.sync(&file))
        } else {
            Ok(())
        };
        match more {
            Err(error) if error.is_full() => remove(disk).map(|()| None),
            Err(error) => Err(error),
            Ok(()) => {
                drop(file);
                disk.rename(PATH, path)?;
                Ok(Some((disk.open(path, How::Write)?, bytes.max(room))))
            }
        }
    }

    /// Gives its room back. Tells whether there was any.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn give_back<D: Disk>(&mut self, disk: &D) -> Result<bool, DiskError> {
        let was_made = self.finish(disk).is_some();
        *self = Self::Not;
        if was_made {
            remove(disk)?;
        }
        Ok(was_made)
    }
}

/// What an earlier process left of one: its bytes are not known.
pub(super) fn remove<D: Disk>(disk: &D) -> Result<(), DiskError> {
    match disk.open(PATH, How::Read) {
        Err(error) if error.is_not_found() => Ok(()),
        // Whatever stands at its name.
        _ => disk.unlink(PATH).and_then(|()| disk.sync_folder("queue")),
    }
}

/// In steps, each durable before the next, so that the syncs of commits never wait for more than one of them.
fn make<D: Disk>(disk: &D, bytes: u64) -> Result<(), DiskError> {
    let file = disk.open(PATH, How::Replace)?;
    let mut at = 0;
    while at < bytes {
        let step = (bytes - at).min(STEP_BYTES);
        disk::blank(disk, &file, at, step)?;
        disk.sync(&file)?;
        at += step;
    }
    Ok(())
}
