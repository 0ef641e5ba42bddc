//! The parent locator of a differencing disk (MS-VHDX 2.6.2.6). Rule V24.

use zerocopy::FromBytes;

use crate::Result;
use crate::defect::Defect;
use crate::findings::Findings;
use crate::format::Guid;
use crate::format::limits::MAX_LOCATOR_PAIRS;
use crate::format::locator::{LocatorEntry, LocatorHeader, VHDX_LOCATOR, encode};
use crate::storage::{Storage, StorageExt};

use super::metadata::MetadataItem;

/// Who the parent is and where it was last seen. Nothing here has been looked at on disk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ParentLocator {
    pairs: Vec<(String, String)>,
}

/// Where a parent lies, as a locator says it; at least one of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct ParentPaths {
    /// From the child's folder, `\\` between the names.
    pub(crate) relative: Option<String>,
    /// With a drive letter; Windows writes it with and without `\\\\?\\` before it.
    pub(crate) absolute_win32: Option<String>,
    /// With the GUID of a volume.
    pub(crate) volume: Option<String>,
}

impl ParentLocator {
    /// Reads the locator item. `None` when it cannot be read and a check wants to go on.
    pub(crate) fn read(
        storage: &dyn Storage,
        item: MetadataItem,
        findings: &mut Findings,
    ) -> Result<Option<Self>> {
        let length = usize::try_from(item.length).unwrap_or_default();
        let mut bytes = vec![0; length];
        // What the file does not hold any more was reported with the metadata region.
        if storage.read_zero_filled(item.offset, &mut bytes)? < length {
            return Ok(None);
        }
        let at = item.offset;
        match parse(&bytes) {
            Ok(locator) => {
                locator.judge(at, findings)?;
                Ok(Some(locator))
            }
            Err(Malformed::Type(found)) => {
                findings.report(Defect::LocatorType { at, found })?;
                Ok(None)
            }
            Err(Malformed::Shape(why)) => {
                findings.report(Defect::LocatorMalformed { at, why })?;
                Ok(None)
            }
        }
    }

    /// All pairs, in the file's order.
    #[must_use]
    pub fn pairs(&self) -> &[(String, String)] {
        &self.pairs
    }

    /// The value of a key; keys are case-sensitive.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The parent's `DataWriteGuid` when the child was made (`parent_linkage`).
    #[must_use]
    pub fn linkage(&self) -> Option<Guid> {
        self.get("parent_linkage")?.parse().ok()
    }

    /// The second identity that is accepted, used while a merge is under way. The zero GUID, which
    /// Windows writes here, matches nothing and gives `None`.
    #[must_use]
    pub fn linkage2(&self) -> Option<Guid> {
        self.get("parent_linkage2")?.parse().ok().filter(|guid: &Guid| !guid.is_zero())
    }

    /// A locator with these identities and paths, its keys in the order in which Windows writes them. A
    /// second identity that is not given is the zero GUID, as Windows has it.
    pub(crate) fn new(linkage: Guid, linkage2: Option<Guid>, paths: &ParentPaths) -> Self {
        let guid = |guid: Guid| Some(format!("{{{guid}}}"));
        let pairs = [
            ("parent_linkage", guid(linkage)),
            ("absolute_win32_path", paths.absolute_win32.clone()),
            ("relative_path", paths.relative.clone()),
            ("volume_path", paths.volume.clone()),
            ("parent_linkage2", guid(linkage2.unwrap_or_default())),
        ];
        let given = pairs.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
        Self { pairs: given.collect() }
    }

    /// The same paths with other identities, and everything else that stands there.
    pub(crate) fn with_linkage(&self, linkage: Guid, linkage2: Option<Guid>) -> Self {
        let mut pairs = self.pairs.clone();
        let guids =
            [("parent_linkage", linkage), ("parent_linkage2", linkage2.unwrap_or_default())];
        for (key, guid) in guids {
            let value = format!("{{{guid}}}");
            match pairs.iter_mut().find(|(name, _)| name == key) {
                Some((_, old)) => *old = value,
                None => pairs.push((key.to_owned(), value)),
            }
        }
        Self { pairs }
    }

    /// The item's bytes; `None` when a string is too long for its field.
    pub(crate) fn to_bytes(&self) -> Option<Vec<u8>> {
        let pairs: Vec<(&str, &str)> =
            self.pairs.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        encode(&pairs)
    }

    /// The locator that an item's bytes hold; `None` when they make no sense.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        parse(bytes).ok()
    }

    fn judge(&self, at: u64, findings: &mut Findings) -> Result<()> {
        let key = "parent_linkage";
        match self.get(key) {
            None => findings.report(Defect::LocatorKey { at, key, why: "missing" })?,
            Some(_) if self.linkage().is_none() => {
                findings.report(Defect::LocatorKey { at, key, why: "not a GUID" })?;
            }
            Some(_) => {}
        }
        let paths = ["relative_path", "volume_path", "absolute_win32_path"];
        if paths.iter().all(|key| self.get(key).is_none()) {
            // Who opens it can still say where the parent is: its identity is known.
            findings.report(Defect::LocatorNoPath { at })?;
        }
        Ok(())
    }
}

enum Malformed {
    Type(Guid),
    Shape(&'static str),
}

fn parse(bytes: &[u8]) -> Result<ParentLocator, Malformed> {
    let too_short = |_| Malformed::Shape("it is shorter than its header");
    let (header, rest) = LocatorHeader::read_from_prefix(bytes).map_err(too_short)?;
    if header.locator_type != VHDX_LOCATOR {
        return Err(Malformed::Type(header.locator_type));
    }
    let count = header.key_value_count.get();
    if count == 0 {
        return Err(Malformed::Shape("it holds no entries"));
    }
    if count > MAX_LOCATOR_PAIRS {
        return Err(Malformed::Shape("it claims more than 256 entries"));
    }
    let mut pairs: Vec<(String, String)> = Vec::new();
    let mut entries = rest.chunks_exact(size_of::<LocatorEntry>());
    // Strings that share bytes would make a small item a large locator.
    let mut left = bytes.len();
    for _ in 0..count {
        let raw = entries.next().ok_or(Malformed::Shape("its entries do not fit into it"))?;
        let entry =
            LocatorEntry::read_from_bytes(raw).map_err(|_| Malformed::Shape("short entry"))?;
        let strings = usize::from(entry.key_length.get())
            .saturating_add(usize::from(entry.value_length.get()));
        left = left
            .checked_sub(strings)
            .ok_or(Malformed::Shape("its strings add up to more than it holds"))?;
        let key = text(bytes, entry.key_offset.get(), entry.key_length.get())?;
        let value = text(bytes, entry.value_offset.get(), entry.value_length.get())?;
        if pairs.iter().any(|(other, _)| *other == key) {
            return Err(Malformed::Shape("a key stands there twice"));
        }
        pairs.push((key, value));
    }
    Ok(ParentLocator { pairs })
}

fn text(bytes: &[u8], offset: u32, length: u16) -> Result<String, Malformed> {
    if offset == 0 || length == 0 || !length.is_multiple_of(2) {
        return Err(Malformed::Shape("a string has offset 0, no length or an odd one"));
    }
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    let raw = start
        .checked_add(usize::from(length))
        .and_then(|end| bytes.get(start..end))
        .ok_or(Malformed::Shape("a string lies outside of it"))?;
    let units = raw.chunks_exact(2).map(|pair| match pair {
        [low, high] => u16::from_le_bytes([*low, *high]),
        _ => 0,
    });
    let text: Result<String, _> = char::decode_utf16(units).collect();
    let text = text.map_err(|_| Malformed::Shape("a string is not UTF-16"))?;
    if text.contains('\0') {
        return Err(Malformed::Shape("a string contains NUL"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::locator::encode;

    fn pairs(list: &[(&str, &str)]) -> Vec<u8> {
        encode(list).unwrap()
    }

    const LINKAGE: (&str, &str) = ("parent_linkage", "{83ED0EC3-24C8-49a6-a959-5e4bf1288bfb}");

    #[test]
    fn windows_pairs_are_read_and_the_zero_second_linkage_matches_nothing() {
        let zero = "{00000000-0000-0000-0000-000000000000}";
        let bytes = pairs(&[LINKAGE, ("relative_path", r".\p.vhdx"), ("parent_linkage2", zero)]);
        let locator = parse(&bytes).ok().unwrap();
        assert_eq!(locator.linkage().unwrap().to_string(), "83ed0ec3-24c8-49a6-a959-5e4bf1288bfb");
        assert_eq!(locator.linkage2(), None);
        assert_eq!(locator.get("relative_path"), Some(r".\p.vhdx"));
        let mut findings = Findings::tolerant();
        locator.judge(0, &mut findings).unwrap();
        assert!(findings.list().is_empty());
    }

    #[test]
    fn no_linkage_no_path_and_no_guid_are_reported() {
        let locator = parse(&pairs(&[("parent_linkage", "x")])).ok().unwrap();
        let mut findings = Findings::tolerant();
        locator.judge(0, &mut findings).unwrap();
        assert_eq!(findings.list().len(), 2);
    }

    #[test]
    fn every_cut_and_every_byte_change_is_survived() {
        let whole = pairs(&[LINKAGE, ("relative_path", r".\p.vhdx")]);
        for length in 0..whole.len() {
            let _ = parse(&whole[..length]);
        }
        for at in 0..whole.len() {
            for value in [0, 1, 0x7F, 0xFF] {
                let mut bytes = whole.clone();
                bytes[at] = value;
                let _ = parse(&bytes);
            }
        }
        assert!(parse(&pairs(&[LINKAGE, LINKAGE])).is_err());
        assert!(parse(&pairs(&[])).is_err());
    }

    /// 256 pairs that all point at the same bytes made 48 MiB of a 1 MiB item.
    #[test]
    fn strings_that_share_their_bytes_are_refused() {
        let long = "x".repeat(20_000);
        let names: Vec<String> = (0..30).map(|number| format!("k{number}")).collect();
        let list: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "v")).collect();
        let mut bytes = pairs(&list);
        let text = encode(&[("k", &long)]).unwrap();
        let at = u32::try_from(bytes.len()).unwrap();
        bytes.extend_from_slice(&text[text.len() - 40_000..]);
        assert!(parse(&bytes).is_ok());
        for pair in 0..30 {
            let entry = 20 + pair * 12;
            bytes[entry + 4..entry + 8].copy_from_slice(&at.to_le_bytes());
            bytes[entry + 10..entry + 12].copy_from_slice(&40_000u16.to_le_bytes());
        }
        assert!(parse(&bytes).is_err());
    }
}
