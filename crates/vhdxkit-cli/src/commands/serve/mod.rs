//! `vhdx serve`: images to NBD clients, until it is stopped.
//!
//! The order of the end matters more than that of the beginning: the server answers what it has taken, then
//! every image is closed, whatever becomes of the others, and only then anything else is waited for.

mod beside;
mod disks;
mod hints;
mod pid_file;
mod places;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use vhdxkit_serve::{Tell, nbd};

use super::Context;
use crate::args::ServeArgs;
use crate::console::end_on_signal;
use crate::detach;
use beside::Beside;
use disks::Served;
use pid_file::PidFile;
use places::Place;

pub(crate) fn run(args: &ServeArgs, context: Context) -> anyhow::Result<ExitCode> {
    if detach::is_detached() {
        detach::leave_session();
    } else if args.life.detach {
        if std::env::var_os("LISTEN_FDS").is_some() {
            // They belong to this process by its number; the one in the background has another.
            bail!("sockets that were handed over (LISTEN_FDS) do not go with --detach");
        }
        return detach::launch();
    }
    let tell: Arc<Tell> = Arc::new(detach::tell);
    let tls = args.place.tls_certificates.as_deref().map(nbd::Tls::from_folder).transpose();
    let tls = tls.context("cannot use the certificates")?;
    // Where to listen is settled before an image is touched.
    let place = Place::take(&args.place)?;
    let disks = disks::open_all(args, &tell)?;
    let server = nbd::Server::new(offer(args, &disks, tls, &tell))?;
    let pid_file = args.life.pid_file.as_deref().map(PidFile::write).transpose()?;
    let (listeners, place) = place.split();
    let beside = Beside::default();
    let (stopper, orphan) = (server.stopper(), beside.clone());
    let quiet = args.life.run.is_some() || context.quiet;
    end_on_signal(
        move || {
            if !quiet {
                detach::tell(
                    "ends: finishes what was asked for, then closes; again ends it at once",
                );
            }
            stopper.stop();
        },
        move || orphan.kill(),
    );
    // Clients that connect from now on are queued, and served in a moment.
    let begun = match &args.life.run {
        Some(command) => beside.start(command, &disks, &place, server.stopper()),
        None => announce(args, &disks, &place, context),
    };
    let served = begun.and_then(|()| Ok(server.run(listeners)?));
    let closed = close_all(&disks);
    // With them go their locks: whoever waits for the process id to go finds the images free.
    drop((server, disks, pid_file));
    let status = beside.finish();
    closed.and(served)?;
    Ok(status?.unwrap_or(ExitCode::SUCCESS))
}

fn offer(
    args: &ServeArgs,
    disks: &[Served],
    tls: Option<nbd::Tls>,
    tell: &Arc<Tell>,
) -> nbd::Options {
    let options = nbd::Options::default()
        .insecure(args.place.insecure)
        .once(args.life.once)
        .tell(Arc::clone(tell));
    let options = disks.iter().fold(options, |options, served| {
        options.offer(&served.name, served.description(), served.export.clone())
    });
    match tls {
        Some(tls) => options.tls(tls),
        None => options,
    }
}

/// Tells how to connect, and in the background lets the command return.
fn announce(
    args: &ServeArgs,
    disks: &[Served],
    place: &places::Address,
    context: Context,
) -> anyhow::Result<()> {
    hints::print(args, disks, place, context)?;
    match detach::is_detached() {
        true => detach::serve_now().context("the command that started this has gone"),
        false => Ok(()),
    }
}

/// Closes every image, also when one of them cannot be; the last failure is left to be told.
fn close_all(disks: &[Served]) -> anyhow::Result<()> {
    let mut result = Ok(());
    for closed in disks.iter().map(Served::close) {
        if let Err(earlier) = std::mem::replace(&mut result, closed) {
            match &result {
                Ok(()) => result = Err(earlier),
                Err(_) => detach::tell(&format!("{earlier:#}")),
            }
        }
    }
    result
}
