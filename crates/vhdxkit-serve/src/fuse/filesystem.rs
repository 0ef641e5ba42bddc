//! What the kernel asks, answered from exports.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs,
    ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use vhdxkit::view::geometry::DiskType;

use super::ServedFile;
use super::errno::errno;
use super::tidy::Tidy;
use crate::Export;

/// Bytes of a request at most: what the kernel allows unless its administrator raised it. Reading a file takes
/// half as long as with the usual 128 KiB.
const REQUEST: u32 = 1 << 20;
/// Requests that the kernel sends ahead without waiting, such as reading ahead.
const BACKGROUND: u16 = 64;
/// So many runs are looked at for one seek. What is behind them counts as data, which is always true enough:
/// data may be zeros.
const MOST_RUNS: u32 = 1 << 20;
/// Names, sizes and the whole of a read-only disk do not change.
const FOREVER: Duration = Duration::from_secs(24 * 3600);
/// The space that a writable disk uses does.
const A_MOMENT: Duration = Duration::from_secs(1);

/// An extended attribute of the root: the process that serves.
pub(super) const PID_ATTRIBUTE: &str = "user.vhdx.pid";

const ROOT: u64 = 1;
/// The inode of the first file.
const FIRST: u64 = 2;

const KEEP_SIZE: i32 = 1;
const PUNCH_HOLE: i32 = 2;
const ZERO_RANGE: i32 = 16;
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;
const O_ACCMODE: i32 = 3;
const O_SYNC_OR_DSYNC: i32 = 0o4_010_000;

thread_local! {
    /// What a thread reads into, kept for the next read.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The files of one mount.
#[derive(Debug)]
pub(super) struct Files {
    files: Vec<ServedFile>,
    owner: (u32, u32),
    for_all: bool,
    writable: bool,
    time: SystemTime,
    /// Of a writable mount, until it ends.
    tidy: Option<Tidy>,
}

impl Files {
    /// `for_all`: not only the owner may look.
    pub(super) fn new(files: Vec<ServedFile>, owner: (u32, u32), for_all: bool) -> Self {
        let disk = files.first().map(|file| file.export.disk());
        let writable = disk.is_some_and(|disk| disk.image().is_writable());
        let changed = disk.and_then(|disk| std::fs::metadata(disk.image().path()?).ok());
        let time = changed.and_then(|meta| meta.modified().ok()).unwrap_or(SystemTime::UNIX_EPOCH);
        let whole = disk.filter(|_| writable).map(|disk| Export::whole(Arc::clone(disk)));
        let tidy = whole.and_then(Tidy::start);
        Self { files, owner, for_all, writable, time, tidy }
    }

    fn file(&self, inode: INodeNo) -> Option<&ServedFile> {
        let index = inode.0.checked_sub(FIRST)?;
        self.files.get(usize::try_from(index).ok()?)
    }

    fn export(&self, inode: INodeNo) -> Result<&Export, Errno> {
        self.file(inode).map(|file| &file.export).ok_or(Errno::EISDIR)
    }

    /// The export of a file that may be changed.
    fn writable(&self, inode: INodeNo) -> Result<&Export, Errno> {
        match self.writable {
            true => self.export(inode),
            false => Err(Errno::EROFS),
        }
    }

    fn attributes(&self, inode: INodeNo) -> Option<FileAttr> {
        let file = match inode.0 {
            ROOT => None,
            _ => Some(self.file(inode)?),
        };
        let size = file.map_or(0, |file| file.export.size());
        let perm = match (file.is_some(), self.for_all) {
            (false, false) => 0o500,
            (false, true) => 0o555,
            (true, for_all) => {
                let all = if for_all { 0o044 } else { 0 };
                let write = if self.writable { 0o200 } else { 0 };
                0o400 | all | write
            }
        };
        Some(FileAttr {
            ino: inode,
            size,
            blocks: file.map_or(0, |file| used(&file.export)) / 512,
            atime: self.time,
            mtime: self.time,
            ctime: self.time,
            crtime: self.time,
            kind: if file.is_some() { FileType::RegularFile } else { FileType::Directory },
            perm,
            nlink: if file.is_some() { 1 } else { 2 },
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            blksize: file.map_or(4096, |file| file.export.preferred_size()),
            flags: 0,
        })
    }

    fn lifetime(&self) -> Duration {
        if self.writable { A_MOMENT } else { FOREVER }
    }

    fn read_into(
        &self,
        inode: INodeNo,
        offset: u64,
        size: u32,
        buf: &mut Vec<u8>,
    ) -> Result<usize, Errno> {
        let export = self.export(inode)?;
        let length = u64::from(size).min(export.size().saturating_sub(offset));
        let length = usize::try_from(length).map_err(|_| Errno::EINVAL)?;
        if buf.len() < length {
            buf.resize(length, 0);
        }
        export.read_at(offset, &mut buf[..length]).map_err(|e| errno(&e))?;
        Ok(length)
    }

    /// Writes what fits into the file, which cannot grow; at its end the disk is full.
    fn write_from(
        &self,
        inode: INodeNo,
        offset: u64,
        data: &[u8],
        flags: OpenFlags,
    ) -> Result<u32, Errno> {
        let export = self.writable(inode)?;
        let room = export.size().saturating_sub(offset);
        let length = data.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        if length == 0 && !data.is_empty() {
            return Err(Errno::ENOSPC);
        }
        export.write_at(offset, &data[..length]).map_err(|e| errno(&e))?;
        if let Some(tidy) = &self.tidy {
            tidy.note_write();
        }
        // The kernel leaves the syncing of such writes to us when it does not cache.
        if flags.0 & O_SYNC_OR_DSYNC != 0 {
            export.flush().map_err(|e| errno(&e))?;
        }
        u32::try_from(length).map_err(|_| Errno::EINVAL)
    }

    fn allocate(&self, inode: INodeNo, offset: u64, length: u64, mode: i32) -> Result<(), Errno> {
        let export = self.writable(inode)?;
        let end = offset.checked_add(length).ok_or(Errno::EFBIG)?;
        if mode & KEEP_SIZE == 0 && end > export.size() {
            return Err(Errno::ENOSPC);
        }
        let range = offset.min(export.size())..end.min(export.size());
        match mode & !KEEP_SIZE {
            PUNCH_HOLE if mode & KEEP_SIZE != 0 => export.write_zeroes(range),
            ZERO_RANGE => export.write_zeroes(range),
            0 if has_space(export, range).map_err(|e| errno(&e))? => Ok(()),
            // Nobody is promised space that the image does not have.
            _ => return Err(Errno::EOPNOTSUPP),
        }
        .map_err(|e| errno(&e))?;
        if let Some(tidy) = &self.tidy {
            tidy.note_trim();
        }
        Ok(())
    }
}

/// About how many bytes of the medium a file stands for: fewer than its size where it may have holes, which
/// is what makes `cp` and `tar` look for them.
fn used(export: &Export) -> u64 {
    let size = export.size();
    let image = export.disk().image();
    let allocated = image.layers().map(|layer| {
        let meta = layer.path().and_then(|path| std::fs::metadata(path).ok());
        meta.map_or(layer.file_size(), |meta| meta.blocks().saturating_mul(512))
    });
    let allocated = allocated.fold(0, u64::saturating_add);
    let sparse = image.geometry().disk_type() != DiskType::Fixed || allocated < size;
    allocated.min(if sparse { size.saturating_sub(512) } else { size })
}

/// Whether every byte of a range has its place in the image already.
fn has_space(export: &Export, range: std::ops::Range<u64>) -> vhdxkit::Result<bool> {
    let mut all = true;
    export.runs(range, |run| {
        all = run.state == vhdxkit::ExtentState::Data && run.depth == 0 && !run.hole;
        if all { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok(all)
}

/// The next byte from `offset` on that is in a hole, or is not. The end of the file is a hole.
fn seek(export: &Export, offset: u64, hole: bool) -> Result<u64, Errno> {
    let size = export.size();
    if offset >= size {
        return Err(Errno::ENXIO);
    }
    let mut found = None;
    let mut left = MOST_RUNS;
    let walked = export.runs(offset..size, |run| {
        left -= 1;
        if run.is_zero() == hole || (left == 0 && !hole) {
            found = Some(run.start);
        }
        if left == 0 || found.is_some() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    });
    walked.map_err(|e| errno(&e))?;
    match (found, hole) {
        (Some(at), _) => Ok(at),
        (None, true) => Ok(size),
        (None, false) => Err(Errno::ENXIO),
    }
}

fn finish(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

fn finish_attribute(reply: ReplyXattr, size: u32, value: &[u8]) {
    match u32::try_from(value.len()) {
        Ok(length) if size == 0 => reply.size(length),
        Ok(length) if length <= size => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}

impl Filesystem for Files {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            // And not FUSE_DIRECT_IO_ALLOW_MMAP: the module's head says why.
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            // No file here has a set-user-id bit or capabilities; without this the kernel asks at each write.
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ];
        for flag in wanted {
            // An older kernel does without.
            let _ = config.add_capabilities(flag);
        }
        let _ = config.set_max_write(REQUEST);
        let _ = config.set_max_background(BACKGROUND);
        Ok(())
    }

    fn destroy(&mut self) {
        if let Some(tidy) = self.tidy.take() {
            tidy.end();
        }
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let index = self.files.iter().position(|file| name == OsStr::new(&file.name));
        let inode = index.filter(|_| parent.0 == ROOT).map(|index| INodeNo(FIRST + index as u64));
        match inode.and_then(|inode| self.attributes(inode)) {
            Some(attributes) => {
                reply.entry_with_ttls(&FOREVER, &self.lifetime(), &attributes, Generation(0));
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes(inode) {
            Some(attributes) => reply.attr(&self.lifetime(), &attributes),
            None => reply.error(Errno::ENOENT),
        }
    }

    /// A disk has no other size and no other owner; times and modes are accepted and forgotten.
    fn setattr(
        &self,
        request: &Request,
        inode: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let now = self.file(inode).map(|file| file.export.size());
        match size {
            Some(size) if Some(size) != now => reply.error(Errno::EPERM),
            _ => self.getattr(request, inode, handle, reply),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if inode.0 != ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        let fixed = [(ROOT, FileType::Directory, "."), (ROOT, FileType::Directory, "..")];
        let files = (FIRST..).zip(&self.files);
        let files = files.map(|(inode, file)| (inode, FileType::RegularFile, file.name.as_str()));
        let entries = (1..).zip(fixed.into_iter().chain(files));
        for (next, (inode, kind, name)) in entries.skip_while(|(next, _)| *next <= offset) {
            if reply.add(INodeNo(inode), next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn open(&self, _: &Request, inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if self.file(inode).is_none() {
            return reply.error(Errno::EISDIR);
        }
        match self.writable {
            // The module's head says why.
            true => reply.opened(
                FileHandle(0),
                FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES,
            ),
            false if flags.0 & O_ACCMODE != 0 => reply.error(Errno::EROFS),
            false => reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE),
        }
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        BUFFER.with_borrow_mut(|buf| match self.read_into(inode, offset, size, buf) {
            Ok(length) => reply.data(&buf[..length]),
            Err(errno) => reply.error(errno),
        });
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.write_from(inode, offset, data, flags) {
            Ok(length) => reply.written(length),
            Err(errno) => reply.error(errno),
        }
    }

    /// A file was closed: nothing is kept here that could be written now.
    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _: &Request, inode: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let synced = self.export(inode).and_then(|export| export.flush().map_err(|e| errno(&e)));
        finish(reply, synced);
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fallocate(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        finish(reply, self.allocate(inode, offset, length, mode));
    }

    fn lseek(
        &self,
        _: &Request,
        inode: INodeNo,
        _: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let from = u64::try_from(offset).map_err(|_| Errno::ENXIO);
        let found = match whence {
            SEEK_DATA | SEEK_HOLE => from
                .and_then(|from| seek(self.export(inode)?, from, whence == SEEK_HOLE))
                .and_then(|at| i64::try_from(at).map_err(|_| Errno::EOVERFLOW)),
            _ => Err(Errno::EINVAL),
        };
        match found {
            Ok(at) => reply.offset(at),
            Err(errno) => reply.error(errno),
        }
    }

    /// The block size is also what a loop device takes as the least that it discards.
    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let export = self.files.first().map(|file| &file.export);
        let block = export.map_or(4096, Export::preferred_size);
        let size = export.map_or(0, |export| export.disk().image().virtual_size());
        let files = self.files.len() as u64 + 1;
        reply.statfs(size / u64::from(block), 0, 0, files, 0, block, 255, block);
    }

    fn getxattr(&self, _: &Request, inode: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        match inode.0 == ROOT && name == OsStr::new(PID_ATTRIBUTE) {
            true => finish_attribute(reply, size, std::process::id().to_string().as_bytes()),
            false => reply.error(Errno::NO_XATTR),
        }
    }

    fn listxattr(&self, _: &Request, inode: INodeNo, size: u32, reply: ReplyXattr) {
        let names = if inode.0 == ROOT { format!("{PID_ATTRIBUTE}\0") } else { String::new() };
        finish_attribute(reply, size, names.as_bytes());
    }

    // The folder is what the disk is: nothing comes, goes or changes its name.

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn create(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::EPERM);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EPERM);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }
}
