//! `FILE[=SCALE]`: an adapter file and its scale, as flags and keys name it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `FILE` or `FILE=SCALE`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ScaledFile {
    /// An adapter file, or a folder with one.
    pub path: PathBuf,
    /// Factor of what its adapters add.
    pub scale: f64,
}

impl FromStr for ScaledFile {
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

impl fmt::Display for ScaledFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.path.display(), self.scale)
    }
}

impl TryFrom<String> for ScaledFile {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<ScaledFile> for String {
    fn from(file: ScaledFile) -> Self {
        file.to_string()
    }
}
