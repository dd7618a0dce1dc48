//! Clips and images of every container and codec that the fixtures have.

use tempfile::TempDir;
use vtrain::video::{Clip, Fit};

use super::{Corpus, copy, files, shipped};

pub fn all() -> Corpus {
    let folder = TempDir::new().unwrap();
    copy(&shipped("tests/fixtures/video"), folder.path());
    let spoiled = files(folder.path(), |path| {
        !path.ends_with("expected.safetensors") && !path.ends_with("sound_only.mp4")
    });
    Corpus::new(folder, spoiled, |folder, file| {
        let clip = Clip::open(&folder.join(file))?;
        let wanted: Vec<usize> = (0..clip.num_frames().min(64)).collect();
        clip.decode_fitted(&wanted, &Fit::squash((32, 32)))?;
        Ok(())
    })
}
