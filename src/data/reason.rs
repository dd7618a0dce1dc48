//! Reasons of rejections, with a message for each: what was found, and what to do.

use std::fmt;

use serde::Serialize;

use super::bucket::Bucket;

/// Problem that was found; `kind` in JSON.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Reason {
    // A data set as a whole.
    /// The data set's folder does not exist.
    NoFolder,
    /// `path` names a file.
    NotAFolder,
    /// The folder has neither manifests nor clips.
    NothingFound {
        /// File names that were looked for.
        looked_for: String,
    },
    /// Everything that the data set names was rejected.
    NothingUsable,
    /// Several files or layouts are possible.
    Ambiguous {
        /// Candidates that were found.
        found: Vec<String>,
        /// Key of the run file that decides between them.
        choose_with: &'static str,
    },
    /// A manifest or caption file does not exist.
    NoManifest {
        /// File names that were looked for.
        looked_for: String,
        /// Key of the run file that names another.
        choose_with: &'static str,
    },
    /// The operating system, or the parser, could not read a file or folder.
    UnreadableFile {
        /// Message of the system or the parser.
        error: String,
    },
    /// `videos.txt` and the captions have different numbers of lines.
    CountsDiffer {
        /// Lines of `videos.txt`.
        videos: usize,
        /// Lines of the captions' file.
        captions: usize,
        /// Name of the captions' file.
        captions_file: String,
    },
    /// The manifest lacks the column for clips or for captions.
    NoColumn {
        /// Names that the column might have.
        wanted: String,
        /// Columns that the manifest has.
        found: Vec<String>,
        /// Key of the run file that names the column.
        choose_with: &'static str,
    },
    /// A value of the configuration is out of range.
    BadConfig {
        /// Path of the key in the run file.
        key: String,
        /// Description of the error.
        error: String,
    },

    // A line of a manifest.
    /// Text that is not UTF-8; `byte` counts from 1 in its line, or in its file where there are no lines.
    NotUtf8 {
        /// Position of the first invalid byte, from 1.
        byte: usize,
    },
    /// A row that does not follow its format.
    BadRow {
        /// Description of the error.
        error: String,
    },
    /// A row without a value, or with one that is not text.
    BadCell {
        /// Name of the column.
        column: String,
        /// Kind of value that was found.
        found: String,
    },
    /// A blank line where a clip's name should be.
    EmptyName,
    /// A caption that is empty, or empty without its prefix.
    EmptyCaption {
        /// Caption before the prefix was removed, if there was one.
        was: Option<String>,
    },
    /// A clip without a caption file next to it.
    NoCaption {
        /// Name of the file that was looked for.
        looked_for: String,
    },
    /// Two caption files whose names differ in case only, as `x.txt` and `x.TXT`.
    SecondCaption {
        /// Name of the other file.
        other: String,
    },
    /// A caption file without a clip next to it.
    NoClip {
        /// Name of the file that was looked for.
        looked_for: String,
    },

    // A clip.
    /// The clip's file does not exist.
    MissingFile {
        /// Target of the link, if the file is a broken symbolic link.
        link_to: Option<String>,
    },
    /// The file has no bytes.
    EmptyFile,
    /// A folder or a device where a file is expected.
    NotAFile,
    /// `..`, an absolute path or a symbolic link leads out of the data set's folder.
    OutsideFolder {
        /// Path outside of the data set's folder.
        leads_to: String,
    },
    /// The file cannot be opened or read.
    Unreadable {
        /// Message of the system or the decoder.
        error: String,
    },
    /// A picture of a recognised but unsupported kind: `HEIC`, `AVIF`.
    Heif {
        /// Message of the decoder.
        error: String,
    },
    /// Audio only, or no stream at all.
    NoVideo {
        /// Message of the decoder.
        error: String,
    },
    /// The file ends too early.
    Truncated {
        /// Message of the decoder.
        error: String,
    },
    /// The picture exceeds the decoding limit.
    TooLarge {
        /// Message of the decoder.
        error: String,
    },
    /// The decoder gives up on the file.
    Undecodable {
        /// Message of the decoder.
        error: String,
    },
    /// Fewer frames than the smallest bucket needs.
    TooShort {
        /// Frames of the clip at the data set's frame rate.
        available: usize,
        /// Frames in the file.
        frames: usize,
        /// Frames per second that the data set is read at, if configured.
        fps: Option<f64>,
        /// Bucket with the fewest frames.
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
                "no usable clip in this data set; fix what was rejected, or remove the data set"
            ),
            Ambiguous { found, choose_with } => {
                write!(
                    f,
                    "found {}, but only one can be used; choose with `{choose_with}`",
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
                write!(f, "a symbolic link to {}, which does not exist; fix or remove it", to)
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
