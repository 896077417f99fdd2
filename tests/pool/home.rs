//! A hermetic home: a temporary folder with guests, flows and a queue, and `tm` in it without the caller's environment.

use std::{
    fmt, fs,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

/// How long a condition is waited for before a test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);
const POLL: Duration = Duration::from_millis(5);
/// `nobody`: who meets permissions when the tests run as root.
pub(crate) const NOBODY: u32 = 65534;

/// Waits until `found` finds something.
pub(crate) fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain for: {what}");
        thread::sleep(POLL);
    }
}

pub(crate) struct Home {
    folder: TempDir,
}

impl Home {
    /// A home with the guests `hostile` (needs every grant), `compute` (needs none) and `echo`.
    pub(crate) fn new() -> Self {
        let home = Self { folder: TempDir::with_prefix("tm-pool-").unwrap() };
        for (name, bytes) in guests() {
            home.write(&format!("guests/{name}.wasm"), bytes);
        }
        home
    }

    pub(crate) fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(relative)
    }

    /// Writes a file, with its folders.
    pub(crate) fn write(&self, relative: &str, content: impl AsRef<[u8]>) -> &Self {
        let path = self.path(relative);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
        self
    }

    /// Writes `ID.yaml`, a flow of one step `s` with a guest; `more` are further lines of the step.
    pub(crate) fn flow(&self, id: &str, guest: &str, more: &[&str]) -> &Self {
        let mut text = format!("flow:\n  id: {id}\n  steps:\n    - id: s\n      component: guests/{guest}.wasm\n");
        if guest == "hostile" && !more.iter().any(|line| line.starts_with("grants")) {
            text += "      grants: { scratch: true, artifacts: true, clocks: true, random: true }\n";
        }
        for line in more {
            text += &format!("      {line}\n");
        }
        self.write(&format!("{id}.yaml"), text)
    }

    /// The command with its arguments, ready to be started.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tm"));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env_clear()
            .env("HOME", self.folder.path())
            .env("PATH", "/usr/bin:/bin")
            .env("TZ", "UTC")
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command
    }

    /// Runs `tm` to its end.
    pub(crate) fn tm(&self, arguments: &[&str]) -> Ran {
        ran(self.command(arguments).output().unwrap())
    }

    /// Runs `tm` with variables to its end.
    pub(crate) fn tm_with(&self, variables: &[(&str, &str)], arguments: &[&str]) -> Ran {
        ran(self.command(arguments).envs(variables.iter().copied()).output().unwrap())
    }

    /// Runs `tm` as a user for whom permissions count.
    pub(crate) fn tm_unprivileged(&self, arguments: &[&str]) -> Ran {
        let mut command = self.command(arguments);
        if rustix::process::getuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        ran(command.output().unwrap())
    }

    /// Enqueues a run and returns its id.
    pub(crate) fn enqueue(&self, flow: &str, input: &str, flags: &[&str]) -> String {
        let ran = self.tm(&[&["enqueue", flow, "--json", "-i", input], flags].concat());
        assert_eq!(ran.code, Some(0), "{ran}");
        let reply = ran.json();
        assert_eq!(reply["status"], "enqueued", "{ran}");
        reply["id"].as_str().unwrap().to_owned()
    }

    /// Enqueues many runs at once and returns their ids.
    pub(crate) fn batch(&self, flow: &str, inputs: &[String], flags: &[&str]) -> Vec<String> {
        let lines: String = inputs.iter().map(|input| format!("{{\"input\":{input}}}\n")).collect();
        self.write("batch.jsonl", lines);
        let ran = self.tm(&[&["enqueue", flow, "--batch", "batch.jsonl"], flags].concat());
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        let id = |line: &str| serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_owned();
        ran.stdout.lines().map(id).collect()
    }

    /// What `tm queue show` says of a run.
    pub(crate) fn show(&self, run: &str) -> Value {
        self.tm(&["queue", "show", run, "--json"]).json()
    }

    /// Waits for the end of a run and returns its `{"status", "output", …}`.
    pub(crate) fn result(&self, run: &str) -> Value {
        self.tm(&["queue", "result", run, "--wait"]).json()
    }
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// None: a signal.
    pub(crate) code: Option<i32>,
}

impl Ran {
    /// Its standard output, which is one JSON value.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|why| panic!("{why}: {self}"))
    }

    /// Asserts a refusal: its exit code and what its message must say.
    pub(crate) fn refused(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self}");
        for word in words {
            assert!(self.stderr.contains(word), "'{word}' is missing in: {self}");
        }
    }
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit {:?}\nstdout: {}\nstderr: {}", self.code, self.stdout, self.stderr)
    }
}

pub(crate) fn ran(output: Output) -> Ran {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { stdout: text(output.stdout), stderr: text(output.stderr), code: output.status.code() }
}

/// The guests by name, built once per test run; takes a moment only when their source changed.
fn guests() -> &'static [(&'static str, Vec<u8>)] {
    static GUESTS: OnceLock<Vec<(&'static str, Vec<u8>)>> = OnceLock::new();
    GUESTS.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/guests");
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guests");
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--release", "--locked", "--target", "wasm32-wasip2", "--manifest-path"])
            .arg(source.join("Cargo.toml"))
            .arg("--target-dir")
            .arg(&target)
            .status();
        assert!(status.is_ok_and(|status| status.success()), "the guests do not build: run scripts/setup");
        let built = |name: &str| fs::read(target.join(format!("wasm32-wasip2/release/{name}.wasm"))).unwrap();
        let echo = wat::parse_file(source.join("wat/echo.wat")).unwrap();
        vec![("hostile", built("hostile")), ("compute", built("compute")), ("echo", echo)]
    })
}
