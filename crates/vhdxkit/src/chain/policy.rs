//! Whom a child may have opened for it.

use std::path::PathBuf;

use crate::image::DirtyLog;

/// Which files may be opened because a child names them. See [the chapter](crate::chain) for why.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ParentPolicy {
    /// None. The child opens all the same; reading what only its parent holds is an error
    /// ([`ErrorKind::ParentNeeded`](crate::ErrorKind::ParentNeeded)).
    #[default]
    Deny,
    /// Those beneath this folder, with no symbolic link on the way: for servers. Every other file is
    /// "not there".
    Beneath(PathBuf),
    /// Those the locator leads to, if they are files named `.vhdx` or `.avhdx`; and a file beside the
    /// child that has the name the locator ends with.
    Follow,
}

/// Everything that a caller says about parents.
#[derive(Debug, Clone, Default)]
pub(super) struct Parents {
    /// Who may be opened by what a child says.
    pub(super) policy: ParentPolicy,
    /// The parents to take, whatever a child says, the child's own first.
    pub(super) named: Vec<PathBuf>,
    /// Take them although they have another identity.
    pub(super) ignore_id: bool,
    /// Folders to look in for one that is missing, to name it.
    pub(super) searched: Vec<PathBuf>,
}

/// How each of the images is to be opened.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    /// Although somebody writes it.
    pub(super) force_share: bool,
    /// What to do about its log.
    pub(super) log: DirtyLog,
}
