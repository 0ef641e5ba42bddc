//! Swap space: what its pages hold is worth nothing once the system that wrote them is gone.
//!
//! The first page is a header and stays in use: with it go label, identifier and the list of bad pages. All
//! other pages are free, but for the bad ones, unless a suspended system lies there. That one puts its own
//! signature over the header's, whose numbers stay as they were.
//!
//! Swap has no mark of being used by a system that runs, or sleeps elsewhere. Whoever frees its pages must
//! know that there is none.

use crate::bytes::{label, u32_at};
use crate::{FreeMapBuilder, Survey, Trouble, Window};

/// Bytes of a page, as architectures have them. The header's signature ends the first one.
const PAGES: [u64; 5] = [4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10];
/// Bytes of a signature, and so its distance from the page's end.
const SIGNATURE: u64 = 10;
/// Where the header's numbers are, and its list of bad pages.
const VERSION: usize = 1024;
const LAST_PAGE: usize = 1028;
const BAD_PAGES: usize = 1032;
const LABEL: std::ops::Range<usize> = 1052..1068;
const BAD_PAGE_LIST: usize = 1536;

/// What a signature tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Swap,
    /// Of before Linux 2.2, with another header.
    Old,
    Suspended,
}

const SIGNATURES: [(&[u8], Kind); 7] = [
    (b"SWAPSPACE2", Kind::Swap),
    (b"SWAP-SPACE", Kind::Old),
    (b"S1SUSPEND", Kind::Suspended),
    (b"S2SUSPEND", Kind::Suspended),
    (b"ULSUSPEND", Kind::Suspended),
    (b"LINHIB0001", Kind::Suspended),
    // TuxOnIce.
    (&[0xED, 0xC3, 0x02, 0xE9, 0x98, 0x56, 0xE5, 0x0C], Kind::Suspended),
];

/// Whether swap space begins so; a suspended system in it counts too.
pub(crate) fn is_swap(start: &[u8]) -> bool {
    signature(start).is_some()
}

/// The size of a page, and what the signature at its end tells.
fn signature(start: &[u8]) -> Option<(u64, Kind)> {
    PAGES.iter().find_map(|page| {
        let at = usize::try_from(page.saturating_sub(SIGNATURE)).ok()?;
        let found = start.get(at..)?;
        let (_, kind) = SIGNATURES.iter().find(|(signature, _)| found.starts_with(signature))?;
        Some((*page, *kind))
    })
}

pub(crate) fn survey(window: &Window<'_>) -> Result<Survey, Trouble> {
    let [.., largest] = PAGES;
    let start = window.read("the header", 0, largest.min(window.size()))?;
    let found = signature(&start).ok_or_else(|| Trouble::damaged("swap has lost its signature"))?;
    let (page, kind) = found;
    if kind == Kind::Old || u32_at(&start, VERSION) != 1 {
        return Err(Trouble::not_known("its version of swap space is not known"));
    }
    let last = u64::from(u32_at(&start, LAST_PAGE));
    let length = last.saturating_add(1).saturating_mul(page);
    if last == 0 || length > window.size() {
        return Err(Trouble::damaged(format!(
            "its last page is {last}, and there are {} bytes",
            window.size()
        )));
    }
    let mut free = FreeMapBuilder::new(length);
    let mut next = 1u64;
    for bad in bad_pages(&start, page, last)? {
        free.add(next.saturating_mul(page)..bad.saturating_mul(page))?;
        next = bad.saturating_add(1);
    }
    free.add(next.saturating_mul(page)..length)?;
    let suspended = kind == Kind::Suspended;
    Ok(Survey {
        asleep: suspended,
        name: "swap",
        label: label(start.get(LABEL).unwrap_or_default()),
        length,
        unit: page,
        free: free.finish(),
        unclean: suspended.then(|| "it holds a suspended system".to_owned()),
    })
}

/// Pages that must not be used, in order.
fn bad_pages(start: &[u8], page: u64, last: u64) -> Result<Vec<u64>, Trouble> {
    let count = usize::try_from(u32_at(start, BAD_PAGES)).unwrap_or(usize::MAX);
    let end = usize::try_from(page.saturating_sub(SIGNATURE)).unwrap_or_default();
    let list = start.get(BAD_PAGE_LIST..end).unwrap_or_default();
    let bytes = count.checked_mul(4).and_then(|length| list.get(..length));
    let bytes = bytes.ok_or_else(|| Trouble::damaged(format!("it has {count} bad pages")))?;
    let mut pages: Vec<u64> = bytes.chunks_exact(4).map(|bad| u32_at(bad, 0).into()).collect();
    if pages.iter().any(|bad| !(1..=last).contains(bad)) {
        return Err(Trouble::damaged("a bad page is not one of its pages"));
    }
    pages.sort_unstable();
    pages.dedup();
    Ok(pages)
}
