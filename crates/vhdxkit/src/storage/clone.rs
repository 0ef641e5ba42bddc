//! Copies that share their bytes: file systems with reflinks let two files own the same blocks until
//! one of them is written.
//!
//! `copy_file_range` does that on XFS and btrfs. Elsewhere it would copy through the page cache without
//! looking for zeros, which a copy of our own does better, so it is not used there. (An XFS that was
//! made without reflinks cannot be told apart; there the kernel copies, zeros included.)

use std::fs::File;
use std::io;

use super::Storage;

/// Shares ranges of one file with another on the same file system.
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
struct Cloner<'a> {
    source: &'a File,
    target: &'a File,
}

impl<'a> Cloner<'a> {
    /// `None` where nothing can be shared: no files, different file systems, or one without reflinks.
    #[cfg(target_os = "linux")]
    fn between(source: &'a dyn Storage, target: &'a dyn Storage) -> Option<Self> {
        use nix::sys::statfs::{BTRFS_SUPER_MAGIC, XFS_SUPER_MAGIC, fstatfs};
        use std::os::unix::fs::MetadataExt;

        let (source, target) = (source.as_file()?, target.as_file()?);
        let same = source.metadata().ok()?.dev() == target.metadata().ok()?.dev();
        let kind = fstatfs(target).ok()?.filesystem_type();
        let shares = kind == XFS_SUPER_MAGIC || kind == BTRFS_SUPER_MAGIC;
        (same && shares).then_some(Self { source, target })
    }

    /// Not on this system.
    #[cfg(not(target_os = "linux"))]
    fn between(_: &'a dyn Storage, _: &'a dyn Storage) -> Option<Self> {
        None
    }

    /// Shares `length` bytes. Whole units of the file system are shared, the rest is copied. `false`
    /// when the system will not do that with these files: then they have to be copied as elsewhere, all
    /// of the range.
    #[cfg(target_os = "linux")]
    fn share(&self, from: u64, to: u64, length: u64) -> io::Result<bool> {
        use nix::errno::Errno;

        let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let mut from = i64::try_from(from).map_err(invalid)?;
        let mut to = i64::try_from(to).map_err(invalid)?;
        let mut left = length;
        while left > 0 {
            let step = super::to_usize(left).min(1 << 30);
            // Both offsets move on with the copy.
            match nix::fcntl::copy_file_range(
                self.source,
                Some(&mut from),
                self.target,
                Some(&mut to),
                step,
            ) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(done) => left = left.saturating_sub(u64::try_from(done).unwrap_or(u64::MAX)),
                Err(Errno::EINTR) => {}
                // Files that refuse it (swap, immutable, encrypted), old kernels, sandboxes. Before the first
                // byte: a copy relies on what it does not write being zeros.
                Err(
                    Errno::EINVAL
                    | Errno::EOPNOTSUPP
                    | Errno::ENOSYS
                    | Errno::EXDEV
                    | Errno::EPERM
                    | Errno::ETXTBSY,
                ) if left == length => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    /// Not on this system.
    #[cfg(not(target_os = "linux"))]
    fn share(&self, _: u64, _: u64, _: u64) -> io::Result<bool> {
        Ok(false)
    }
}

/// One for each file of a chain.
pub(crate) struct Cloners<'a>(Vec<Option<Cloner<'a>>>);

impl<'a> Cloners<'a> {
    /// In the order of the chain.
    pub(crate) fn between(
        sources: impl IntoIterator<Item = &'a std::sync::Arc<dyn Storage>>,
        target: &'a dyn Storage,
    ) -> Self {
        Self(sources.into_iter().map(|source| Cloner::between(&**source, target)).collect())
    }

    /// Whether the file at a depth may share.
    pub(crate) fn can(&self, depth: u32) -> bool {
        let cloner = usize::try_from(depth).ok().and_then(|depth| self.0.get(depth));
        matches!(cloner, Some(Some(_)))
    }

    /// [`Cloner::share`] for a place in the chain: depth and offset. A file that refuses once is not
    /// asked again.
    pub(crate) fn share(&mut self, from: (u32, u64), to: u64, length: u64) -> io::Result<bool> {
        let (depth, offset) = from;
        let Some(cloner) = usize::try_from(depth).ok().and_then(|depth| self.0.get_mut(depth))
        else {
            return Ok(false);
        };
        let shared = match cloner {
            Some(able) => able.share(offset, to, length)?,
            None => false,
        };
        if !shared {
            *cloner = None;
        }
        Ok(shared)
    }
}
