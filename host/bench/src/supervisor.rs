//! A supervisor of the product on a queue of its own: started, asked, looked at from outside, ended.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tm_core::api::{Counters, Reply, Request, Stats, WorkerRow};

use crate::{Outcome, client::Client, site::Site};

/// A folder with a queue and the flows of one row.
pub(crate) struct Home {
    pub(crate) folder: PathBuf,
    tm: PathBuf,
}

impl Home {
    /// # Errors
    /// When it cannot be made.
    pub(crate) fn new(site: &Site, name: &str) -> Outcome<Self> {
        let folder = site.work.join(name);
        fs::create_dir_all(folder.join("flows"))?;
        Ok(Self { folder, tm: site.tm.clone() })
    }

    /// A flow of `steps` steps one after the other: the first is given the run's input, as all of them.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn flow(&self, id: &str, guests: &[&str], more: &str) -> Outcome<()> {
        let mut text = format!("flow:\n  id: {id}\n  steps:\n");
        for (place, guest) in guests.iter().enumerate() {
            let component = self.folder.join(format!("../{guest}.wasm"));
            text += &format!("    - id: s{place}\n      component: {}\n", component.display());
            if place > 0 {
                text += &format!("      needs: [s{}]\n      input: \"{{{{ input }}}}\"\n", place - 1);
            }
            text +=
                "      limits: { fuel: 20000000000, memory_mb: 16, timeout_ms: 120000, output_kb: 16, log_kb: 16 }\n";
            if *guest == "nap" {
                text += "      grants: { clocks: true }\n";
            }
            text += more;
        }
        Ok(fs::write(self.folder.join(format!("flows/{id}.yaml")), text)?)
    }

    /// Writes the configuration, where a row needs other than the defaults.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn configure(&self, text: &str) -> Outcome<()> {
        Ok(fs::write(self.folder.join("trace_config.toml"), text)?)
    }

    pub(crate) fn queue(&self) -> PathBuf {
        self.folder.join("data/queue")
    }

    /// `tm` in this folder, without the caller's environment.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.tm);
        command.args(arguments).current_dir(&self.folder).env_clear();
        command.env("HOME", &self.folder).env("PATH", "/usr/bin:/bin").env("TM_LOG", "warn").stdin(Stdio::null());
        command
    }

    /// # Errors
    /// When the supervisor does not get ready; its own words are among them.
    pub(crate) fn start(&self, workers: u32, concurrency: u32) -> Outcome<Supervisor> {
        let (workers, concurrency) = (workers.to_string(), concurrency.to_string());
        let mut command = self.command(&["workers", "start", "-n", &workers, "--concurrency", &concurrency]);
        let log = self.folder.join("supervisor.log");
        let begun = Instant::now();
        let mut child =
            command.stdout(Stdio::piped()).stderr(File::options().create(true).append(true).open(&log)?).spawn()?;
        let mut ready = String::new();
        if let Some(stdout) = child.stdout.as_mut() {
            BufReader::new(stdout).read_line(&mut ready)?;
        }
        let took = begun.elapsed();
        let mut supervisor = Supervisor { child, client: None, ready_after: took };
        if !ready.starts_with("worker supervisor running") {
            let words = fs::read_to_string(&log).unwrap_or_default();
            return Err(format!("the supervisor is not ready: {ready}{words}").into());
        }
        supervisor.client = Some(Client::connect(&self.queue())?);
        Ok(supervisor)
    }
}

pub(crate) struct Supervisor {
    child: Child,
    client: Option<Client>,
    /// From its start to the line that says so.
    pub(crate) ready_after: Duration,
}

/// What a process looks like from outside.
#[derive(Clone, Copy, Default)]
pub(crate) struct Looks {
    pub(crate) resident_bytes: u64,
    pub(crate) voluntary_switches: u64,
    pub(crate) written_bytes: u64,
    pub(crate) cpu: Duration,
}

impl Supervisor {
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn ask(&mut self, request: &Request) -> Outcome<Reply> {
        self.client.as_mut().ok_or("the supervisor has ended")?.call(request)
    }

    /// # Errors
    /// When it does not answer.
    pub(crate) fn counters(&mut self) -> Outcome<Counters> {
        match self.ask(&Request::Counters)? {
            Reply::Counters(counters) => Ok(counters),
            other => Err(format!("not the counters: {other:?}").into()),
        }
    }

    /// # Errors
    /// When it does not answer.
    pub(crate) fn stats(&mut self) -> Outcome<Stats> {
        match self.ask(&Request::Stats)? {
            Reply::Stats(stats) => Ok(stats),
            other => Err(format!("not the counts: {other:?}").into()),
        }
    }

    /// # Errors
    /// When it does not answer.
    pub(crate) fn workers(&mut self) -> Outcome<Vec<WorkerRow>> {
        match self.ask(&Request::Workers)? {
            Reply::Workers(rows) => Ok(rows),
            other => Err(format!("not the workers: {other:?}").into()),
        }
    }

    /// Itself and its workers.
    ///
    /// # Errors
    /// When one is gone.
    pub(crate) fn all_looks(&mut self) -> Outcome<Vec<Looks>> {
        let mut all = vec![looks(self.pid())?];
        for worker in self.workers()? {
            all.push(looks(worker.pid)?);
        }
        Ok(all)
    }

    /// Drains it.
    ///
    /// # Errors
    /// When it cannot be signalled.
    pub(crate) fn stop(mut self) -> Outcome<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The processes that a process started.
pub(crate) fn children(pid: u32) -> Vec<u32> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let texts = threads.flatten().filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    texts.flat_map(|text| text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>()).collect()
}

/// # Errors
/// When the process is gone.
pub(crate) fn looks(pid: u32) -> Outcome<Looks> {
    let proc = Path::new("/proc").join(pid.to_string());
    let status = fs::read_to_string(proc.join("status"))?;
    let io = fs::read_to_string(proc.join("io"))?;
    let mut looks = Looks {
        resident_bytes: field(&status, "VmRSS:")? * 1024,
        written_bytes: field(&io, "write_bytes:")?,
        ..Looks::default()
    };
    for thread in fs::read_dir(proc.join("task"))? {
        let path = thread?.path();
        looks.voluntary_switches += field(&fs::read_to_string(path.join("status"))?, "voluntary_ctxt_switches:")?;
        let times = fs::read_to_string(path.join("schedstat"))?;
        let nanos = times.split(' ').next().and_then(|n| n.parse().ok()).unwrap_or(0);
        looks.cpu += Duration::from_nanos(nanos);
    }
    Ok(looks)
}

fn field(text: &str, name: &str) -> Outcome<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).ok_or_else(|| format!("no {name}").into())
}
