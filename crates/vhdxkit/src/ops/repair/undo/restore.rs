//! Restores an image from an undo file.
//!
//! # Whose image is it, and what has happened to it since?
//! A writer of VHDX must first of all write a header with a FileWriteGuid of its own. So the headers tell:
//!
//! * A valid header copy that is neither one of the old ones nor of the repair: another image, or this one after
//!   somebody wrote it. Restoring would destroy what was written: refused.
//! * Both copies are the repair's last ones: it was completed. Everything it wrote must still be there; otherwise somebody
//!   wrote the image by other means: refused.
//! * One copy that is valid and known: a repair or an undo that was interrupted. Torn sectors may hold anything, and
//!   are restored.
//! * None that is valid tells nothing. A repair always leaves one, and an undo loses both only at its very end. So all
//!   that was recorded, but the headers, must hold its old or its new bytes; otherwise it is another image.
//!
//! Headers alone do not make it the same disk, nor does their want. So there are landmarks: places that the repair
//! leaves alone, above all the metadata with the virtual disk's id, and samples from the whole file. Each must hold
//! what it held.
//!
//! # The order of writes
//! First the header copy that is current, torn or not, gets its old contents, and a sync: from here on the
//! headers are no longer those of a completed repair. Then everything else, and the length; sync; then the
//! other header copy; sync. Interrupted anywhere, it begins again and comes to the same end.

use zerocopy::IntoBytes;

use crate::format::HEADER_OFFSETS;
use crate::log::sync;
use crate::storage::{Storage, StorageExt};
use crate::view::headers::read_intact_copy;
use crate::{Error, Result};

use super::format::{Undo, contents, record_range};

/// What undoing a repair did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct UndoReport {
    /// The image was not as it was before the repair.
    pub changed: bool,
    /// Bytes of the file now, which it had before the repair.
    pub bytes_after: u64,
    /// Restored although it was not certain that nobody had written the image since.
    pub forced: bool,
}

/// What the headers of an image say about it.
enum Found {
    Completed,
    Interrupted,
    Foreign,
    Nothing,
}

impl Undo<'_> {
    /// Restores the image: afterwards it is, byte for byte, what it was before the repair (holes may have become
    /// zeros). Unless `force`, only an image of which it is certain that nobody but the repair has written it.
    ///
    /// # Errors
    /// The undo file is another image's, or the image was written since; reading or writing fails: then this can
    /// be done again.
    pub fn restore(&self, image: &dyn Storage, force: bool) -> Result<UndoReport> {
        let length = self.length_before();
        if image.length()? == length && self.is_as_before(image)? {
            return Ok(UndoReport { changed: false, bytes_after: length, forced: false });
        }
        let forced = match self.judge(image)? {
            None => false,
            Some(_) if force => true,
            Some(why) => return Err(Error::invalid(why)),
        };
        sync(image)?;
        let last = self.last_header(image)?;
        let first = 1usize.saturating_sub(last);
        self.restore_where(image, |offset| header_copy(offset) == Some(first))?;
        sync(image)?;
        if image.length()? != length {
            image
                .set_len(length)
                .map_err(|e| Error::io("cannot set the file's length", length, e))?;
        }
        self.restore_where(image, |offset| header_copy(offset).is_none())?;
        sync(image)?;
        self.restore_where(image, |offset| header_copy(offset) == Some(last))?;
        sync(image)?;
        Ok(UndoReport { changed: true, bytes_after: length, forced })
    }

    /// Whether it would change an image that is as its repair left it, or on the way there.
    pub(super) fn is_next(&self, image: &dyn Storage) -> Result<bool> {
        let done = image.length()? == self.length_before() && self.is_as_before(image)?;
        Ok(!done && self.judge(image)?.is_none())
    }

    /// Why it must not be restored, if that is so.
    fn judge(&self, image: &dyn Storage) -> Result<Option<String>> {
        let written = "somebody has written the image since the repair: what was written then would be lost, \
                       and what this undo file holds does not fit the rest any more. If that was a later repair, \
                       take that one back first, with its own undo file";
        let foreign = || {
            let name = &self.name;
            format!("this undo file is not for this image (it was made for {name}), or {written}")
        };
        if !self.has_landmarks(image)? {
            return Ok(Some(foreign()));
        }
        match self.found(image)? {
            Found::Interrupted => Ok(None),
            Found::Nothing => Ok((!self.is_old_or_new(image)?).then(foreign)),
            Found::Foreign => Ok(Some(foreign())),
            Found::Completed => {
                let same = image.length()? == self.head.length_after.get();
                for (record, _) in &self.records {
                    let now = contents(image, &record_range(record))?;
                    if crc32c::crc32c(&now) != record.new_checksum.get() {
                        return Ok(Some(written.to_owned()));
                    }
                }
                Ok((!same).then(|| written.to_owned()))
            }
        }
    }

    fn found(&self, image: &dyn Storage) -> Result<Found> {
        let (mut last, mut valid) = (0u64, 0u64);
        let final_pair =
            [self.head.last_sequence.get(), self.head.last_sequence.get().saturating_sub(1)];
        for (copy, offset) in HEADER_OFFSETS.iter().enumerate() {
            let Some(header) = read_intact_copy(image, copy)? else { continue };
            valid = valid.saturating_add(1);
            let old = self.old_header(*offset)?;
            if header.file_write_guid == self.head.session {
                last = last
                    .saturating_add(u64::from(final_pair.contains(&header.sequence_number.get())));
            } else if old.as_deref() != Some(header.as_bytes()) {
                return Ok(Found::Foreign);
            }
        }
        Ok(match (valid, last) {
            (0, _) => Found::Nothing,
            (_, 2) => Found::Completed,
            _ => Found::Interrupted,
        })
    }

    /// Whether what the repair has left alone is what it was.
    fn has_landmarks(&self, image: &dyn Storage) -> Result<bool> {
        for landmark in &self.landmarks {
            let start = landmark.offset.get();
            let range = start..start.saturating_add(u64::from(landmark.length.get()));
            if crc32c::crc32c(&contents(image, &range)?) != landmark.checksum.get() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether everything but the headers holds its old bytes or its new ones, in a file of one of the two lengths.
    fn is_old_or_new(&self, image: &dyn Storage) -> Result<bool> {
        let length = image.length()?;
        if length != self.length_before() && length != self.head.length_after.get() {
            return Ok(false);
        }
        for (record, at) in &self.records {
            if header_copy(record.offset.get()).is_some() {
                continue;
            }
            let now = contents(image, &record_range(record))?;
            let new = crc32c::crc32c(&now) == record.new_checksum.get();
            if !new && now != self.old(record, *at)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The header copy that is restored last: the one that is still the repair's, the older one of two.
    fn last_header(&self, image: &dyn Storage) -> Result<usize> {
        let ours = |copy: usize| -> Result<Option<u64>> {
            let header = read_intact_copy(image, copy)?
                .filter(|header| header.file_write_guid == self.head.session);
            Ok(header.map(|header| header.sequence_number.get()))
        };
        Ok(match (ours(0)?, ours(1)?) {
            (Some(first), Some(second)) if first > second => 1,
            (None, Some(_)) => 1,
            _ => 0,
        })
    }

    fn is_as_before(&self, image: &dyn Storage) -> Result<bool> {
        for (record, at) in &self.records {
            if contents(image, &record_range(record))? != self.old(record, *at)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn restore_where(&self, image: &dyn Storage, which: impl Fn(u64) -> bool) -> Result<()> {
        for (record, at) in &self.records {
            let offset = record.offset.get();
            if which(offset) {
                let old = self.old(record, *at)?;
                image.write_at(offset, &old).map_err(|e| Error::io("cannot restore", offset, e))?;
            }
        }
        Ok(())
    }
}

/// Which header copy begins at an offset.
fn header_copy(offset: u64) -> Option<usize> {
    HEADER_OFFSETS.iter().position(|at| *at == offset)
}
