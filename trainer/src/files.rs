//! Files that are there whole or not at all: written beside their place, synced, then renamed into it.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Fills a new directory with `fill` and puts it at `path`, in place of what may be there. Where `fill` fails, or the
/// process dies, `path` is as it was.
pub fn directory(path: &Path, fill: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let partial = beside(path);
    remove(&partial)?;
    fs::create_dir_all(&partial)?;
    if let Err(error) = fill(&partial) {
        let _ = remove(&partial);
        return Err(error);
    }
    for entry in fs::read_dir(&partial)? {
        File::open(entry?.path())?.sync_all()?;
    }
    remove(path)?;
    fs::rename(&partial, path)?;
    Ok(sync_directory(path)?)
}

/// Removes a directory that may not be there.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// The unfinished form of `path`.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.partial"))
}

fn sync_directory(path: &Path) -> io::Result<()> {
    match path.parent().filter(|p| !p.as_os_str().is_empty()) {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}
