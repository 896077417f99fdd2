//! What only reads leaves every byte where it is.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use tm_core::{
    api::{DlqAction, Reply, Request},
    queue::{decide::Runnable, view},
};

use super::{
    Options,
    answers::{Asked, answer},
    local::preview,
    payloads::StoredBlobs,
};
use crate::{
    config::Settings,
    store::{
        blobs::BlobStore,
        disk::{MemDisk, Roots},
        small_queue_tests,
    },
};

/// A queue with dead letters, on a real disk.
fn made(home: &Path) -> Options {
    let roots = Roots::below(home);
    for (path, bytes) in small_queue_tests::files(&small_queue_tests::make()) {
        let to = home.join(path);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::write(to, bytes).unwrap();
    }
    Options {
        settings: Settings::default(),
        config: PathBuf::from("none.toml"),
        roots,
        runtime: PathBuf::from("flows"),
        runtime_named: false,
        pid_file: home.join("tm.pid"),
        worker_user: None,
        allow_weaker: false,
    }
}

/// Every file with its content and its time of change.
fn image(folder: &Path) -> BTreeMap<PathBuf, (Vec<u8>, std::time::SystemTime)> {
    let mut image = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let changed = path.metadata().unwrap().modified().unwrap();
        if path.is_dir() {
            image.extend(self::image(&path));
            image.insert(path, (Vec::new(), changed));
        } else {
            image.insert(path.clone(), (fs::read(&path).unwrap(), changed));
        }
    }
    image
}

fn told(reply: &Reply) -> String {
    serde_json::to_string(reply).unwrap()
}

#[test]
fn a_dry_run_and_a_refused_change_read_alone() {
    let home = tempfile::tempdir().unwrap();
    let options = made(home.path());
    let before = image(home.path());
    let action = |pattern: &str, all, dry_run| DlqAction { pattern: pattern.into(), all, dry_run, ..<_>::default() };
    let changes_nothing = [
        Request::DlqRequeue(action("dlq-*", true, true)),
        Request::DlqPurge(action("dlq-*", true, true)),
        Request::DlqRequeue(action("nothing", false, false)),
        Request::DlqRequeue(action("dlq-*", false, false)),
        Request::DlqPurge(action("dlq-*", false, false)),
        Request::Cancel { id: "01J".into() },
        Request::ForgetKey { tenant: "default".into(), flow: "good".into(), key: "no such key".into() },
        // Its result expired long ago.
        Request::ForgetKey { tenant: "default".into(), flow: "good".into(), key: "order-0".into() },
    ];
    let previews: Vec<_> = changes_nothing
        .iter()
        .map(|request| told(&preview(&options, request, &mut |_| {}).unwrap().expect("it changes nothing")))
        .collect();
    assert!(previews[0].contains("would requeue") && previews[1].contains("would purge"), "{previews:#?}");
    for changes in [Request::DlqRequeue(action("dlq-*", true, false)), Request::DlqPurge(action("dlq-*", true, false))]
    {
        assert!(preview(&options, &changes, &mut |_| {}).unwrap().is_none(), "{changes:?}");
    }
    assert_eq!(image(home.path()), before, "not a byte and not a time has changed (I12)");
}

#[test]
fn why_nothing_is_leased_is_told_by_stats_and_show() {
    let turn = small_queue_tests::waiting();
    let state = &turn.state;
    let ended = turn.ended(state.last_at);
    let blobs = StoredBlobs::new(BlobStore::reading(MemDisk::default()));
    let ask_of = |served, disk_full, paused, request: &Request| {
        let (blobs, runnable, workers) = (&blobs, &|_, _| Runnable::Yes, &Vec::new);
        let asked = Asked { ended, blobs, runnable, workers, backend: "file", served, disk_full, paused };
        told(&answer(&asked, request).unwrap())
    };
    let ask = |disk_full, paused, request: &Request| ask_of(true, disk_full, paused, request);
    let id = state.runs.keys().next().unwrap().to_string();
    assert!(view::run_by_id(ended, &id).is_ok());
    for request in [Request::Stats, Request::Show { id }] {
        assert!(ask(true, None, &request).contains(r#""held_back":"the queue's disk has no room"#), "{request:?}");
        assert!(ask(false, None, &request).contains(r#""held_back":null"#), "{request:?}");
        assert!(ask_of(false, false, None, &request).contains(r#""held_back":"no supervisor runs"#), "{request:?}");
        assert!(ask(false, Some("a pause"), &request).contains(r#""held_back":"a pause""#), "{request:?}");
    }
}
