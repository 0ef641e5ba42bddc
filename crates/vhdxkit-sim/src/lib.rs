//! Crashes the write path of vhdxkit in every way, and checks what is left.
//!
//! A [`guest`] carries a [`workload`] out with the real library on a simulated [`disk`], which remembers
//! what was done since the last sync; it begins at a [`start`], some of them children of a parent with
//! data. From each such window [`states`] makes what a power loss or a kill could leave on a
//! kind of [`device`]; each different one is opened, recovered and judged by [`check`] against the guest's [`model`]. A
//! [`campaign`] does that for each [`class`] of workloads and counts. [`kill`] does it to a real process, [`served`] to
//! a server under its clients, [`machine`] to a whole guest and the server that its disk comes from.

pub mod campaign;
pub mod check;
pub mod class;
pub mod complaint;
pub mod device;
pub mod disk;
pub mod guest;
#[cfg(unix)]
pub mod kill;
#[cfg(unix)]
pub mod machine;
pub mod medium;
pub mod merge;
pub mod model;
pub mod repair;
#[cfg(unix)]
pub mod served;
pub mod start;
pub mod states;
pub mod tally;
pub mod workload;
