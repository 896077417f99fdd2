//! Where a fault can strike the disk, and how.

/// What the disk is being asked to do, as the coverage table names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Reserve,
    ReserveSync,
    Commit,
    CommitSync,
    Begin,
    Ahead,
    GiveBack,
    Derive,
    Letter,
    Archive,
    Remove,
    Results,
    Recovery,
}

impl Phase {
    /// Those of a running supervisor.
    pub(crate) const RUNNING: [Self; 12] = [
        Self::Reserve,
        Self::ReserveSync,
        Self::Commit,
        Self::CommitSync,
        Self::Begin,
        Self::Ahead,
        Self::GiveBack,
        Self::Derive,
        Self::Letter,
        Self::Archive,
        Self::Remove,
        Self::Results,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Reserve => "reserving room",
            Self::ReserveSync => "syncing reserved room",
            Self::Commit => "writing a commit",
            Self::CommitSync => "syncing a commit",
            Self::Begin => "beginning a segment",
            Self::Ahead => "making a segment ahead",
            Self::GiveBack => "giving back room",
            Self::Derive => "writing a derived file",
            Self::Letter => "filing a dead letter",
            Self::Archive => "archiving a dead letter",
            Self::Remove => "removing a segment",
            Self::Results => "keeping results",
            Self::Recovery => "during recovery",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Break {
    /// The machine stops: what is not durable is gone, but for a part.
    PowerLoss,
    /// The process stops: what was written stays.
    Kill,
    /// The next sync of the phase fails; the process stops by itself.
    FailedSync,
    /// One read fails, and the disk goes on.
    FailedRead,
}

impl Break {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::PowerLoss => "power loss",
            Self::Kill => "process killed",
            Self::FailedSync => "failed sync",
            Self::FailedRead => "failed read",
        }
    }
}
