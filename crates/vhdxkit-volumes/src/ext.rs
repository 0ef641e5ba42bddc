//! ext2, ext3 and ext4.

use crate::{Survey, Trouble, Window};

pub(crate) fn survey(_window: &Window<'_>) -> Result<Survey, Trouble> {
    Err(Trouble::not_known("the free space of ext4 is not known yet"))
}
