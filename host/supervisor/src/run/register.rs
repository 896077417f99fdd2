//! Registering flows: read, inspected and resolved beside the loop; the decision is the loop's.

use std::{
    collections::BTreeMap,
    fs::File,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, mpsc::Sender},
};

use tm_core::{
    api::{ApiError, ErrorKind, RegisterRequest},
    code,
    flow::spec::FlowDef,
    id::Digest,
    queue::effect::{Input, Ticket},
};

use super::{
    Happening, RunError,
    jobs::Lane,
    open::{Life, fits_no_worker},
    payloads::StoredBlobs,
};
use crate::{
    config::{Ceilings, Settings, ceiling::DEFAULT_TENANT},
    deploy::{self, Inspect, KnownFiles, Opened, Resolved, Source},
    evaluate::MiniJinja,
    store::disk::Disk,
    workers::sealed,
};

/// What the registration of a flow needs; shared with its thread.
struct Bench<D: Disk> {
    settings: Settings,
    inspect: Arc<dyn Inspect + Send + Sync>,
    blobs: Mutex<StoredBlobs<D>>,
    evaluate: MiniJinja,
    known: Mutex<KnownFiles>,
    life: Life,
}

pub(super) struct Registrar<D: Disk> {
    bench: Arc<Bench<D>>,
    lane: Lane,
    happenings: Sender<Happening>,
}

impl<D: Disk> Registrar<D> {
    pub(super) fn start(
        settings: &Settings,
        inspect: Arc<dyn Inspect + Send + Sync>,
        blobs: StoredBlobs<D>,
        happenings: Sender<Happening>,
        life: Life,
    ) -> Result<Self, RunError> {
        let bench = Bench {
            settings: settings.clone(),
            inspect,
            blobs: Mutex::new(blobs),
            evaluate: MiniJinja::new(),
            known: Mutex::default(),
            life,
        };
        Ok(Self { bench: Arc::new(bench), lane: Lane::start("tm-register").map_err(RunError::Thread)?, happenings })
    }

    /// Resolves a flow on the registrar's thread, below the ceilings in force; [`Happening::Registered`] brings the outcome.
    pub(super) fn give(
        &self,
        ticket: Ticket,
        request: RegisterRequest,
        components: Vec<OwnedFd>,
        ceilings: Arc<Ceilings>,
    ) {
        self.on_lane(ticket, move |bench| {
            let path = Path::new(&request.path);
            let components: Vec<_> = components.into_iter().map(|fd| Ok(File::from(fd))).collect();
            let (tenant, text) = (request.tenant.as_str(), request.text.as_str());
            let source = Source { tenant, text, path, shown: path, components: &components };
            bench.register(ticket, &source, &ceilings, bench.life == Life::Supervisor)
        });
    }

    /// As [`Registrar::give`], for a file that this process opens itself: of the default tenant.
    pub(super) fn give_file(&self, ticket: Ticket, path: PathBuf, ceilings: Arc<Ceilings>) {
        self.on_lane(ticket, move |bench| match Opened::open(&path, &bench.evaluate) {
            Ok(opened) => bench.register(ticket, &opened.source(DEFAULT_TENANT), &ceilings, false),
            Err(error) => Err(failed(ErrorKind::Invalid, None, format!("{}: {error}", path.display()))),
        });
    }

    fn on_lane(&self, ticket: Ticket, register: impl FnOnce(&Bench<D>) -> Registration + Send + 'static) {
        let (bench, happenings) = (Arc::clone(&self.bench), self.happenings.clone());
        self.lane.give(move || {
            let outcome = register(&bench).map(Box::new);
            // Nobody listens any more when the supervisor stops.
            let _ = happenings.send(Happening::Registered { ticket, outcome });
        });
    }
}

type Registration = Result<Input, Box<ApiError>>;

impl<D: Disk> Bench<D> {
    /// `must_fit`: a flow of which a step fits no worker is refused; else that is a warning.
    fn register(&self, ticket: Ticket, source: &Source<'_>, ceilings: &Ceilings, must_fit: bool) -> Registration {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Resolved { def, mut warnings, components } =
            deploy::resolve(source, &self.settings, ceilings, &self.evaluate, &mut known, &*self.inspect).map_err(
                |error| {
                    // What was inspected for a refused flow is known without its bytes being kept.
                    *known = KnownFiles::default();
                    Box::new(error.to_api())
                },
            )?;
        // Component bytes are kept like payloads: synced before the event that names them (I10).
        if let Err(error) = self.fit(&def, must_fit, &mut warnings).and_then(|()| self.keep(&components)) {
            components.keys().for_each(|digest| known.forget(*digest));
            return Err(error);
        }
        Ok(Input::Register { ticket, tenant: source.tenant.to_owned(), def: Box::new(def), warnings })
    }

    fn fit(&self, def: &FlowDef, must_fit: bool, warnings: &mut Vec<String>) -> Result<(), Box<ApiError>> {
        for step in &def.steps {
            let Some(why) = fits_no_worker(&self.settings, &step.limits) else { continue };
            let message = format!("flow '{}': step '{}' needs {why}", def.id, step.id);
            if must_fit {
                let hint = "lower its memory_mb, raise workers.memory_max, or start fewer workers".to_owned();
                return Err(Box::new(ApiError { hint: Some(hint), ..*failed(ErrorKind::Invalid, None, message) }));
            }
            warnings.push(message);
        }
        Ok(())
    }

    fn keep(&self, components: &BTreeMap<Digest, OwnedFd>) -> Result<(), Box<ApiError>> {
        for fd in components.values() {
            let bytes = sealed::read(fd, tm_core::limits::COMPONENT_MAX_BYTES).map_err(|error| {
                failed(ErrorKind::Internal, None, format!("a component's bytes cannot be read again: {error}"))
            })?;
            let blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
            blobs.put_bytes(&bytes).map_err(|error| {
                let full = error.is_full().then(|| code::DISK_FULL.to_owned());
                failed(ErrorKind::Busy, full, format!("a component cannot be stored: {error}"))
            })?;
        }
        Ok(())
    }
}

fn failed(kind: ErrorKind, code: Option<String>, message: String) -> Box<ApiError> {
    Box::new(ApiError { kind, code, message, hint: None, retry_after_ms: None })
}

/// The flow files of a folder, in the order of their names.
pub(super) fn flow_files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let flow = path.extension().is_some_and(|ending| ["yaml", "yml", "json"].iter().any(|known| ending == *known));
        if flow && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}
