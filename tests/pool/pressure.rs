//! Under `[backpressure]` work is done in rounds.

use tm_core::api::{Reply, Request, RunState};

use crate::{
    home::{Home, until},
    supervisor::Supervisor,
};

#[test]
fn under_backpressure_dequeuing_pauses_and_everything_is_done_all_the_same() {
    let home = Home::new();
    // Some load there is, on a machine that runs this.
    home.write("trace_config.toml", "[backpressure]\nhigh_watermark = 2\nload_threshold = 0\npause_ms = 150\n");
    home.flow("quick", "compute", &[]);
    let runs = home.batch("quick.yaml", &vec![r#"{"do":"nothing"}"#.to_owned(); 40], &[]);
    let mut pool = Supervisor::start(&home, &["-n", "1", "--concurrency", "4"]);
    let held = until("a pause that is told", || pool.stats().held_back);
    assert!(held.starts_with("backpressure: "), "{held}");
    for run in &runs {
        assert_eq!(pool.ended(run).state, RunState::Succeeded);
    }
    match pool.ask(&Request::Counters) {
        // Four places, and a pause before each round while more than two are left.
        Reply::Counters(counters) => assert!(counters.worker_pauses_total >= 9, "{counters:?}"),
        other => panic!("not the counters: {other:?}"),
    }
    pool.says("dequeuing pauses");
    pool.stop();
}
