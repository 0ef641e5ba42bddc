//! Chains: a differencing disk and the images below it.
//!
//! A child names its parent in a parent locator (MS-VHDX 2.6.2.6): an identity, and paths where the
//! parent was last seen. `options` opens an image and, when asked to, its chain; `policy` says whom, `parents`
//! finds each parent, `place` reads and writes the locator's paths, `beneath` opens a file without leaving a
//! folder, `search` looks for images by identity.
//!
//! # Who may be opened
//! The paths come from the file, and the file may come from anybody. So parents are opened only by the
//! caller's [`ParentPolicy`], of which the default opens none. [`ParentPolicy::Follow`] opens regular files
//! whose real name ends in `.vhdx` or `.avhdx` only: no device, no pipe, no `/etc/passwd`, whatever a
//! locator or a symbolic link says (a VHD's parent: `.vhd` or `.avhd`); absolute Windows paths are followed on Windows only, and paths to other
//! machines never. What is opened is read in its child's format and no other, read-only, under a shared lock.
//!
//! # Who counts as the parent
//! The image whose current header carries the DataWriteGuid that the locator names (`parent_linkage`, or
//! a `parent_linkage2` that is not zero, MS-VHDX 2.6.2.6.3). Headers are never logged, so a log that waits
//! for replay does not matter for that. Only [`OpenOptions::ignore_parent_id`] skips it. Sector sizes must
//! agree whatever the caller says: the sector bitmaps count in them. The parent of a VHD is the one with the
//! unique id that the child names; that id does not change with the contents, so a parent that was written to
//! is not noticed.

mod beneath;
mod options;
mod parents;
mod place;
mod policy;
mod search;
mod vhd;
mod vhdx;

pub use options::OpenOptions;
pub(crate) use parents::{judge, leads_to};
pub(crate) use place::{VHD_NAMES, is_image_name, is_named};
pub use policy::ParentPolicy;
pub use search::{FoundImage, FoundVhd, Searched, UnreadFile, images_in, search_folder, vhds_in};
