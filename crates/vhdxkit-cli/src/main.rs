//! The command `vhdx`: parse, run, report.

mod args;
mod commands;
mod console;
#[cfg(target_os = "linux")]
mod detach;
mod failure;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use args::Cli;
use failure::Said;

fn main() -> ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| {
        let file = args::image_for_command(&error);
        let _ = error.print();
        if let Some(file) = file {
            eprintln!("\n  what to do: vhdx info {}", console::quoted(&file));
        }
        std::process::exit(error.exit_code())
    });
    console::start_logging();
    let said = Said {
        file: cli.command.image().map(Path::to_path_buf),
        untouched: cli.command.untouched(),
        before: cli.command.untouched_before(),
        to_share: cli.command.to_share(),
        room: cli.command.room(),
    };
    match commands::run(cli) {
        Ok(code) => code,
        Err(error) => failure::report(&error, &said),
    }
}
