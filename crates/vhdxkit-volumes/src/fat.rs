//! FAT12, FAT16 and FAT32.

use crate::{Survey, Trouble, Window};

pub(crate) fn survey(_window: &Window<'_>) -> Result<Survey, Trouble> {
    Err(Trouble::not_known("the free space of FAT is not known yet"))
}
