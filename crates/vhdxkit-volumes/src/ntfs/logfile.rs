//! `$LogFile`: whether everything that was begun is on the volume.
//!
//! The log begins with two restart pages, which NTFS writes in turn. At a clean unmount both say that the
//! volume is clean, or that nobody has the log open. Everything else means that transactions may wait to be
//! done or undone, and with them the bitmap.
//!
//! * Version 1.1 is what a volume is left with when it is unmounted. Windows raises it to 2.0 while a volume
//!   is mounted, and when it keeps metadata in the memory that it hibernates ("fast startup"). So a log of
//!   version 2.0 is a volume in use, whatever its flags say.
//! * Other systems, which do not log, leave a log of nothing but ones: empty. Neither end of it may hold
//!   anything else; it is emptied from its beginning, so the end is what an emptying that was cut off
//!   leaves.

use super::mft::{Mft, Stream};
use super::record::take_out_update_sequence;
use crate::Trouble;
use crate::bytes::{u16_at, u32_at, u64_at};

const NOBODY: u16 = 0xFFFF;
const VOLUME_IS_CLEAN: u16 = 2;
/// So much of both ends of an empty log is looked at; no page is larger.
const ENDS: u64 = 64 << 10;

/// Why the volume cannot be taken as clean.
pub(super) fn unclean(mft: &Mft<'_>, log: &Stream) -> Result<Option<String>, Trouble> {
    let end = log.length;
    if end < ENDS {
        return Err(Trouble::damaged(format!("$LogFile has {end} bytes")));
    }
    let head = mft.read("$LogFile", log, 0..ENDS)?;
    if head.starts_with(&[0xFF; 4]) {
        let tail = mft.read("$LogFile", log, end.saturating_sub(ENDS)..end)?;
        let empty = head.iter().chain(&tail).all(|byte| *byte == 0xFF);
        return Ok((!empty).then(|| "its log was not emptied to its end".to_owned()));
    }
    Ok(restart_pages(&head).err())
}

fn restart_pages(head: &[u8]) -> Result<(), String> {
    if head.starts_with(b"CHKD") {
        return Err("its log waits for Windows since chkdsk has changed the volume".to_owned());
    }
    let size = u32_at(head, 0x10);
    if !head.starts_with(b"RSTR") || !size.is_power_of_two() || !(512..=32768).contains(&size) {
        return Err("its log does not begin with a restart page".to_owned());
    }
    let size = usize::try_from(size).unwrap_or_default();
    let mut pages = head.chunks_exact(size);
    for name in ["first", "second"] {
        let mut page = pages.next().unwrap_or_default().to_vec();
        take_out_update_sequence(
            &mut page,
            b"RSTR",
            &format!("the {name} restart page of its log"),
        )
        .map_err(|trouble| trouble.to_string())?;
        restart_page(&page)?;
    }
    Ok(())
}

fn restart_page(page: &[u8]) -> Result<(), String> {
    if u64_at(page, 8) != 0 {
        return Err("chkdsk has changed the volume since its log was written".to_owned());
    }
    match (u16_at(page, 0x1C), u16_at(page, 0x1A)) {
        (1, 1) => {}
        (2, 0) => {
            let why = "its log is of version 2.0: Windows has it mounted, was stopped, or keeps \
                       metadata in memory for a fast startup";
            return Err(why.to_owned());
        }
        (major, minor) => return Err(format!("its log is of the unknown version {major}.{minor}")),
    }
    let start = usize::from(u16_at(page, 0x18));
    let area = page.get(start..).filter(|area| start >= 0x1E && area.len() >= 0x30);
    let area = area.ok_or("its log's restart area lies behind its page")?;
    let (user, flags) = (u16_at(area, 0x0C), u16_at(area, 0x0E));
    match user == NOBODY || flags & VOLUME_IS_CLEAN != 0 {
        true => Ok(()),
        false => Err("it was not unmounted cleanly: its log is open".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two restart pages of 4 KiB, as a clean unmount leaves them.
    fn clean() -> Vec<u8> {
        let mut head = vec![0; 64 << 10];
        for page in head[..8192].chunks_mut(4096) {
            page[..8].copy_from_slice(b"RSTR\x1E\0\x09\0");
            page[0x10..0x18].copy_from_slice(&[0, 16, 0, 0, 0, 16, 0, 0]);
            page[0x18..0x1E].copy_from_slice(&[0x30, 0, 1, 0, 1, 0]);
            page[0x38..0x40].copy_from_slice(&[1, 0, 0xFF, 0xFF, 0, 0, 2, 0]);
        }
        head
    }

    #[test]
    fn both_pages_have_to_say_clean_and_nothing_else_may_speak_against_it() {
        assert_eq!(restart_pages(&clean()), Ok(()));
        for page in [0, 4096] {
            // Clean without the flag: nobody has the log open.
            let mut head = clean();
            head[page + 0x3E] = 0;
            assert!(restart_pages(&head).unwrap_err().contains("open"));
            head[page + 0x3C..page + 0x3E].fill(0xFF);
            assert_eq!(restart_pages(&head), Ok(()));
            for (at, value, why) in [
                (0x1C, 2, "version"),
                (0x08, 1, "chkdsk"),
                (0x1A, 7, "version"),
                (0x1FE, 1, "torn"),
                (0x00, b'X', "restart page"),
                (0x06, 8, "update sequence"),
            ] {
                let mut head = clean();
                head[page + at] = value;
                let found = restart_pages(&head).unwrap_err();
                assert!(found.contains(why), "{at:#x}: {found}");
            }
            let mut head = clean();
            head[page + 0x18..page + 0x1A].copy_from_slice(&[0xF0, 0x0F]);
            assert!(restart_pages(&head).unwrap_err().contains("restart area"));
            let mut head = clean();
            head[page + 0x1A..page + 0x1E].copy_from_slice(&[0, 0, 2, 0]);
            assert!(restart_pages(&head).unwrap_err().contains("version 2.0"));
        }
    }
}
