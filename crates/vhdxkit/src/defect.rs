//! Everything that can be wrong with a file, one variant each.
//!
//! Opening and checking judge by the same list: an open stops at the first [`Severity::Error`], a
//! check goes on and reports them all. The `code` of a defect is stable; codes of the form `V7` are
//! numbered in `docs/findings.md`, `W-` marks a deviation, `I-` a remark.

use crate::format::Guid;

/// How bad a [`Defect`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Worth knowing, nothing is wrong: a log that will replay, space that could be given back.
    Info,
    /// Breaks the format or a good habit, but every guest byte can still be read with certainty.
    Warning,
    /// Guest data, or the file as a whole, cannot be read with certainty.
    Error,
}

impl Severity {
    /// `error`, `warning` or `info`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// What can be done about a [`Defect`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Remedy {
    /// Nothing needs doing, or nothing in the file says what would be right.
    Nothing,
    /// `vhdx check --repair` does this.
    Repair(&'static str),
    /// `vhdx check --repair` does this with the option named first: something may be lost.
    OnYourWord(&'static str, &'static str),
    /// Something else does it.
    Elsewhere(&'static str),
}

impl Remedy {
    /// Why a repair leaves what it leaves.
    #[must_use]
    pub const fn why_not(self) -> &'static str {
        match self {
            Self::Nothing => {
                "nothing in the file says what would be right; `vhdx recover` gets what it still holds"
            }
            Self::Repair(_) => {
                "that is not safe here; `vhdx recover` gets what the file still holds"
            }
            Self::OnYourWord(_, what) | Self::Elsewhere(what) => what,
        }
    }
}

/// Why a log entry does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryFault {
    /// Not a multiple of 4 KiB, zero, or longer than the log.
    #[error("EntryLength {0:#x} is no whole number of sectors within the log")]
    Length(u32),
    /// The length that the descriptors add up to differs.
    #[error("EntryLength {found:#x} does not match its descriptors (they need {needed:#x})")]
    LengthMismatch {
        /// The field.
        found: u32,
        /// What header, descriptors and data sectors add up to.
        needed: u64,
    },
    /// Not a sector of the log.
    #[error("Tail {0:#x} is not a sector of the log")]
    Tail(u32),
    /// Must be greater than zero.
    #[error("SequenceNumber is zero")]
    SequenceZero,
    /// Another entry starts inside this one, or the ring ends first.
    #[error("sector {0} of the entry was overwritten or never written")]
    Cut(u32),
    /// A descriptor with neither signature.
    #[error("descriptor {index} has the signature {found:02x?}")]
    DescriptorSignature {
        /// Counted from zero.
        index: u32,
        /// What stands there.
        found: [u8; 4],
    },
    /// A descriptor of another entry.
    #[error("descriptor {index} carries sequence number {found}")]
    DescriptorSequence {
        /// Counted from zero.
        index: u32,
        /// What stands there.
        found: u64,
    },
    /// A target that must never be replayed: unaligned, over the header section, over the log, or
    /// beyond what a file can be.
    #[error("descriptor {index} writes {length:#x} bytes at {offset:#x}: {why}")]
    Target {
        /// Counted from zero.
        index: u32,
        /// File offset.
        offset: u64,
        /// Bytes.
        length: u64,
        /// Which rule it breaks.
        why: &'static str,
    },
    /// A data sector without its frame, or of another entry.
    #[error("data sector {0} carries another sequence number or none")]
    DataSector(u32),
    /// `LastFileOffset` is larger than any file we would extend.
    #[error("LastFileOffset {0:#x} is beyond the largest file we accept")]
    LastFileOffset(u64),
    /// The checksum over the whole entry.
    #[error("checksum is {found:#010x}, should be {computed:#010x}")]
    Checksum {
        /// The field.
        found: u32,
        /// What the bytes add up to.
        computed: u32,
    },
}

/// Why a header or region table copy does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CopyFault {
    /// Other bytes than the signature.
    #[error("signature is {0:02x?}")]
    Signature([u8; 4]),
    /// The checksum over the whole structure.
    #[error("checksum is {found:#010x}, should be {computed:#010x}")]
    Checksum {
        /// The field.
        found: u32,
        /// What the bytes add up to.
        computed: u32,
    },
    /// The file ends before or inside it.
    #[error("the file ends inside it")]
    Missing,
}

macro_rules! defects {
    ($( $(#[$doc:meta])* $name:ident { $($field:ident : $ty:ty),* $(,)? }
        => $code:literal, $severity:expr, $structure:literal, $offset:expr, $repair:expr,
            $message:literal $(, $argument:ident = $value:expr)?;)*) => {
        /// One thing that is wrong, with the offending value and where it stands.
        ///
        /// `at` fields are file offsets of the field in question.
        #[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
        #[non_exhaustive]
        #[allow(missing_docs)]
        pub enum Defect {
            $( $(#[$doc])* #[error($message $(, $argument = $value)?)] $name { $($field: $ty),* }, )*
        }

        impl Defect {
            /// The stable code of this kind of defect.
            #[must_use]
            pub const fn code(&self) -> &'static str {
                match self { $( Self::$name { .. } => $code, )* }
            }

            /// How bad it is.
            #[must_use]
            #[allow(unused_variables)]
            pub fn severity(&self) -> Severity {
                use Severity::{Error, Info, Warning};
                match self { $( Self::$name { $($field),* } => $severity, )* }
            }

            /// The structure of the file it was found in.
            #[must_use]
            pub const fn structure(&self) -> &'static str {
                match self { $( Self::$name { .. } => $structure, )* }
            }

            /// Where in the file it was found; `None` when it concerns no single place.
            #[must_use]
            #[allow(unused_variables)]
            pub fn offset(&self) -> Option<u64> {
                match self { $( Self::$name { $($field),* } => $offset, )* }
            }

            /// What can be done about it.
            #[must_use]
            pub const fn remedy(&self) -> Remedy {
                use Remedy::{Elsewhere, Nothing, OnYourWord, Repair};
                match self { $( Self::$name { .. } => $repair, )* }
            }

            /// What a repair would do; `None` when nothing needs doing or nothing safe can be done.
            #[must_use]
            pub const fn repair(&self) -> Option<&'static str> {
                match self.remedy() {
                    Remedy::Nothing => None,
                    Remedy::Repair(what) | Remedy::OnYourWord(_, what) | Remedy::Elsewhere(what) => Some(what),
                }
            }
        }
    };
}

/// What is known of the changes of a log without an active sequence.
fn lost(valid: &u64, torn: &u64) -> String {
    match (valid, torn) {
        (0, 0) => "no entry of it was ever written (QEMU, when killed, leaves this): most likely the file is complete without it, but nothing proves that".to_owned(),
        _ => format!("no complete sequence of entries belongs to it ({valid} valid, {torn} torn): what the last writer meant to change is lost"),
    }
}

/// What is known of the entries of a log that no header names.
fn orphaned(entries: &u64, certain: bool) -> String {
    match certain {
        true => format!("the log's newest session ({entries} entries) would change the file"),
        false if *entries == 1 => {
            "the log holds one entry that is not in place, as a crash in its first flush leaves it"
                .to_owned()
        }
        false => {
            format!("some of the log's {entries} entries are not in place, though they may be old")
        }
    }
}

const HEAL_HEADER: Remedy = Remedy::Repair("rewrite this copy from the current header");

defects! {
    // ---- file identifier and headers
    NotVhdx { found: [u8; 8] } => "V1", Error, "file identifier", Some(0), Repair("write the signature anew, when headers and tables are those of a VHDX file"),
        "not a VHDX file: it starts with {found:02x?} instead of \"vhdxfile\"";
    FileTooShort { length: u64 } => "V1", Error, "file identifier", Some(*length), Nothing,
        "not a whole VHDX file: {length} bytes, the header section alone is 1048576";
    NoValidHeader { first: CopyFault, second: CopyFault } => "V2", Error, "header", Some(65536),
        Elsewhere("`vhdx recover` looks for tables and blocks without them"),
        "no valid header: copy 1: {first}; copy 2: {second}";
    HeaderCopyInvalid { at: u64, fault: CopyFault } => "V3", Warning, "header", Some(*at), HEAL_HEADER,
        "this header copy is damaged ({fault}); the other one is good and was used";
    HeaderReservedDamaged { at: u64 } => "V3", Warning, "header", Some(*at), HEAL_HEADER,
        "the reserved bytes of this header copy are damaged, so that other programs take it for invalid; its checksum proves that all of its fields are whole";
    HeaderPairDiffers { at: u64, fields: String } => "W-HDRPAIR", Info, "header", Some(*at), HEAL_HEADER,
        "the older header copy differs in {fields}";
    HeaderTie { at: u64, sequence: u64, fields: String } => "V4", Error, "header", Some(*at), OnYourWord("--use-header 1|2", "let the copy count that you name"),
        "both headers are valid with sequence number {sequence} but differ in {fields}";
    HeaderTwins { at: u64, sequence: u64 } => "W-HDRSEQ", Info, "header", Some(*at), HEAL_HEADER,
        "both headers carry sequence number {sequence} and are the same";
    Version { at: u64, found: u16 } => "V5", Error, "header", Some(*at), Nothing,
        "format version {found}; only version 1 exists";
    LogVersion { at: u64, found: u16, dirty: bool } => "V6", if *dirty { Error } else { Warning },
        "header", Some(*at), Repair("write log version 0, when the log is empty"), "log version {found}; only version 0 exists";
    LogGeometry { at: u64, log_offset: u64, log_length: u32, why: &'static str, dirty: bool }
        => "V7", if *dirty { Error } else { Warning }, "header", Some(*at),
        Repair("create a new log at the end of the file, when the log is empty"),
        "the log lies at {log_offset:#x} and is {log_length:#x} bytes long: {why}";
    // ---- log
    NoActiveSequence { at: u64, guid: Guid, valid: u64, torn: u64 } => "V8", Error, "log", Some(*at),
        OnYourWord("--discard-log", "discard the log, when the file is consistent without it"),
        "the header names the log {guid}, but {what}", what = lost(valid, torn);
    Truncated { at: u64, flushed: u64, file_size: u64 } => "V9", Error, "log", Some(*at),
        Repair("extend the file with zeros, replay its log and report the blocks that were lost"),
        "the file was cut off: it has {file_size} bytes, the log says that {flushed} were stable on disk";
    DirtyLog { at: u64, first: u64, last: u64, entries: u64 } => "I-DIRTY", Info, "log", Some(*at),
        Repair("replay the log (so does `vhdx log replay`)"),
        "the log holds changes that are not in place yet (sequence {first} to {last}, entries: {entries}); reading applies them in memory";
    UnreachableEntries { at: u64, head: u64, first: u64, last: u64 } => "W-LOGGAP", Warning, "log", Some(*at), OnYourWord("--allow-data-loss", "replay what can be replayed and give up the newer entries"),
        "entries {first} to {last} are whole and newer than what is replayed (up to {head}), but one before them is damaged: what they hold would be lost by a replay in the file";
    LostLogFound { at: u64, entries: u64 } => "I-LOGFOUND", Info, "log", Some(*at), Repair("replay the log"),
        "a header copy is damaged which named the log; its entries ({entries}) belong to the session of the other copy, so they are used";
    LogOrphan { at: u64, entries: u64, certain: bool } => "W-LOGORPHAN", if *certain { Error } else { Info }, "log", Some(*at), OnYourWord("--discard-log", "go on without them; `vhdx recover` uses them"),
        "one header copy is damaged, the other names no log, and {what}: the lost header may have named a log whose newest entries are not in place", what = orphaned(entries, *certain);
    TornEntry { at: u64, sequence: u64, fault: EntryFault } => "I-TORN", Info, "log", Some(*at), Nothing,
        "entry {sequence} does not count: {fault}";
    ReservedLogTarget { at: u64, sequence: u64, end: u64, last_file_offset: u64 }
        => "W-LASTOFF", Warning, "log", Some(*at), Repair("replay the log"),
        "entry {sequence} writes up to {end:#x}, beyond its own LastFileOffset {last_file_offset:#x}";
    // ---- region table
    RegionTableCopyInvalid { at: u64, fault: CopyFault } => "V11", Warning, "region table", Some(*at),
        Repair("rewrite this copy from the other one"),
        "this region table copy is damaged ({fault}); the other one is good and was used";
    NoRegionTable { first: CopyFault, second: CopyFault } => "V11", Error, "region table", Some(196608),
        Elsewhere("`vhdx recover` looks for its regions"),
        "no valid region table: copy 1: {first}; copy 2: {second}";
    RegionTablesDiffer { at: u64 } => "M-RTDIFF", Warning, "region table", Some(*at),
        Repair("rewrite copy 2 from copy 1"),
        "both region tables are valid but differ; copy 1 was used";
    RegionCount { at: u64, count: u32 } => "V12", Error, "region table", Some(*at), Nothing,
        "the region table claims {count} entries; 2047 fit";
    RegionRepeated { at: u64, guid: Guid } => "V12", Error, "region table", Some(*at), Nothing,
        "region {guid} is listed twice";
    RegionPlace { at: u64, guid: Guid, file_offset: u64, length: u32 } => "V12", Error, "region table", Some(*at), Nothing,
        "region {guid} at {file_offset:#x} with {length:#x} bytes: both must be multiples of 1 MiB, and at least 1 MiB";
    RegionOverlap { at: u64, what: String, with: String } => "V13", Error, "region table", Some(*at), Nothing,
        "{what} overlaps {with}";
    RegionOutside { at: u64, guid: Guid, end: u64, file_size: u64 } => "V14", Error, "region table", Some(*at),
        Elsewhere("`vhdx recover` gets what the file still holds"),
        "region {guid} ends at {end:#x}, the file at {file_size:#x}";
    RegionTail { at: u64, guid: Guid, end: u64, file_size: u64 } => "V14", Warning, "region table", Some(*at),
        Repair("extend the file to the end of the region"),
        "region {guid} ends at {end:#x}, the file at {file_size:#x}; the missing bytes are not used";
    RegionMissing { name: &'static str } => "V15", Error, "region table", Some(196608), Nothing,
        "the region table lists no {name} region";
    UnknownRequiredRegion { at: u64, guid: Guid } => "V16", Error, "region table", Some(*at), Nothing,
        "region {guid} is marked as required and this version does not know it";
    RegionNotRequired { at: u64, name: &'static str } => "W-REQUIRED", Info, "region table", Some(*at), Nothing,
        "the {name} region is not marked as required (QEMU writes it so)";
    // ---- metadata
    MetadataSignature { at: u64, found: [u8; 8] } => "V17", Error, "metadata table", Some(*at), Nothing,
        "the metadata table starts with {found:02x?} instead of \"metadata\"";
    MetadataCount { at: u64, count: u16 } => "V17", Error, "metadata table", Some(*at), Nothing,
        "the metadata table claims {count} entries; 2047 are allowed";
    MetadataUserCount { at: u64, count: usize } => "V17", Error, "metadata table", Some(*at), Nothing,
        "the metadata table holds {count} user entries; 1024 are allowed";
    ItemRange { at: u64, id: Guid, offset: u32, length: u32, why: &'static str } => "V18", Error, "metadata table", Some(*at), Nothing,
        "metadata item {id} at {offset:#x} with {length:#x} bytes: {why}";
    ItemOverlap { at: u64, id: Guid, with: Guid } => "V18", Error, "metadata table", Some(*at), Nothing,
        "metadata item {id} overlaps item {with}";
    ItemRepeated { at: u64, id: Guid } => "V18", Error, "metadata table", Some(*at), Nothing,
        "metadata item {id} is listed twice, or has no identity";
    UnknownRequiredItem { at: u64, id: Guid } => "V19", Error, "metadata table", Some(*at), Nothing,
        "metadata item {id} is marked as required and this version does not know it";
    IncompleteFile { at: u64 } => "V19", Error, "metadata table", Some(*at), Nothing,
        "the file is marked incomplete: whoever created it never finished";
    ItemMissing { at: u64, name: &'static str } => "V20", Error, "metadata table", Some(*at), Nothing,
        "the metadata has no {name}";
    ItemLength { at: u64, name: &'static str, found: u32, expected: u32 } => "V20", Error, "metadata table", Some(*at), Nothing,
        "the {name} item has {found} bytes instead of {expected}";
    BlockSize { at: u64, found: u32 } => "V21", Error, "file parameters", Some(*at), Nothing,
        "block size {found}: must be a power of two from 1 MiB to 256 MiB";
    FileParameterBits { at: u64, found: u32 } => "V21", Warning, "file parameters", Some(*at), Repair("clear the reserved bits"),
        "reserved bits of the file parameters are set ({found:#010x})";
    SectorSize { at: u64, which: &'static str, found: u32 } => "V22", Error, "metadata item", Some(*at), Nothing,
        "{which} sector size {found}: must be 512 or 4096";
    VirtualSize { at: u64, found: u64, why: &'static str } => "V23", Error, "metadata item", Some(*at), Nothing,
        "virtual disk size {found}: {why}";
    LocatorMissing { at: u64 } => "V24", Error, "parent locator", Some(*at), Nothing,
        "the disk is a child of another one, but no parent locator names the parent";
    LocatorUnexpected { at: u64 } => "V24", Warning, "parent locator", Some(*at), Nothing,
        "there is a parent locator although the disk has no parent; it is ignored";
    LocatorType { at: u64, found: Guid } => "V24", Error, "parent locator", Some(*at), Nothing,
        "parent locator of the unknown type {found}";
    LocatorMalformed { at: u64, why: &'static str } => "V24", Error, "parent locator", Some(*at), Nothing,
        "the parent locator cannot be read: {why}";
    LocatorKey { at: u64, key: &'static str, why: &'static str } => "V24", Error, "parent locator", Some(*at), Nothing,
        "parent locator, {key}: {why}";
    LocatorNoPath { at: u64 } => "V24", Warning, "parent locator", Some(*at), Elsewhere("say where the parent is (`vhdx relink`)"),
        "no path in the parent locator says where the parent is";
    ParentUnusable { why: String } => "V33", Error, "parent locator", None, Elsewhere("name the right parent (`vhdx relink`)"),
        "the disk cannot be read as a whole: {why}";
    ParentPathStale { found: String } => "W-PARENTPATH", Warning, "parent locator", None, Elsewhere("correct the path (`vhdx relink`)"),
        "the relative path does not lead to the parent, which is {found}";
    // ---- BAT
    BatTooSmall { at: u64, needed: u64, length: u64 } => "V25", Error, "BAT", Some(*at), Repair("move the BAT to a larger region"),
        "the BAT region has {length:#x} bytes, this disk needs {needed:#x}";
    BlockState { at: u64, block: u64, state: u8 } => "V26", Error, "BAT", Some(*at), Nothing,
        "block {block} is in the reserved state {state}";
    BlockStateDraft { at: u64, block: u64 } => "V26", Warning, "BAT", Some(*at), Repair("write state 3"),
        "block {block} is in state 5, UNMAPPED in the draft of 2012; read as such";
    PartialWithoutParent { at: u64, block: u64 } => "V26", Error, "BAT", Some(*at), Repair("make the block fully present, where nothing else speaks against it"),
        "block {block} is PARTIALLY_PRESENT although the disk has no parent";
    BitmapEntryState { at: u64, chunk: u64, state: u8, differencing: bool } => "V26",
        if *differencing { Error } else { Warning }, "BAT", Some(*at), Repair("clear the entry, unless a block needs the bitmap"),
        "the sector bitmap entry of chunk {chunk} is in state {state}";
    EntryReserved { at: u64, index: u64, bits: u64 } => "V27", Warning, "BAT", Some(*at), Repair("clear the bits"),
        "BAT entry {index}: reserved bits {bits:#x} are set; they are ignored";
    BlockWithoutPlace { at: u64, block: u64 } => "V28", Error, "BAT", Some(*at), OnYourWord("--allow-data-loss", "let the block read as zeros"),
        "block {block} is present but has no place in the file (offset 0)";
    BitmapWithoutPlace { at: u64, chunk: u64 } => "V28", Error, "BAT", Some(*at), Repair("clear the entry, unless a block needs the bitmap"),
        "the sector bitmap of chunk {chunk} is present but has no place in the file (offset 0)";
    BlockOutside { at: u64, block: u64, file_offset: u64, end: u64, file_size: u64 } => "V29", Error, "BAT", Some(*at),
        Repair("extend the file with zeros when only the block's tail is missing; let it read as zeros with --allow-data-loss"),
        "block {block} lies at {file_offset:#x} to {end:#x}, the file ends at {file_size:#x}";
    KeptPlaceOutside { at: u64, block: u64, file_offset: u64, end: u64, file_size: u64 } => "V29", Warning, "BAT", Some(*at),
        Repair("drop the place"),
        "block {block} was trimmed and keeps a place at {file_offset:#x} to {end:#x}, the file ends at {file_size:#x}: it can be read, but the disk cannot be written";
    BitmapOutside { at: u64, chunk: u64, file_offset: u64, file_size: u64 } => "V29", Error, "BAT", Some(*at), Repair("clear the entry, unless a block needs the bitmap"),
        "the sector bitmap of chunk {chunk} lies at {file_offset:#x}, the file ends at {file_size:#x}";
    BlockCut { at: u64, block: u64, file_size: u64 } => "I-CUT", Info, "BAT", Some(*at), Nothing,
        "the unused end of the last block {block} lies beyond the end of the file at {file_size:#x}";
    BlockOverlap { at: u64, what: String, file_offset: u64, with: String } => "V30", Error, "BAT", Some(*at),
        Repair("copy one of the two owners elsewhere"),
        "{what} at {file_offset:#x} overlaps {with}: at least one of the two holds foreign data";
    PartialWithoutBitmap { at: u64, block: u64, chunk: u64 } => "V31", Error, "BAT", Some(*at), Nothing,
        "block {block} is PARTIALLY_PRESENT but chunk {chunk} has no sector bitmap";
    ShiftedPage { at: u64, first: u64 } => "M-BATSHIFT", Error, "BAT", Some(*at), Repair("move its entries back"),
        "the page of BAT entries from {first} on was written shifted by one entry (QEMU before 8.0 did that): its blocks show their neighbours' contents";
    PlaceUnderZero { at: u64, block: u64, state: &'static str, file_offset: u64 } => "V32", Warning, "BAT", Some(*at), Repair("clear the offset, unless data that nothing else names lies there"),
        "block {block} is in state {state} but carries the offset {file_offset:#x}, which Hyper-V may refuse";
    NamelessData { bytes: u64 } => "W-NAMELESS", Warning, "BAT", None, Elsewhere("`vhdx recover` copies it out, with --orphans"),
        "{bytes} bytes of the file hold data that no entry of the block table names: so it is when entries were lost, or a crash came while much was being written";
    LeakedSpace { bytes: u64 } => "V35", Info, "file", None, Repair("cut it off where it is zeros at the end of a file with which nothing else is wrong; otherwise `vhdx compact` gives it back"),
        "{bytes} bytes of the file belong to nothing";
    FileSizeUneven { length: u64 } => "W-FILESIZE", Info, "file", Some(*length), Nothing,
        "the file's length {length} is no multiple of 1 MiB";
    ChangeTracking { path: String } => "W-RCT", Info, "file", None, Nothing,
        "change-tracking file {path} lies beside the image; writing the image with anything but its host makes it stale";
    SpaceNotChecked { from: u64 } => "I-SPACE", Info, "file", Some(*from), Nothing,
        "overlaps were checked up to {from:#x} only";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_defect_names_its_structure_place_and_value() {
        let defect = Defect::BlockSize { at: 0x21_0000, found: 3 << 20 };
        assert_eq!(defect.code(), "V21");
        assert_eq!(defect.structure(), "file parameters");
        assert_eq!(defect.offset(), Some(0x21_0000));
        assert_eq!(defect.severity(), Severity::Error);
        assert!(defect.to_string().contains("3145728"));
    }

    #[test]
    fn a_bad_log_version_matters_only_to_a_dirty_log() {
        let with = |dirty| Defect::LogVersion { at: 0, found: 1, dirty }.severity();
        assert_eq!((with(true), with(false)), (Severity::Error, Severity::Warning));
    }
}
