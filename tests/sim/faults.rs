//! Kinds of fault. Each can be switched off, which is how a failure is shrunk to those that it needs.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    PowerLoss,
    Kill,
    FailedSync,
    ReadError,
    SlowSync,
    FullDisk,
    BitRot,
    WorkerDeath,
    FalseReport,
    ClockJump,
    SlowClient,
    SecondSupervisor,
    Operator,
    Redeploy,
    CrashPoint,
}

impl Fault {
    pub(crate) const ALL: [Self; 15] = [
        Self::PowerLoss,
        Self::Kill,
        Self::FailedSync,
        Self::ReadError,
        Self::SlowSync,
        Self::FullDisk,
        Self::BitRot,
        Self::WorkerDeath,
        Self::FalseReport,
        Self::ClockJump,
        Self::SlowClient,
        Self::SecondSupervisor,
        Self::Operator,
        Self::Redeploy,
        Self::CrashPoint,
    ];

    /// As `TM_SIM_WITHOUT` names it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::PowerLoss => "power-loss",
            Self::Kill => "kill",
            Self::FailedSync => "failed-sync",
            Self::ReadError => "read-error",
            Self::SlowSync => "slow-sync",
            Self::FullDisk => "full-disk",
            Self::BitRot => "bit-rot",
            Self::WorkerDeath => "worker-death",
            Self::FalseReport => "false-report",
            Self::ClockJump => "clock-jump",
            Self::SlowClient => "slow-client",
            Self::SecondSupervisor => "second-supervisor",
            Self::Operator => "operator",
            Self::Redeploy => "redeploy",
            Self::CrashPoint => "crash-point",
        }
    }
}

/// The kinds that do not happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Without(u32);

impl Without {
    pub(crate) const fn and(self, fault: Fault) -> Self {
        Self(self.0 | 1 << fault as u32)
    }

    pub(crate) const fn has(self, fault: Fault) -> bool {
        self.0 & (1 << fault as u32) != 0
    }

    /// Names with commas between them.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        text.split(',').map(str::trim).filter(|name| !name.is_empty()).try_fold(Self::default(), |without, name| {
            let known = || Fault::ALL.map(Fault::name).join(", ");
            let fault = Fault::ALL.into_iter().find(|fault| fault.name() == name);
            fault
                .map(|fault| without.and(fault))
                .ok_or_else(|| format!("no kind of fault is called '{name}': {}", known()))
        })
    }
}

impl std::fmt::Display for Without {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<_> = Fault::ALL.into_iter().filter(|fault| self.has(*fault)).map(Fault::name).collect();
        f.write_str(&names.join(","))
    }
}
