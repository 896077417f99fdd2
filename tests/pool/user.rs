//! A supervisor that is not root.

use std::os::unix::{
    fs::{MetadataExt as _, chown},
    process::CommandExt as _,
};

use crate::{
    home::{Home, NOBODY},
    supervisor::{Supervisor, started},
};

#[test]
fn a_supervisor_needs_no_root() {
    if !rustix::process::getuid().is_root() {
        return println!("skipped: these tests do not run as root, so all of them are this one");
    }
    let home = Home::new();
    home.flow("quick", "hostile", &[]);
    chown(home.path(""), Some(NOBODY), Some(NOBODY)).unwrap();
    let pool = Supervisor::start_by(&home, &[], |command| started(command.uid(NOBODY).gid(NOBODY)));
    let flow = home.path("quick.yaml");
    let input = r#"{"do":"artifact","name":"a","bytes":3}"#;
    let ran = home.tm_unprivileged(&["enqueue", flow.to_str().unwrap(), "-i", input, "--wait"]);
    assert_eq!(ran.code, Some(0), "{ran}");
    assert_eq!(home.path("data/store").metadata().unwrap().uid(), NOBODY);
    // Not even root speaks for another user.
    home.tm(&["queue", "stats"]).refused(2, &["belongs to another user", "65534"]);
    pool.stop();
}
