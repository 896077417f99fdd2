//! Whose fault a failure of the supervisor is, and what to do about it: the exit code and the hint.

use std::{error::Error, io};

use tm_core::api::ErrorKind;
use tm_supervisor::{
    daemon::{ListenError, pid_file::PidFileError},
    run::RunError,
    store::{disk::DiskError, lock::LockError, log::LogError},
};

use super::{exit::Failure, settings::chain};

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Config(error) => error.into(),
            RunError::Lock(error) => error.into(),
            RunError::Disk(error) | RunError::Log(LogError::Disk(error)) => error.into(),
            RunError::Log(error) => error.into(),
            RunError::Refused(error) => (*error).into(),
            RunError::NoQueue { path } => Self::no_queue(&path),
            RunError::NoRuntime { .. } => {
                Self::invalid(error.to_string()).hint("name the folder that holds the flows: --runtime DIR")
            }
            RunError::NoMemory { .. } => Self::invalid(error.to_string())
                .hint("raise workers.memory_max, start fewer workers, or lower memory_mb of the steps"),
            RunError::Listen(ListenError::Live { .. }) | RunError::PidFile(PidFileError::Running { .. }) => {
                Self::busy(chain(&error)).hint("use it, or stop it: tm workers stop")
            }
            RunError::Listen(ListenError::NoSockets { .. }) => Self::failed(chain(&error))
                .hint("set XDG_RUNTIME_DIR for tm, or put the queue elsewhere: --queue-dir DIR"),
            RunError::PidFile(PidFileError::NoFolder { .. }) => {
                Self::usage(error.to_string()).hint("make the folder, or name another file: --pid-file FILE")
            }
            RunError::PidFile(PidFileError::NoFile { .. }) => {
                Self::usage(error.to_string()).hint("name another file: --pid-file FILE")
            }
            RunError::Profile(_) => Self::invalid(chain(&error)),
            _ if finds_no_room(&error) => Self::no_room(chain(&error)),
            _ => Self::failed(chain(&error)),
        }
    }
}

impl From<LockError> for Failure {
    fn from(error: LockError) -> Self {
        match &error {
            LockError::Held { .. } | LockError::HeldUnnamed { .. } => {
                Self::busy(error.to_string()).hint("use it, or stop it: tm workers stop")
            }
            LockError::ReadOnly { folder, .. } => Self::failed(chain(&error))
                .hint(format!("make {} writable for this user, or name another folder", folder.display())),
            LockError::Missing { folder } => Self::no_queue(folder),
            LockError::Full { .. } => Self::no_room(chain(&error)),
            LockError::Io { .. } => Self::failed(chain(&error)),
        }
    }
}

impl From<DiskError> for Failure {
    fn from(error: DiskError) -> Self {
        let text = chain(&error);
        match error {
            DiskError::Full { .. } => Self::no_room(text),
            DiskError::ReadOnly { .. } => {
                Self::failed(text).hint("make it writable for this user, or name another folder")
            }
            _ => Self::failed(text),
        }
    }
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Disk(error) => error.into(),
            LogError::Newer { .. } | LogError::Unknown { .. } => {
                Self::invalid(error.to_string()).hint("use the tm that wrote it, or a newer one; nothing was changed")
            }
            LogError::Poisoned { .. } => Self::failed(error.to_string()),
            LogError::TooLong { .. } => Self::new(ErrorKind::Internal, error.to_string()),
        }
    }
}

/// Whether a full disk or quota is at the bottom of an error.
fn finds_no_room(error: &(dyn Error + 'static)) -> bool {
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
    matches!(kind, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
        || error.source().is_some_and(finds_no_room)
}

impl Failure {
    fn no_room(message: String) -> Self {
        Self::busy(message).hint("free space on that disk, then try again")
    }

    /// A read-only command creates nothing: without a queue there is nothing to say.
    pub(crate) fn no_queue(folder: &std::path::Path) -> Self {
        Self::busy(format!("no queue at {}", folder.display()))
            .hint("tm workers start or tm enqueue makes one; --queue-dir names another")
    }
}
