//! Judging a flow file without a queue: all of its faults and those of its components, as a registration would find them.

use std::{path::Path, sync::Arc};

use tm_supervisor::{
    config::Settings,
    deploy::{DeployError, KnownFiles, Opened, Resolved, resolve},
    evaluate::MiniJinja,
    run::RunError,
    workers::{
        PoolError,
        child::{Program, Spawner},
        compile::{CompileSettings, Compiler},
        profile::WorkerUser,
    },
};

use super::{exit::Failure, settings};

pub(crate) struct Checker {
    settings: Settings,
    /// Guest bytes are read in confined processes, as when a flow is registered (I8).
    compiler: Compiler,
    /// Flows share components: each file is inspected once.
    known: KnownFiles,
}

impl Checker {
    /// # Errors
    /// When the configuration cannot be read, or no process can be started.
    pub(crate) fn new(config: Option<&Path>, allow_weaker: bool) -> Result<Self, Failure> {
        let user = WorkerUser::resolve(None).map_err(RunError::from)?;
        let spawner =
            Spawner::start(Program::this_binary(user)).map_err(|error| RunError::from(PoolError::from(error)))?;
        let compile = CompileSettings { allow_weaker, ..CompileSettings::default() };
        let compiler = Compiler::new(Arc::new(spawner), compile).map_err(RunError::from)?;
        Ok(Self { settings: settings::load(config)?, compiler, known: KnownFiles::default() })
    }

    /// # Errors
    /// Every fault, with its place.
    pub(crate) fn check(&mut self, flow: &Opened, tenant: &str) -> Result<Resolved, DeployError> {
        let (settings, evaluate) = (&self.settings, MiniJinja::new());
        resolve(&flow.source(tenant), settings, &settings.ceilings, &evaluate, &mut self.known, &self.compiler)
    }
}
