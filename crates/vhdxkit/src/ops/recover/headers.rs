//! What is left of identifier and header pair.
//!
//! Two right headers tell the truth: the one with the higher number is the last that was written. A single one
//! may be the older of the two. Then it still knows where the log lies, but not whether the log is to be replayed,
//! nor by what DataWriteGuid the disk is known: a session may have begun since.

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::Result;
use crate::format::header::{Header, LOG_VERSION, SIGNATURE, VERSION};
use crate::format::identifier::{self, FileIdentifier};
use crate::format::limits::MAX_LOG_LENGTH;
use crate::format::{Guid, HEADER_OFFSETS, MIB};
use crate::storage::{Storage, StorageExt};
use crate::view::headers::LogPlace;

use super::report::{Report, Trust};

/// The better of the two headers.
pub(super) struct Headers {
    current: Option<Header>,
    trust: Trust,
    /// Both copies are right.
    is_pair: bool,
}

impl Headers {
    pub(super) fn read(storage: &dyn Storage, report: &mut Report) -> Result<Self> {
        read_identifier(storage, report)?;
        let mut best: Option<(bool, u64, usize, Header)> = None;
        let mut any_bad = false;
        for (number, offset) in HEADER_OFFSETS.into_iter().enumerate() {
            let mut header = Header::new_zeroed();
            storage.read_zero_filled(offset, header.as_mut_bytes())?;
            let known = header.signature == SIGNATURE && header.version.get() == VERSION;
            let sound = known && header.checksum.get() == header.computed_checksum();
            any_bad |= !sound;
            let usable = sound || (known && is_plausible(&header));
            if !usable {
                continue;
            }
            let rank = (sound, header.sequence_number.get());
            if best.as_ref().is_none_or(|(sound, sequence, ..)| rank > (*sound, *sequence)) {
                best = Some((rank.0, rank.1, number, header));
            }
        }
        let Some((sound, sequence, number, header)) = best else {
            report.say("header", Trust::Lost, None, "both copies are damaged");
            return Ok(Self { current: None, trust: Trust::Lost, is_pair: false });
        };
        let at = HEADER_OFFSETS.get(number).copied();
        let (trust, text) = match (sound, any_bad) {
            (true, false) => (Trust::Sound, format!("sequence {sequence}; both copies are right")),
            (true, true) => (
                Trust::Sound,
                format!("sequence {sequence}; the other copy is damaged, and may have been newer"),
            ),
            (false, _) => (
                Trust::Doubtful,
                "its checksum is wrong: taken as a hint where the log lies, and for nothing else"
                    .to_owned(),
            ),
        };
        report.say("header", trust, at, text);
        Ok(Self { current: Some(header), trust, is_pair: !any_bad })
    }

    /// Whether a header with a right checksum is there.
    pub(super) fn is_sound(&self) -> bool {
        self.trust == Trust::Sound
    }

    /// Whether the header is known to be the last that was written.
    pub(super) fn is_last(&self) -> bool {
        self.is_pair
    }

    /// The header that is known to be the last.
    pub(super) fn last(&self) -> Option<&Header> {
        self.current.as_ref().filter(|_| self.is_pair)
    }

    /// The session whose log has to be replayed, if a sound header names one.
    pub(super) fn session(&self) -> Option<Guid> {
        let header = self.current.as_ref().filter(|_| self.is_sound());
        header.map(|header| header.log_guid).filter(|guid| !guid.is_zero())
    }

    /// Where the log lies, as far as that makes sense in a file of so many bytes.
    pub(super) fn log_place(&self, file_size: u64) -> Option<LogPlace> {
        let header = self.current.as_ref().filter(|header| is_plausible(header))?;
        let place = LogPlace { offset: header.log_offset.get(), length: header.log_length.get() };
        (place.offset < file_size).then_some(place)
    }
}

/// A log that could lie there.
fn is_plausible(header: &Header) -> bool {
    let (offset, length) = (header.log_offset.get(), header.log_length.get());
    header.log_version.get() == LOG_VERSION
        && offset >= MIB
        && offset.is_multiple_of(MIB)
        && length > 0
        && u64::from(length).is_multiple_of(MIB)
        && length <= MAX_LOG_LENGTH
        && offset.checked_add(u64::from(length)).is_some()
}

fn read_identifier(storage: &dyn Storage, report: &mut Report) -> Result<()> {
    let mut identifier = FileIdentifier::read_from_bytes(&[0; size_of::<FileIdentifier>()])
        .unwrap_or_else(|_| FileIdentifier::new(""));
    storage.read_zero_filled(0, identifier.as_mut_bytes())?;
    if identifier.signature == identifier::SIGNATURE {
        let text = format!("the file was made by \"{}\"", identifier.creator());
        report.say("identifier", Trust::Sound, Some(0), text);
    } else {
        report.say("identifier", Trust::Lost, Some(0), "who made the file is not known any more");
    }
    Ok(())
}
