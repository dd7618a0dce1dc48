//! Texts that are encoded, each with the picture that its encoder sees.

use std::path::PathBuf;

use super::Key;

/// A caption or prompt, with what else its encoding depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TextId {
    /// The text.
    pub text: String,
    /// Picture that the encoder sees; None for encoders that see none, and for a black one.
    pub picture: Option<Picture>,
}

/// A picture that a text goes with.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Picture {
    /// First frame of the clip with this record.
    FirstFrame(Key),
    /// A file, resized and cropped to these rows and columns.
    File(PathBuf, [usize; 2]),
}

impl From<&str> for TextId {
    /// A text without a picture.
    fn from(text: &str) -> Self {
        Self {
            text: text.into(),
            picture: None,
        }
    }
}
