//! A file with our process id, which goes with us.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

pub(super) struct PidFile(PathBuf);

impl PidFile {
    /// Writes the file. One that a process has left behind is replaced; one of a process that lives is not.
    pub(super) fn write(path: &Path) -> anyhow::Result<Self> {
        let failed = || format!("cannot write the process id to {}", path.display());
        if let Some(other) = id_in(path).filter(|id| Path::new(&format!("/proc/{id}")).exists()) {
            bail!("{} belongs to process {other}, which is running", path.display());
        }
        if let Err(error) = fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error).with_context(failed);
        }
        // New, and no link to elsewhere.
        let mut file = File::create_new(path).with_context(failed)?;
        writeln!(file, "{}", std::process::id()).with_context(failed)?;
        // A server in the background leaves this directory.
        Ok(Self(std::path::absolute(path)?))
    }
}

fn id_in(path: &Path) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if id_in(&self.0) == Some(std::process::id()) {
            // Whatever keeps it there, a later server replaces it.
            let _ = fs::remove_file(&self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_a_living_process_stays_and_one_left_behind_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pid");
        fs::write(&path, "1\n").unwrap();
        assert!(PidFile::write(&path).is_err());
        fs::write(&path, "4194999\n").unwrap();
        let file = PidFile::write(&path).unwrap();
        assert_eq!(id_in(&path), Some(std::process::id()));
        // Somebody else's by now.
        fs::write(&path, "1\n").unwrap();
        drop(file);
        assert!(path.exists());
    }
}
