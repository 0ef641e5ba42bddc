//! What a person needs next: the URI, and what to type to use it.

use std::io::{self, Write};
use std::path::Path;

use serde_json::json;

use super::disks::Served;
use super::places::Address;
use crate::args::ServeArgs;
use crate::commands::Context;
use crate::commands::attach::sudo;
use crate::console::{print_json, quoted, quoted_word, size};
use crate::detach;

pub(super) fn print(
    args: &ServeArgs,
    disks: &[Served],
    place: &Address,
    context: Context,
) -> anyhow::Result<()> {
    if context.json {
        let exports: Vec<_> = disks.iter().map(|served| as_json(served, place)).collect();
        print_json(&json!({ "pid": std::process::id(), "exports": exports }))?;
        return Ok(io::stdout().flush()?);
    }
    let mut out = io::stdout().lock();
    for served in disks {
        let (path, disk) = (served.path.display(), size(served.export.size()));
        writeln!(out, "{path}: {disk}, {}", served.writes)?;
        if let Some(uri) = place.uri(&served.name) {
            writeln!(out, "  {uri}")?;
        }
    }
    if let Some(served) = disks.first() {
        print_next(&mut out, served, place)?;
    }
    let pid = std::process::id();
    let by_itself = if args.life.once { "; it ends by itself with its last client" } else { "" };
    let key = if detach::is_detached() { "" } else { "Ctrl-C, or " };
    writeln!(out, "\nend it with {key}kill {pid}{by_itself}")?;
    // Whoever waits for these lines may read them from a pipe.
    Ok(out.flush()?)
}

fn print_next(out: &mut impl Write, served: &Served, place: &Address) -> io::Result<()> {
    let Some(uri) = place.uri_for_clients(&served.name) else { return Ok(()) };
    writeln!(out, "\nto look at it, copy it, run a machine on it:")?;
    writeln!(out, "  nbdinfo --map '{uri}'")?;
    writeln!(out, "  nbdcopy '{uri}' disk.raw")?;
    let ro = if served.export.is_writable() { "" } else { ",readonly=on" };
    let drive = match &place.certificates {
        None => format!("-drive 'file={uri},format=raw,if=virtio,discard=unmap{ro}'"),
        Some(folder) => {
            let (credentials, server) = (credentials(folder), place.qemu_server());
            let export = &served.name;
            format!(
                "-object {credentials} \\\n    -drive 'driver=nbd,{server},export={export},tls-creds=t,if=virtio,discard=unmap{ro}'"
            )
        }
    };
    writeln!(out, "  qemu-system-x86_64 -m 2G {drive}")?;
    let name = match &*served.name {
        "" => String::new(),
        name => format!(" -N {}", quoted_word(name)),
    };
    match (&place.socket, &place.port, &place.certificates) {
        (_, _, Some(folder)) if !place.has_client_certificate => writeln!(
            out,
            "(clients need ca-cert.pem, client-cert.pem and client-key.pem in {})",
            folder.display()
        ),
        (_, _, Some(_)) => Ok(()),
        (Some(socket), _, None) => {
            let socket = std::path::absolute(socket)?;
            writeln!(out, "  {}nbd-client -unix {}{name} /dev/nbd0", sudo(), quoted(&socket))
        }
        (None, Some(port), None) => {
            writeln!(out, "  {}nbd-client {} {port}{name} /dev/nbd0", sudo(), place.host())
        }
        (None, None, None) => Ok(()),
    }
}

/// A client's certificates, in QEMU's words.
fn credentials(folder: &Path) -> String {
    format!("tls-creds-x509,id=t,dir={},endpoint=client", quoted(folder))
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
