//! `FILE[=SCALE]` on the command line: an adapter file, and how strongly it is applied.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::hub;
use crate::lora::adapters::AdapterFile;
use crate::lora::file;
use crate::models::rooms;

/// `FILE` or `FILE=SCALE`.
#[derive(Debug, Clone)]
pub struct Lora {
    path: PathBuf,
    scale: f64,
}

impl Lora {
    /// Reads the file, which may be of any format; one that is not on disk may be on the Hub.
    ///
    /// # Errors
    /// A file that cannot be read, or not all of which can be applied.
    pub fn read(&self) -> anyhow::Result<AdapterFile> {
        let path = match self.path.exists() {
            true => self.path.clone(),
            false => hub::fetch::adapter(&self.path.to_string_lossy())?,
        };
        file::read(&path, &rooms::names())?.apply(&self.path, self.scale)
    }
}

impl FromStr for Lora {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.rsplit_once('=') {
            // A name may hold an '=' of its own.
            Some((path, scale)) if !Path::new(text).exists() => match scale.parse::<f64>() {
                Ok(scale) if scale.is_finite() => Ok(Self {
                    path: path.into(),
                    scale,
                }),
                _ => Err(format!(
                    "'{scale}' is no number; give FILE=SCALE, such as style.safetensors=0.8"
                )),
            },
            _ => Ok(Self {
                path: text.into(),
                scale: 1.0,
            }),
        }
    }
}
