//! Who keeps a mount from being unmounted, in words.

use std::path::Path;

use vhdxkit_serve::fuse::{User, users_of};

use super::attach::sudo;
use crate::console::quoted;

/// What uses the mount and how to end that, for the end of a sentence.
pub(super) fn users_in_words(directory: &Path) -> String {
    if std::env::current_dir().is_ok_and(|here| here.starts_with(directory)) {
        return format!(
            "this command's own folder is in it: `cd /`, and `vhdx unmount {}` from there",
            quoted(directory)
        );
    }
    let users: Vec<String> = users_of(directory).iter().map(in_words).collect();
    match users.is_empty() {
        true => format!("`{}fuser -vm {}` lists who uses it", sudo(), quoted(directory)),
        false => users.join("; "),
    }
}

fn in_words(user: &User) -> String {
    let unmount = |place: &Path| format!("`{}umount {}`", sudo(), quoted(place));
    match user {
        User::Loop { device, mounted } if mounted.is_empty() => {
            format!("detach {0}: `{1}losetup -d {0}`", device.display(), sudo())
        }
        User::Loop { device, mounted } => {
            let first: Vec<String> = mounted.iter().map(|place| unmount(place)).collect();
            format!("unmount what is on {}: {}", device.display(), first.join(", "))
        }
        User::Mount { place } => {
            format!("unmount what is served from it: {}", unmount(place))
        }
        User::Process { pid, command } => format!("end {command} (pid {pid})"),
        _ => "end what uses it".to_owned(),
    }
}
