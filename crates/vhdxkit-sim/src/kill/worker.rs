//! The process that is killed.

use std::path::Path;
use std::sync::Arc;

use vhdxkit::storage::{FileStorage, OpenMode};
use vhdxkit::{Image, OpenOptions};

use super::journal::{Journal, Note};
use super::trace::Traced;
use super::{BLOCK, DISK, THREADS, UNIT, UNITS};
use crate::model::{SECTOR, stamp};
use vhdxkit_testkit::random::Random;

/// Writes to the image at `folder/disk.vhdx` until it is killed; `round` makes its writes differ from
/// those of earlier workers.
///
/// # Errors
/// Something else than a kill ends it.
pub fn work(folder: &Path, round: u64) -> Result<(), String> {
    let (traced, image) = open_traced(folder)?;
    traced.opened();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let image = &image;
                scope.spawn(move || {
                    let mut journal = Journal::create(&folder.join(format!("journal{thread}")))
                        .map_err(|e| e.to_string())?;
                    guest(image, thread, round, &mut journal).map_err(|e| e.to_string())
                })
            })
            .collect();
        threads.into_iter().try_for_each(|t| t.join().map_err(|_| "it panicked".to_owned())?)
    })
}

/// Opens the image at `folder/disk.vhdx` so that `folder/phases` tells what is being done to it.
pub(crate) fn open_traced(folder: &Path) -> Result<(Arc<Traced>, Image), String> {
    let told = |e: &dyn std::fmt::Display| e.to_string();
    let file = FileStorage::open(&folder.join("disk.vhdx"), OpenMode::ReadWrite);
    let file = file.map_err(|e| told(&e))?;
    let traced =
        Traced::new(file, &folder.join("phases"), 2 << 20, 4 << 20).map_err(|e| told(&e))?;
    let traced = Arc::new(traced);
    let image =
        OpenOptions::new().write(true).open_storage(traced.clone()).map_err(|e| told(&e))?;
    Ok((traced, image))
}

fn guest(image: &Image, thread: u64, round: u64, journal: &mut Journal) -> std::io::Result<()> {
    let mut random = Random::new(round * THREADS + thread);
    let own = DISK / BLOCK / THREADS;
    for step in 1.. {
        let block = random.below(own) * THREADS + thread;
        let start = block * BLOCK;
        match random.below(16) {
            0 => {
                journal.note(Note::Drop { block })?;
                image.discard(start..start + BLOCK)?;
            }
            1 => {
                journal.note(Note::Drop { block })?;
                image.write_zeroes(start..start + BLOCK)?;
            }
            2..=9 => {
                image.flush()?;
                journal.note(Note::Flushed)?;
            }
            _ => {
                let offset = start + UNITS[random.below(4) as usize] * UNIT;
                let version = (round << 40) | (thread << 36) | step;
                journal.note(Note::Put { offset, version })?;
                let sectors = (offset..offset + UNIT).step_by(SECTOR as usize);
                let bytes: Vec<u8> = sectors.flat_map(|at| stamp(at, version)).collect();
                image.write_at(offset, &bytes)?;
            }
        }
    }
    Ok(())
}
