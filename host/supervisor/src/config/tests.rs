//! The configuration, key by key, and the ceiling.

use super::*;
use tm_core::flow::spec::{EnvFrom, EnvSource, EnvSpec, FilesSpec, GrantsDef, Mode};

fn parse(text: &str) -> Settings {
    Settings::parse(text, Path::new("/etc/tm/trace_config.toml")).unwrap()
}

fn fails(text: &str) -> String {
    Settings::parse(text, Path::new("conf/trace_config.toml")).unwrap_err().to_string()
}

#[test]
fn a_missing_file_and_an_empty_one_give_the_defaults() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(Settings::load(&folder.path().join("none.toml")).unwrap(), Settings::default());
    assert_eq!(parse(""), Settings::default());
    Settings::default().check().unwrap();
    assert!(matches!(Settings::load(folder.path()), Err(ConfigError::Read { .. })));
}

#[test]
fn every_key_is_taken() {
    let settings = parse(
        r#"
        [queue]
        backend = "memory"
        segment_max_mb = 8
        lease_ms = 20000
        fsync = "interval"
        results_max_mb = 1
        keys_max = 10
        hard_depth = 11
        [workers]
        num = 3
        concurrency = 4
        isolation = "task"
        warm_pool = 2
        memory_max = "2GiB"
        heartbeat = "500ms"
        heartbeat_timeout = 2
        drain_grace = "1m"
        [retries.default]
        max_attempts = 7
        factor = 1.5
        [retries.flow."docs-site"]
        base_ms = 9
        [idempotency]
        result_ttl_sec = 60
        [tenants."a".allow]
        files = [{ host = "docs", mode = "write" }, { host = "/srv" }]
        env = ["HOME"]
        limits = { memory_mb = 2048 }
        random = false
        [tenants.b]
        weight = 5
        [backpressure]
        high_watermark = 100
        load_threshold = 0.75
        pause_ms = 250
        [scratch]
        keep_on_success = true
        max_age = "1d"
        max_mb = 2
        [retention]
        artifacts_max_age = "1h"
        artifacts_max_mb = 3
        dlq_archive_max_age = 5
        dlq_archive_max_mb = 4
        "#,
    );
    assert_eq!(settings.queue.segment_max_bytes, 8 * units::MIB);
    assert_eq!((settings.queue.fsync, settings.queue.backend), (Fsync::Interval, Backend::Memory));
    assert_eq!((settings.workers.num, settings.workers.isolation), (3, Isolation::Task));
    assert_eq!((settings.workers.heartbeat_ms, settings.workers.heartbeat_timeout_ms), (500, 2_000));
    assert_eq!(settings.workers.memory_max, units::Share::Bytes(2 * units::GIB));
    let (plain, own) = (settings.retry_base("other"), settings.retry_base("docs-site"));
    assert_eq!((plain.max_attempts, plain.factor_thousandths, plain.base_ms), (7, 1500, 200));
    assert_eq!((own.max_attempts, own.factor_thousandths, own.base_ms), (7, 1500, 9), "inherits key by key");
    let policy = settings.policy();
    assert_eq!((policy.result_ttl_ms, policy.keys_max, policy.hard_depth), (60_000, 10, 11));
    assert_eq!((policy.weights["a"], policy.weights["b"]), (1, 5));
    let Ceilings::Tenants(tenants) = &settings.ceilings else { panic!("a table was given") };
    assert_eq!(tenants["a"].folders[0].path, Path::new("/etc/tm/docs"));
    assert_eq!((tenants["a"].limits.memory_mb, tenants["a"].limits.fuel), (2048, Limits::CEILING.fuel));
    assert!(!tenants["a"].random && tenants["a"].clocks);
    assert_eq!(settings.scratch.kept, Bounds { max_age_ms: 86_400_000, max_bytes: 2 * units::MIB });
    assert!(settings.scratch.keep_on_success);
    let Retention { artifacts, dlq_archive } = settings.retention;
    assert_eq!(artifacts, Bounds { max_age_ms: 3_600_000, max_bytes: 3 * units::MIB });
    assert_eq!(dlq_archive, Bounds { max_age_ms: 5_000, max_bytes: 4 * units::MIB });
    let Backpressure { high_watermark, load_threshold, pause_ms } = settings.backpressure.unwrap();
    assert_eq!((high_watermark, load_threshold, pause_ms), (100, 0.75, 250));
}

#[test]
fn backpressure_needs_its_watermark_alone() {
    let pressure = |text: &str| parse(text).backpressure.unwrap();
    let Backpressure { high_watermark, load_threshold, pause_ms } = pressure("[backpressure]\nhigh_watermark = 7");
    assert_eq!((high_watermark, load_threshold, pause_ms), (7, 1.0, 500));
    assert_eq!(pressure("[backpressure]\nhigh_watermark = 7\nload_threshold = 2").load_threshold, 2.0);
    assert!(fails("[backpressure]\npause_ms = 5").contains("missing field `high_watermark`"));
}

#[test]
fn the_older_name_of_fsync_is_taken_alone() {
    assert_eq!(parse("[queue]\nfsync_on_put = true").queue.fsync, Fsync::Always);
    assert_eq!(parse("[queue]\nfsync_on_put = false").queue.fsync, Fsync::Never);
    assert!(fails("[queue]\nfsync = \"never\"\nfsync_on_put = true").starts_with("conf/trace_config.toml:3:"));
}

#[test]
fn each_error_names_file_line_and_key() {
    for (text, expected) in [
        ("[queue]\n\nlease_sm = 5", "conf/trace_config.toml:3:1: unknown key 'lease_sm' (did you mean 'lease_ms'?)"),
        ("[qeue]\n", "conf/trace_config.toml:1:2: unknown key 'qeue' (did you mean 'queue'?)"),
        (
            "[queue]\nkeys_max = \"5\"",
            "conf/trace_config.toml:2:12: queue.keys_max: invalid type: string \"5\", expected a whole number from 0",
        ),
        ("[workers]\nnum = 0", "conf/trace_config.toml:2:7: workers.num: 0 is not between 1 and 1024"),
        (
            "[backpressure]\nhigh_watermark = 1\nload_threshold = -0.5",
            "conf/trace_config.toml:3:18: backpressure.load_threshold: -0.5 is not between 0 and 1000",
        ),
        (
            "[retention]\ndlq_archive_max_mb = 0",
            "conf/trace_config.toml:2:22: retention.dlq_archive_max_mb: 0 is not between 1 and 1048576",
        ),
        (
            "[workers]\nheartbeat = \"5\"",
            "conf/trace_config.toml:2:13: workers.heartbeat: '5' is not a duration: write a whole number and ms, s, m, h or d, \
             like 500ms or 10s",
        ),
        (
            "[retries.flow.\"f\"]\nbase_ms = 1\nfactor = 0.5",
            "conf/trace_config.toml:3:1: retries.flow.\"f\".factor: 0.5 is not between 1 and 1000",
        ),
        (
            "[tenants.\"a/b\"]\n",
            "conf/trace_config.toml:1:10: tenants.\"a/b\": 1 to 64 of a-z A-Z 0-9 . _ -, first a letter or digit",
        ),
        (
            "[tenants.a.allow.limits]\nfuel = 1\nmemory_mb = 5000",
            "conf/trace_config.toml:3:1: tenants.\"a\".allow.limits.memory_mb: 5000 is over 4096, the most of all",
        ),
        (
            "[queue]\nlease_ms = 10000",
            "conf/trace_config.toml:2:12: queue.lease_ms: heartbeat (5000 ms) < heartbeat_timeout (15000 ms) <= lease_ms \
             (10000 ms) does not hold",
        ),
        (
            "[workers]\nnum = 2\nheartbeat_timeout = \"4s\"",
            "conf/trace_config.toml:3:21: workers.heartbeat_timeout: heartbeat (5000 ms) < heartbeat_timeout (4000 ms) <= \
             lease_ms (30000 ms) does not hold",
        ),
    ] {
        assert_eq!(fails(text), expected, "{text}");
    }
    assert!(
        fails("[queue]\nbackend = \"disk\"").contains(":2:11: queue.backend: unknown variant `disk`"),
        "wrong words are named"
    );
    assert!(fails("[tenants.\"a\"] # ours\nweight = 0").contains(":2:10: tenants.\"a\".weight: 0 is not between"));
    assert!(fails("[tenants.\"a\"] # ours\nweight = -1").contains(":2:10: tenants.\"a\".weight: "));
    assert!(
        fails("[workers]\nheartbeat = 0").ends_with(":2:13: workers.heartbeat: heartbeat is 0 ms: it must be above 0")
    );
    assert!(fails("[queue\n").starts_with("conf/trace_config.toml:1:"));
    assert!(fails("[queue]\nlease_ms = 1\nlease_ms = 2").contains(":3:"));
    assert!(fails("[workers]\nheartbeat = true").contains(":2:13: workers.heartbeat: "));
}

fn files(host: &Path, mode: Mode) -> FilesSpec {
    FilesSpec { host: host.to_str().unwrap().to_owned(), guest: "/d".into(), mode, max_mb: 1 }
}

#[test]
fn without_tenants_only_folders_below_the_flow_may_be_read() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path().canonicalize().unwrap();
    std::fs::create_dir_all(root.join("flows/docs")).unwrap();
    std::fs::create_dir_all(root.join("flows-other")).unwrap();
    let ceilings = Ceilings::default();
    let flow_folder = root.join("flows");
    let check = |grants: &GrantsDef, limits: &Limits| {
        ceilings.check("default", Some(&flow_folder), "render", grants, limits).map_err(|denied| denied.to_string())
    };
    let mut grants = GrantsDef {
        files: vec![files(&root.join("flows/docs"), Mode::Read)],
        env: vec![EnvSpec::From(EnvFrom { name: "RATE".into(), from: EnvSource::Caller })],
        scratch: true,
        artifacts: true,
        clocks: true,
        random: true,
    };
    assert_eq!(check(&grants, &Limits::DEFAULT), Ok(()));
    assert_eq!(ceilings.check("default", None, "render", &grants, &Limits::DEFAULT), Ok(()));

    grants.files = vec![files(&root.join("flows-other"), Mode::Read)];
    let expected = format!(
        "step 'render' asks files: {}/flows-other (read); tenant 'default' allows: folders below the flow file's (read)",
        root.display()
    );
    assert_eq!(check(&grants, &Limits::DEFAULT), Err(expected));
    grants.files = vec![files(&root.join("flows/docs"), Mode::Write)];
    assert!(check(&grants, &Limits::DEFAULT).is_err(), "writing is not allowed");
    grants.files.clear();
    grants.env.push(EnvSpec::Host("HOME".into()));
    let expected = "step 'render' asks env: HOME; tenant 'default' allows: none".to_owned();
    assert_eq!(check(&grants, &Limits::DEFAULT), Err(expected));
    grants.env.clear();
    let limits = Limits { memory_mb: 2048, ..Limits::DEFAULT };
    let expected = "step 'render' asks limits.memory_mb: 2048; tenant 'default' allows: 1024".to_owned();
    assert_eq!(check(&grants, &limits), Err(expected));
    assert!(ceilings.check("other", None, "s", &grants, &Limits::DEFAULT).is_err(), "there is one tenant");
}

#[test]
fn a_tenants_ceiling_holds_for_folders_modes_variables_and_what_leads_elsewhere() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path().canonicalize().unwrap();
    std::fs::create_dir_all(root.join("docs/sub")).unwrap();
    let text = "[tenants.t.allow]\nfiles = [{ host = \"docs\" }]\nenv = [\"HOME\"]\nscratch = false\n";
    let settings = Settings::parse(text, &root.join("c.toml")).unwrap();
    let check = |grants: &GrantsDef| {
        settings.ceilings.check("t", None, "s", grants, &Limits::DEFAULT).map_err(|denied| denied.to_string())
    };
    let mut grants = GrantsDef {
        files: vec![files(&root.join("docs/sub"), Mode::Read)],
        env: vec![EnvSpec::Host("HOME".into())],
        ..GrantsDef::default()
    };
    assert_eq!(check(&grants), Ok(()));
    grants.files = vec![files(Path::new("/etc"), Mode::Read)];
    assert_eq!(check(&grants), Err("step 's' asks files: /etc (read); tenant 't' allows: docs (read)".into()));
    grants.files = vec![files(&root.join("docs"), Mode::Write)];
    assert!(check(&grants).is_err());
    grants.files.clear();
    grants.scratch = true;
    assert_eq!(check(&grants), Err("step 's' asks scratch; tenant 't' allows: no scratch".into()));
    let unknown = settings.ceilings.check("u", None, "s", &grants, &Limits::DEFAULT).unwrap_err();
    assert_eq!(unknown, Denied::UnknownTenant { tenant: "u".into() });
}
