//! `tm completions`: a script for a shell.

use std::io::{self, Write as _};

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::cli::{
    args::Cli,
    exit::{End, Outcome},
};

pub(crate) fn run(shell: Shell) -> Outcome {
    // Into memory first: the generator panics when a pipe is closed.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tm", &mut script);
    io::stdout().write_all(&script)?;
    Ok(End::Done)
}
