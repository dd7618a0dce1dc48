//! Configuration of a data set.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::bucket::Bucket;
use crate::problems::Problems;

/// A folder of clips with captions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Folder of the data set. Required.
    pub path: PathBuf,
    /// Layout of clips and captions.
    pub layout: Layout,
    /// For `lines`: the file with a caption on every line. null: whichever of prompt.txt, prompts.txt and captions.txt
    /// exists.
    pub captions: Option<PathBuf>,
    /// For `lines`: the file with a clip's path on every line. null: videos.txt.
    pub videos: Option<PathBuf>,
    /// For `metadata`: the table. null: metadata.csv, .jsonl, .json or .parquet, whichever exists.
    pub metadata: Option<PathBuf>,
    /// For `metadata`: the column with the captions. null: text, caption, prompt or description.
    pub caption_column: Option<String>,
    /// For `metadata`: the column with the clips' paths. null: file_name, video, path or the like.
    pub video_column: Option<String>,
    /// A word put before every caption, with a space, for prompts to recall what was learnt.
    pub id_token: Option<String>,
    /// Number of passes through this data set per epoch, its weight against others.
    #[schemars(range(min = 1, max = 10_000))]
    pub repeats: usize,
    /// Shapes, [frames, height, width], that clips are fitted to. Each clip goes to the bucket with the most frames
    /// that it can fill, and among those to the nearest in aspect ratio.
    #[schemars(length(min = 1))]
    pub buckets: Vec<Bucket>,
    /// Rate at which frames are picked. null: every frame, at the clip's own rate.
    pub fps: Option<f64>,
    /// Frames taken of a clip that has more than its bucket.
    pub frames: Frames,
    /// Cropping of the part of the picture outside of its bucket.
    pub crop: Cropping,
    /// Remove openings such as "This video shows" from captions, which captioning models write.
    pub remove_caption_prefixes: bool,
    /// Effect of an unusable clip on a run.
    pub on_invalid_clip: OnInvalidClip,
    /// Follow symbolic links and `..` out of the data set's folder.
    pub follow_links: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            path: PathBuf::new(),
            layout: Layout::default(),
            captions: None,
            videos: None,
            metadata: None,
            caption_column: None,
            video_column: None,
            id_token: None,
            repeats: 1,
            buckets: vec![Bucket {
                frames: 49,
                height: 480,
                width: 720,
            }],
            fps: None,
            frames: Frames::default(),
            crop: Cropping::default(),
            remove_caption_prefixes: false,
            on_invalid_clip: OnInvalidClip::default(),
            follow_links: false,
        }
    }
}

/// Layouts of clips and captions in a folder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// Detected from the files.
    #[default]
    Auto,
    /// videos.txt and prompt.txt, line by line.
    Lines,
    /// x.mp4 and x.txt, in the folder and all below it.
    Pairs,
    /// A table with a row for every clip.
    Metadata,
    /// x.png and x.txt, in the folder and all below it.
    Images,
}

/// Frames taken of a clip that has more than its bucket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Frames {
    /// Spread evenly over the whole clip.
    #[default]
    Uniform,
    /// The first ones.
    Head,
    /// Consecutive frames, drawn once for each clip, by the seed and the clip's content.
    Random,
}

/// Cropping of the part of the picture outside of its bucket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cropping {
    /// Both sides are cut equally.
    #[default]
    Center,
    /// The position is drawn once for each clip, by the seed and the clip's content.
    Random,
    /// Nothing is cut: the picture is squeezed into the bucket's aspect ratio.
    Fit,
}

/// Effect of an unusable clip on a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnInvalidClip {
    /// The run does not start.
    #[default]
    Error,
    /// The clip is reported and left out.
    Skip,
}

/// Upper limit; more would only make epochs too long to be counted.
const MOST_REPEATS: usize = 10_000;
/// Upper limit, far beyond any model; a larger value is a slip that would exhaust memory.
const LARGEST_SIDE: usize = 16_384;
const MOST_FRAMES: usize = 100_000;

impl Config {
    /// Checks for values that parse but make no sense, by path below the data set.
    pub fn check(&self, problems: &mut Problems) {
        if self.path.as_os_str().is_empty() {
            problems.push("path", "is required: the folder of the data set");
        }
        if !(1..=MOST_REPEATS).contains(&self.repeats) {
            problems.push(
                "repeats",
                format!("must be between 1 and {MOST_REPEATS}, got {}", self.repeats),
            );
        }
        if let Some(fps) = self.fps.filter(|fps| !(fps.is_finite() && *fps > 0.0)) {
            problems.push(
                "fps",
                format!("must be a number above 0, or null for the clip's own rate, got {fps}"),
            );
        }
        self.check_buckets(problems);
        self.check_files(problems);
    }

    fn check_buckets(&self, problems: &mut Problems) {
        if self.buckets.is_empty() {
            problems.push("buckets", "must hold at least one bucket, such as [49, 480, 720]");
        }
        for (n, bucket) in self.buckets.iter().enumerate() {
            let key = format!("buckets[{n}]");
            let sides = [bucket.height, bucket.width];
            if bucket.frames == 0 || sides.contains(&0) {
                problems.push(
                    &key,
                    format!("frames, height and width must be at least 1, got {bucket}"),
                );
            } else if bucket.frames > MOST_FRAMES || sides.iter().any(|&side| side > LARGEST_SIDE) {
                problems.push(
                    &key,
                    format!(
                        "more than {MOST_FRAMES} frames or {LARGEST_SIDE} pixels a side, got {bucket}; the order is [frames, height, width]"
                    ),
                );
            }
            if let Some(first) = self.buckets[..n].iter().position(|b| b == bucket) {
                problems.push(key, format!("is the same as buckets[{first}], {bucket}; remove one"));
            }
        }
    }

    /// Checks for file keys that the layout would silently ignore.
    fn check_files(&self, problems: &mut Problems) {
        let lines = [("videos", self.videos.is_some()), ("captions", self.captions.is_some())];
        let table = [
            ("metadata", self.metadata.is_some()),
            ("caption_column", self.caption_column.is_some()),
            ("video_column", self.video_column.is_some()),
        ];
        let (owners, layout) = match self.layout {
            Layout::Auto => {
                if let (Some((first, _)), Some((second, _))) =
                    (lines.iter().find(|key| key.1), table.iter().find(|key| key.1))
                {
                    problems.push(
                        second,
                        format!("is for `layout: metadata`, and `{first}` for `layout: lines`; remove one"),
                    );
                }
                return;
            }
            Layout::Lines => (&table[..], "lines"),
            Layout::Metadata => (&lines[..], "metadata"),
            Layout::Pairs => (&[lines[0], lines[1], table[0], table[1], table[2]][..], "pairs"),
            Layout::Images => (&[lines[0], lines[1], table[0], table[1], table[2]][..], "images"),
        };
        for (key, _) in owners.iter().filter(|key| key.1) {
            problems.push(
                key,
                format!("is not read with `layout: {layout}`; remove it, or change the layout"),
            );
        }
    }
}
