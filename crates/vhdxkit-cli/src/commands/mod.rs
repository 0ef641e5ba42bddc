//! One file per sub-command: options in, library called, result printed.

#[cfg(target_os = "linux")]
mod attach;
mod blocks;
#[cfg(target_os = "linux")]
mod busy;
mod check;
mod children;
mod compact;
mod compare;
mod convert;
mod create;
mod create_vhd;
mod dump;
mod findings;
mod foreign;
mod generate;
mod info;
mod info_other;
mod log_extract;
mod log_replay;
mod log_show;
mod log_words;
mod ls;
mod map;
mod measure;
mod merge;
#[cfg(target_os = "linux")]
mod mount;
mod new_file;
mod outlook;
mod read;
mod recover;
mod relink;
mod repair;
mod resize;
mod second_gpt;
#[cfg(target_os = "linux")]
mod serve;
mod set;
mod small_blocks;
#[cfg(target_os = "linux")]
mod snapshot;
#[cfg(target_os = "linux")]
mod unmount;
mod verdict;
mod write;

use std::process::ExitCode;

use crate::args::{Cli, Command, LogCommand};

/// What every command is told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Context {
    /// JSON instead of text.
    pub(crate) json: bool,
    /// No progress bar.
    pub(crate) quiet: bool,
}

/// Runs the command.
pub(crate) fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let context = Context { json: cli.json, quiet: cli.quiet };
    let done = |()| ExitCode::SUCCESS;
    match cli.command {
        Command::Info(args) => info::run(&args, context).map(done),
        Command::Check(args) => check::run(&args, context),
        Command::Log(LogCommand::Show(args)) => log_show::run(&args, context).map(done),
        Command::Log(LogCommand::Replay(args)) => log_replay::run(&args, context).map(done),
        Command::Log(LogCommand::Extract(args)) => log_extract::run(&args).map(done),
        Command::Map(args) => map::run(&args, context),
        Command::Dump(args) => dump::run(&args, context).map(done),
        Command::Read(args) => read::run(&args).map(done),
        Command::Recover(args) => recover::run(&args, context),
        Command::Create(args) => create::run(&args, context).map(done),
        Command::Write(args) => write::run(&args, context).map(done),
        Command::Resize(args) => resize::run(&args, context).map(done),
        Command::Measure(args) => measure::run(&args, context).map(done),
        Command::Compact(args) => compact::run(&args, context).map(done),
        Command::Ls(args) => ls::run(&args, context).map(done),
        Command::Merge(args) => merge::run(&args, context).map(done),
        Command::Relink(args) => relink::run(&args, context).map(done),
        Command::Set(args) => set::run(&args, context).map(done),
        Command::Convert(args) => convert::run(&args, context).map(done),
        Command::Compare(args) => compare::run(&args, context),
        #[cfg(target_os = "linux")]
        Command::Serve(args) => serve::run(&args, context),
        #[cfg(target_os = "linux")]
        Command::Mount(args) => mount::run(&args, context),
        #[cfg(target_os = "linux")]
        Command::Unmount(args) => unmount::run(&args, context).map(done),
        Command::Completions { shell } => generate::completions(shell).map(done),
        Command::Man { dir } => generate::man_pages(&dir).map(done),
    }
}
