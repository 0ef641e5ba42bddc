//! The command `vhdx`: parse, run, report.

mod args;
mod commands;
mod console;
#[cfg(target_os = "linux")]
mod detach;
mod failure;

use std::process::ExitCode;

use clap::Parser;

use args::Cli;
use failure::Said;

fn main() -> ExitCode {
    let cli = Cli::parse();
    console::start_logging();
    let said = Said {
        untouched: cli.command.untouched(),
        before: cli.command.untouched_before(),
        to_share: cli.command.to_share(),
    };
    match commands::run(cli) {
        Ok(code) => code,
        Err(error) => failure::report(&error, said),
    }
}
