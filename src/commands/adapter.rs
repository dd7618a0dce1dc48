//! `FILE[=SCALE]` on the command line: an adapter file and its scale.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::hub;
use crate::lora::adapters::AdapterFile;
use crate::lora::file;
use crate::models::registry;

/// `FILE` or `FILE=SCALE`.
#[derive(Debug, Clone)]
pub struct Lora {
    path: PathBuf,
    scale: f64,
}

impl Lora {
    /// Reads the file, of any format; a name that is not on disk may be on the Hub.
    ///
    /// # Errors
    /// Fails for a file that cannot be read, or not applied completely.
    pub fn read(&self) -> anyhow::Result<AdapterFile> {
        let path = match self.path.exists() {
            true => self.path.clone(),
            false => hub::fetch::adapter(&self.path.to_string_lossy())?,
        };
        file::read(&path, &registry::names())?.apply(&self.path, self.scale)
    }
}

impl FromStr for Lora {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.rsplit_once('=') {
            // A file name may contain '='.
            Some((path, scale)) if !Path::new(text).exists() => match scale.parse::<f64>() {
                Ok(scale) if scale.is_finite() => Ok(Self {
                    path: path.into(),
                    scale,
                }),
                _ => Err(format!(
                    "'{scale}' is not a number; give FILE=SCALE, such as style.safetensors=0.8"
                )),
            },
            _ => Ok(Self {
                path: text.into(),
                scale: 1.0,
            }),
        }
    }
}
