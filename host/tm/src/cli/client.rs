//! One way to a queue, whoever owns it: through its supervisor's socket, or through its files under its lock.
//!
//! Nothing is done before the connection but parsing the arguments: no thread, no runtime, no configuration.

use std::{
    fs::File,
    os::fd::AsFd as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use tm_core::api::{Reply, Request};
use tm_supervisor::{
    config,
    daemon::{Client, ClientError},
    run::{self, Local, Options, RunError},
    store::{
        lock::{Lock, LockError, Role},
        recover::Damage,
    },
};

use super::{
    args::{Backend, Folders},
    exit::{Failure, reason},
    settings::{self, chain},
};

/// How long a supervisor that has the lock and no socket yet is waited for.
const START_PATIENCE: Duration = Duration::from_secs(10);
const START_POLL: Duration = Duration::from_millis(10);

/// What a command is about to do with a queue that nobody owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Reads; creates and changes nothing (I12).
    Read,
    /// Writes to a queue that exists.
    Change,
    /// Writes, and makes the queue when it does not exist.
    Create,
    /// Waits for work that only a supervisor does.
    Wait,
}

/// An open way to a queue.
pub(crate) struct Session {
    way: Way,
}

enum Way {
    Served(Client),
    Writing(Box<Local>),
    Reading(Box<Options>),
}

impl Session {
    /// Finds who answers for a queue.
    ///
    /// # Errors
    /// Exit 4 when there is no queue, or nobody holds the memory queue that was asked for.
    pub(crate) fn open(folders: &Folders, backend: Option<Backend>, need: Need) -> Result<Self, Failure> {
        let begin = Instant::now();
        let queue_dir = &folders.queue_dir;
        loop {
            match Client::connect(queue_dir) {
                Ok(client) => return Ok(Self { way: Way::Served(client) }),
                Err(ClientError::NotRunning { .. } | ClientError::StaleSocket { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            let starting = Lock::holder(queue_dir)?.filter(|holder| holder.role == Role::Supervisor);
            match starting {
                Some(_) if begin.elapsed() < START_PATIENCE => thread::sleep(START_POLL),
                Some(holder) => {
                    let message =
                        format!("supervisor process {} holds {} and does not answer", holder.pid, queue_dir.display());
                    return Err(Failure::busy(message).hint("it may still be starting; see its output"));
                }
                None => match Self::unowned(folders, backend, need) {
                    // A supervisor came between: its socket follows.
                    Err(Unowned::Taken(_)) if begin.elapsed() < START_PATIENCE => thread::sleep(START_POLL),
                    Err(Unowned::Taken(failure) | Unowned::Failed(failure)) => return Err(failure),
                    Ok(session) => return Ok(session),
                },
            }
        }
    }

    fn unowned(folders: &Folders, backend: Option<Backend>, need: Need) -> Result<Self, Unowned> {
        let queue_dir = &folders.queue_dir;
        let memory = || {
            Failure::busy(format!("no supervisor holds a memory queue at {}", queue_dir.display()))
                .hint("a memory queue lives in its supervisor: tm workers start --queue memory")
        };
        if backend == Some(Backend::Memory) {
            return Err(memory().into());
        }
        if matches!(need, Need::Read | Need::Change) && !queue_dir.is_dir() {
            return Err(Failure::no_queue(queue_dir).into());
        }
        if need == Need::Wait {
            let message = format!("no supervisor runs the queue at {}: waiting would never end", queue_dir.display());
            return Err(Failure::busy(message).hint("start one: tm workers start").into());
        }
        let settings = settings::load(folders.config.as_deref())?;
        if backend.is_none() && settings.queue.backend == config::Backend::Memory {
            return Err(memory().into());
        }
        let options = Options {
            settings,
            config: settings::path(folders.config.as_deref()),
            roots: folders.roots(),
            runtime: Path::new("flows").to_owned(),
            runtime_named: false,
            pid_file: Path::new("tm-workers.pid").to_owned(),
            worker_user: None,
            allow_weaker: false,
        };
        let way = match need {
            Need::Read => Way::Reading(Box::new(options)),
            Need::Change | Need::Create | Need::Wait => match Local::open(&options) {
                Ok(local) => {
                    local.damaged().iter().for_each(warn_of_damage);
                    Way::Writing(Box::new(local))
                }
                Err(error) => {
                    let taken = matches!(
                        error,
                        RunError::Lock(LockError::Held { role: Role::Supervisor, .. } | LockError::HeldUnnamed { .. })
                    );
                    let failure = Failure::from(error);
                    return Err(if taken { Unowned::Taken(failure) } else { Unowned::Failed(failure) });
                }
            },
        };
        Ok(Self { way })
    }

    /// One request and its answer; a refusal is an error.
    ///
    /// # Errors
    /// What the queue answers, or that it cannot be reached.
    pub(crate) fn ask(&mut self, request: &Request) -> Result<Reply, Failure> {
        self.ask_with(request, &[])
    }

    /// As [`Session::ask`], with open files.
    ///
    /// # Errors
    /// As [`Session::ask`].
    pub(crate) fn ask_with(&mut self, request: &Request, files: &[File]) -> Result<Reply, Failure> {
        let reply = match &mut self.way {
            Way::Served(client) => {
                let descriptors: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
                client.call_with(request, &descriptors)?
            }
            Way::Writing(local) => {
                let own = files.iter().map(|file| file.try_clone().map(Into::into)).collect::<Result<_, _>>();
                let own =
                    own.map_err(|error| Failure::failed(format!("cannot pass the components: {}", reason(&error))))?;
                local.call(request.clone(), own)?
            }
            Way::Reading(options) => run::read_only(options, request, &mut warn_of_damage)?,
        };
        match reply {
            Reply::Error(error) => Err(error.into()),
            reply => Ok(reply),
        }
    }

    /// Many requests, sent ahead of their answers; refusals are among these.
    ///
    /// # Errors
    /// As [`Session::ask`], but for refusals.
    pub(crate) fn ask_all(&mut self, requests: Vec<Request>) -> Result<Vec<Reply>, Failure> {
        let mut replies = Vec::with_capacity(requests.len());
        match &mut self.way {
            Way::Served(client) => client.pipeline(requests, |_, reply| replies.push(reply))?,
            Way::Writing(local) => {
                let count = requests.len();
                for request in requests {
                    local.send(request, Vec::new())?;
                }
                for _ in 0..count {
                    replies.push(local.receive()?);
                }
            }
            Way::Reading(options) => {
                for request in requests {
                    replies.push(run::read_only(options, &request, &mut warn_of_damage)?);
                }
            }
        }
        Ok(replies)
    }
}

/// Why a queue that had no supervisor could not be opened.
enum Unowned {
    /// Another process took it meanwhile.
    Taken(Failure),
    Failed(Failure),
}

impl From<Failure> for Unowned {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// A damaged record was skipped: said on standard error, the command goes on.
fn warn_of_damage(damage: &Damage) {
    eprintln!("warning: {} byte {}: {}: skipped; see: tm queue verify", damage.file, damage.offset, damage.why);
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let text = chain(&error);
        match error {
            ClientError::NotRunning { .. } | ClientError::StaleSocket { .. } => {
                Self::busy(text).hint("start one: tm workers start")
            }
            ClientError::Closed | ClientError::Io(_) => {
                Self::busy(text).hint("it may have stopped meanwhile; what it had acknowledged is kept")
            }
            ClientError::Connect { .. } => Self::failed(text),
            ClientError::TooLarge { .. } => Self::usage(text),
            ClientError::Answer(_) => Self::failed(text).hint("is the supervisor of another version? restart it"),
            ClientError::Request(_) => Self::new(tm_core::api::ErrorKind::Internal, text),
        }
    }
}
