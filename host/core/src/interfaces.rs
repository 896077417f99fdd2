//! The interfaces that a step may import, and what each needs: the one table. The supervisor holds grants against it, the
//! worker's linker offers exactly these.

use alloc::{format, string::String};

/// The package of the contract between host and steps.
pub const FLOW_PACKAGE: &str = "tracemind:flow";
/// The version of the contract that this host speaks, and the beginning of those that it takes.
pub const FLOW_VERSION: &str = "0.1.0";
pub const FLOW_SERIES: &str = "0.1.";
/// The version of WASI that the linker names, and the beginning of those that it takes.
pub const WASI_VERSION: &str = "0.2.12";
pub const WASI_SERIES: &str = "0.2.";
const WASI_SHOWN: &str = "0.2";

/// What an import asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing: without grants it reaches only what every step has.
    Baseline,
    Artifacts,
    Clocks,
    Random,
    /// `files` or `scratch`.
    Folders,
}

/// Package, interface, and what it needs.
pub const TABLE: &[(&str, &str, Needs)] = &[
    ("wasi:io", "error", Needs::Baseline),
    ("wasi:io", "poll", Needs::Baseline),
    ("wasi:io", "streams", Needs::Baseline),
    ("wasi:cli", "environment", Needs::Baseline),
    ("wasi:cli", "exit", Needs::Baseline),
    ("wasi:cli", "stdin", Needs::Baseline),
    ("wasi:cli", "stdout", Needs::Baseline),
    ("wasi:cli", "stderr", Needs::Baseline),
    ("wasi:cli", "terminal-input", Needs::Baseline),
    ("wasi:cli", "terminal-output", Needs::Baseline),
    ("wasi:cli", "terminal-stdin", Needs::Baseline),
    ("wasi:cli", "terminal-stdout", Needs::Baseline),
    ("wasi:cli", "terminal-stderr", Needs::Baseline),
    ("wasi:random", "insecure-seed", Needs::Baseline),
    ("wasi:random", "insecure", Needs::Random),
    ("wasi:random", "random", Needs::Random),
    ("wasi:clocks", "monotonic-clock", Needs::Clocks),
    ("wasi:clocks", "wall-clock", Needs::Clocks),
    ("wasi:filesystem", "preopens", Needs::Folders),
    ("wasi:filesystem", "types", Needs::Folders),
    (FLOW_PACKAGE, "types", Needs::Baseline),
    (FLOW_PACKAGE, "log", Needs::Baseline),
    (FLOW_PACKAGE, "progress", Needs::Baseline),
    (FLOW_PACKAGE, "cancel", Needs::Baseline),
    (FLOW_PACKAGE, "artifacts", Needs::Artifacts),
];

/// An import's name taken apart: `wasi:io/streams@0.2.6`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface<'a> {
    pub package: &'a str,
    pub name: &'a str,
    /// Empty when there is none.
    pub version: &'a str,
}

impl<'a> Interface<'a> {
    #[must_use]
    pub fn parse(full: &'a str) -> Option<Self> {
        let (package, rest) = full.split_once('/')?;
        let (name, version) = rest.split_once('@').unwrap_or((rest, ""));
        Some(Self { package, name, version })
    }

    /// What it needs, whatever its version; none when this host has no such interface.
    #[must_use]
    pub fn needs(&self) -> Option<Needs> {
        TABLE.iter().find(|row| row.0 == self.package && row.1 == self.name).map(|row| row.2)
    }

    /// The version that this host offers of the package, when it has the package in another series.
    #[must_use]
    pub fn other_version(&self) -> Option<&'static str> {
        let is_known = TABLE.iter().any(|row| row.0 == self.package);
        let (series, shown) = self.series();
        (is_known && !self.version.starts_with(series)).then_some(shown)
    }

    /// The name under which this host has it: of the same series, perhaps of another version.
    #[must_use]
    pub fn host_name(&self) -> Option<String> {
        self.needs().filter(|_| self.version.starts_with(self.series().0))?;
        let version = if self.package == FLOW_PACKAGE { FLOW_VERSION } else { WASI_VERSION };
        Some(format!("{}/{}@{version}", self.package, self.name))
    }

    /// The beginning of the versions that this host takes, and how messages call them.
    fn series(&self) -> (&'static str, &'static str) {
        if self.package == FLOW_PACKAGE { (FLOW_SERIES, FLOW_VERSION) } else { (WASI_SERIES, WASI_SHOWN) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_of_the_same_series_is_found_under_the_hosts_name() {
        let host = |name: &str| Interface::parse(name).and_then(|interface| interface.host_name());
        assert_eq!(host("wasi:io/streams@0.2.0").as_deref(), Some("wasi:io/streams@0.2.12"));
        assert_eq!(host("tracemind:flow/log@0.1.9").as_deref(), Some("tracemind:flow/log@0.1.0"));
        for other in ["wasi:io/streams@0.3.0", "wasi:io/streams", "wasi:io/mirrors@0.2.0", "acme:x/y@0.2.0", "print"] {
            assert_eq!(host(other), None, "{other}");
        }
        let other = |name: &str| Interface::parse(name).and_then(|interface| interface.other_version());
        assert_eq!(other("wasi:io/streams@0.3.0"), Some("0.2"));
        assert_eq!(other("tracemind:flow/log@0.2.0"), Some("0.1.0"));
        assert_eq!((other("wasi:io/streams@0.2.99"), other("acme:x/y@0.3.0")), (None, None));
    }
}
