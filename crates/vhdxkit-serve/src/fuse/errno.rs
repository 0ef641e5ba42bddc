//! The library's errors as a program on the mount sees them.

use fuser::Errno;
use vhdxkit::{Error, ErrorKind};

/// What a system call on the file fails with. The words are told to whoever runs the server.
pub(super) fn errno(error: &Error) -> Errno {
    use std::io::ErrorKind as Io;
    match (error.kind(), error.io_error().map(std::io::Error::kind)) {
        // To whom writes a file of fixed size, a limit of the medium is a full disk, too.
        (_, Some(Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge)) => Errno::ENOSPC,
        (_, Some(Io::OutOfMemory)) => Errno::ENOMEM,
        (_, Some(Io::ReadOnlyFilesystem)) => Errno::EROFS,
        (ErrorKind::InvalidInput | ErrorKind::OutOfRange, _) => Errno::EINVAL,
        _ => Errno::EIO,
    }
}
