//! A power loss in the middle of a repair, or of undoing one, costs nothing: a second repair comes to the end of
//! the first, and the undo file restores every byte. Every state of every window; `vhdxkit-sim crash --class Repair --device`
//! has the other kinds of disks.

use std::time::Duration;

use vhdxkit_sim::campaign::{Plan, run};
use vhdxkit_sim::class::Class;
use vhdxkit_sim::device::Device;

#[test]
fn every_crash_of_a_repair_and_of_its_undo() {
    let outcome = run(&Plan {
        states: usize::MAX,
        classes: vec![Class::Repair],
        device: Device::Sectors512,
        seed: 1,
        threads: 2,
        depth_two: 999,
        qemu: 0,
        fail_fast: false,
        limit: Duration::from_secs(600),
        only: None,
    });
    println!("in {:?}\n{}", outcome.time, outcome.table());
    let failures: Vec<&String> = outcome.failures().collect();
    assert!(failures.is_empty(), "{}, first:\n{}", failures.len(), failures[0]);
    assert!(outcome.distinct() >= 4000, "only {} states", outcome.distinct());
}
