//! The reasons of refusals, and the sentence for each: what was found, and what to do.

use std::fmt;

use serde::Serialize;

use super::bucket::Bucket;

/// What was found; `kind` in JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Reason {
    // A data set as a whole.
    /// The data set's folder does not exist.
    NoFolder,
    /// `path` names a file.
    NotAFolder,
    /// Neither manifests nor clips in the folder.
    NothingFound {
        looked_for: String,
    },
    /// Everything that the data set names was refused.
    NothingUsable,
    /// More than one file or layout could be meant.
    Ambiguous {
        found: Vec<String>,
        choose_with: &'static str,
    },
    /// A manifest or caption file is not there.
    NoManifest {
        looked_for: String,
        choose_with: &'static str,
    },
    /// The operating system, or the parser, could not read a file or folder.
    UnreadableFile {
        error: String,
    },
    /// `videos.txt` and the captions have different numbers of lines.
    CountsDiffer {
        videos: usize,
        captions: usize,
        captions_file: String,
    },
    /// The manifest lacks the column for clips or for captions.
    NoColumn {
        wanted: String,
        found: Vec<String>,
        choose_with: &'static str,
    },
    /// A value of the configuration is out of range.
    BadConfig {
        key: String,
        error: String,
    },

    // A line of a manifest.
    /// Text that is not UTF-8; `byte` counts from 1 in its line, or in its file where there are no lines.
    NotUtf8 {
        byte: usize,
    },
    /// A row that is not what its format asks for.
    BadRow {
        error: String,
    },
    /// A row without a value, or with one that is not text.
    BadCell {
        column: String,
        found: String,
    },
    /// A blank line where a clip's name should be.
    EmptyName,
    /// No caption, or nothing left of it.
    EmptyCaption {
        was: Option<String>,
    },
    /// A clip without a caption file beside it.
    NoCaption {
        looked_for: String,
    },
    /// Two caption files whose names differ in case only, as `x.txt` and `x.TXT`.
    SecondCaption {
        other: String,
    },
    /// A caption file without a clip beside it.
    NoClip {
        looked_for: String,
    },

    // A clip.
    MissingFile {
        link_to: Option<String>,
    },
    EmptyFile,
    NotAFile,
    /// `..`, an absolute path or a symbolic link leads out of the data set's folder.
    OutsideFolder {
        leads_to: String,
    },
    Unreadable {
        error: String,
    },
    /// A picture of a kind that is told, and not read: `HEIC`, `AVIF`.
    Heif {
        error: String,
    },
    /// Audio only, or no stream at all.
    NoVideo {
        error: String,
    },
    Truncated {
        error: String,
    },
    TooLarge {
        error: String,
    },
    Undecodable {
        error: String,
    },
    /// Fewer frames than the smallest bucket asks for.
    TooShort {
        available: usize,
        frames: usize,
        fps: Option<f64>,
        shortest: Bucket,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        use Reason::*;
        match self {
            NoFolder => write!(f, "the data set's folder does not exist; correct `path`"),
            NotAFolder => write!(
                f,
                "`path` must be a folder, and this is a file; give the folder that holds it"
            ),
            NothingFound { looked_for } => write!(f, "no data set found; looked for {looked_for}"),
            NothingUsable => write!(
                f,
                "no usable clip in this data set; mend what is refused, or remove the data set"
            ),
            Ambiguous { found, choose_with } => {
                write!(
                    f,
                    "found {}, and only one can be used; choose with `{choose_with}`",
                    found.join(" and ")
                )
            }
            NoManifest {
                looked_for,
                choose_with,
            } => {
                write!(
                    f,
                    "file not found; looked for {looked_for}; add it, or name another with `{choose_with}`"
                )
            }
            UnreadableFile { error } => write!(f, "cannot be read: {error}"),
            CountsDiffer {
                videos,
                captions,
                captions_file,
            } => write!(
                f,
                "names {} but {captions_file} has {}; line n of one belongs to line n of the other, \
                 so both need the same number of lines",
                count(*videos, "clip"),
                count(*captions, "caption")
            ),
            NoColumn {
                wanted,
                found,
                choose_with,
            } => {
                let found = if found.is_empty() {
                    "none".to_owned()
                } else {
                    found.join(", ")
                };
                write!(
                    f,
                    "no column with the {wanted}; found {found}; name one with `{choose_with}`"
                )
            }
            BadConfig { key, error } => write!(f, "`{key}`: {error}"),
            NotUtf8 { byte } => write!(f, "not valid UTF-8 at byte {byte}; save the file as UTF-8"),
            BadRow { error } => write!(f, "malformed: {error}"),
            BadCell { column, found } => write!(f, "`{column}` must be text, found {found}"),
            EmptyName => write!(
                f,
                "no name of a clip here; write one, or remove the line and its caption"
            ),
            EmptyCaption { was: None } => {
                write!(f, "the caption is empty; write one, or remove the clip")
            }
            EmptyCaption { was: Some(was) } => write!(
                f,
                "nothing is left of the caption {was:?} without its prefix; write a longer one, \
                 or set `remove_caption_prefixes: false`"
            ),
            NoCaption { looked_for } => write!(f, "no caption for this clip; add {looked_for}, or remove the clip"),
            SecondCaption { other } => {
                write!(
                    f,
                    "{other} is a caption of the same clip, and only one can be used; remove one"
                )
            }
            NoClip { looked_for } => write!(f, "no clip for this caption; add {looked_for}, or remove the caption"),
            MissingFile { link_to: None } => {
                write!(f, "no such file; correct the name, or add the file")
            }
            MissingFile { link_to: Some(to) } => {
                write!(f, "a symbolic link to {}, which does not exist; mend or remove it", to)
            }
            EmptyFile => write!(f, "the file has zero bytes; fetch it again, or remove it"),
            NotAFile => write!(f, "not an ordinary file; name a file"),
            OutsideFolder { leads_to } => write!(
                f,
                "leads out of the data set's folder, to {}; move it inside, or set `follow_links: true`",
                leads_to
            ),
            Unreadable { error } => {
                write!(f, "not a readable clip ({error}); convert or remove it")
            }
            Heif { error } => write!(f, "{error}, or remove it"),
            NoVideo { error } => write!(f, "no video stream, perhaps audio only ({error}); remove it"),
            Truncated { error } => write!(f, "the file is cut off ({error}); fetch it again, or remove it"),
            TooLarge { error } => write!(f, "too large ({error}); scale it down, or remove it"),
            Undecodable { error } => write!(f, "cannot be decoded ({error}); convert or remove it"),
            TooShort {
                available,
                frames,
                fps,
                shortest,
            } => {
                write!(f, "too short: it has {}", count(*available, "frame"))?;
                if let Some(fps) = fps {
                    write!(f, " at {fps} fps ({frames} at its own)")?;
                }
                write!(f, ", the shortest bucket {shortest} needs {}; ", shortest.frames)?;
                write!(f, "add a shorter bucket, or remove the clip")
            }
        }
    }
}

/// `1 clip`, `2 clips`.
pub(super) fn count(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}
