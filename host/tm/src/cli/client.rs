//! One way to a queue, whoever owns it: through its supervisor's socket, or through its files under its lock.
//!
//! Nothing is done before the connection but parsing the arguments: no thread, no runtime, no configuration.

use std::{
    fs::File,
    io::ErrorKind,
    os::fd::{AsFd as _, OwnedFd},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use tm_core::api::{DlqOutcome, Reply, Request};
use tm_supervisor::{
    config,
    daemon::{Client, ClientError},
    run::{self, Local, Options, Reader, RunError},
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

/// An open way to a queue. When its supervisor stops or starts meanwhile, it goes on by the other way.
pub(crate) struct Session<'a> {
    folders: &'a Folders,
    backend: Option<Backend>,
    need: Need,
    way: Way,
}

enum Way {
    Served(Client),
    Writing(Box<Local>),
    Reading(Box<Reading>),
}

/// A queue that nobody serves: read when the first question comes.
struct Reading {
    options: Options,
    reader: Option<Reader>,
}

impl Reading {
    fn answer(&mut self, request: &Request) -> Result<Reply, RunError> {
        match &self.reader {
            Some(reader) => reader.answer(request),
            None => self.reader.insert(Reader::open(&self.options, &mut warn_of_damage)?).answer(request),
        }
    }
}

impl<'a> Session<'a> {
    /// Finds who answers for a queue.
    ///
    /// # Errors
    /// Exit 4 when there is no queue, or nobody holds the memory queue that was asked for.
    pub(crate) fn open(folders: &'a Folders, backend: Option<Backend>, need: Need) -> Result<Self, Failure> {
        let way = Way::find(folders, backend, need)?;
        Ok(Self { folders, backend, need, way })
    }

    /// Makes one change. A queue that nobody serves is opened for writing only when something is to be written: a dry
    /// run, a refusal and a change that changes nothing leave it as it is (I12).
    ///
    /// # Errors
    /// As [`Session::open`] and [`Session::ask`].
    pub(crate) fn change(folders: &'a Folders, backend: Option<Backend>, request: &Request) -> Result<Reply, Failure> {
        Self::change_in_parts(folders, backend, request, &mut in_one)
    }

    /// As [`Session::change`], for a change of many things: `part` gets what was done as it is done, but for the last.
    ///
    /// # Errors
    /// As [`Session::change`], and those of `part`, which do not end the change.
    pub(crate) fn change_in_parts(
        folders: &'a Folders,
        backend: Option<Backend>,
        request: &Request,
        part: Part<'_>,
    ) -> Result<Reply, Failure> {
        let mut session = Self::open(folders, backend, Need::Read)?;
        if let Way::Reading(reading) = &session.way {
            if let Some(reply) = run::preview(&reading.options, request, &mut warn_of_damage)? {
                return accepted(reply);
            }
            session.way = Way::find(folders, backend, Need::Change)?;
        }
        session.need = Need::Change;
        session.ask_in_parts(request, &[], part)
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
        self.ask_in_parts(request, files, &mut in_one)
    }

    fn ask_in_parts(&mut self, request: &Request, files: &[File], part: Part<'_>) -> Result<Reply, Failure> {
        loop {
            let error = match &mut self.way {
                Way::Served(client) => {
                    let descriptors: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
                    let mut answer = client.ask(request, &descriptors);
                    loop {
                        match answer {
                            Ok(Reply::DlqSome(outcomes)) => part(outcomes)?,
                            Ok(reply) => return accepted(reply),
                            Err(error) => break error,
                        }
                        answer = client.more();
                    }
                }
                Way::Writing(local) => {
                    local.send(request.clone(), own(files)?)?;
                    loop {
                        match local.receive()? {
                            Reply::DlqSome(outcomes) => part(outcomes)?,
                            reply => return accepted(reply),
                        }
                    }
                }
                Way::Reading(reading) => return accepted(reading.answer(request)?),
            };
            self.go_on(error, std::slice::from_ref(request))?;
        }
    }

    /// Many requests, sent ahead of their answers, which are pushed to `replies`; refusals are among these.
    ///
    /// # Errors
    /// As [`Session::ask`], but for refusals; what was answered before is in `replies`.
    pub(crate) fn ask_all(&mut self, requests: &[Request], replies: &mut Vec<Reply>) -> Result<(), Failure> {
        let before = replies.len();
        loop {
            let rest = &requests[replies.len() - before..];
            let error = match &mut self.way {
                Way::Served(client) => match client.pipeline(rest.iter().cloned(), |_, reply| replies.push(reply)) {
                    Ok(()) => return Ok(()),
                    Err(error) => error,
                },
                Way::Writing(local) => {
                    for request in rest {
                        local.send(request.clone(), Vec::new())?;
                    }
                    for _ in rest {
                        replies.push(local.receive()?);
                    }
                    return Ok(());
                }
                Way::Reading(reading) => {
                    for request in rest {
                        replies.push(reading.answer(request)?);
                    }
                    return Ok(());
                }
            };
            self.go_on(error, &requests[replies.len() - before..])?;
        }
    }

    /// The supervisor is gone: goes on by another way, when what it did not answer may be asked again.
    fn go_on(&mut self, error: ClientError, unanswered: &[Request]) -> Result<(), Failure> {
        match error {
            ClientError::NotTaken => {}
            ClientError::Closed => {
                let in_doubt = unanswered.iter().filter(|request| !is_repeatable(request));
                if let Some(first) = in_doubt.clone().next() {
                    return Err(in_doubt_failure("the supervisor died before it answered", first, in_doubt.count()));
                }
            }
            ClientError::Silent { queue_dir, seconds } => {
                let why = format!("{} has not answered for {seconds} s", supervisor_of(&queue_dir));
                return Err(match unanswered.iter().find(|request| !is_read(request)) {
                    Some(first) => in_doubt_failure(&why, first, unanswered.len()),
                    None => silent_failure(why),
                });
            }
            error => return Err(error.into()),
        }
        self.way = Way::find(self.folders, self.backend, self.need)?;
        Ok(())
    }
}

/// Takes the parts of an answer ([`Reply::DlqSome`]) as they come.
pub(crate) type Part<'p> = &'p mut dyn FnMut(Vec<DlqOutcome>) -> Result<(), Failure>;

/// For requests that have one answer.
fn in_one(outcomes: Vec<DlqOutcome>) -> Result<(), Failure> {
    Err(Failure::unexpected("a request with one answer", &Reply::DlqSome(outcomes)))
}

/// Whether a request does the same when it is made twice.
fn is_repeatable(request: &Request) -> bool {
    match request {
        Request::Enqueue(request) => request.idempotency_key.is_some(),
        Request::Cancel { .. } | Request::ForgetKey { .. } => false,
        Request::DlqRequeue(action) | Request::DlqPurge(action) => action.dry_run,
        _ => true,
    }
}

/// Whether nothing changes by it, whenever it is done.
fn is_read(request: &Request) -> bool {
    !matches!(request, Request::Register(_) | Request::Enqueue(_)) && is_repeatable(request)
}

/// Requests may have been carried out, or be carried out yet, and nobody says so.
fn in_doubt_failure(why: &str, first: &Request, count: usize) -> Failure {
    match first {
        Request::Register(_) => Failure::busy(format!("{why}: it is not known whether the flow was registered"))
            .hint("nothing was enqueued, and asking again is safe"),
        Request::Enqueue(first) => {
            let what = if count == 1 { "the run was".to_owned() } else { format!("{count} runs were") };
            let again = match &first.idempotency_key {
                Some(_) => "asking again with the same key is safe".to_owned(),
                None => format!(
                    "look: tm queue ls --state all --flow {}; with --idempotency-key asking again is safe",
                    first.flow
                ),
            };
            Failure::busy(format!("{why}: it is not known whether {what} enqueued")).hint(again)
        }
        Request::Cancel { id } => Failure::busy(format!("{why}: it is not known whether {id} was cancelled"))
            .hint(format!("look: tm queue show {id}")),
        Request::DlqRequeue(_) | Request::DlqPurge(_) => {
            Failure::busy(format!("{why}: some entries may have been taken"))
                .hint("look: tm dlq ls; asking again is safe")
        }
        _ => Failure::busy(format!("{why}: it is not known whether it was done")),
    }
}

/// A supervisor that nobody is answered by.
fn silent_failure(why: String) -> Failure {
    Failure::busy(why).hint("is it stopped (kill -CONT), or does its disk hang? killing it loses nothing acknowledged")
}

/// The supervisor of a queue in words, with its process.
fn supervisor_of(queue_dir: &Path) -> String {
    match Lock::holder(queue_dir) {
        Ok(Some(holder)) => format!("the supervisor (pid {})", holder.pid),
        _ => "the supervisor".to_owned(),
    }
}

/// Said on standard error while the answer is waited for.
fn say_that_it_is_silent(queue_dir: &Path) {
    eprintln!("waiting for {} to answer", supervisor_of(queue_dir));
}

fn accepted(reply: Reply) -> Result<Reply, Failure> {
    match reply {
        Reply::Error(error) => Err(error.into()),
        reply => Ok(reply),
    }
}

impl Way {
    /// The way to a queue; waits for a supervisor that starts or ends.
    fn find(folders: &Folders, backend: Option<Backend>, need: Need) -> Result<Self, Failure> {
        let begin = Instant::now();
        let queue_dir = &folders.queue_dir;
        folders.check()?;
        loop {
            let patient = begin.elapsed() < START_PATIENCE;
            match Client::connect(queue_dir) {
                Ok(mut client) => {
                    client.on_silence(say_that_it_is_silent);
                    return Ok(Self::Served(client));
                }
                Err(ClientError::NotRunning { .. } | ClientError::StaleSocket { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            match Lock::holder(queue_dir) {
                Ok(Some(holder)) if holder.role == Role::Supervisor => {
                    if !patient {
                        let message = format!(
                            "supervisor process {} holds {} and does not answer",
                            holder.pid,
                            queue_dir.display()
                        );
                        return Err(Failure::busy(message).hint("it may still be starting or stopping; see its output"));
                    }
                }
                // Its holder changes just now.
                Err(LockError::HeldUnnamed { .. }) if patient => {}
                Err(error) => return Err(error.into()),
                Ok(_) => match Self::unowned(folders, backend, need) {
                    // A supervisor came between: its socket follows.
                    Err(Unowned::Taken(_)) if patient => {}
                    Err(Unowned::Taken(failure) | Unowned::Failed(failure)) => return Err(failure),
                    Ok(way) => return Ok(way),
                },
            }
            thread::sleep(START_POLL);
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
        if matches!(need, Need::Read | Need::Change) && !folders.roots().hold_a_queue() {
            return Err(Failure::no_queue(queue_dir).into());
        }
        if need == Need::Wait {
            let message = format!("no supervisor runs the queue at {}: waiting would never end", queue_dir.display());
            return Err(Failure::busy(message).hint("start one: tm workers start").into());
        }
        let options = options(folders)?;
        if backend.is_none() && options.settings.queue.backend == config::Backend::Memory {
            return Err(memory().into());
        }
        let way = match need {
            Need::Read => Self::Reading(Box::new(Reading { options, reader: None })),
            Need::Change | Need::Create | Need::Wait => match Local::open(&options) {
                Ok(local) => {
                    local.damaged().iter().for_each(warn_of_damage);
                    Self::Writing(Box::new(local))
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
        Ok(way)
    }
}

/// Of a queue that nobody serves.
fn options(folders: &Folders) -> Result<Options, Failure> {
    Ok(Options {
        settings: settings::load(folders.config.as_deref())?,
        config: settings::path(folders.config.as_deref()),
        roots: folders.roots(),
        runtime: Path::new("flows").to_owned(),
        runtime_named: false,
        pid_file: Path::new("tm-workers.pid").to_owned(),
        worker_user: None,
        allow_weaker: false,
    })
}

/// Refuses what would be refused by a queue that is not there yet, before it is made. `files` belong to the first request.
/// A queue in memory is not made by commands.
///
/// # Errors
/// The refusal.
pub(crate) fn refuse_before_a_queue_is_made(
    folders: &Folders,
    backend: Option<Backend>,
    requests: Vec<Request>,
    files: &[File],
) -> Result<(), Failure> {
    folders.check()?;
    if folders.roots().hold_a_queue() || !matches!(Lock::holder(&folders.queue_dir), Ok(None)) {
        return Ok(());
    }
    let options = options(folders)?;
    let memory = match backend {
        None => options.settings.queue.backend == config::Backend::Memory,
        Some(backend) => backend == Backend::Memory,
    };
    if memory {
        return Ok(());
    }
    match run::rehearse(&options, requests, own(files)?)? {
        Some(error) => Err(error.into()),
        None => Ok(()),
    }
}

/// Descriptors of open files to give away.
fn own(files: &[File]) -> Result<Vec<OwnedFd>, Failure> {
    let own = files.iter().map(|file| file.try_clone().map(Into::into)).collect::<Result<_, _>>();
    own.map_err(|error| Failure::failed(format!("cannot pass the components: {}", reason(&error))))
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
            ClientError::Silent { .. } => silent_failure(text),
            ClientError::NotTaken | ClientError::Closed | ClientError::Io(_) => {
                Self::busy(text).hint("it may have stopped meanwhile; what it had acknowledged is kept")
            }
            ClientError::Connect { source, .. } if source.kind() == ErrorKind::PermissionDenied => {
                Self::failed(text).hint("the queue belongs to another user: run the command as that user")
            }
            ClientError::Connect { .. } => Self::failed(text),
            ClientError::TooLarge { .. } => Self::usage(text),
            ClientError::Answer(_) => Self::failed(text).hint("is the supervisor of another version? restart it"),
            ClientError::Request(_) => Self::new(tm_core::api::ErrorKind::Internal, text),
        }
    }
}
