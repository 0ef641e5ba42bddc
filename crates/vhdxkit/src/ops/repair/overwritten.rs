//! Entries of a page of the block table that was overwritten beyond doubt.
//!
//! Such a page is judged as a whole: what one of its entries happens to say is nothing that anybody wrote, even where it
//! breaks no rule. Left alone it stays in doubt; at the user's word it is taken for what it says, and given up.

use crate::Result;
use crate::defect::Defect;
use crate::format::bat::{ENTRIES_PER_PAGE, PayloadState, RawEntry};
use crate::map::Trust;
use crate::view::geometry::BatSlot;

use super::Word;
use super::entries::Entries;
use super::report::{OVERWRITTEN, OVERWRITTEN_GIVEN_UP, hex};

impl Entries<'_> {
    /// Whether the entry of a block was overwritten.
    pub(super) fn is_overwritten(&self, index: u64, block: u64, raw: RawEntry) -> bool {
        let page = index / ENTRIES_PER_PAGE;
        self.traces.overwritten.binary_search(&page).is_ok()
            && self.rules.trust(BatSlot::Payload(block), raw) != Trust::Sound
    }

    /// What is wrong with an entry, the worst first.
    fn defects(&self, block: u64, raw: RawEntry) -> Vec<Defect> {
        let remarks = self.rules.payload_remarks(block, raw).into_iter().flatten();
        self.rules.payload(block, raw).err().into_iter().chain(remarks).collect()
    }

    /// Without the user's word: made to look sound, nobody would know any more that its block is not.
    pub(super) fn untouched(&mut self, block: u64, raw: RawEntry) -> RawEntry {
        let place = raw.file_offset();
        for defect in self.defects(block, raw) {
            self.report.needs(&defect, Word::AllowDataLoss, OVERWRITTEN);
        }
        if place < self.rules.file_size {
            let end = place.saturating_add(u64::from(self.rules.geometry.block_size()));
            self.highest = self.highest.max(end.min(self.rules.file_size));
        } else {
            self.held_back |= self.rules.owned(raw).is_some();
        }
        raw
    }

    /// With it: taken for what it says, without what would have it look odd. The block is given up, whatever it shows.
    pub(super) fn overwritten(
        &mut self,
        block: u64,
        index: u64,
        raw: RawEntry,
    ) -> Result<RawEntry> {
        let (at, place) = (self.rules.at(index), raw.file_offset());
        self.report.doubt(block);
        // The state that has no meaning is in nobody's power.
        let Some(state) = PayloadState::from_raw(raw.state()) else { return Ok(raw) };
        let geometry = self.rules.geometry;
        let defect = self.defects(block, raw).into_iter().next();
        let holds = matches!(state, PayloadState::FullyPresent | PayloadState::PartiallyPresent);
        let (what, new) = match state {
            _ if holds && place != 0 && place < self.data_end => {
                let whole = !geometry.is_differencing();
                let state = if whole { PayloadState::FullyPresent } else { state };
                let what = format!("show what lies at {}", hex(place));
                (what, RawEntry::new(state.to_raw(), place))
            }
            _ if holds => {
                self.give_up(place)?;
                ("make it read as zeros".to_owned(), RawEntry::new(PayloadState::Zero.to_raw(), 0))
            }
            // A trimmed block's place that breaks no rule may be one.
            PayloadState::Undefined | PayloadState::Unmapped if defect.is_none() => {
                let kept = self.keeps_anchor(block, at, place);
                (
                    "drop its place".to_owned(),
                    if kept { raw } else { RawEntry::new(raw.state(), 0) },
                )
            }
            PayloadState::NotPresent if geometry.is_differencing() => {
                self.report.shows_parent = true;
                ("let it show the parent's".to_owned(), RawEntry::default())
            }
            _ => ("let it read as zeros".to_owned(), RawEntry::new(state.to_raw(), 0)),
        };
        if let Some(defect) = defect {
            let what = format!("block {block} (BAT entry at {}): {what}", hex(at));
            self.report.step(&defect, what, OVERWRITTEN_GIVEN_UP);
        }
        let start = geometry.block_start(block);
        let range = start..start.saturating_add(geometry.used_bytes(block));
        match (holds, new.file_offset()) {
            (true, 0) => self.report.lose(block, range),
            (true, _) => {
                let state = PayloadState::from_raw(new.state()).unwrap_or(state);
                return self.present(block, index, new, state);
            }
            _ => self.report.lose_unseen(block, range),
        }
        Ok(new)
    }
}
