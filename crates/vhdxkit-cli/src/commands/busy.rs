//! Who keeps a mount from being unmounted, in words.

use std::path::Path;

use vhdxkit_serve::fuse::{User, users_of};

use super::attach::quoted;

/// What uses the mount and how to end that, for the end of a sentence.
pub(super) fn users_in_words(directory: &Path) -> String {
    let users: Vec<String> = users_of(directory).iter().map(in_words).collect();
    match users.is_empty() {
        true => format!("`sudo fuser -vm {}` lists who uses it", quoted(directory)),
        false => users.join("; "),
    }
}

fn in_words(user: &User) -> String {
    match user {
        User::Loop { device, mounted } if mounted.is_empty() => {
            format!("detach {0}: `sudo losetup -d {0}`", device.display())
        }
        User::Loop { device, mounted } => {
            let first: Vec<String> =
                mounted.iter().map(|place| format!("`sudo umount {}`", quoted(place))).collect();
            format!("unmount what is on {}: {}", device.display(), first.join(", "))
        }
        User::Process { pid, command } => format!("end {command} (pid {pid})"),
        _ => "end what uses it".to_owned(),
    }
}
