//! A file of weights whose tensors have other names than the model's, such as the makers' own.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use super::fused_rows::Rows;

/// Names of a model's tensors in other programs.
pub trait Spelling: fmt::Debug + Send + Sync {
    /// Returns the name in files of a tensor of the model; None for tensors that it does not know.
    fn in_files(&self, name: &str) -> Option<String>;
}

/// A tensor of a file that holds one of the model's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedTensor {
    /// Name in the file.
    pub name: String,
    /// Rows of its layer that are the model's layer.
    pub rows: Rows,
}

/// A file of one model's weights, safetensors or GGUF.
#[derive(Debug, Clone)]
pub struct NamedFile {
    /// The file.
    pub path: PathBuf,
    /// Tensors of the file, by the model's names.
    pub names: BTreeMap<String, NamedTensor>,
    /// Start of all names in the file.
    pub prefix: &'static str,
    /// Names that tensors which are missing would have behind the prefix; None if they are the model's.
    pub spelling: Option<&'static dyn Spelling>,
}

impl NamedFile {
    /// Returns the name that a tensor of the model has in the file, or would have.
    pub fn in_file(&self, name: &str) -> Option<String> {
        let there = self.names.get(name).map(|tensor| tensor.name.clone());
        there.or_else(|| Some(format!("{}{}", self.prefix, self.spelling?.in_files(name)?)))
    }
}
