//! Artefacts on a real disk, with what a hostile worker may leave there.

use std::{fs, path::PathBuf};

use tm_core::{
    id::{Digest, RunId, TaskRef},
    json::{Json, Payload},
    time::Millis,
};

use super::{
    artifacts::{ArtifactError, Artifacts, Publication},
    disk::{RealDisk, Roots},
    kept::Bounds,
};

struct Home {
    _folder: tempfile::TempDir,
    artifacts: Artifacts<RealDisk>,
    tenant: PathBuf,
    output: Payload,
}

const TASK: TaskRef = TaskRef { run: RunId(7), step: 0, item: Some(3) };

impl Home {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let roots = Roots::below(folder.path());
        let artifacts = Artifacts::new(RealDisk::create(&roots).unwrap()).unwrap();
        artifacts.tenant("default").unwrap();
        let tenant = roots.store.join("tenants/default");
        Self { _folder: folder, artifacts, tenant, output: Payload::Inline(Json::null()) }
    }

    fn staging(&self) -> PathBuf {
        let staging = self.tenant.join("tmp/t.1");
        fs::create_dir_all(staging.join("a/b")).unwrap();
        staging
    }

    fn publication(&self) -> Publication<'_> {
        Publication {
            tenant: "default",
            staging: "t.1",
            task: TASK,
            step_id: "render",
            component: Digest::of(b"c"),
            input: Digest::of(b"i"),
            output: &self.output,
            max_bytes: 1000,
        }
    }

    fn result(&self) -> PathBuf {
        self.tenant.join(format!("results/{}/render[3]", TASK.run))
    }
}

#[test]
fn artefacts_are_moved_whole_and_only_the_same_component_and_input_short_circuits() {
    let home = Home::new();
    let staging = home.staging();
    fs::write(staging.join("a/b/page.html"), "<p>").unwrap();
    fs::write(staging.join("index"), "12345").unwrap();
    let manifest = home.artifacts.publish(&home.publication()).unwrap();
    let names: Vec<_> = manifest.files.iter().map(|file| (file.name.as_str(), file.size_bytes)).collect();
    assert_eq!(names, [("a/b/page.html", 3), ("index", 5)]);
    assert!(!staging.exists());
    assert_eq!(fs::read(home.result().join("a/b/page.html")).unwrap(), b"<p>");
    let lookup =
        |component, input| home.artifacts.lookup("default", TASK, "render", Digest::of(component), Digest::of(input));
    assert_eq!(lookup(b"c", b"i"), Some(manifest));
    assert_eq!((lookup(b"x", b"i"), lookup(b"c", b"x")), (None, None));
    fs::write(home.result().join("index"), "1234").unwrap();
    assert_eq!(lookup(b"c", b"i"), None, "an incomplete result proves nothing");
}

#[test]
fn a_later_attempt_replaces_what_an_earlier_one_left_and_an_expired_run_leaves_nothing() {
    let home = Home::new();
    fs::write(home.staging().join("old"), "old").unwrap();
    home.artifacts.publish(&home.publication()).unwrap();
    fs::write(home.staging().join("new"), "new").unwrap();
    home.artifacts.publish(&home.publication()).unwrap();
    assert!(!home.result().join("old").exists() && home.result().join("new").exists());
    home.artifacts.remove_run("default", TASK.run).unwrap();
    home.artifacts.remove_run("default", TASK.run).unwrap();
    assert!(fs::read_dir(home.tenant.join("results")).unwrap().next().is_none());
}

#[test]
fn a_symbolic_link_an_empty_file_and_too_many_bytes_are_refused_and_nothing_is_published() {
    type Expected = fn(&ArtifactError) -> bool;
    let cases: [(&str, Expected); 3] = [
        ("link", |error| matches!(error, ArtifactError::NotAFile { .. })),
        ("empty", |error| matches!(error, ArtifactError::Empty { .. })),
        ("large", |error| matches!(error, ArtifactError::TooLarge { max_bytes: 1000 })),
    ];
    for (case, expected) in cases {
        let home = Home::new();
        let staging = home.staging();
        match case {
            "link" => std::os::unix::fs::symlink("/etc/passwd", staging.join("a/link")).unwrap(),
            "empty" => fs::write(staging.join("empty"), "").unwrap(),
            _ => fs::write(staging.join("large"), [b'x'; 1001]).unwrap(),
        }
        let error = home.artifacts.publish(&home.publication()).unwrap_err();
        assert!(expected(&error), "{case}: {error}");
        assert!(!home.result().exists(), "{case}");
    }
}

#[test]
fn a_staging_folder_that_is_a_link_or_leads_elsewhere_is_refused() {
    let home = Home::new();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "x").unwrap();
    std::os::unix::fs::symlink(outside.path(), home.tenant.join("tmp/t.1")).unwrap();
    assert!(home.artifacts.publish(&home.publication()).is_err());
    let leaves = Publication { staging: "../results", ..home.publication() };
    assert!(matches!(home.artifacts.publish(&leaves), Err(ArtifactError::BadName { .. })));
    assert!(outside.path().join("secret").exists() && !home.result().exists());
}

#[test]
fn a_sweep_at_the_start_removes_staging_without_following_links() {
    let home = Home::new();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("keep"), "x").unwrap();
    let staging = home.staging();
    std::os::unix::fs::symlink(outside.path(), staging.join("a/link")).unwrap();
    std::os::unix::fs::symlink(outside.path(), home.tenant.join("tmp/link")).unwrap();
    assert_eq!(home.artifacts.sweep_staging().unwrap(), 2);
    assert!(outside.path().join("keep").exists());
    assert!(fs::read_dir(home.tenant.join("tmp")).unwrap().next().is_none());
}

#[test]
fn an_attempt_without_artefacts_is_published_too() {
    let home = Home::new();
    let manifest = home.artifacts.publish(&home.publication()).unwrap();
    assert!(manifest.files.is_empty() && home.result().is_dir());
}

#[test]
fn of_the_runs_that_it_is_given_a_sweep_removes_those_over_their_bounds() {
    let home = Home::new();
    for (run, bytes, changed_s) in [(1, 10, 100), (2, 20, 300), (3, 30, 200)] {
        let folder = home.tenant.join(format!("results/{}/render", RunId(run)));
        fs::create_dir_all(folder.join("a")).unwrap();
        fs::write(folder.join("a/b"), vec![b'x'; bytes]).unwrap();
        let changed = std::time::UNIX_EPOCH + std::time::Duration::from_secs(changed_s);
        for path in [folder.join("a/b"), folder.join("a"), folder] {
            fs::File::open(path).unwrap().set_modified(changed).unwrap();
        }
    }
    let of = |runs: &[u128]| runs.iter().map(|run| ("default".to_owned(), RunId(*run))).collect::<Vec<_>>();
    assert_eq!(home.artifacts.runs().unwrap(), of(&[1, 2, 3]));
    let sweep = |runs, max_age_ms, max_bytes| {
        home.artifacts.sweep(of(runs), Bounds { max_age_ms, max_bytes }, Millis(400_000)).unwrap()
    };
    assert_eq!(sweep(&[1, 2, 3], 300_000, 60), 3);
    assert_eq!(sweep(&[2, 3], 300_000, 20), 1, "the oldest goes first, and only of those that were named");
    assert_eq!(home.artifacts.runs().unwrap(), of(&[1, 2]));
    assert_eq!(sweep(&[1, 2], 299_999, 60), 1);
    assert_eq!(home.artifacts.runs().unwrap(), of(&[2]));
}
