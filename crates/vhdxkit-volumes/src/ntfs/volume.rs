//! `$Volume`: its label, and what it says of its own state. And whether shadow copies lie on it.

use super::mft::Mft;
use super::record::{VOLUME_INFORMATION, VOLUME_NAME};
use crate::bytes::{u8_at, u16_at, u64_at, utf16};
use crate::{Trouble, Window};

const VOLUME: u64 = 3;

/// What flags mean that something is left to be done.
const UNFINISHED: [(u16, &str); 7] = [
    (0x0001, "it is marked dirty"),
    (0x0002, "its log is to be resized"),
    (0x0004, "it is to be upgraded"),
    (0x0010, "its change journal is being deleted"),
    (0x0020, "its object identifiers are to be repaired"),
    (0x4000, "chkdsk is at work"),
    (0x8000, "chkdsk has changed it"),
];
/// It was mounted by Windows NT 4; it makes no short names.
const HARMLESS: u16 = 0x0008 | 0x0080;

pub(super) struct Volume {
    pub(super) label: String,
    /// Why it cannot be taken as clean.
    pub(super) unclean: Option<String>,
}

impl Volume {
    pub(super) fn read(mft: &Mft<'_>) -> Result<Self, Trouble> {
        let record = mft.record(VOLUME)?;
        let value = |kind| -> Result<Option<Vec<u8>>, Trouble> {
            let Some(stream) = mft.stream(&record, kind, "")? else { return Ok(None) };
            Ok(Some(mft.read("$Volume", &stream, 0..stream.length)?))
        };
        let information = value(VOLUME_INFORMATION)?.filter(|found| found.len() >= 12);
        let information = information
            .ok_or_else(|| Trouble::damaged("$Volume says nothing of the state of the volume"))?;
        match (u8_at(&information, 8), u8_at(&information, 9)) {
            (1, 1 | 2) | (3, 0 | 1) => {}
            (major, minor) => {
                return Err(Trouble::not_known(format!("NTFS {major}.{minor} is not known")));
            }
        }
        let name = value(VOLUME_NAME)?.unwrap_or_default();
        let label = utf16(&name);
        Ok(Self { label, unclean: unfinished(u16_at(&information, 10)) })
    }
}

fn unfinished(flags: u16) -> Option<String> {
    let known = UNFINISHED.iter().find(|(flag, _)| flags & flag != 0);
    let unknown = flags & !UNFINISHED.iter().fold(HARMLESS, |all, (flag, _)| all | flag);
    match known {
        Some((_, why)) => Some((*why).to_owned()),
        None => (unknown != 0).then(|| format!("it has unknown flags, {unknown:#06x}")),
    }
}

/// Where shadow copies keep their header, and how it begins.
const SHADOW_HEADER: u64 = 0x1E00;
const SHADOW_IDENTIFIER: [u8; 16] = [
    0x6B, 0x87, 0x08, 0x38, 0x76, 0xC1, 0x48, 0x4E, 0xB7, 0xAE, 0x04, 0x04, 0x6E, 0x6C, 0xC7, 0x52,
];

/// Shadow copies: clusters that were in use when one was made, and are free now, hold what it shows until
/// they are written again. The bitmap knows nothing of that, and nobody can say so for it.
pub(super) fn refuse_shadow_copies(window: &Window<'_>) -> Result<(), Trouble> {
    let end = SHADOW_HEADER.saturating_add(512);
    if window.size() < end {
        return Ok(());
    }
    let header = window.read("the header of shadow copies", SHADOW_HEADER, 512)?;
    let catalog = u64_at(&header, 0x30);
    let kept_elsewhere = header.get(0x40..0x50) != header.get(0x50..0x60);
    match header.starts_with(&SHADOW_IDENTIFIER) && (catalog != 0 || kept_elsewhere) {
        false => Ok(()),
        true => Err(Trouble::not_known(
            "it has shadow copies, which live in clusters that count as free",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_but_two_means_unfinished_business() {
        for flag in (0..16).map(|bit| 1u16 << bit) {
            assert_eq!(unfinished(flag).is_none(), flag & HARMLESS != 0, "{flag:#06x}");
        }
        assert_eq!(unfinished(0), None);
        assert_eq!(unfinished(0x88), None);
        assert!(unfinished(0x89).unwrap().contains("dirty"));
    }
}
