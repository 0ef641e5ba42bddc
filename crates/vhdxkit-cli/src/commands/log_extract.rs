//! `vhdx log extract`.

use std::fs::File;
use std::io::{self, IsTerminal, Write};

use anyhow::{Context as _, bail};
use vhdxkit::log::{EntryStatus, Log, LogEntry, Update};
use vhdxkit::storage::{FileStorage, OpenMode, Storage as _};
use vhdxkit::view::headers::HeaderPair;

use super::new_file;
use super::new_file::same_file;
use crate::args::ExtractArgs;

pub(crate) fn run(args: &ExtractArgs) -> anyhow::Result<()> {
    let path = &args.image.image;
    let mode = OpenMode::ReadOnly { force_share: args.image.open.force_share };
    let named = || format!("cannot read the log of {}", path.display());
    let file = FileStorage::open(path, mode).with_context(named)?;
    let headers = HeaderPair::inspect(&file).with_context(named)?;
    let log = Log::read_ring(&file, &headers).with_context(named)?;
    let entry = choose(&log, args)?;
    let mut bytes = Vec::new();
    if args.sectors {
        log.updates(&file, entry, |update| {
            if let Update::Data { sector, .. } = update {
                bytes.extend_from_slice(sector);
            }
            Ok(())
        })?;
    } else {
        bytes = log.raw_entry(&file, entry)?;
    }
    put(args, &bytes)
}

/// The entry meant: the active one where several carry the number.
fn choose<'a>(log: &'a Log, args: &ExtractArgs) -> anyhow::Result<&'a LogEntry> {
    let at = |entry: &LogEntry| args.at.is_none_or(|at| u64::from(entry.info.log_offset) == at);
    let found: Vec<&LogEntry> =
        log.entries().iter().filter(|e| e.info.sequence == args.entry && at(e)).collect();
    match found.as_slice() {
        [] => bail!("the log holds no entry {}; `vhdx log show` lists them", args.entry),
        [one] => Ok(one),
        many => match many.iter().find(|entry| entry.status == EntryStatus::Active) {
            Some(active) => Ok(active),
            None => {
                let places: Vec<String> =
                    many.iter().map(|entry| format!("{:#x}", entry.info.log_offset)).collect();
                bail!(
                    "entry {} is there more than once; choose with --at: {}",
                    args.entry,
                    places.join(", ")
                )
            }
        },
    }
}

fn put(args: &ExtractArgs, bytes: &[u8]) -> anyhow::Result<()> {
    let Some(path) = &args.output else {
        let mut out = io::stdout().lock();
        if out.is_terminal() {
            bail!("the entry is binary; send it to a file with -o, or into a pipe");
        }
        out.write_all(bytes)?;
        return Ok(());
    };
    if same_file(path, &args.image.image) {
        bail!("source and target are the same file");
    }
    let existing = new_file::judge_target(path, args.force)?;
    if existing.as_ref().is_some_and(|meta| !meta.is_file()) {
        // Pipes, devices and /dev/null take the bytes as they come.
        let named = || format!("cannot write to {}", path.display());
        let mut file = File::options().write(true).open(path).with_context(named)?;
        return file.write_all(bytes).with_context(named);
    }
    new_file::make(path, args.force, existing.as_ref(), |file| {
        file.write_at(0, bytes)
            .and_then(|()| file.sync())
            .map_err(|e| vhdxkit::Error::io("cannot write the entry", 0, e))
    })
}
