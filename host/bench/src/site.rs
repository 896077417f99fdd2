//! Where it is measured: the programs, a folder on the local disk, the flows.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};

use crate::Outcome;

/// About 200 bytes.
pub(crate) const INPUT: &str = r#"{"order":"A-20261124-0815","items":[{"sku":"nut-m4-100","count":3,"cents":1299},{"sku":"bolt-m4x20-100","count":2,"cents":1849},{"sku":"washer-m4-500","count":1,"cents":749}],"channel":"shop","v":2}"#;

pub(crate) struct Site {
    pub(crate) tm: PathBuf,
    pub(crate) floor: PathBuf,
    pub(crate) work: PathBuf,
    pub(crate) quick: bool,
    pub(crate) workers: u32,
    pub(crate) concurrency: u32,
}

impl Site {
    /// # Errors
    /// When a program or a guest is missing.
    pub(crate) fn new(work: &Path, guests: &Path, quick: bool, workers: u32, concurrency: u32) -> Outcome<Self> {
        let own = std::env::current_exe()?;
        let beside = |name: &str| own.with_file_name(name);
        let work = std::path::absolute(work)?.join(std::process::id().to_string());
        fs::create_dir_all(&work)?;
        let site = Self { tm: beside("tm"), floor: beside("tm-floor"), work, quick, workers, concurrency };
        for guest in ["totals", "nap", "compute"] {
            let from = guests.join(format!("{guest}.wasm"));
            fs::copy(&from, site.guest(guest))
                .map_err(|error| format!("cannot copy {}: {error}: run scripts/bench", from.display()))?;
        }
        for program in [&site.tm, &site.floor] {
            if !program.exists() {
                return Err(format!("{} is missing: run scripts/bench", program.display()).into());
            }
        }
        Ok(site)
    }

    pub(crate) fn guest(&self, name: &str) -> PathBuf {
        self.work.join(format!("{name}.wasm"))
    }

    /// How often a figure is taken; the median counts.
    pub(crate) fn runs(&self) -> usize {
        if self.quick { 1 } else { 3 }
    }

    /// How long one run takes.
    pub(crate) fn span(&self) -> Duration {
        Duration::from_millis(if self.quick { 700 } else { 1500 })
    }

    /// The share of the processors that others use while this only waits.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub(crate) fn business() -> Outcome<f64> {
        let before = processor_ticks()?;
        std::thread::sleep(Duration::from_millis(500));
        let after = processor_ticks()?;
        let passed = (after.0 - before.0).max(1) as f64;
        Ok(1.0 - (after.1 - before.1) as f64 / passed)
    }

    pub(crate) fn machine(&self) -> Value {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model =
            info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        json!({
            "processors": std::thread::available_parallelism().map_or(0, usize::from),
            "model": model, "kernel": release, "workers": self.workers, "concurrency": self.concurrency,
        })
    }
}

/// All ticks so far, and those in which a processor was idle or waited for the disk.
fn processor_ticks() -> Outcome<(u64, u64)> {
    let text = fs::read_to_string("/proc/stat")?;
    let first = text.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = first.split_whitespace().skip(1).filter_map(|tick| tick.parse().ok()).collect();
    Ok((ticks.iter().take(8).sum(), ticks.iter().skip(3).take(2).sum()))
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.work);
    }
}
