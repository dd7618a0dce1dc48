//! Commands of finetrainers and musubi-tuner, for shells of Unix and of Windows, and the files that they name.

use std::path::Path;

use tempfile::TempDir;
use vtrain::migrate::{Source, finetrainers, musubi};

use super::{Corpus, copy, files, shipped};

pub fn all() -> Corpus {
    let folder = TempDir::new().unwrap();
    copy(
        &shipped("tests/fixtures/migrate"),
        &folder.path().join("tests/fixtures/migrate"),
    );
    let spoiled = files(folder.path(), |_| true);
    let mut corpus = Corpus::new(folder, spoiled, migrate);
    // Values of the files that a script names are told by script and key.
    corpus.or_names = |file| Some(script(file).to_string_lossy().into_owned());
    corpus
}

/// The script that names a file, or the file itself.
fn script(file: &Path) -> std::path::PathBuf {
    match file
        .extension()
        .is_some_and(|ending| ["sh", "bat", "ps1"].iter().any(|own| ending == *own))
    {
        true => file.to_path_buf(),
        false => file.with_file_name("train.sh"),
    }
}

fn migrate(folder: &Path, file: &Path) -> anyhow::Result<()> {
    let path = folder.join(script(file));
    let source = Source {
        // A script that is no text is refused before it comes here.
        text: String::from_utf8_lossy(&std::fs::read(&path)?).into_owned(),
        name: path.display().to_string(),
        folder: path.parent().map(Path::to_path_buf),
        from: folder.to_path_buf(),
        to: folder.to_path_buf(),
        variables: Vec::new(),
    };
    let migrated = match path.to_string_lossy().contains("musubi") {
        true => musubi::migrate(&source, None),
        false => finetrainers::migrate(&source),
    };
    migrated
        .map(drop)
        .map_err(|problems| anyhow::anyhow!(problems.join("\n")))
}
