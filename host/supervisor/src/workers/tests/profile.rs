//! Folders of a profile: order, modes, owners, refusals.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;

fn spec(root: &Path, folders: Vec<(String, Mode)>) -> ProfileSpec {
    ProfileSpec {
        profile: Profile { tenant: "t".into(), folders },
        staging: root.join("tmp/t"),
        results: root.join("results/t"),
        scratch: root.join("scratch/t"),
        memory_max_mb: 128,
        stack_max_kb: 1024,
        required: Required::default(),
    }
}

const SIZING: Sizing = Sizing { concurrency: 16, heartbeat_ms: 5_000, allow_weaker: false, share_mb: None };

fn folder(root: &Path, name: &str, mode: u32) -> String {
    let path = root.join(name);
    std::fs::create_dir(&path).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn granted_folders_come_first_in_their_order_and_the_tenants_own_are_made() {
    let root = tempfile::tempdir().unwrap();
    let (b, a) = (folder(root.path(), "b", 0o755), folder(root.path(), "a", 0o777));
    let spec = spec(root.path(), vec![(b.clone(), Mode::Read), (a, Mode::Write)]);
    let user = WorkerUser::resolve(None).unwrap();
    let (init, fds) = open_profile(&spec, &SIZING, user.as_ref()).unwrap();
    let found: Vec<_> = init.folders.iter().map(|folder| (folder.role, folder.write)).collect();
    assert_eq!(
        found,
        [
            (FolderRole::Granted, false),
            (FolderRole::Granted, true),
            (FolderRole::Staging, true),
            (FolderRole::Results, false),
            (FolderRole::Scratch, true),
        ]
    );
    assert_eq!(fstat(&fds[0]).unwrap().st_ino, std::fs::metadata(b).unwrap().ino());
    assert_eq!(fstat(&fds[4]).unwrap().st_ino, std::fs::metadata(spec.scratch).unwrap().ino());
}

#[test]
fn as_root_the_tenants_folders_are_handed_to_the_workers_user() {
    let Some(user) = WorkerUser::resolve(None).unwrap() else { return };
    let root = tempfile::tempdir().unwrap();
    let spec = spec(root.path(), Vec::new());
    for _ in 0..2 {
        open_profile(&spec, &SIZING, Some(&user)).unwrap();
        for path in [&spec.staging, &spec.scratch] {
            let found = std::fs::metadata(path).unwrap();
            assert_eq!((found.uid(), found.mode() & 0o777), (user.uid.as_raw(), 0o700));
        }
        let results = std::fs::metadata(&spec.results).unwrap();
        assert_eq!((results.uid(), results.gid(), results.mode() & 0o777), (0, user.gid.as_raw(), 0o750));
    }
}

#[test]
fn a_granted_folder_that_the_workers_user_cannot_use_is_refused_with_the_fix() {
    let Some(user) = WorkerUser::resolve(None).unwrap() else { return };
    let root = tempfile::tempdir().unwrap();
    let before = dumpable_behavior().unwrap();
    let closed = folder(root.path(), "closed", 0o700);
    let refused = open_granted(Path::new(&closed), false, Some(&user)).unwrap_err().to_string();
    assert!(refused.contains(&format!("user nobody cannot read folder {closed}")), "{refused}");
    assert!(refused.contains(&format!("setfacl -R -m u:nobody:rX {closed}")), "{refused}");
    let readable = folder(root.path(), "readable", 0o755);
    open_granted(Path::new(&readable), false, Some(&user)).unwrap();
    let refused = open_granted(Path::new(&readable), true, Some(&user)).unwrap_err().to_string();
    assert!(refused.contains("cannot write to folder") && refused.contains("u:nobody:rwX"), "{refused}");
    assert_eq!(dumpable_behavior().unwrap(), before, "the check leaves no trace");
    assert!(geteuid().is_root());
}

#[test]
fn a_missing_folder_is_named() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("missing");
    let refused = open_granted(&path, false, None).unwrap_err().to_string();
    assert!(refused.contains(path.to_str().unwrap()), "{refused}");
}

#[test]
fn a_worker_interleaves_only_what_fits_into_its_share_of_memory() {
    let share = |share_mb| Sizing { share_mb: Some(share_mb), ..SIZING };
    assert_eq!(SIZING.concurrency_for(1_000_000, 0).unwrap(), 16);
    assert_eq!(share(10_000).concurrency_for(128, 1024).unwrap(), 16);
    // 128 for the worker, and 128 + 1 + 16 for each step.
    assert_eq!(share(128 + 5 * 145).concurrency_for(128, 1024).unwrap(), 5);
    assert_eq!(share(127 + 5 * 145).concurrency_for(128, 1024).unwrap(), 4);
    let refused = share(272).concurrency_for(128, 1024).unwrap_err().to_string();
    assert!(refused.contains("273 MiB") && refused.contains("272 MiB") && refused.contains("memory_max"), "{refused}");
}

#[test]
fn workers_never_become_root_or_an_unknown_user() {
    if !geteuid().is_root() {
        return;
    }
    assert!(matches!(WorkerUser::resolve(Some("root")), Err(ProfileError::RootUser)));
    assert!(matches!(WorkerUser::resolve(Some("0")), Err(ProfileError::RootUser)));
    assert!(matches!(WorkerUser::resolve(Some("no-such-user")), Err(ProfileError::NoSuchUser(_))));
}
