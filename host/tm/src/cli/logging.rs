//! Log lines on standard error: how much (TM_LOG) and how they look (--log-format).

use std::{env, io, str::FromStr as _};

use tracing_subscriber::{Layer as _, filter::Targets, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use super::{
    args::{Cli, Command, LogFormat, WorkersCommand},
    exit::Failure,
};

/// Starts logging for the commands that run workers, and for the others when TM_LOG is set: a client that has nothing
/// to say starts faster.
///
/// # Errors
/// Usage, when TM_LOG cannot be read.
pub(crate) fn init(cli: &Cli) -> Result<(), Failure> {
    let wanted = env::var("TM_LOG").ok().filter(|value| !value.is_empty());
    let runs_workers =
        matches!(cli.command, Command::Workers(WorkersCommand::Start(_)) | Command::Run(_) | Command::Check(_));
    if wanted.is_none() && !runs_workers {
        return Ok(());
    }
    let directives = wanted.as_deref().unwrap_or("warn");
    let filter =
        Targets::from_str(directives).ok().filter(|_| is_level_or_directives(directives)).ok_or_else(|| {
            Failure::usage(format!("TM_LOG='{directives}' is not a level"))
                .hint("use error, warn, info, debug or trace, or target=level,…")
        })?;
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let registry = tracing_subscriber::registry();
    match cli.log_format {
        LogFormat::Text => registry.with(lines.with_ansi(stderr_is_terminal()).with_filter(filter)).init(),
        LogFormat::Json => registry.with(lines.json().flatten_event(true).with_filter(filter)).init(),
    }
    Ok(())
}

fn stderr_is_terminal() -> bool {
    io::IsTerminal::is_terminal(&io::stderr()) && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Whether every part is a level or has one: a bare word would count as the name of a target, and a misspelt level
/// would go unnoticed.
fn is_level_or_directives(text: &str) -> bool {
    text.split(',').all(|part| {
        let level = part.rsplit_once('=').map_or(part, |(_, level)| level);
        tracing_subscriber::filter::LevelFilter::from_str(level.trim()).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use super::is_level_or_directives;

    #[test]
    fn a_misspelt_level_is_noticed() {
        assert!(is_level_or_directives("info") && is_level_or_directives("warn,tm_supervisor=debug"));
        assert!(!is_level_or_directives("inof") && !is_level_or_directives("tm_supervisor=loud"));
    }
}
