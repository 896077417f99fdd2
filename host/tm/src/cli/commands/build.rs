//! `tm build`: the steps of flows to WASI components, with cargo.

use std::{
    collections::BTreeMap,
    env, fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde::Deserialize;
use tm_supervisor::deploy::{artifact_of, component::TARGET};

use crate::cli::{
    args::BuildArgs,
    exit::{End, Failure, Outcome, reason},
    flow,
};

/// The folder of flows that `tm build` alone builds.
const FLOWS: &str = "flows";
/// Small, and with function names, so that a trap is symbolised. One codegen unit and LTO drop the imports that nothing
/// calls; an unused import would have to be granted.
const PROFILE: [&str; 5] = [
    "profile.release.opt-level=\"s\"",
    "profile.release.lto=true",
    "profile.release.codegen-units=1",
    "profile.release.panic=\"abort\"",
    "profile.release.strip=\"debuginfo\"",
];

pub(crate) fn run(args: &BuildArgs) -> Outcome {
    let mut folders = Vec::new();
    if args.targets.is_empty() {
        for file in flow_files(Path::new(FLOWS))? {
            folders.extend(flow::step_folders(&file)?);
        }
    }
    for target in &args.targets {
        if target.is_dir() {
            folders.push(target.clone());
        } else if target.is_file() {
            folders.extend(flow::step_folders(target)?);
        } else {
            return Err(Failure::usage(format!("{} is neither a flow file nor a step folder", target.display())));
        }
    }
    folders.sort();
    folders.dedup();
    if folders.is_empty() {
        eprintln!("nothing to build: no step is a folder with a Cargo.toml");
        return Ok(End::Done);
    }
    target_is_installed()?;
    let mut workspaces: BTreeMap<PathBuf, Vec<Step>> = BTreeMap::new();
    for folder in &folders {
        let step = Step::find(folder)?;
        workspaces.entry(step.workspace.clone()).or_default().push(step);
    }
    for (workspace, steps) in &workspaces {
        build(workspace, steps, args.quiet)?;
    }
    Ok(End::Done)
}

/// The flow files of a folder, by name.
fn flow_files(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let entries = fs::read_dir(folder).map_err(|error| {
        Failure::io("read", folder, &error).hint("name a flow file or a step folder: tm build PATH")
    })?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml"))
        .collect();
    files.sort();
    Ok(files)
}

/// A step's package.
struct Step {
    name: String,
    folder: PathBuf,
    workspace: PathBuf,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_root: PathBuf,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    manifest_path: PathBuf,
    targets: Vec<PackageTarget>,
}

#[derive(Deserialize)]
struct PackageTarget {
    crate_types: Vec<String>,
}

impl Step {
    /// Asks cargo which package and workspace a folder is.
    fn find(folder: &Path) -> Result<Self, Failure> {
        let manifest = folder.join("Cargo.toml");
        let manifest = manifest
            .canonicalize()
            .map_err(|error| Failure::io("read", &manifest, &error).hint("a step is a folder with a Cargo.toml"))?;
        let output = cargo()
            .args(["metadata", "--format-version", "1", "--no-deps", "--manifest-path"])
            .arg(&manifest)
            .stderr(Stdio::inherit())
            .output()
            .map_err(|error| not_started("cargo", &error))?;
        let failed = || Failure::invalid(format!("cargo cannot read {}", manifest.display()));
        if !output.status.success() {
            return Err(failed());
        }
        let metadata: Metadata = serde_json::from_slice(&output.stdout).map_err(|_| failed())?;
        let package =
            metadata.packages.into_iter().find(|package| package.manifest_path == manifest).ok_or_else(failed)?;
        if !package.targets.iter().any(|target| target.crate_types.iter().any(|kind| kind == "cdylib")) {
            return Err(Failure::invalid(format!(
                "{} is no component: it has no library of type cdylib",
                manifest.display()
            ))
            .hint("add to its Cargo.toml: [lib] crate-type = [\"cdylib\"]"));
        }
        Ok(Self { name: package.name, folder: folder.to_owned(), workspace: metadata.workspace_root })
    }
}

/// Builds the steps of one workspace in one go, into the folder where flows look for their components.
fn build(workspace: &Path, steps: &[Step], quiet: bool) -> Result<(), Failure> {
    let mut command = cargo();
    command.args(["build", "--release", "--target", TARGET, "--manifest-path"]).arg(workspace.join("Cargo.toml"));
    if env::var_os("CARGO_TARGET_DIR").is_none() {
        command.arg("--target-dir").arg(workspace.join("target"));
    }
    for setting in PROFILE {
        command.args(["--config", setting]);
    }
    for step in steps {
        command.args(["-p", &step.name]);
    }
    if quiet {
        command.arg("--quiet");
    }
    let status = command.stdin(Stdio::null()).status().map_err(|error| not_started("cargo", &error))?;
    if !status.success() {
        let names: Vec<&str> = steps.iter().map(|step| step.name.as_str()).collect();
        return Err(
            Failure::failed(format!("cargo could not build {}", names.join(", "))).hint("its messages are above")
        );
    }
    let here = env::current_dir().unwrap_or_default();
    for step in steps {
        let component = artifact_of(&step.folder).map_err(|error| Failure::failed(error.to_string()))?;
        let size = fs::metadata(&component).map_err(|error| Failure::io("read", &component, &error))?.len();
        let component = component.strip_prefix(&here).unwrap_or(&component);
        let (folder, component, kib) = (step.folder.display(), component.display(), size.div_ceil(1024));
        writeln!(std::io::stdout(), "built {folder} -> {component} ({kib} KiB)")?;
    }
    Ok(())
}

fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

fn not_started(program: &str, error: &std::io::Error) -> Failure {
    Failure::invalid(format!("cannot start {program}: {}", reason(error)))
        .hint("install Rust from https://rustup.rs, then open a new shell")
}

/// Where std of the target lies tells whether it is there, also for a Rust that does not come from rustup.
fn target_is_installed() -> Result<(), Failure> {
    let output = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args(["--print", "target-libdir", "--target", TARGET])
        .stderr(Stdio::null())
        .output()
        .map_err(|error| not_started("rustc", &error))?;
    let folder = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let has_std = fs::read_dir(folder)
        .is_ok_and(|entries| entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libstd-")));
    if has_std {
        Ok(())
    } else {
        Err(Failure::invalid(format!("this Rust cannot build for {TARGET}: the target is missing"))
            .hint(format!("rustup target add {TARGET}")))
    }
}
