//! Lists a folder of Markdown: the pages and, apart, all other files; sorted, relative, bounded.
//!
//! Hidden entries and symbolic links are left out: the first are not documentation, the second could form a circle.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use tm_guest::prelude::*;

/// Where the flow mounts the folder.
const ROOT: &str = "/docs";
/// A fan-out has at most 10,000 items.
const PAGES_MAX: usize = 10_000;
const FILES_MAX: usize = 10_000;
const DEPTH_MAX: usize = 32;

#[payload]
struct In {}

#[payload]
#[derive(Debug, Default, PartialEq)]
struct Out {
    /// Markdown files, relative to the folder, with `/`.
    pages: Vec<String>,
    /// Everything else that a page may link to.
    files: Vec<String>,
}

#[step]
fn list(_ctx: &Context, Json(In {}): Json<In>) -> Result<Json<Out>, StepError> {
    let found = walk(Path::new(ROOT))?;
    log::info(format!("{} pages, {} other files", found.pages.len(), found.files.len()));
    Ok(Json(found))
}

fn walk(root: &Path) -> Result<Out, StepError> {
    let mut out = Out::default();
    let mut folders = vec![(String::new(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        let unreadable = |why: std::io::Error| match why.kind() {
            ErrorKind::NotFound | ErrorKind::PermissionDenied | ErrorKind::NotADirectory => {
                StepError::fatal("FOLDER_UNREADABLE", format!("/{folder}: {why}"))
            }
            _ => StepError::retryable("FOLDER_IO", format!("/{folder}: {why}")),
        };
        for entry in fs::read_dir(root.join(&folder)).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let Ok(name) = entry.file_name().into_string() else {
                log::warn(format!("left out, its name is not UTF-8: {}", entry.path().display()));
                continue;
            };
            if name.starts_with('.') {
                continue;
            }
            let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            let kind = entry.file_type().map_err(unreadable)?;
            if kind.is_symlink() {
                log::warn(format!("left out, it is a symbolic link: {path}"));
            } else if kind.is_dir() {
                if depth == DEPTH_MAX {
                    return Err(StepError::fatal("TOO_DEEP", format!("{path}: over {DEPTH_MAX} folders deep")));
                }
                folders.push((path, depth + 1));
            } else if path.ends_with(".md") {
                out.pages.push(path);
            } else {
                out.files.push(path);
            }
            if out.pages.len() > PAGES_MAX || out.files.len() > FILES_MAX {
                let why = format!("over {PAGES_MAX} pages or {FILES_MAX} other files");
                return Err(StepError::fatal("TOO_MANY_FILES", why));
            }
        }
    }
    out.pages.sort_unstable();
    out.files.sort_unstable();
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    struct Folder(PathBuf);

    impl Folder {
        fn with(name: &str, files: &[&str]) -> Folder {
            let root = std::env::temp_dir().join(format!("tm-docs-list-{name}-{}", std::process::id()));
            for file in files {
                let path = root.join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "x").unwrap();
            }
            Folder(root)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn pages_and_files_are_listed_apart_sorted_and_relative() {
        let folder = Folder::with("apart", &["b.md", "a/z.md", "a/pic.png", ".git/x.md", "a/.hidden.md"]);
        let out = walk(&folder.0).unwrap();
        assert_eq!(out, Out { pages: vec!["a/z.md".into(), "b.md".into()], files: vec!["a/pic.png".into()] });
    }

    #[test]
    #[cfg(unix)]
    fn a_symbolic_link_in_a_circle_is_left_out() {
        let folder = Folder::with("circle", &["a/x.md"]);
        std::os::unix::fs::symlink(&folder.0, folder.0.join("a/up")).unwrap();
        assert_eq!(walk(&folder.0).unwrap().pages, ["a/x.md"]);
    }

    #[test]
    fn a_missing_folder_is_fatal_and_named() {
        let error = walk(Path::new("/no/such/folder")).unwrap_err();
        assert_eq!(error.code(), "FOLDER_UNREADABLE");
    }
}
