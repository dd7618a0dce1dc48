//! A checkpoint made from another: where it may be written, and its parts that stay as they are.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};

/// Checks that a folder holds nothing that would be overwritten, and is not within the checkpoint `from`.
///
/// # Errors
/// Says which of it is so.
pub fn check_output(from: &Path, output: &Path) -> anyhow::Result<()> {
    let shown = output.display();
    if let Ok(mut entries) = fs::read_dir(output) {
        ensure!(
            entries.next().is_none(),
            "{shown}: is not empty; give a folder that does not exist yet"
        );
    } else {
        ensure!(!output.exists(), "{shown}: exists and is not a folder");
    }
    let model = fs::canonicalize(from).with_context(|| from.display().to_string())?;
    let parent = std::path::absolute(output)?;
    let inside = parent
        .ancestors()
        .filter_map(|folder| fs::canonicalize(folder).ok())
        .any(|folder| folder == model);
    ensure!(!inside, "{shown}: is inside of the checkpoint that it is made from");
    Ok(())
}

/// Means by which files get to their new place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transfer {
    /// They are copied.
    Copy,
    /// Weights are hard links where the file system has them, since no program changes them in place.
    LinkWeights,
}

/// Copies all files but hidden ones and those that `skip` names. Links are followed, because the Hub's cache consists of
/// them.
///
/// # Errors
/// Fails if something cannot be read or written.
pub fn copy(from: &Path, to: &Path, transfer: Transfer, skip: &dyn Fn(&Path) -> bool) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for path in entries(from, skip)? {
        let name = path.file_name().context("an entry has a name")?;
        let target = to.join(name);
        if path.is_dir() {
            copy(&path, &target, transfer, skip)?;
            continue;
        }
        let linked = transfer == Transfer::LinkWeights
            && is_weights(&name.to_string_lossy())
            && fs::canonicalize(&path)
                .and_then(|file| fs::hard_link(file, &target))
                .is_ok();
        if !linked {
            fs::copy(&path, &target).with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

/// Returns the sizes of the files that [`copy`] would copy to a folder on another disk.
///
/// # Errors
/// Fails if a folder cannot be read.
pub fn sizes(from: &Path, skip: &dyn Fn(&Path) -> bool) -> anyhow::Result<Vec<u64>> {
    let mut all = Vec::new();
    for path in entries(from, skip)? {
        match path.is_dir() {
            true => all.extend(sizes(&path, skip)?),
            false => all.push(fs::metadata(&path).with_context(|| path.display().to_string())?.len()),
        }
    }
    Ok(all)
}

fn entries(from: &Path, skip: &dyn Fn(&Path) -> bool) -> anyhow::Result<Vec<std::path::PathBuf>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let path = entry?.path();
        let hidden = path
            .file_name()
            .is_none_or(|name| name.to_string_lossy().starts_with('.'));
        if !hidden && !skip(&path) {
            paths.push(path);
        }
    }
    Ok(paths)
}

/// Returns true for the name of a file of weights; an index is none.
pub fn is_weights(name: &str) -> bool {
    [".safetensors", ".bin", ".pt", ".gguf"]
        .iter()
        .any(|end| name.ends_with(end))
}

/// Returns true for the name of an index of weights.
pub fn is_index(name: &str) -> bool {
    name.ends_with(".json") && name.contains(".index")
}

/// Returns true if both are on one disk, as far as is known; neither need exist.
pub fn on_one_disk(one: &Path, other: &Path) -> bool {
    let disks = [one, other].map(disk);
    disks[0].is_some() && disks[0] == disks[1]
}

#[cfg(unix)]
fn disk(path: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    let whole = std::path::absolute(path).ok()?;
    let there = whole.ancestors().find(|path| path.exists())?;
    Some(fs::metadata(there).ok()?.dev())
}

#[cfg(not(unix))]
fn disk(_: &Path) -> Option<u64> {
    None
}
