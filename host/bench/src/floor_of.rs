//! Runs the floor beside the product.

use std::process::Command;

use serde_json::Value;

use crate::{
    Outcome,
    site::{INPUT, Site},
};

/// Answers of the floor, by name.
pub(crate) struct Figures(Value);

impl Figures {
    /// A number by its path, `/latency/p50_us`.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn at(&self, path: &str) -> Outcome<f64> {
        self.0
            .pointer(path)
            .and_then(Value::as_f64)
            .ok_or_else(|| format!("the floor says no {path}: {}", self.0).into())
    }
}

fn run(site: &Site, arguments: &[&str]) -> Outcome<Figures> {
    let folder = site.work.join("floor");
    let mut command = Command::new(&site.floor);
    command.args(arguments);
    if arguments.first() != Some(&"sandbox") && arguments.first() != Some(&"drive") {
        command.arg("--folder").arg(&folder);
    }
    if arguments.first() != Some(&"sync") {
        command.arg("--component").arg(site.guest("totals")).args(["--input", INPUT]);
    }
    let ran = command.output()?;
    if !ran.status.success() {
        return Err(format!("the floor failed: {}", String::from_utf8_lossy(&ran.stderr).trim()).into());
    }
    Ok(Figures(serde_json::from_slice(&ran.stdout)?))
}

/// Durable tasks with so many in flight; two executors as there are two workers.
///
/// # Errors
/// When the floor fails.
pub(crate) fn end_to_end(site: &Site, in_flight: usize) -> Outcome<Figures> {
    let (in_flight, span) = (in_flight.to_string(), site.span().as_millis().to_string());
    run(site, &["end-to-end", "--in-flight", &in_flight, "--duration-ms", &span])
}

/// # Errors
/// When the floor fails.
pub(crate) fn sandbox(site: &Site) -> Outcome<Figures> {
    run(site, &["sandbox", "--duration-ms", &site.span().as_millis().to_string()])
}

/// The median of one small durable write, in microseconds.
///
/// # Errors
/// When the floor fails.
pub(crate) fn sync_us(site: &Site) -> Outcome<f64> {
    run(site, &["sync", "--duration-ms", "300"])?.at("/p50_us")
}

/// A worker process of the product; with `walls`, the same code with fewer of them; `refused`, without its sandboxes.
///
/// # Errors
/// When the worker fails.
pub(crate) fn drive(site: &Site, walls: Option<&str>, refused: bool) -> Outcome<Figures> {
    let span = (site.span() / 2).as_millis().to_string();
    let program = if walls.is_some() { &site.floor } else { &site.tm }.display().to_string();
    let mut arguments = vec!["drive", "--program", &program, "--duration-ms", &span];
    arguments.extend(walls.iter().flat_map(|walls| ["--walls", walls]));
    arguments.extend(refused.then_some("--refused"));
    run(site, &arguments)
}
