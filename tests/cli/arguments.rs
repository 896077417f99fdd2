//! What is wrong with arguments alone: found before anything is touched, exit 2.

use std::{io::Read as _, process::Stdio};

use crate::home::{Home, snapshot};

#[test]
fn every_command_explains_itself_with_an_example() {
    let home = Home::new();
    let commands: &[&[&str]] = &[
        &[],
        &["workers"],
        &["workers", "start"],
        &["workers", "stop"],
        &["enqueue"],
        &["run"],
        &["queue"],
        &["queue", "stats"],
        &["queue", "ls"],
        &["queue", "show"],
        &["queue", "result"],
        &["queue", "cancel"],
        &["queue", "verify"],
        &["queue", "repair"],
        &["queue", "forget-key"],
        &["dlq"],
        &["dlq", "ls"],
        &["dlq", "show"],
        &["dlq", "requeue"],
        &["dlq", "purge"],
        &["check"],
        &["build"],
        &["completions"],
    ];
    for command in commands {
        let ran = home.tm(&[*command, &["--help"]].concat());
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{command:?}");
        assert!(ran.stdout.contains("Usage: tm") && ran.stdout.contains("Example"), "{command:?}: {}", ran.stdout);
    }
    assert_eq!(home.files(), [""; 0]);
}

#[test]
fn the_first_help_lists_the_commands() {
    snapshot!(Home::new().tm(&["--help"]), @r#"
    stdout:
    Runs flows of confined WebAssembly steps from a durable file queue

    Usage: tm [OPTIONS] <COMMAND>

    Commands:
      workers      Starts and stops the supervisor with its worker processes
      enqueue      Puts a run of a flow into the queue
      run          Runs a flow now, in memory, in one confined worker
      queue        Looks into the queue and repairs it
      dlq          Lists, requeues and purges dead letters
      check        Finds every fault of a flow and its components
      build        Builds the steps of flows to WASI components
      completions  Prints a completion script for a shell

    Options:
      -h, --help                 Print help
      -V, --version              Print version
          --log-format <FORMAT>  How log lines on standard error look [default: text] [possible values:
                                 text, json]

    Examples:
      tm workers start -n 2 &
      tm enqueue flows/hello.yaml -i '{"name": "x"}'
      tm queue stats

    TM_LOG=error|warn|info|debug|trace says how much is logged to standard error.
    exit: 0
    "#);
}

#[test]
fn workers_start_documents_its_flags_and_defaults() {
    snapshot!(Home::new().tm(&["workers", "start", "--help"]), @"
    stdout:
    Starts the supervisor and its workers, in the foreground

    Usage: tm workers start [OPTIONS]

    Options:
      -n, --num <N>
              Worker processes, 1 to 1024 [default: the configuration's `workers.num`, else 1]

          --concurrency <N>
              Steps interleaved in one worker, 1 to 4096 [default: the configuration's
              `workers.concurrency`, else 16]

          --runtime <DIR>
              The folder of flows to load; a missing default folder loads nothing
              
              [default: flows]

          --lease-ms <MS>
              How long a lease hides its task, in milliseconds [default: the configuration's
              `queue.lease_ms`, else 30000]

          --heartbeat <SECONDS>
              Seconds between two heartbeats of a worker [default: 5]

          --heartbeat-timeout <SECONDS>
              Seconds of silence after which a worker is killed and its tasks are queued again [default:
              15]

          --result-ttl <SECONDS>
              Seconds that results and idempotency keys are kept [default: `idempotency.result_ttl_sec`,
              else 3600]

          --drain-grace <SECONDS>
              Seconds that running steps get when draining [default: 10]

          --pid-file <FILE>
              Where the process id is written
              
              [default: tm-workers.pid]

          --worker-user <USER>
              The user that workers run as when started as root [default: nobody]

          --allow-weaker-confinement
              Go on when the kernel lacks landlock or seccomp

          --queue <BACKEND>
              Where the queue keeps what it holds [default: the configuration's `queue.backend`, else
              file]

              Possible values:
              - file:   A log on disk that survives power loss
              - memory: Nothing on disk: lives and ends with its supervisor

      -h, --help
              Print help (see a summary with '-h')

          --log-format <FORMAT>
              How log lines on standard error look
              
              [default: text]
              [possible values: text, json]

    Folders:
          --queue-dir <DIR>
              The queue: its log, its lock and its socket
              
              [default: data/queue]

          --idempotency-dir <DIR>
              Idempotency keys and results
              
              [default: data/idempotency]

          --dlq-dir <DIR>
              Dead letters
              
              [default: data/dlq]

          --store-dir <DIR>
              Components, large payloads and artefacts
              
              [default: data/store]

          --config <FILE>
              The configuration; only a file that is named here must exist [default: trace_config.toml]

    Example:
      TM_LOG=info tm workers start -n 4 --queue file --lease-ms 30000 &

    SIGTERM or SIGINT drains: nothing new starts, running steps get --drain-grace. A second signal stops
    at once.
    exit: 0
    ");
}

#[test]
fn a_command_is_needed() {
    let ran = Home::new().tm(&[]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.stderr.contains("Usage: tm"), "{ran}");
}

#[test]
fn an_unknown_command_gets_a_near_name() {
    snapshot!(Home::new().tm(&["enqeue"]), @"
        stderr:
        error: unrecognized subcommand 'enqeue'

          tip: a similar subcommand exists: 'enqueue'

        Usage: tm [OPTIONS] <COMMAND>

        For more information, try '--help'.
        exit: 2
        ");
}

#[test]
fn no_workers_are_too_few() {
    snapshot!(Home::new().tm(&["workers", "start", "-n", "0"]), @"
        stderr:
        error: invalid value '0' for '--num <N>': 0 is not in 1..=1024

        For more information, try '--help'.
        exit: 2
        ");
}

#[test]
fn an_input_that_is_not_json_is_refused_with_its_place() {
    let home = Home::new();
    snapshot!(home.tm(&["enqueue", "hello", "-i", "{name: 1}"]), @r#"
        stderr:
        error: --input is not JSON: key must be a string at line 1 column 2
        hint: quote it for the shell: -i '{"name": "x"}'
        exit: 2
        "#);
    assert_eq!(home.files(), [""; 0]);
}

#[test]
fn an_input_that_is_no_object_is_refused() {
    let home = Home::new();
    snapshot!(home.tm(&["enqueue", "hello", "-i", "[1, 2]"]), @"
        stderr:
        error: --input must be a JSON object, found an array
        exit: 2
        ");
    snapshot!(home.tm_with_input(&["enqueue", "hello", "-i", "@-"], "\"x\""), @"
        stderr:
        error: --input from standard input must be a JSON object, found a string
        exit: 2
        ");
}

#[test]
fn an_input_over_the_bound_is_refused() {
    let home = Home::new();
    home.write("big.json", format!("{{\"x\": \"{}\"}}", "y".repeat(16 << 20)));
    snapshot!(home.tm(&["enqueue", "hello", "-i", "@big.json"]), @"
        stderr:
        error: INPUT_TOO_LARGE: big.json is larger than 16 MiB
        hint: put the data into a folder that the flow may read, and pass its name
        exit: 2
        ");
}

#[test]
fn an_input_file_that_is_missing_is_named() {
    snapshot!(Home::new().tm(&["enqueue", "hello", "-i", "@nowhere.json"]), @"
        stderr:
        error: cannot read the input file nowhere.json: no such file or directory
        exit: 2
        ");
}

#[test]
fn headers_and_trace_are_objects() {
    let home = Home::new();
    snapshot!(home.tm(&["enqueue", "hello", "--headers", "7"]), @"
        stderr:
        error: --headers must be a JSON object, found a number
        exit: 2
        ");
    snapshot!(home.tm(&["enqueue", "hello", "--trace", "{}"]), @r#"
        stderr:
        error: --trace has no 'traceparent' as W3C Trace Context writes it
        hint: --trace '{"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}'
        exit: 2
        "#);
}

#[test]
fn delays_and_times_are_checked() {
    let home = Home::new();
    snapshot!(home.tm(&["enqueue", "hello", "--delay", "5"]), @"
        stderr:
        error: invalid value '5' for '--delay <DURATION>': a whole number with a unit is needed: 500ms, 10s, 5m, 2h, 1d

        For more information, try '--help'.
        exit: 2
        ");
    snapshot!(home.tm(&["enqueue", "hello", "--at", "tomorrow"]), @"
        stderr:
        error: invalid value 'tomorrow' for '--at <TIME>': a time in RFC 3339 up to TIME is needed: TIME

        For more information, try '--help'.
        exit: 2
        ");
    assert_eq!(home.tm(&["enqueue", "hello", "--at", "2030-01-01T00:00:00Z", "--delay", "5m"]).code, Some(2));
}

#[test]
fn a_priority_is_a_digit() {
    snapshot!(Home::new().tm(&["enqueue", "hello", "--priority", "10"]), @"
        stderr:
        error: invalid value '10' for '--priority <N>': 10 is not in 0..=9

        For more information, try '--help'.
        exit: 2
        ");
}

#[test]
fn a_tenant_is_a_name() {
    snapshot!(Home::new().tm(&["enqueue", "hello", "--tenant", "../x"]), @"
        stderr:
        error: invalid value '../x' for '--tenant <NAME>': 1 to 64 of a-z A-Z 0-9 . _ - are needed, the first a letter or digit

        For more information, try '--help'.
        exit: 2
        ");
}

#[test]
fn a_batch_has_its_own_inputs_and_keys() {
    for flag in [["-i", "{}"], ["--idempotency-key", "k"]] {
        assert_eq!(Home::new().tm(&[&["enqueue", "hello", "--batch", "-"], &flag[..]].concat()).code, Some(2));
    }
}

#[test]
fn a_flow_file_that_is_missing_is_named() {
    snapshot!(Home::new().tm(&["enqueue", "flows/hello.yaml"]), @"
        stderr:
        error: no flow file flows/hello.yaml
        hint: a flow is a YAML or JSON file, or the id of a registered flow
        exit: 3
        ");
}

#[test]
fn a_log_level_that_does_not_exist_is_refused() {
    let home = Home::new().with("TM_LOG", "loud");
    snapshot!(home.tm(&["queue", "stats"]), @"
        stderr:
        error: TM_LOG='loud' is not a level
        hint: use error, warn, info, debug or trace, or target=level,…
        exit: 2
        ");
}

#[test]
fn completions_are_printed_for_every_shell() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = home.tm(&["completions", shell]);
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{shell}");
        assert!(ran.stdout.contains("enqueue") && ran.stdout.contains("forget-key"), "{shell}");
    }
    assert_eq!(home.tm(&["completions", "tcsh"]).code, Some(2));
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let home = Home::new();
    for arguments in [&["completions", "bash"][..], &["workers", "start", "--help"]] {
        let mut child = home.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!((child.wait().unwrap().code(), stderr.as_str()), (Some(0), ""), "{arguments:?}");
    }
}
