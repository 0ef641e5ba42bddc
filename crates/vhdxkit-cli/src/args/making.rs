//! Arguments of the commands that make or change an image.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use vhdxkit::CreateOptions;
use vhdxkit::format::Guid;
use vhdxkit::ops::measure::{measure, measure_qcow2, measure_vhd};
use vhdxkit::vhd::VhdOptions;

use super::{ContentsArgs, FormatName, ParentArgs, parse_size};
use crate::failure::{by_options, wrong_usage};

/// The shape of an image to be made. What is not given is Windows' choice, or that of the source.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct MakeArgs {
    /// Every block has its place from the start; the file is as large as the disk.
    #[arg(long)]
    pub(crate) fixed: bool,
    /// Reserve the file's space, so that it has no holes.
    #[arg(long)]
    pub(crate) preallocate: bool,
    /// Bytes of a block, a power of two from 1M to 256M. Windows takes 32M; 1M suits Linux guests. Of a VHD
    /// 512K, 1M or 2M; of qcow2 those of a cluster, 64K without this.
    #[arg(long, value_name = "SIZE", value_parser = parse_size32)]
    pub(crate) block_size: Option<u32>,
    /// The guest's sector size, 512 or 4096.
    #[arg(long, value_name = "BYTES", value_parser = parse_size32)]
    pub(crate) logical_sector_size: Option<u32>,
    /// The sector size that the guest is told the medium has, 512 or 4096.
    #[arg(long, value_name = "BYTES", value_parser = parse_size32)]
    pub(crate) physical_sector_size: Option<u32>,
    /// Bytes of the log, a multiple of 1M.
    #[arg(long, value_name = "SIZE", value_parser = parse_size32)]
    pub(crate) log_size: Option<u32>,
    /// The identity that the guest sees; random without this.
    #[arg(long, value_name = "GUID")]
    pub(crate) disk_id: Option<Guid>,
}

impl MakeArgs {
    /// These on top of the options of a VHD.
    pub(crate) fn over_vhd(self, options: VhdOptions) -> VhdOptions {
        let mut options = options.preallocate(self.preallocate);
        if let Some(bytes) = self.block_size {
            options = options.block_size(bytes);
        }
        if let Some(id) = self.disk_id {
            options = options.unique_id(id);
        }
        options
    }

    /// Refuses what a format does not have.
    pub(crate) fn judge(self, format: TargetFormat) -> anyhow::Result<()> {
        let sectors = self.logical_sector_size.is_some() || self.physical_sector_size.is_some();
        match format {
            TargetFormat::Vhdx => {}
            TargetFormat::Raw if !self.any() => {}
            TargetFormat::Raw => {
                wrong_usage!("a raw copy has no block size, sector size, log or identity to choose")
            }
            TargetFormat::Vhd if !sectors && self.log_size.is_none() => {}
            TargetFormat::Vhd => {
                wrong_usage!("a VHD has sectors of 512 bytes and no log; take a VHDX")
            }
            TargetFormat::Qcow2 => {
                let shape = Self { block_size: None, ..self };
                if shape.any() {
                    wrong_usage!(
                        "of a qcow2 image only the cluster size can be chosen, with --block-size"
                    );
                }
            }
        }
        Ok(())
    }

    /// Refuses a shape that no disk of the format can have, whatever is in it.
    pub(crate) fn judge_shape(self, format: TargetFormat) -> anyhow::Result<()> {
        // A disk that every shape can hold.
        let size = 64 << 20;
        let judged = match format {
            TargetFormat::Vhdx => measure(&self.over(CreateOptions::new(size)), None),
            TargetFormat::Vhd => {
                measure_vhd(&self.over_vhd(VhdOptions::for_copy(size, self.fixed)), None)
            }
            TargetFormat::Qcow2 => measure_qcow2(size, self.block_size.unwrap_or(64 << 10), None),
            TargetFormat::Raw => return Ok(()),
        };
        judged.map(drop).map_err(by_options)
    }

    /// These on top of other options.
    pub(crate) fn over(self, options: CreateOptions) -> CreateOptions {
        let mut options = options.preallocate(self.preallocate);
        if self.fixed {
            options = options.fixed(true);
        }
        if let Some(bytes) = self.block_size {
            options = options.block_size(bytes);
        }
        if let Some(bytes) = self.logical_sector_size {
            options = options.logical_sector_size(bytes);
        }
        if let Some(bytes) = self.physical_sector_size {
            options = options.physical_sector_size(bytes);
        }
        if let Some(bytes) = self.log_size {
            options = options.log_size(bytes);
        }
        if let Some(id) = self.disk_id {
            options = options.disk_id(id);
        }
        options
    }

    /// Whether any of them was given.
    pub(crate) fn any(self) -> bool {
        self.fixed
            || self.preallocate
            || self.block_size.is_some()
            || self.logical_sector_size.is_some()
            || self.physical_sector_size.is_some()
            || self.log_size.is_some()
            || self.disk_id.is_some()
    }
}

pub(super) fn parse_size32(text: &str) -> Result<u32, String> {
    let size = parse_size(text)?;
    u32::try_from(size).map_err(|_| format!("'{text}' is too large"))
}

/// What `create` says of its blocks: it makes no qcow2.
const CREATED_BLOCKS: &str = "Bytes of a block, a power of two from 1M to 256M. Windows takes 32M; 1M suits Linux \
guests. Of a VHD 512K, 1M or 2M";

/// Arguments of `create`.
#[derive(Debug, Args)]
#[command(mut_arg("block_size", |arg| arg.help(CREATED_BLOCKS)))]
pub(crate) struct CreateArgs {
    /// The file to make: a VHD (version 1) when it is named `.vhd` or `.avhd`, else a VHDX. A name of another
    /// format, such as `.qcow2`, `.vmdk`, `.vdi`, `.raw` or `.img`, is refused.
    pub(crate) image: PathBuf,
    /// Size of the disk: `64G`, `1T`, or bytes. A child has its parent's.
    #[arg(value_parser = parse_size, required_unless_present = "parent", conflicts_with = "parent")]
    pub(crate) size: Option<u64>,
    /// Make a child (a checkpoint) of this disk: it shows the parent until it is written. The parent must
    /// not be written from then on.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["fixed", "logical_sector_size", "physical_sector_size", "disk_id"])]
    pub(crate) parent: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) make: MakeArgs,
    /// Replace the file if it exists.
    #[arg(long)]
    pub(crate) force: bool,
}

/// Arguments of `write`.
#[derive(Debug, Args)]
pub(crate) struct WriteArgs {
    /// The VHDX file. It will be changed.
    pub(crate) image: PathBuf,
    /// First byte: a multiple of the disk's logical sector size.
    #[arg(long, default_value = "0", value_parser = parse_size)]
    pub(crate) offset: u64,
    /// Write although other images build on this one, which cannot be read any more then.
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) parents: ParentArgs,
}

/// Arguments of `resize`.
#[derive(Debug, Args)]
pub(crate) struct ResizeArgs {
    /// The VHDX file. It will be changed.
    pub(crate) image: PathBuf,
    /// `100G`; or a difference: `+20G`, `-5G` (after `--`); or `min`, as small as what it holds allows.
    #[arg(allow_hyphen_values = true, value_parser = parse_new_size)]
    pub(crate) size: NewSize,
    /// Cut off data and partitions; resize although other images build on this one, which do not know it any
    /// more then.
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) parents: ParentArgs,
}

/// The size that a disk is to be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NewSize {
    /// As small as what it holds allows.
    Smallest,
    /// This one.
    To(u64),
    /// Larger by so much.
    More(u64),
    /// Smaller by so much.
    Less(u64),
}

fn parse_new_size(text: &str) -> Result<NewSize, String> {
    let size = match text.split_at_checked(1) {
        _ if text == "min" => return Ok(NewSize::Smallest),
        Some(("+", more)) => parse_size(more).map(NewSize::More),
        Some(("-", less)) => parse_size(less).map(NewSize::Less),
        _ => parse_size(text).map(NewSize::To),
    };
    size.map_err(|_| format!("'{text}' is no size; write 100G, or a difference: +20G, -5G; or min"))
}

/// Arguments of `convert`.
#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    /// The disk to copy.
    pub(crate) source: PathBuf,
    /// The copy to make; `-` streams raw bytes to stdout.
    pub(crate) target: PathBuf,
    /// Format of the source; recognised without this.
    #[arg(long, value_name = "FORMAT")]
    pub(crate) from: Option<FormatName>,
    /// Format of the copy; by its name without this: `.vhdx`, `.vhd`, `.qcow2`; `.raw`, `.img`, `.bin`, `.dd`,
    /// `.iso`, a name without an extension, and devices are raw.
    #[arg(long, value_name = "FORMAT")]
    pub(crate) to: Option<TargetFormat>,
    #[command(flatten)]
    pub(crate) make: MakeArgs,
    /// Replace the target if it exists, or write to a device.
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) open: ContentsArgs,
}

/// Formats that `convert` writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum TargetFormat {
    /// The disk's bytes, nothing else.
    Raw,
    /// A VHDX image.
    Vhdx,
    /// A VHD, version 1.
    Vhd,
    /// A qcow2 image.
    Qcow2,
}

impl TargetFormat {
    /// The name it goes by.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Vhdx => "vhdx",
            Self::Vhd => "vhd",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// Arguments of `measure`.
#[derive(Debug, Args)]
pub(crate) struct MeasureArgs {
    /// A disk to be copied, or the size of a new one: `64G`.
    pub(crate) source: PathBuf,
    /// Format of the source; recognised without this.
    #[arg(long, value_name = "FORMAT")]
    pub(crate) from: Option<FormatName>,
    /// Format of the new image or the copy.
    #[arg(long, value_name = "FORMAT", default_value = "vhdx")]
    pub(crate) to: TargetFormat,
    #[command(flatten)]
    pub(crate) make: MakeArgs,
    #[command(flatten)]
    pub(crate) open: ContentsArgs,
}
