//! Promises 1, 2, 3 and 6 on a small part of all crash states; `vhdxkit-sim crash` has the rest.

use std::time::Duration;

use vhdxkit_sim::campaign::{Plan, run};
use vhdxkit_sim::class::Class;

#[test]
fn every_crash_state_opens_with_what_was_acknowledged() {
    let outcome = run(&Plan {
        states: 700,
        classes: Class::ALL.to_vec(),
        seed: 7,
        threads: 2,
        depth_two: 12,
        qemu: 0,
        fail_fast: true,
        limit: Duration::from_secs(300),
        only: None,
    });
    println!("{}", outcome.table());
    let failures: Vec<&String> = outcome.failures().collect();
    assert!(failures.is_empty(), "{failures:#?}");
    for (class, tally) in &outcome.tallies {
        assert!(tally.distinct.len() >= 600, "{class:?}: {}", tally.distinct.len());
    }
}
