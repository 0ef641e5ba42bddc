//! `vhdx completions` and `vhdx man`.

use std::io::{self, Write};
use std::path::Path;

use anyhow::Context as _;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Cli;

pub(crate) fn completions(shell: Shell) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "vhdx", &mut script);
    io::stdout().lock().write_all(&script)?;
    Ok(())
}

pub(crate) fn man_pages(dir: &Path) -> anyhow::Result<()> {
    let mut top = Cli::command();
    top.build();
    std::fs::create_dir_all(dir)
        .with_context(|| format!("cannot make the folder {}", dir.display()))?;
    write_pages(&top, "vhdx", dir)
}

fn write_pages(command: &clap::Command, name: &str, dir: &Path) -> anyhow::Result<()> {
    let path = dir.join(format!("{name}.1"));
    let mut page = command.clone().name(name.to_owned()).bin_name(name.replace('-', " "));
    // The page generator has no place for what help shows first.
    if let Some(examples) = command.get_before_help().cloned() {
        page = page.after_help(examples);
    }
    let mut text = Vec::new();
    clap_mangen::Man::new(page).render(&mut text)?;
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
        write_pages(sub, &format!("{name}-{}", sub.get_name()), dir)?;
    }
    Ok(())
}
