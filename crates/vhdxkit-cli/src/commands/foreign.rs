//! What a file is that is no VHDX: nobody repairs such a file, and somebody should say so.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use vhdxkit::OpenOptions;
use vhdxkit::format::HEADER_SECTION_LENGTH;
use vhdxkit::vhd::format::TYPE_FIXED;

use crate::console::{named, quoted, size};

const UNKNOWN: &str = "this is no disk image that is known";

/// A file with nothing of a VHDX in it.
#[derive(Debug)]
pub(super) struct Foreign {
    /// What it is, as one would say it.
    pub(super) what: String,
    /// What can be typed, and what for.
    command: Option<(String, &'static str)>,
    kind: Kind,
}

/// What a file without anything of a VHDX can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Empty,
    /// The first bytes of a VHDX: what it is not, then, is whole.
    Cut,
    /// By its contents an image of another format, beyond doubt.
    Other,
    /// It looks like something else, and may be that by chance.
    Likely,
    Unknown,
}

/// Whether a file has the name of a checkpoint.
pub(super) fn is_named_checkpoint(path: &Path) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case("avhdx"))
}

/// Whether a file that cannot be read as an image is plainly none. One named like a checkpoint may have been
/// one whatever it holds by now, unless that is of another format.
pub(super) fn is_plainly_none(path: &Path) -> bool {
    let checkpoint = is_named_checkpoint(path);
    recognise(path).is_some_and(|found| match found.kind {
        Kind::Empty | Kind::Other => true,
        Kind::Cut => false,
        Kind::Likely | Kind::Unknown => !checkpoint,
    })
}

/// What the file is; `None` for whatever is, or may have been, a VHDX, and for what cannot be read.
pub(super) fn recognise(path: &Path) -> Option<Foreign> {
    let mut file =
        File::open(path).ok().filter(|file| file.metadata().is_ok_and(|m| m.is_file()))?;
    let length = file.metadata().ok()?.len();
    if length == 0 {
        let what = "the file is empty".to_owned();
        return Some(Foreign { what, command: None, kind: Kind::Empty });
    }
    let start = bytes_at(&mut file, 0, 512).ok()?;
    if start.starts_with(b"vhdxfile") && length < HEADER_SECTION_LENGTH {
        let left = size(length);
        let what =
            format!("of this VHDX file only the first {left} are left, the rest was cut off");
        return Some(Foreign { what, command: None, kind: Kind::Cut });
    }
    if start.starts_with(b"vhdxfile") || has_parts_of_one(&mut file, length).ok()? {
        return None;
    }
    let name = quoted(path);
    let footer = bytes_at(&mut file, length.saturating_sub(512), 512).ok()?;
    let header = bytes_at(&mut file, 512, 8).ok()?;
    let convert = |from| {
        let command = format!("vhdx convert {name} NEW.vhdx --from {from}");
        Some((command, "makes a VHDX of it"))
    };
    let other = format!("qemu-img convert -O vhdx {name} NEW.vhdx");
    let other = Some((other, "makes a VHDX of it; this program does not read that format"));
    let (kind, what, command) = match () {
        () if start.starts_with(b"QFI\xfb") => {
            (Kind::Other, "this is a qcow2 image", convert("qcow2"))
        }
        () if start.starts_with(b"conectix") || footer.starts_with(b"conectix") => {
            return Some(vhd(path, &start, &footer));
        }
        () if start.starts_with(b"KDMV") || start.starts_with(b"# Disk DescriptorFile") => {
            (Kind::Other, "this is a VMDK image", other)
        }
        () if start.get(64..68) == Some(&[0x7F, 0x10, 0xDA, 0xBE][..]) => {
            (Kind::Other, "this is a VDI image", other)
        }
        () if start.get(510..512) == Some(&[0x55, 0xAA][..]) => {
            (Kind::Likely, "this looks like a raw disk", convert("raw"))
        }
        () if is_vhd_name(path) && header != b"cxsparse" && length.is_multiple_of(512) => {
            let what = "this is named like a VHD and has lost its footer";
            (Kind::Likely, what, Some(bytes_of_fixed(path)))
        }
        () if length >= 2 << 20 => {
            let command = format!("vhdx recover {name} --to NEW.vhdx");
            let why = "looks for what is left, if it was a VHDX that was overwritten";
            (Kind::Unknown, UNKNOWN, Some((command, why)))
        }
        () => (Kind::Unknown, UNKNOWN, None),
    };
    Some(Foreign { what: format!("{what}, not a VHDX file"), command, kind })
}

/// A file with the cookie of a VHD's footer. It is converted if it opens; if not, a fixed disk is still its bytes.
fn vhd(path: &Path, start: &[u8], footer: &[u8]) -> Foreign {
    let is_type_fixed = footer.get(60..64) == Some(&TYPE_FIXED.to_be_bytes()[..]);
    let (what, command) = match OpenOptions::new().force_share(true).open_vhd(path) {
        Ok(_) => {
            let command = format!("vhdx convert {} NEW.vhdx --from vhd", quoted(path));
            ("a VHD image".to_owned(), Some((command, "makes a VHDX of it")))
        }
        Err(_) if is_type_fixed && !start.starts_with(b"conectix") => {
            ("a fixed VHD image with a damaged footer".to_owned(), Some(bytes_of_fixed(path)))
        }
        Err(error) => {
            let problem = error.to_string();
            // The name stands in front of all that is said.
            let name = format!("{}: ", path.display());
            let problem = problem.strip_prefix(&name).unwrap_or(&problem);
            (format!("a VHD image that does not open ({problem})"), None)
        }
    };
    Foreign { what: format!("this is {what}, not a VHDX file"), command, kind: Kind::Other }
}

/// What to type for a fixed VHD without a good footer.
fn bytes_of_fixed(path: &Path) -> (String, &'static str) {
    let command = format!("vhdx convert {} NEW.vhdx --from raw", quoted(path));
    (command, "makes a VHDX of its bytes, if it was a fixed VHD: a footer becomes its last sector")
}

fn is_vhd_name(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    ["vhd", "avhd"].iter().any(|name| extension.eq_ignore_ascii_case(name))
}

/// Refuses a file that is an image of another format beyond doubt: a picture of it as a VHDX would tell nothing true.
pub(super) fn refuse_other_formats(path: &Path) -> anyhow::Result<()> {
    let Some(foreign) = recognise(path).filter(|foreign| foreign.kind == Kind::Other) else {
        return Ok(());
    };
    let next = foreign.command.map(|(command, why)| format!("; `{command}` {why}"));
    anyhow::bail!("{}: {}{}", named(path), foreign.what, next.unwrap_or_default())
}

fn bytes_at(file: &mut File, offset: u64, length: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(offset))?;
    file.take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether a header, a region table or the metadata is where a VHDX may have it.
fn has_parts_of_one(file: &mut File, length: u64) -> io::Result<bool> {
    let fixed = [(0x1_0000, "head"), (0x2_0000, "head"), (0x3_0000, "regi"), (0x4_0000, "regi")];
    let metadata = (1u64..256).map(|mib| (mib << 20, "metadata"));
    for (offset, signature) in fixed.into_iter().chain(metadata) {
        if offset < length
            && bytes_at(file, offset, signature.len() as u64)? == signature.as_bytes()
        {
            return Ok(true);
        }
    }
    Ok(false)
}

impl Foreign {
    /// Why nothing of a VHDX is looked for in it, and what to type; `None` where it may have been one.
    pub(super) fn refusal(&self) -> Option<String> {
        let (command, why) = self.command.as_ref().filter(|_| self.kind == Kind::Other)?;
        Some(format!("{}: {command} {why}", self.what))
    }

    /// `asked`: somebody wanted it mended.
    pub(super) fn print(&self, out: &mut impl Write, path: &Path, asked: bool) -> io::Result<()> {
        let mended = if asked { "; nothing was changed" } else { "" };
        writeln!(out, "{}: {}{mended}", named(path), self.what)?;
        if matches!(self.kind, Kind::Empty | Kind::Cut) {
            writeln!(out, "\n  What is safe    nothing of the disk's contents is in this file")?;
            writeln!(
                out,
                "  What to do      look for a backup, a checkpoint (.avhdx) or another copy of it:"
            )?;
            writeln!(out, "                  no program can get from a file what is not in it")?;
        }
        if let Some((command, why)) = &self.command {
            writeln!(out, "\n  What to type    {command}")?;
            writeln!(out, "                      {why}")?;
        }
        Ok(())
    }
}
