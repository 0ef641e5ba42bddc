//! The command line. Completions and man pages are made from this definition too.

mod chain;
mod checking;
mod failing;
mod logging;
mod making;
mod mapping;
#[cfg(target_os = "linux")]
mod mounting;
mod reading;
mod recovering;
#[cfg(target_os = "linux")]
mod serving;
mod space;

use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use vhdxkit::defect::{Defect, Severity};
use vhdxkit::ops::disk::{Disk, DiskFormat};
use vhdxkit::{Image, OpenOptions};

use crate::console::{named, shown};

pub(crate) use chain::{MergeArgs, ParentArgs, RelinkArgs, SetArgs, open_as_far_as_possible};
pub(crate) use checking::CheckArgs;
pub(crate) use logging::{ExtractArgs, LogCommand, ReplayArgs};
pub(crate) use making::{
    ConvertArgs, CreateArgs, MeasureArgs, NewSize, ResizeArgs, TargetFormat, WriteArgs,
};
pub(crate) use mapping::MapArgs;
#[cfg(target_os = "linux")]
pub(crate) use mounting::{MountArgs, UnmountArgs};
pub(crate) use reading::{CompareArgs, DumpArgs, DumpWhat, InfoArgs, ReadArgs};
pub(crate) use recovering::RecoverArgs;
#[cfg(target_os = "linux")]
pub(crate) use serving::{PlaceArgs, ServeArgs};
pub(crate) use space::{CompactArgs, FreeSpaceName, LsArgs};

const TOP_EXAMPLES: &str = "\
Examples:
  vhdx info disk.vhdx                 what the image is, and whether it crashed
  vhdx convert disk.vhdx disk.raw     its true contents, log replayed in memory
  vhdx log show disk.vhdx             what the last writer was doing
  vhdx check disk.vhdx                everything that is wrong with it
  vhdx map --html disk.html disk.vhdx a picture of it, on one page
  vhdx recover broken.vhdx --to new.vhdx  what can be had when it opens no more
  vhdx create disk.vhdx 64G           a new disk
  vhdx info --chain newest.avhdx      a checkpoint and what it builds on
  vhdx compact disk.vhdx              the file has grown: give space back
  vhdx merge newest.avhdx             fold a checkpoint into its parent
  vhdx relink work.avhdx --parent P   repair a link to a parent that was moved
  vhdx serve disk.vhdx                a disk for a virtual machine, by NBD
  vhdx mount --read-only a.vhdx dir   its partitions as files (Linux)";

const TOP_NOTES: &str = "\
Sizes are bytes, or 64K, 10M, 1G, 1T (1K = 1024 bytes, and 1G, 1GB and 1GiB are the same), or 0x hexadecimal.

Exit status: 0 done; 1 failed; 2 wrong usage; 3 `check` found problems, `compare` differences, `recover` losses;
4 the image is in use; 5 the parent of a checkpoint is missing or another one.";

/// Open, recover, read and write VHDX (Hyper-V) disk images. Never writes to an image unless that is the
/// command's purpose.
#[derive(Debug, Parser)]
#[command(name = "vhdx", version, before_help = TOP_EXAMPLES, after_help = TOP_NOTES, max_term_width = 100)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Print JSON for programs instead of text for people.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// No progress bar.
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
}

/// The sub-commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Tell what an image is: type, sizes, identity, blocks, state of its log. Of VHDX, VHD, qcow2 and raw.
    #[command(before_help = "\
Examples:
  vhdx info disk.vhdx
  vhdx info old.vhd
  vhdx info --chain newest.avhdx         a checkpoint and its parents
  vhdx info --json disk.vhdx | jq .log.state")]
    Info(InfoArgs),
    /// Verify everything that can be verified by reading; mend it only when asked to.
    #[command(before_help = "\
Examples:
  vhdx check disk.vhdx
  vhdx check disk.vhdx --repair --dry-run     what a repair would do; nothing is changed
  vhdx check disk.vhdx --repair               do it; disk.vhdx.undo-<time> is written first
  vhdx check disk.vhdx --undo disk.vhdx.undo-20260131T235959Z
  vhdx check newest.avhdx                a checkpoint and all of its parents
  vhdx check --json disk.vhdx | jq -r '.findings[].code'

Exit status: 0 no problem, 3 problems found (after a repair: left), 1 the file could not be read or written, \
4 it is in use.")]
    Check(CheckArgs),
    /// Look at the metadata log, take it apart, replay it.
    #[command(
        subcommand,
        before_help = "\
Examples:
  vhdx log show disk.vhdx                        the log as a story
  vhdx log replay disk.vhdx                      apply it, in the file
  vhdx log extract disk.vhdx --entry 1004 -o e   one entry's bytes"
    )]
    Log(LogCommand),
    /// List where the bytes of the virtual disk lie, or show all of an image on one page.
    #[command(before_help = "\
Examples:
  vhdx map disk.vhdx
  vhdx map --html disk.html disk.vhdx    a picture of it, for a browser or a printer
  vhdx map --json child.avhdx | jq '.[] | select(.state == \"data\")'

The page shows the disk block by block, with its file systems and their free space, the file from end to end, the \
log as a story, and what `check` finds. It is one file, without scripts, and needs no network. Of an image that cannot \
be opened it shows what can be read.

Exit status with --html: that of `check`. 0 no problem, 3 problems found (the page lists them), 1 the file could not \
be read or the page not written, 4 the image is in use.")]
    Map(MapArgs),
    /// Decode the structures of the file, with their offsets.
    #[command(before_help = "\
Examples:
  vhdx dump disk.vhdx header
  vhdx dump disk.vhdx bat")]
    Dump(DumpArgs),
    /// Write bytes of the virtual disk to stdout.
    #[command(before_help = "\
Examples:
  vhdx read disk.vhdx --length 512 | xxd           the first sector
  vhdx read disk.vhdx --offset 1M --length 64K > part")]
    Read(ReadArgs),
    /// Make a new, empty disk.
    #[command(before_help = "\
Examples:
  vhdx create disk.vhdx 64G                       a dynamic disk
  vhdx create disk.vhdx 64G --block-size 1M       small blocks, for Linux
  vhdx create disk.vhdx 20G --fixed --preallocate all of its space taken now
  vhdx create work.avhdx --parent disk.vhdx       a child of disk.vhdx
  vhdx create azure.vhd 30G --fixed               a VHD, as Azure takes it
  vhdx create work.vhd --parent disk.vhd          a child of a VHD

Hyper-V refuses files that are sparse on NTFS, compressed or encrypted. A dynamic disk is sparse only \
while it is being written here; --preallocate makes a file that has no holes at all.")]
    Create(CreateArgs),
    /// Write stdin to the virtual disk, through the log like a guest.
    #[command(before_help = "\
Examples:
  vhdx write disk.vhdx --offset 1M < part
  head -c 512 /dev/zero | vhdx write disk.vhdx --offset 0

Offset and length must be multiples of the disk's sector size; of a file on stdin that is known before \
anything is written. What was written is durable when the command ends with status 0; when it is \
killed, the image opens and each sector is old or new. A disk that checkpoints beside it build on is \
refused: write to the newest of them.")]
    Write(WriteArgs),
    /// Give a disk another size.
    #[command(before_help = "\
Examples:
  vhdx resize disk.vhdx 100G      this size
  vhdx resize disk.vhdx +20G      larger by that much
  vhdx resize disk.vhdx -- -5G    smaller by that much
  vhdx resize disk.vhdx min       as small as what it holds allows

A crash leaves the old size or the new one. Cutting off data, or part of a partition, takes --force; so does a \
disk that checkpoints beside it build on, and do not know any more then: resize the newest of them. \
After growing, enlarge the partition and its file system inside the guest. `min` keeps every partition, \
file system and byte that is not zero: shrink those in the guest first. A GPT has a second copy at the end \
of the disk, which has to be cut off with --force and made anew by `sgdisk -e` before the guest starts: \
`min` says what to type.")]
    Resize(ResizeArgs),
    /// Give back the space that a disk holds without need: the file becomes shorter.
    #[command(before_help = "\
Examples:
  vhdx compact -n ext4.vhdx             what would be given back; changes nothing
  vhdx compact ext4.vhdx                give it back, in place
  vhdx compact --free-space none d.vhdx zeros and trimmed blocks only

For disks of WSL, Docker, Hyper-V and others that only ever grow. Shut the machine down first (`wsl --shutdown`). \
The free-space maps of the file systems on the disk are read (NTFS, ext2 to ext4, XFS, btrfs, FAT, exFAT, \
swap; with partitions or without), if they were left in good order. Whatever stops it, even a power \
failure: the disk is whole, and the same command goes on. Of a checkpoint goes what its parent shows the \
same. A fixed disk has nothing to give.")]
    Compact(CompactArgs),
    /// List the partitions and file systems of a disk: how full they are, and whether they are in order.
    #[command(before_help = "\
Examples:
  vhdx ls disk.vhdx
  vhdx ls --json newest.avhdx | jq '.[].free'

A dirty log is replayed in memory; nothing is changed.")]
    Ls(LsArgs),
    /// Fold a child (a checkpoint) into its parent.
    #[command(before_help = "\
Examples:
  vhdx merge newest.avhdx                     into its parent, and deleted
  vhdx merge newest.avhdx --into disk.vhdx    the whole chain becomes disk.vhdx
  vhdx convert newest.avhdx flat.vhdx         a copy; the chain stays

Shut the machine down first. Whatever stops a merge, even a power failure: the child shows what it \
showed, and the same command goes on with it. Children of the child are linked to the parent. When the \
parent has other children, which would be lost, nothing is done.")]
    Merge(MergeArgs),
    /// Tell a child where its parent lies, or who it is.
    #[command(before_help = "\
Examples:
  vhdx relink work.avhdx --parent /new/place/disk.vhdx
  vhdx relink work.avhdx --parent disk.vhdx --ignore-parent-id

The second form is for a parent that was written to since the child was made (its identity differs). \
Take it only when you know that its contents are still those.")]
    Relink(RelinkArgs),
    /// Change what a disk tells its guest about itself.
    #[command(before_help = "\
Examples:
  vhdx set copy.vhdx --new-disk-id                 a copy beside its source
  vhdx set disk.vhdx --physical-sector-size 512")]
    Set(SetArgs),
    /// Copy a disk to another format or shape: VHDX, VHD (version 1), qcow2 and raw, any way round.
    #[command(before_help = "\
Examples:
  vhdx convert disk.vhdx disk.raw                a sparse raw file
  vhdx convert disk.vhdx - | zstd > d.zst        a stream
  vhdx convert disk.raw disk.vhdx                a dynamic VHDX
  vhdx convert old.vhdx new.vhdx --block-size 1M another block size
  vhdx convert newest.avhdx flat.vhdx            a checkpoint as one disk
  vhdx convert disk.vhdx fixed.vhdx --fixed --preallocate
  vhdx convert disk.vhdx azure.vhd --fixed       what Azure takes
  vhdx convert old.vhd new.vhdx                  from Virtual PC or Azure
  vhdx convert disk.vhdx disk.qcow2              for QEMU

Azure wants a VHD that is fixed and whose size is a multiple of 1 MiB: --fixed with a VHD rounds the size \
up to that, and says so. A source's format is recognised by its contents; the guest of a raw disk can \
write what looks like another format, so say `--from raw` when you know it. No parent is opened but in \
its child's format and where --parents allows it; a qcow2 image over a backing file is refused, \
and one that is dirty, marked corrupt, compressed by zstd or has extended L2 entries: what to type is said.

A dirty log is replayed in memory; the image is not changed. Holes and zeros take no space in the \
copy. The copy appears under its name only when it is complete; a command that was killed may leave a \
`.vhdx-….partial` file beside it, which can be deleted. Hyper-V refuses files that are sparse on NTFS:
--preallocate makes a VHDX without holes.")]
    Convert(ConvertArgs),
    /// Tell how large a new image or a copy would be.
    #[command(before_help = "\
Examples:
  vhdx measure 64G --fixed
  vhdx measure disk.raw --block-size 1M
  vhdx measure disk.vhdx --to vhd --fixed
  vhdx measure --json disk.vhdx | jq .required

A copy is judged by where its source says that it holds data, which is not read: what is stored but \
zero will make the copy smaller than this.")]
    Measure(MeasureArgs),
    /// Compare what two disks show the guest. VHDX, VHD, qcow2 and raw, any way round.
    #[command(before_help = "\
Examples:
  vhdx compare disk.vhdx disk.raw
  vhdx compare before.vhdx after.vhdx

Exit status: 0 the same, 3 different, 1 one could not be read, 4 one is in use, 5 a parent is missing.")]
    Compare(CompareArgs),
    /// Serve disks to virtual machines and tools, over NBD.
    #[cfg(target_os = "linux")]
    #[command(before_help = "\
Examples:
  vhdx serve disk.vhdx                 on a socket of its own, which it prints
  vhdx serve --read-only crashed.vhdx  log replayed in memory
  vhdx serve --snapshot disk.vhdx      try things: what is written is forgotten
  vhdx serve disk.vhdx --run 'nbdcopy $uri d.raw'
  vhdx serve disk.vhdx --unix /run/d.sock --detach --pid-file /run/d.pid
  vhdx serve newest.avhdx --parent base.vhdx

It runs until Ctrl-C or SIGTERM: requests under way are finished and the image is left clean. A second \
signal ends it at once; the image is then dirty, and opens with everything that was flushed. Whatever \
kills it, the same is true. A server opens no parent that it is not told of.

Exit status: 0 it ended as it was told; 1 failed; 2 wrong usage; 4 an image is in use; 5 a parent is missing; \
130 a second signal; with --run that of the command.")]
    Serve(ServeArgs),
    /// Show a disk and its partitions as files in a directory.
    #[cfg(target_os = "linux")]
    #[command(before_help = "\
Examples:
  vhdx mount -r crashed.avhdx dir           look into it, change nothing
  mount -o loop,ro dir/partition-2.raw /mnt
  vhdx mount --snapshot crashed.avhdx dir   recover it in memory, and look
  vhdx mount --detach disk.vhdx dir         for writing, in the background
  vhdx unmount dir                          and close the image

The directory shows `disk.raw` and a `partition-N.raw` for each partition; the commands that attach them \
are printed. `fstrim` on what is attached gives space back. In the foreground the command runs until \
somebody unmounts (`umount` will do), or Ctrl-C does. While anything in the directory is used (a loop \
device, an open file) it cannot be unmounted: Ctrl-C then says by whom, and only a second one ends it all \
the same.

Durable is what `fsync` or `sync FILE` has returned from, within about five seconds everything else, and all \
of it after an unmount. A plain `sync` does not reach a mount like this. When the command is killed, the \
image opens with what was durable.")]
    Mount(MountArgs),
    /// End a mount, and return when its image is closed.
    #[cfg(target_os = "linux")]
    #[command(
        visible_alias = "umount",
        before_help = "\
Examples:
  umount /mnt && vhdx unmount dir

A mount that is used is not taken away: what uses it is named, and how to end that."
    )]
    Unmount(UnmountArgs),
    /// Salvage a disk whose file cannot be opened any more, into a new file. The damaged file is only read.
    #[command(before_help = "\
Examples:
  cp --sparse=always broken.vhdx COPY             first of all: a backup
  vhdx recover broken.vhdx                        what can be had, nothing is written
  vhdx recover broken.vhdx --to new.vhdx          and had
  vhdx recover broken.vhdx --to new.vhdx --block-size 32M --size 127G
  vhdx recover broken.avhdx --to flat.vhdx --parent base.vhdx

If you have just lost a disk: stop everything that writes to it and copy the file; the copy is the backup. This only \
reads the file; on a medium that is failing run it on the copy instead. Headers, \
region tables, metadata and block table may be gone, the log broken, the end cut off: what says the same \
thing elsewhere is used, old entries of the log included. Nothing is guessed without saying so.

What became of each block: intact (the table names it), log (the log's newest word does), older (an image \
of the table that may be out of date does), guessed (by an inferred size or order), cut (behind the end of \
the file), absent (nothing was stored), lost. What is lost reads zeros.

Exit status: 0 all of the disk was had; 3 something is lost, cut, or not certain; 1 failed; 4 the file is in \
use; 5 a parent is missing.")]
    Recover(RecoverArgs),
    /// Print a completion script for a shell.
    #[command(before_help = "\
Examples:
  vhdx completions bash > /etc/bash_completion.d/vhdx
  vhdx completions fish > ~/.config/fish/completions/vhdx.fish")]
    Completions {
        /// Which shell.
        shell: Shell,
    },
    /// Write the man pages into a folder, one for each command.
    #[command(before_help = "\
Examples:
  vhdx man /usr/local/share/man/man1")]
    Man {
        /// The folder. It is made if there is none.
        dir: PathBuf,
    },
}

/// An image to be read.
#[derive(Debug, Clone, Args)]
pub(crate) struct ImageArgs {
    /// The VHDX file.
    pub(crate) image: PathBuf,
    #[command(flatten)]
    pub(crate) open: OpenArgs,
}

/// How to open an image.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct OpenArgs {
    /// Read although another process may be writing the image. What is read may be half-changed.
    #[arg(long)]
    pub(crate) force_share: bool,
}

/// How to open an image whose contents are read.
#[derive(Debug, Clone, Args)]
pub(crate) struct ContentsArgs {
    #[command(flatten)]
    pub(crate) open: OpenArgs,
    /// Read the file as it lies on disk when its log cannot be replayed. The last changes may be
    /// missing or half done.
    #[arg(long)]
    pub(crate) without_log: bool,
    #[command(flatten)]
    pub(crate) chain: ParentArgs,
}

impl ContentsArgs {
    /// The library's options.
    pub(crate) fn options(&self) -> OpenOptions {
        let options = OpenOptions::new().force_share(self.open.force_share);
        self.chain.over(options.without_log(self.without_log))
    }

    /// Opens an image with its chain; what was accepted on the user's word is said.
    pub(crate) fn open(&self, path: &Path) -> vhdxkit::Result<Image> {
        let image = self.options().open(path)?;
        warn(path, &image);
        Ok(image)
    }
}

/// Says on stderr what was accepted although it is an error, and what a log holds that no replay reaches.
pub(crate) fn warn(path: &Path, image: &Image) {
    for finding in image.findings().list() {
        let (path, text) = (named(path), shown(&finding.to_string()));
        if finding.severity() == Severity::Error {
            eprintln!("warning: {path}: read without its log: {text}");
        } else if matches!(finding, Defect::UnreachableEntries { .. }) {
            eprintln!("warning: {path}: the newest changes are missing: {text}");
        }
    }
}

/// The same for a disk of any format: of a VHD it is said what is wrong with the file, and with those below it.
pub(crate) fn warn_of_disk(path: &Path, disk: &Disk) {
    match disk {
        Disk::Vhdx(image) => warn(path, image),
        Disk::Vhd(disk) => {
            for layer in disk.layers() {
                let path = named(layer.path().unwrap_or(path));
                for remark in layer.remarks() {
                    eprintln!("warning: {path}: {}", shown(remark));
                }
            }
        }
        _ => {}
    }
}

/// Says on stderr that a guest will see other sectors than those of the disk that is copied: it finds its partitions
/// by their number.
pub(crate) fn warn_of_sectors(path: &Path, disk: &Disk, to: TargetFormat) {
    let Disk::Vhdx(image) = disk else { return };
    let sector = image.geometry().logical_sector_size();
    if sector != 512 && matches!(to, TargetFormat::Vhd | TargetFormat::Qcow2) {
        eprintln!(
            "warning: {}: its guest sees sectors of {sector} bytes, that of the copy ({}) sectors of 512, and will not find \
             the partitions; a VHDX keeps them",
            named(path),
            to.name()
        );
    }
}

/// Formats that can be read.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum FormatName {
    /// A VHDX image.
    Vhdx,
    /// The disk's bytes, nothing else.
    Raw,
    /// A VHD, version 1.
    Vhd,
    /// A qcow2 image: no backing or data file, zlib or no compression, no extended L2 entries, closed in good order.
    Qcow2,
}

impl From<FormatName> for DiskFormat {
    fn from(name: FormatName) -> Self {
        match name {
            FormatName::Vhdx => Self::Vhdx,
            FormatName::Raw => Self::Raw,
            FormatName::Vhd => Self::Vhd,
            FormatName::Qcow2 => Self::Qcow2,
        }
    }
}

/// The file that was named where a command belongs.
pub(crate) fn image_for_command(error: &clap::Error) -> Option<PathBuf> {
    if error.kind() != ErrorKind::InvalidSubcommand {
        return None;
    }
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) else {
        return None;
    };
    Some(PathBuf::from(word)).filter(|path| path.is_file())
}

/// Reads `64M`, `10G`, `1T` (binary), bytes, or `0x` hexadecimal.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is no size; write 4096, 0x1000, 64K, 10M, 1G or 1T");
    if let Some(hex) = text.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).map_err(|_| wrong());
    }
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_are_binary() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("0x1000", 4096),
            ("64M", 64 << 20),
            ("10g", 10 << 30),
            ("1TiB", 1 << 40),
            ("64GB", 64 << 30),
            ("64gib", 64 << 30),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "M", "1.5G", "1X", "-1", "99999999T", "0xZZ"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
