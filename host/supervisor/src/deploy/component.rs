//! Where a step's component lies: a `.wasm`, or a folder with a Cargo.toml that `tm build` builds.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::opened::open_regular;

/// The target that steps are built for, and the profile.
pub const TARGET: &str = "wasm32-wasip2";
pub const PROFILE: &str = "release";

/// Why a step has no component.
#[derive(Debug, thiserror::Error)]
pub enum ComponentError {
    #[error("{} does not exist", path.display())]
    Missing { path: PathBuf },
    #[error("{} is not built: {} does not exist", folder.display(), artifact.display())]
    NotBuilt { folder: PathBuf, artifact: PathBuf },
    #[error("{} is neither a .wasm file nor a folder with a Cargo.toml", path.display())]
    Neither { path: PathBuf },
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not a Cargo.toml: {message}", path.display())]
    Manifest { path: PathBuf, message: String },
    #[error("{} has no [package] with a name", path.display())]
    NoPackage { path: PathBuf },
}

impl ComponentError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self, flow: &Path) -> Option<String> {
        matches!(self, Self::NotBuilt { .. }).then(|| format!("run: tm build {}", flow.display()))
    }
}

/// A step's component that is not there: why, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    pub message: String,
    pub hint: Option<String>,
}

/// Opens a step's component with this process's permissions; with the path that it was found at. `flow` is the flow
/// file as messages name it.
///
/// # Errors
/// When it is not there or cannot be read.
pub fn open(flow: &Path, flow_folder: &Path, component: &str) -> Result<(PathBuf, File), Missing> {
    let path = locate(flow_folder, component)
        .map_err(|error| Missing { hint: error.hint(flow), message: error.to_string() })?;
    match open_regular(&path) {
        Ok(file) => Ok((path, file)),
        Err(source) => Err(Missing { message: ComponentError::Read { path, source }.to_string(), hint: None }),
    }
}

/// What a step's `component` means: the `.wasm` itself, or what the folder's build made.
///
/// # Errors
/// When it does not exist, is neither, or is not built yet.
pub fn locate(flow_folder: &Path, component: &str) -> Result<PathBuf, ComponentError> {
    let path = flow_folder.join(component);
    if path.is_dir() {
        return artifact_of(&path);
    }
    if !path.exists() {
        return Err(ComponentError::Missing { path });
    }
    if path.extension().is_none_or(|extension| extension != "wasm") {
        return Err(ComponentError::Neither { path });
    }
    Ok(path)
}

/// The component that a folder's build made.
///
/// # Errors
/// When the folder is no crate, or not built yet.
pub fn artifact_of(folder: &Path) -> Result<PathBuf, ComponentError> {
    let artifact = expected_artifact(folder, std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from).as_deref())?;
    if !artifact.is_file() {
        return Err(ComponentError::NotBuilt { folder: folder.to_owned(), artifact });
    }
    Ok(artifact)
}

/// Where `cargo build --release --target wasm32-wasip2` in the folder leaves its component.
///
/// `target_dir` is what CARGO_TARGET_DIR says.
///
/// # Errors
/// When the folder is no crate.
pub fn expected_artifact(folder: &Path, target_dir: Option<&Path>) -> Result<PathBuf, ComponentError> {
    let path = folder.join("Cargo.toml");
    if !path.is_file() {
        return Err(ComponentError::Neither { path: folder.to_owned() });
    }
    let manifest = read(&path)?;
    let package = manifest.package.ok_or(ComponentError::NoPackage { path })?;
    let name = manifest.lib.and_then(|lib| lib.name).unwrap_or_else(|| package.name.replace('-', "_"));
    let target = match target_dir {
        Some(target) => target.to_owned(),
        None => match package.workspace {
            Some(root) => folder.join(root).join("target"),
            None => workspace_root(folder)?.join("target"),
        },
    };
    Ok(target.join(TARGET).join(PROFILE).join(format!("{name}.wasm")))
}

#[derive(Deserialize)]
struct Manifest {
    package: Option<Package>,
    lib: Option<Lib>,
    workspace: Option<Workspace>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    workspace: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Lib {
    name: Option<String>,
}

#[derive(Deserialize)]
struct Workspace {
    #[serde(default)]
    exclude: Vec<PathBuf>,
}

fn read(path: &Path) -> Result<Manifest, ComponentError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| ComponentError::Read { path: path.to_owned(), source })?;
    toml::from_str(&text).map_err(|error| ComponentError::Manifest {
        path: path.to_owned(),
        message: error.message().replace('\n', ", "),
    })
}

/// The nearest folder upwards whose Cargo.toml has a `[workspace]` that does not exclude the crate, else the crate's own.
fn workspace_root(folder: &Path) -> Result<PathBuf, ComponentError> {
    let start = folder.canonicalize().map_err(|source| ComponentError::Read { path: folder.to_owned(), source })?;
    for root in start.ancestors() {
        let path = root.join("Cargo.toml");
        if !path.is_file() {
            continue;
        }
        if let Some(workspace) = read(&path)?.workspace {
            let excluded = workspace.exclude.iter().any(|excluded| start.starts_with(root.join(excluded)));
            if root == start || !excluded {
                return Ok(root.to_owned());
            }
        }
    }
    Ok(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn a_crates_component_lies_in_the_target_of_its_workspace() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        write(&root, "Cargo.toml", "[workspace]\nmembers = [\"host\"]\nexclude = [\"flows\"]\n");
        write(&root, "flows/Cargo.toml", "[workspace]\nmembers = [\"steps/*\"]\n");
        write(&root, "flows/steps/a-b/Cargo.toml", "[package]\nname = \"step-a-b\"\n");
        write(&root, "flows/steps/c/Cargo.toml", "[package]\nname = \"c\"\n[lib]\nname = \"other\"\n[workspace]\n");
        write(&root, "host/Cargo.toml", "[package]\nname = \"h\"\n");
        let expected = |folder: &str| expected_artifact(&root.join(folder), None).unwrap();
        assert_eq!(expected("flows/steps/a-b"), root.join("flows/target/wasm32-wasip2/release/step_a_b.wasm"));
        assert_eq!(expected("flows/steps/c"), root.join("flows/steps/c/target/wasm32-wasip2/release/other.wasm"));
        assert_eq!(expected("host"), root.join("target/wasm32-wasip2/release/h.wasm"));
        let elsewhere = expected_artifact(&root.join("host"), Some(Path::new("/t"))).unwrap();
        assert_eq!(elsewhere, Path::new("/t/wasm32-wasip2/release/h.wasm"));
        write(&root, "flows/target/wasm32-wasip2/release/step_a_b.wasm", "");
        assert!(matches!(locate(&root.join("flows"), "nope"), Err(ComponentError::Missing { .. })));
    }

    #[test]
    fn what_is_no_component_is_told_apart() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "a.txt", "");
        write(root.path(), "b.wasm", "");
        write(root.path(), "virtual/Cargo.toml", "[workspace]\n");
        write(root.path(), "broken/Cargo.toml", "[package\n");
        std::fs::create_dir(root.path().join("empty")).unwrap();
        assert!(matches!(locate(root.path(), "a.txt"), Err(ComponentError::Neither { .. })));
        assert!(matches!(locate(root.path(), "empty"), Err(ComponentError::Neither { .. })));
        assert!(matches!(locate(root.path(), "virtual"), Err(ComponentError::NoPackage { .. })));
        assert!(matches!(locate(root.path(), "broken"), Err(ComponentError::Manifest { .. })));
        assert_eq!(locate(root.path(), "b.wasm").unwrap(), root.path().join("b.wasm"));
    }
}
