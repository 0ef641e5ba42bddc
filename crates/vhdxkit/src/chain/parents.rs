//! Finding and opening the parents of a child, one after another.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use same_file::Handle;

use crate::error::{Looked, ParentProblem, Repr};
use crate::format::Guid;
use crate::format::limits::MAX_CHAIN_LENGTH;
use crate::image::folder_of;
use crate::storage::{FileStorage, OpenMode};
use crate::view::locator::ParentLocator;
use crate::{Error, ErrorKind, Image, Result};

use super::policy::{ParentPolicy, Parents, Reading};
use super::search::identity;
use super::{beneath, place};

/// What a chain is made of: images of one format. A parent is opened as its child's format and no other.
pub(super) trait Layer: Sized {
    /// How files of the format are named.
    const NAMES: place::Names;
    /// What the format calls an identity.
    const IDENTITY: &'static str;

    /// Opens a file, without its parent.
    fn open(file: Arc<FileStorage>, reading: Reading) -> Result<Self>;
    /// Whether it is a child.
    fn has_parent(&self) -> bool;
    /// Where it lies.
    fn file_path(&self) -> Option<&Path>;
    /// Where its parent lies.
    fn places(&self) -> Option<&ParentLocator>;
    /// The identities of which its parent must have one.
    fn wanted(&self) -> Vec<Guid>;
    /// Says why a disk cannot be the parent.
    fn judge(&self, parent: &Self, ignore_id: bool) -> Result<(), String>;
    /// The same with a place.
    fn lying_at(self, path: &Path) -> Self;
    /// The same with its parent.
    fn with_parent(self, parent: Self) -> Self;
    /// Files in a folder with one of these identities. A folder that cannot be read has nothing to add to an
    /// error.
    fn search(folder: &Path, wanted: &[Guid]) -> Vec<PathBuf>;
}

/// Opens the parents of an image as the caller says, and gives the image with its chain.
pub(super) fn attach<L: Layer>(parents: &Parents, reading: Reading, child: L) -> Result<L> {
    let mut files = Vec::new();
    // A file that cannot be compared with others cannot close a circle either: depth still ends it.
    files.extend(child.file_path().and_then(|path| Handle::from_path(path).ok()));
    let mut layers = vec![child];
    while let Some(last) = layers.last()
        && last.has_parent()
    {
        let mut finder =
            Finder { parents, reading, child: last, files: &mut files, looked: Vec::new() };
        if layers.len() >= MAX_CHAIN_LENGTH {
            return Err(
                finder.problem(format!("the chain has more than {MAX_CHAIN_LENGTH} images"))
            );
        }
        match finder.find(layers.len().saturating_sub(1))? {
            Some(parent) => layers.push(parent),
            None => break,
        }
    }
    let mut below: Option<L> = None;
    for layer in layers.into_iter().rev() {
        below = Some(match below {
            Some(parent) => layer.with_parent(parent),
            None => layer,
        });
    }
    below.ok_or_else(|| Error::invalid("a chain without images"))
}

/// Refuses a parent that this child cannot be read over.
pub(crate) fn judge(child: &Image, parent: &Image, ignore_id: bool) -> Result<(), String> {
    let (mine, found) = (child.wanted_parents(), identity(parent));
    if !ignore_id && !mine.contains(&found) {
        return Err(format!(
            "it is not the disk that the child was made from, or was written to since (its DataWriteGuid is {found})"
        ));
    }
    let sizes = [child, parent].map(|image| image.geometry().logical_sector_size());
    match sizes {
        [one, other] if one != other => {
            Err(format!("its sectors have {other} bytes, those of the child {one}"))
        }
        _ => Ok(()),
    }
}

/// Opens a place, if that is allowed.
type Opener<'a> = &'a dyn Fn(&Path) -> io::Result<File>;

/// The search for one parent.
struct Finder<'a, L> {
    parents: &'a Parents,
    reading: Reading,
    child: &'a L,
    /// The files of the chain so far.
    files: &'a mut Vec<Handle>,
    looked: Vec<Looked>,
}

impl<L: Layer> Finder<'_, L> {
    /// The parent of the `number`-th image of the chain; `None` when the policy opens none.
    fn find(&mut self, number: usize) -> Result<Option<L>> {
        if let Some(path) = self.parents.named.get(number) {
            let path = path.clone();
            let opened = open_named(&path);
            return match self.take(&path, opened)? {
                Some(parent) => Ok(Some(parent)),
                None => Err(self.problem("the parent that was named cannot be used")),
            };
        }
        let (Some(locator), Some(child)) = (self.child.places(), self.child.file_path()) else {
            return Ok(None);
        };
        let said: Vec<PathBuf> =
            place::relative(locator).into_iter().chain(place::file_name(locator)).collect();
        let beneath;
        let (mut places, open): (Vec<PathBuf>, Opener<'_>) = match &self.parents.policy {
            ParentPolicy::Deny => return Ok(None),
            ParentPolicy::Beneath(folder) => {
                beneath = Beneath::of(folder, child);
                (said.iter().map(|path| beneath.place(path)).collect(), &|path| {
                    beneath.open(path, &L::NAMES)
                })
            }
            ParentPolicy::Follow => {
                let folder = folder_of(child);
                let beside = said.iter().map(|path| tidy(&folder.join(path)));
                let open: Opener<'_> = &|path| place::open_image(path, &L::NAMES);
                (beside.chain(place::absolute(locator)).collect(), open)
            }
        };
        places.dedup();
        let what = match places.is_empty() {
            true => "nothing says where its parent is",
            false => "its parent was not found",
        };
        for path in places {
            if let Some(parent) = self.take(&path, open(&path))? {
                return Ok(Some(parent));
            }
        }
        Err(self.problem(what))
    }

    /// Opens a candidate; `None`, and a note of why, when it is not the parent.
    fn take(&mut self, path: &Path, opened: io::Result<File>) -> Result<Option<L>> {
        let outcome = match opened {
            Ok(file) => self.judged(path, file)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err("no such file".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        match outcome {
            Ok(image) => Ok(Some(image.lying_at(path))),
            Err(found) => {
                self.looked.push(Looked { path: path.to_path_buf(), found });
                Ok(None)
            }
        }
    }

    fn judged(&mut self, path: &Path, file: File) -> Result<Result<L, String>> {
        let handle = file.try_clone().and_then(Handle::from_file);
        let handle =
            handle.map_err(|e| Error::io_whole("cannot look at the file", e).in_file(path))?;
        if self.files.contains(&handle) {
            return Ok(Err(
                "it is part of this chain already: the chain runs in a circle".to_owned()
            ));
        }
        let mode = OpenMode::ReadOnly { force_share: self.reading.force_share };
        let image =
            FileStorage::take(file, mode).and_then(|file| L::open(Arc::new(file), self.reading));
        let image = match image {
            Ok(image) => image,
            Err(error) if error.kind() == ErrorKind::Io => return Err(error.in_file(path)),
            Err(error) => return Ok(Err(error.to_string())),
        };
        let judged = self.child.judge(&image, self.parents.ignore_id);
        if judged.is_ok() {
            self.files.push(handle);
        }
        Ok(judged.map(|()| image))
    }

    fn problem(&mut self, what: impl Into<String>) -> Error {
        let expected = self.child.wanted();
        let found = match (&self.parents.policy, self.child.file_path()) {
            (ParentPolicy::Follow, Some(child)) => self.search(child, &expected),
            _ => Vec::new(),
        };
        Error::new(Repr::Parent(ParentProblem {
            what: what.into(),
            child: self.child.file_path().map(Path::to_path_buf).unwrap_or_default(),
            expected,
            identity: L::IDENTITY,
            looked: std::mem::take(&mut self.looked),
            found,
        }))
    }

    /// Images with the identity of the parent, in the child's folder and those the user has named.
    fn search(&self, child: &Path, expected: &[Guid]) -> Vec<PathBuf> {
        let folder = folder_of(child);
        let folders = std::iter::once(folder).chain(self.parents.searched.iter().cloned());
        folders.flat_map(|folder| L::search(&folder, expected)).collect()
    }
}

/// Whether the relative path of a child's locator leads to this parent.
pub(crate) fn leads_to(locator: &ParentLocator, child: &Path, parent: &Path) -> bool {
    let path = place::relative(locator).map(|relative| folder_of(child).join(relative));
    path.is_some_and(|path| same_file::is_same_file(path, parent).unwrap_or(false))
}

/// A folder that must not be left, and where in it the child lies.
struct Beneath<'a> {
    folder: &'a Path,
    /// The child's own folder, from there on; none when it lies elsewhere: then it gets no parent.
    own: Option<PathBuf>,
}

impl<'a> Beneath<'a> {
    fn of(folder: &'a Path, child: &Path) -> Self {
        let (child, root) = (child.canonicalize().ok(), folder.canonicalize().ok());
        let own = child.as_deref().zip(root.as_deref());
        let own = own.and_then(|(child, root)| child.strip_prefix(root).ok()?.parent());
        Self { folder, own: own.map(Path::to_path_buf) }
    }

    fn inside(&self, path: &Path) -> Option<PathBuf> {
        place::without_dots(&self.own.as_deref()?.join(path))
    }

    /// What a child says, as a path that starts with the folder; as it stands where it leads out of it.
    fn place(&self, path: &Path) -> PathBuf {
        self.folder.join(self.inside(path).as_deref().unwrap_or(path))
    }

    /// Opens such a place. Missing and forbidden read alike.
    fn open(&self, place: &Path, names: &place::Names) -> io::Result<File> {
        let inside = place.strip_prefix(self.folder).ok().filter(|inside| {
            self.own.is_some()
                && place::is_named(inside, names)
                && place::without_dots(inside).as_deref() == Some(inside)
        });
        let opened = inside.and_then(|inside| beneath::open(self.folder, inside).ok());
        opened.ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// A path without needless `.` in it, for people to read.
fn tidy(path: &Path) -> PathBuf {
    path.components().filter(|part| *part != std::path::Component::CurDir).collect()
}

/// Opens what the caller has named: any file or block device, but nothing that would make us wait.
fn open_named(path: &Path) -> io::Result<File> {
    // Locks come with the rest of the judgement.
    FileStorage::open(path, OpenMode::ReadOnly { force_share: true })
        .map_err(|error| io::Error::other(error.to_string()))?
        .try_clone_file()
}
