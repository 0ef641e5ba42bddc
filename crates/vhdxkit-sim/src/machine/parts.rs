//! What a guest is made of, and where it lies on this machine.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Everything that is needed.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) kernel: PathBuf,
    /// In the order in which they have to be loaded.
    pub(super) modules: Vec<PathBuf>,
    pub(super) busybox: PathBuf,
    /// The tools of ext4, with the libraries that they want.
    pub(super) tools: Vec<PathBuf>,
}

/// The drivers of the disk; the kernel brings ext4 itself.
const DRIVERS: [&str; 2] = ["virtio_pci", "virtio_blk"];

impl Parts {
    /// Looks for them.
    ///
    /// # Errors
    /// What is missing.
    pub(super) fn find(folder: &Path) -> Result<Self, String> {
        let machine = Command::new("qemu-system-x86_64").arg("--version").output();
        if machine.is_err() {
            return Err("qemu-system-x86_64 (scripts/install-guest installs it)".to_owned());
        }
        let lacks = |what: &str| {
            format!("{what} in {} (scripts/install-guest fetches it)", folder.display())
        };
        let boot = entries(&folder.join("boot"));
        let kernel = boot.into_iter().find(|path| name(path).starts_with("vmlinuz-"));
        let kernel = kernel.ok_or_else(|| lacks("a kernel"))?;
        let busybox = folder.join("bin/busybox");
        if !busybox.exists() {
            return Err(lacks("busybox"));
        }
        let mut modules = Vec::new();
        for driver in DRIVERS {
            add_module(&folder.join("lib/modules"), driver, &mut modules)?;
        }
        let mut tools = Vec::new();
        for tool in ["/sbin/mkfs.ext4", "/sbin/e2fsck"] {
            add_tool(tool, &mut tools)?;
        }
        Ok(Self { kernel, modules, busybox, tools })
    }
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

pub(super) fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Adds a module behind those that it depends on; it names them itself.
fn add_module(under: &Path, module: &str, modules: &mut Vec<PathBuf>) -> Result<(), String> {
    let file = format!("{}.ko", module.replace('-', "_"));
    if modules.iter().any(|path| name(path) == file) {
        return Ok(());
    }
    let path = find_file(under, &file).ok_or_else(|| {
        format!("the kernel's module {module} (scripts/install-guest fetches it)")
    })?;
    let bytes = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let marker = b"\0depends=";
    let at = bytes.windows(marker.len()).position(|window| window == marker);
    let list = at.map(|at| &bytes[at + marker.len()..]).unwrap_or_default();
    let list = list.split(|byte| *byte == 0).next().unwrap_or_default();
    for needed in String::from_utf8_lossy(list).split(',').filter(|needed| !needed.is_empty()) {
        add_module(under, needed, modules)?;
    }
    modules.push(path);
    Ok(())
}

fn find_file(under: &Path, file: &str) -> Option<PathBuf> {
    entries(under).into_iter().find_map(|path| match path.is_dir() {
        true => find_file(&path, file),
        false => (name(&path).replace('-', "_") == file).then_some(path),
    })
}

/// Adds a program of this machine and its libraries, by the paths that it looks for them at.
fn add_tool(tool: &str, tools: &mut Vec<PathBuf>) -> Result<(), String> {
    let path = PathBuf::from(tool);
    if !path.exists() {
        return Err(format!("{tool} (package e2fsprogs)"));
    }
    let output = Command::new("ldd").arg(&path).output().map_err(|e| format!("ldd: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let libraries = text.split_whitespace().filter(|word| word.starts_with('/'));
    for library in libraries.map(PathBuf::from) {
        if !tools.contains(&library) {
            tools.push(library);
        }
    }
    tools.push(path);
    Ok(())
}
