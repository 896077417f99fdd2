//! The configuration that a command works with.

use std::{
    error::Error,
    path::{Path, PathBuf},
};

use tm_supervisor::config::{ConfigError, DEFAULT_PATH, Settings};

use super::exit::{Failure, reason};

/// Reads the configuration. A file that is named must exist; without a name, a missing one means the defaults.
///
/// # Errors
/// Exit 3: what cannot be, with file, line and key.
pub(crate) fn load(named: Option<&Path>) -> Result<Settings, Failure> {
    if let Some(path) = named
        && !path.exists()
    {
        return Err(Failure::invalid(format!("no configuration at {}", path.display())));
    }
    let settings = Settings::load(&path(named))?;
    settings.check()?;
    Ok(settings)
}

/// Where the configuration is read from.
pub(crate) fn path(named: Option<&Path>) -> PathBuf {
    named.unwrap_or(Path::new(DEFAULT_PATH)).to_owned()
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        match &error {
            ConfigError::Read { source, .. } => Self::invalid(format!("{error}: {}", reason(source))),
            _ => Self::invalid(chain(&error)),
        }
    }
}

/// An error with its causes, outermost first, without the numbers that std appends to the system's words.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        // Some errors print their cause themselves.
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    while let Some((begin, length)) = text.find(" (os error ").and_then(|at| Some((at, text[at..].find(')')? + 1))) {
        text.replace_range(begin..begin + length, "");
    }
    text
}
