//! The undo file: the old contents of everything that a repair changes. `format` is what stands in it and reads it,
//! `write` makes one, `restore` puts an image back by it, `beside` keeps it beside its image.

mod beside;
mod format;
mod restore;
mod write;

pub(super) use beside::save;
pub use beside::undo_file;
pub use format::Undo;
pub use restore::UndoReport;
pub(super) use write::write;
