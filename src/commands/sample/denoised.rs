//! Denoised clips that wait to be decoded, each a file called by the hash of its request: all are denoised before the first is
//! decoded, so that the transformer and the VAE load once and are never in memory together. A call that was interrupted
//! finds those that it denoised.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use anyhow::Context;
use blake3::Hash;
use candle_core::{Device, Tensor};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::disk;
use crate::models::family::LatentSize;
use crate::sample::Sampled;

/// Folder of the files, in that of the clips.
const FOLDER: &str = ".denoised";
/// Ending of the files.
const ENDING: &str = "safetensors";
/// Tensor of a file.
const LATENTS: &str = "latents";
/// Keys of a file's header: the generator of random numbers, and the steps.
const RNG: &str = "rng";
const STEPS: &str = "steps";

/// Folder of denoised clips.
#[derive(Debug)]
pub struct DenoisedClips(PathBuf);

impl DenoisedClips {
    /// Opens that in a folder of clips, and removes from it what no request of these needs.
    pub fn open(folder: &Path, requests: &HashSet<Hash>) -> Self {
        let denoised = Self(folder.join(FOLDER));
        disk::sweep(&denoised.0);
        let wanted: HashSet<PathBuf> = requests.iter().map(|request| denoised.path(*request)).collect();
        for entry in std::fs::read_dir(&denoised.0).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_ours = path.extension().is_some_and(|ending| ending == ENDING);
            if is_ours && !wanted.contains(&path) {
                let _ = std::fs::remove_file(&path); // harmless; the next call tries again
            }
        }
        denoised
    }

    /// Returns true for a request that was denoised.
    pub fn holds(&self, request: Hash) -> bool {
        self.path(request).exists()
    }

    /// Writes the latents of a request.
    ///
    /// # Errors
    /// Fails where they cannot be written.
    pub fn write(&self, request: Hash, sampled: &Sampled) -> anyhow::Result<()> {
        let latents = sampled.latents.to_device(&Device::Cpu)?.contiguous()?;
        let header = HashMap::from([
            (RNG.to_string(), serde_json::to_string(&sampled.rng)?),
            (STEPS.to_string(), serde_json::to_string(&sampled.steps)?),
        ]);
        let bytes = safetensors::serialize([(LATENTS, latents)], Some(header))?;
        Ok(disk::write_whole(&self.path(request), &bytes)?)
    }

    /// Reads the latents of a request, and how its steps went.
    ///
    /// # Errors
    /// Fails for a damaged file, which is removed.
    pub fn read(&self, request: Hash, size: LatentSize, device: &Device) -> anyhow::Result<(Sampled, Value)> {
        let path = self.path(request);
        read(&path, size, device).map_err(|error| {
            let _ = std::fs::remove_file(&path); // if that fails, the next call fails here again
            error.context(format!("{}: damaged, and removed; start again", path.display()))
        })
    }

    /// Removes the latents of a request whose clip is written, and the folder with the last.
    pub fn remove(&self, request: Hash) {
        let _ = std::fs::remove_file(self.path(request)); // harmless; the next call removes it
        let _ = std::fs::remove_dir(&self.0); // fails unless it is empty
    }

    fn path(&self, request: Hash) -> PathBuf {
        self.0.join(format!("{request}.{ENDING}"))
    }
}

fn read(path: &Path, size: LatentSize, device: &Device) -> anyhow::Result<(Sampled, Value)> {
    let bytes = std::fs::read(path)?;
    let (_, header) = SafeTensors::read_metadata(&bytes)?;
    let header = header.metadata().as_ref().context("no header")?;
    let written = |key: &str| header.get(key).with_context(|| format!("no {key}"));
    let latents: HashMap<String, Tensor> = candle_core::safetensors::load_buffer(&bytes, device)?;
    let latents = latents.get(LATENTS).cloned().context("no latents")?;
    anyhow::ensure!(latents.dims() == size.shape, "latents of {:?}", latents.dims());
    let sampled = Sampled {
        latents,
        size,
        rng: serde_json::from_str(written(RNG)?)?,
        steps: Vec::new(),
        ratios: None,
    };
    Ok((sampled, serde_json::from_str(written(STEPS)?)?))
}
