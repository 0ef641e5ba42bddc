//! What a person needs next: the URI, and what to type to use it.

use std::io::{self, Write};

use serde_json::json;

use super::disks::Served;
use super::places::Address;
use crate::commands::Context;
use crate::console::{print_json, size};

pub(super) fn print(disks: &[Served], place: &Address, context: Context) -> anyhow::Result<()> {
    if context.json {
        let exports: Vec<_> = disks.iter().map(|served| as_json(served, place)).collect();
        print_json(&json!({ "pid": std::process::id(), "exports": exports }))?;
        return Ok(io::stdout().flush()?);
    }
    let mut out = io::stdout().lock();
    for served in disks {
        let (path, disk) = (served.path.display(), size(served.export.size()));
        writeln!(out, "{path}: {disk}, {}", served.writes)?;
        let Some(uri) = place.uri(&served.name) else { continue };
        writeln!(out, "  {uri}")?;
    }
    if let Some((served, uri)) = disks.first().and_then(|s| Some((s, place.uri(&s.name)?))) {
        writeln!(out, "\nto look at it, copy it, run a machine on it:")?;
        writeln!(out, "  nbdinfo --map '{uri}'")?;
        writeln!(out, "  nbdcopy '{uri}' disk.raw")?;
        let ro = if served.export.is_writable() { "" } else { ",readonly=on" };
        writeln!(
            out,
            "  qemu-system-x86_64 -m 2G -drive 'file={uri},format=raw,if=virtio,discard=unmap{ro}'"
        )?;
        if let Some(socket) = &place.socket {
            writeln!(out, "  sudo nbd-client -unix {} /dev/nbd0", socket.display())?;
        }
    }
    writeln!(out, "\nend it with Ctrl-C, or kill {}", std::process::id())?;
    // Whoever waits for these lines may read them from a pipe.
    Ok(out.flush()?)
}

fn as_json(served: &Served, place: &Address) -> serde_json::Value {
    json!({
        "path": served.path.display().to_string(),
        "name": served.name,
        "uri": place.uri(&served.name),
        "size": served.export.size(),
        "read_only": !served.export.is_writable(),
    })
}
