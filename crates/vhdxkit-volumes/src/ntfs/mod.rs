//! NTFS: free clusters from `$Bitmap`, believed when the volume says in three places that it is at rest.
//!
//! The boot sector tells where the MFT begins, its first record where the rest of it is, and the records
//! behind it where everything else is: `$MFTMirr`, `$LogFile`, `$Volume`, the root directory, `$Bitmap`.
//! Nothing more is read: a survey costs the bitmap and some hundred kilobytes.
//!
//! At rest means: no flag of `$Volume` speaks of unfinished business, `$LogFile` is closed, no Windows
//! hibernates on it. Nothing is free on a volume with shadow copies: they need what the bitmap calls free.
//!
//! A volume that NTFS-3G has mounted cannot be told from one at rest: that driver leaves no mark while it
//! works. Windows does, in the log.
//!
//! In good order means: every structure that is read is whole by its update sequence, `$MFT` agrees with its
//! mirror, the files read lie in clusters of their own, and those are in use in the bitmap.

mod boot;
mod hibernation;
mod logfile;
mod mft;
mod record;
mod runs;
mod volume;

use boot::Geometry;
use mft::{Mft, Stream};
use volume::Volume;

use crate::free::Units;
use crate::own::Own;
use crate::{FreeMap, FreeMapBuilder, Survey, Trouble, Window};

/// Bytes of the boot sector and the loader behind it.
const BOOT: u64 = 8192;
const PIECE: u64 = 1 << 20;

/// A system that sleeps, or was stopped, speaks for all volumes of its disk. So what tells of it is asked first, and
/// is told whatever else is wrong: then with nothing free.
pub(crate) fn survey(window: &Window<'_>) -> Result<Survey, Trouble> {
    let geometry = Geometry::read(window)?;
    let mft = Mft::open(window, geometry)?;
    let (mut unclean, mut trouble) = (Vec::new(), None::<Trouble>);
    let mut note = |told: Result<Option<String>, Trouble>| match told {
        Ok(why) => unclean.extend(why),
        Err(what) => trouble = trouble.take().or(Some(what)),
    };
    let hibernates = hibernation::unclean(&mft);
    let asleep = matches!(hibernates, Ok(Some(_)));
    note(hibernates);
    let volume = Volume::read(&mft);
    let label = volume.as_ref().map_or_else(|_| String::new(), |volume| volume.label.clone());
    note(volume.map(|volume| volume.unclean));
    note(file(&mft, 2, "$LogFile").and_then(|log| logfile::unclean(&mft, &log)));

    let free = match trouble {
        Some(what) => Err(what),
        None => volume::refuse_shadow_copies(window).and_then(|()| free_in_order(&mft)),
    };
    let free = match free {
        Ok(free) => free,
        Err(what) if unclean.is_empty() => return Err(what),
        Err(what) => {
            unclean.push(what.to_string());
            FreeMap::default()
        }
    };
    Ok(Survey {
        asleep,
        name: "NTFS",
        label,
        length: geometry.length,
        unit: geometry.cluster,
        free,
        unclean: (!unclean.is_empty()).then(|| unclean.join("; ")),
    })
}

fn file(mft: &Mft<'_>, number: u64, what: &'static str) -> Result<Stream, Trouble> {
    mft.file(what, &mft.record(number)?)
}

/// The free clusters of a volume whose own structures agree with each other, and with its bitmap.
fn free_in_order(mft: &Mft<'_>) -> Result<FreeMap, Trouble> {
    let geometry = mft.geometry;
    let mirror = file(mft, 1, "$MFTMirr")?;
    let log = file(mft, 2, "$LogFile")?;
    let bitmap = file(mft, 6, "$Bitmap")?;
    mft.compare_with_mirror(&mirror)?;
    let free = free_clusters(mft, &bitmap)?;

    let mut own = Own::default();
    let boot = geometry.byte(geometry.clusters_of(BOOT).min(geometry.clusters));
    own.add("$Boot", 0..boot);
    let root = hibernation::root_blocks(mft)?;
    let files =
        [("$MFT", &mft.data), ("$MFTMirr", &mirror), ("$LogFile", &log), ("$Bitmap", &bitmap)];
    let files = files.into_iter().chain(root.as_ref().map(|root| ("the root directory", root)));
    for (what, stream) in files {
        stream.places(geometry).for_each(|place| own.add(what, place));
    }
    own.judge(&free)?;
    Ok(free)
}

fn free_clusters(mft: &Mft<'_>, bitmap: &Stream) -> Result<FreeMap, Trouble> {
    let geometry = mft.geometry;
    let needed = geometry.clusters.div_ceil(8);
    if bitmap.length < needed {
        let length = bitmap.length;
        return Err(Trouble::damaged(format!("$Bitmap has {length} bytes and needs {needed}")));
    }
    let mut free = FreeMapBuilder::new(geometry.byte(geometry.clusters));
    let units = Units { base: 0, unit: geometry.cluster, count: geometry.clusters };
    let mut at = 0;
    while at < needed {
        let end = at.saturating_add(PIECE).min(needed);
        let piece = mft.read("$Bitmap", bitmap, at..end)?;
        free.add_bitmap(units, at.saturating_mul(8), &piece)?;
        at = end;
    }
    Ok(free.finish())
}
