//! A disk that may be written while its image stays as it is.

use std::path::Path;
use std::sync::Arc;

use vhdxkit::storage::{FileStorage, OpenMode, Overlay};
use vhdxkit::{Image, OpenOptions};

/// An image, open for writing, with all that is written kept in memory. `found` is the same one as the
/// options find it: its parents are then opened again by their paths, since storage alone has no folder to
/// look into.
pub(super) fn in_memory(
    options: OpenOptions,
    found: Image,
    path: &Path,
    room: u64,
) -> anyhow::Result<Image> {
    let options = with_parents_of(options, &found, 1);
    drop(found);
    let file = FileStorage::open(path, OpenMode::ReadOnly { force_share: false })?;
    let overlay = Overlay::new(Arc::new(file))?.with_room_for(room);
    Ok(options.write(true).open_storage(Arc::new(overlay))?)
}

/// Names the layers of a chain from a depth on as parents.
pub(super) fn with_parents_of(options: OpenOptions, image: &Image, depth: usize) -> OpenOptions {
    let paths = image.layers().skip(depth).filter_map(Image::path);
    paths.fold(options.without_parents(), |options, path| options.parent(path))
}
