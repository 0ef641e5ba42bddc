//! From a byte of the virtual disk to a byte of the file: BAT entries, sector bitmaps, block states
//! (MS-VHDX 2.5); and the file's space.
//!
//! Reading: `entry` holds the rules about a single BAT entry, `bat` the table, `bitmap` the presence bits of
//! partially present blocks, both over the bounded cache in `pages`; `walk` is the whole table in one sweep.
//! Writing: `sectors` keeps metadata that is newer than the file's, `space` hands out room for
//! blocks, `pins` holds back room that somebody may still be using. `owned` maps who owns what.

mod bat;
mod bitmap;
mod entry;
mod owned;
mod pages;
mod pins;
mod sectors;
mod space;
mod walk;

pub(crate) use bat::Bat;
pub(crate) use bitmap::{Bitmap, Bitmaps};
pub(crate) use entry::{Block, EntryRules, Trust};
pub(crate) use owned::SpaceMap;
pub(crate) use pins::{Pin, Pins};
pub(crate) use sectors::{Image as SectorImage, Sectors};
pub(crate) use space::{Contents, Place, Space};
pub(crate) use walk::{Stretch, walk};
