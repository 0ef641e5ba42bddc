//! Promises 1, 2, 3 and 6 on a small part of all crash states; `vhdxkit-sim crash` has the rest.

use std::time::Duration;

use vhdxkit_sim::campaign::{Plan, run};
use vhdxkit_sim::class::Class;
use vhdxkit_sim::device::Device;
use vhdxkit_sim::tally::Outcome;

fn crash(device: Device, states: usize) -> Outcome {
    let outcome = run(&Plan {
        states,
        classes: Class::ALL.to_vec(),
        device,
        seed: 7,
        threads: 2,
        depth_two: 12,
        qemu: 0,
        fail_fast: true,
        limit: Duration::from_secs(300),
        only: None,
    });
    println!("{device:?}\n{}", outcome.table());
    let failures: Vec<&String> = outcome.failures().collect();
    assert!(failures.is_empty(), "{device:?}: {failures:#?}");
    for (class, tally) in &outcome.tallies {
        let enough = *class == Class::Recovery && !device.is_honest();
        let found = tally.distinct.len();
        assert!(enough || found >= states * 6 / 7, "{device:?}, {class:?}: {found}");
    }
    outcome
}

#[test]
fn every_crash_state_opens_with_what_was_acknowledged() {
    crash(Device::Sectors512, 700);
}

#[test]
fn so_it_is_on_disks_with_other_sectors_or_that_leave_garbage() {
    crash(Device::Sectors4096, 150);
    crash(Device::Garbage, 150);
}

/// Nothing can be promised here but that nobody panics or hangs; and the simulator has to notice what such
/// disks do.
#[test]
fn disks_that_lie_cost_data_and_nothing_worse() {
    for device in [Device::LyingSync, Device::StrayWrite] {
        let outcome = crash(device, 150);
        let sum = |figure: fn(&vhdxkit_sim::tally::Tally) -> usize| {
            outcome.tallies.iter().map(|(_, tally)| figure(tally)).sum::<usize>()
        };
        assert!(sum(|t| t.told) > 0 && sum(|t| t.wrong) > 0 && sum(|t| t.held) > 0);
    }
}
