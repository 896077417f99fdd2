//! A hermetic home: a temporary folder as HOME and working directory, nothing of the caller's environment, no colour.

use std::{
    env, fmt, fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use tempfile::TempDir;

/// Commands that look for a queue and make none.
pub(crate) const QUEUE_COMMANDS: &[&[&str]] = &[
    &["queue", "ls"],
    &["queue", "show", "01"],
    &["queue", "result", "01"],
    &["queue", "cancel", "01"],
    &["queue", "verify"],
    &["queue", "repair"],
    &["queue", "repair", "--dry-run"],
    &["queue", "forget-key", "hello", "k"],
    &["enqueue", "hello"],
    &["enqueue", "hello", "--batch", "-"],
    &["dlq", "ls"],
    &["dlq", "show", "dlq-1-0"],
    &["dlq", "requeue", "dlq-1-0"],
    &["dlq", "purge", "dlq-1-0", "--yes"],
];

pub(crate) struct Home {
    folder: TempDir,
    variables: Vec<(String, String)>,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self { folder: TempDir::with_prefix("tm-cli-").unwrap(), variables: Vec::new() }
    }

    /// This home with a variable for its commands.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
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

    /// Everything below the home, sorted: what a command created.
    pub(crate) fn files(&self) -> Vec<String> {
        fn visit(folder: &Path, root: &Path, found: &mut Vec<String>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                found.push(path.strip_prefix(root).unwrap().display().to_string());
                if path.is_dir() && !path.is_symlink() {
                    visit(&path, root, found);
                }
            }
        }
        let mut found = Vec::new();
        visit(self.folder.path(), self.folder.path(), &mut found);
        found.sort();
        found
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
            .env("COLUMNS", "100")
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null());
        command
    }

    /// Runs `tm` to its end.
    pub(crate) fn tm(&self, arguments: &[&str]) -> Ran {
        self.ran(self.command(arguments).output().unwrap())
    }

    /// Runs `tm` with text on its standard input.
    pub(crate) fn tm_with_input(&self, arguments: &[&str], input: &str) -> Ran {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A command that refuses its arguments may end before it reads.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        self.ran(child.wait_with_output().unwrap())
    }

    fn ran(&self, output: Output) -> Ran {
        let root = self.folder.path().to_str().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().replace(root, "HOME");
        Ran { stdout: text(output.stdout), stderr: text(output.stderr), code: output.status.code() }
    }
}

/// How a command ended; prints as the snapshots show it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// None: a signal.
    pub(crate) code: Option<i32>,
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.stdout.is_empty() {
            writeln!(f, "stdout:\n{}", self.stdout.trim_end_matches('\n'))?;
        }
        if !self.stderr.is_empty() {
            writeln!(f, "stderr:\n{}", self.stderr.trim_end_matches('\n'))?;
        }
        match self.code {
            Some(code) => write!(f, "exit: {code}"),
            None => f.write_str("exit: killed"),
        }
    }
}

/// Asserts an inline snapshot with what varies replaced: ids, process ids, times.
macro_rules! snapshot {
    ($ran:expr, @$expected:literal) => {
        insta::with_settings!({ filters => vec![
            (r"\b[0-7][0-9A-HJKMNP-TV-Z]{25}\b", "RUN"),
            (r"dlq-\d+-[0-9A-Za-z]+", "ENTRY"),
            (r"\bpid \d+", "pid N"),
            (r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "TIME"),
            (r#""exec_ms":\d+"#, r#""exec_ms":N"#),
            (r"\bin \d+(\.\d+)? (ms|s)\b", "in N s"),
        ] }, { insta::assert_snapshot!($ran, @$expected) })
    };
}
pub(crate) use snapshot;
