//! What every family of file systems answers when it is asked for its space.

use crate::{FreeMap, Trouble};

/// What a file system says about its space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// What people call it: `ext4`, `NTFS`, `FAT32`…
    pub name: &'static str,
    /// Its label; what cannot be printed is replaced. Empty when it has none.
    pub label: String,
    /// Bytes it reaches over, from its start; never more than there is room for it.
    pub length: u64,
    /// Bytes of a cluster or block, in which it gives space out.
    pub unit: u64,
    /// Its free bytes.
    pub free: FreeMap,
    /// Why its free bytes must not be believed as they are: it was not unmounted cleanly, or hibernates.
    /// `None` when it was left in good order.
    pub unclean: Option<String>,
    /// A whole system is suspended in it, with all that it has in use.
    pub asleep: bool,
}

/// Puts the free bytes into a survey. A file system in use, or left in a hurry, contradicts itself as long as
/// its journal was not replayed: that is no damage, but no map of it can be had.
pub(crate) fn with_free(survey: Survey, free: Result<FreeMap, Trouble>) -> Result<Survey, Trouble> {
    match (free, survey.unclean) {
        (Err(Trouble::Damaged(what)), Some(why)) => {
            let unclean = Some(format!("{why}; until then {what}"));
            Ok(Survey { unclean, free: FreeMap::default(), ..survey })
        }
        (free, unclean) => Ok(Survey { free: free?, unclean, ..survey }),
    }
}
