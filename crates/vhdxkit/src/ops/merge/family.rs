//! Who is who in a merge, found before anything is changed.

use std::path::{Path, PathBuf};

use same_file::is_same_file;

use crate::chain::{FoundImage, images_in};
use crate::format::Guid;
use crate::{Error, Image, Result};

use super::MergeOptions;

/// The images that a merge changes, or harms.
pub(super) struct Family {
    /// The images to be merged, the child first.
    pub(super) merged: Vec<PathBuf>,
    pub(super) target: PathBuf,
    /// Identities of the merged images, in the same order, and of the target.
    pub(super) identities: Vec<Guid>,
    /// Children of the child.
    pub(super) grandchildren: Vec<PathBuf>,
    /// Images that lose their parent, and the number of the merged image that is it; none for the target.
    pub(super) others: Vec<(PathBuf, Option<usize>)>,
    /// A grandchild knows the target already, from a merge that was stopped.
    repointed: bool,
}

impl Family {
    /// The family of a child.
    pub(super) fn of(path: &Path, options: &MergeOptions) -> Result<Self> {
        let chain = options.open.clone().write(false).open(path)?;
        if !chain.geometry().is_differencing() {
            return Err(Error::invalid("it has no parent to be merged into").in_file(path));
        }
        let layers: Vec<&Image> = chain.layers().collect();
        let paths: Vec<PathBuf> =
            layers.iter().filter_map(|layer| layer.path().map(Path::to_path_buf)).collect();
        let number = match &options.into {
            None => 1,
            Some(into) => (1..paths.len())
                .find(|&n| paths.get(n).is_some_and(|p| is_same_file(p, into).unwrap_or(false)))
                .ok_or_else(|| Error::invalid("it is none of the child's parents").in_file(into))?,
        };
        let target = paths.get(number).cloned();
        let target = target.ok_or_else(|| chain.parent_needed("merging"))?;
        let identity = |layer: &&Image| layer.headers().current().data_write_guid;
        let mut family = Self {
            merged: paths.iter().take(number).cloned().collect(),
            identities: layers.iter().take(number.saturating_add(1)).map(identity).collect(),
            target,
            grandchildren: Vec::new(),
            others: Vec::new(),
            repointed: false,
        };
        for image in family.relatives(&options.search, &paths)? {
            family.sort(image);
        }
        Ok(family)
    }

    /// Every image in the folders of the family that is not part of the chain.
    fn relatives(&self, search: &[PathBuf], chain: &[PathBuf]) -> Result<Vec<FoundImage>> {
        let folder = |path: &PathBuf| path.parent().map(Path::to_path_buf).unwrap_or_default();
        let own = self.merged.iter().chain([&self.target]).map(folder);
        let mut folders: Vec<PathBuf> = Vec::new();
        for folder in own.chain(search.iter().cloned()) {
            let here = if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder };
            if !folders.iter().any(|other| is_same_file(other, &here).unwrap_or(false)) {
                folders.push(here);
            }
        }
        let mut found = Vec::new();
        for folder in folders {
            let images = images_in(&folder)?.into_iter();
            found.extend(images.filter(|image| {
                !chain.iter().any(|path| is_same_file(path, &image.path).unwrap_or(false))
            }));
        }
        Ok(found)
    }

    fn sort(&mut self, image: FoundImage) {
        let parent = self.identities.iter().position(|identity| image.is_child_of(*identity));
        let target = self.identities.last().is_some_and(|target| image.is_child_of(*target));
        match parent {
            // Also one that an earlier merge has re-pointed: it knows both identities.
            Some(0) => {
                self.repointed |= target;
                self.grandchildren.push(image.path);
            }
            Some(number) if number < self.merged.len() => {
                self.others.push((image.path, Some(number)));
            }
            Some(_) => self.others.push((image.path, None)),
            None => {}
        }
    }

    /// Whether the target's identity has to stay: somebody was re-pointed to it, and nobody else knows it.
    pub(super) fn keeps_identity(&self) -> bool {
        self.repointed && self.others.iter().all(|(_, parent)| parent.is_some())
    }

    /// Nobody may have changed an image since it was looked at.
    pub(super) fn require_same<'a>(&self, images: impl Iterator<Item = &'a Image>) -> Result<()> {
        for (image, identity) in images.zip(&self.identities) {
            if image.headers().current().data_write_guid != *identity {
                let text = "another program has changed it since the merge began to look at it";
                let error = Error::invalid(text);
                return Err(match image.path() {
                    Some(path) => error.in_file(path),
                    None => error,
                });
            }
        }
        Ok(())
    }

    pub(super) fn require_no_others(&self, force: bool) -> Result<()> {
        if force || self.others.is_empty() {
            return Ok(());
        }
        let names: Vec<String> =
            self.others.iter().map(|(path, _)| format!("\n  {}", path.display())).collect();
        let text = format!(
            "merging would change the parent of other images, which could not be used any more:{}",
            names.concat()
        );
        Err(Error::invalid(text))
    }
}
