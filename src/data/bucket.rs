//! Buckets: the shapes `[frames, height, width]` that clips are fitted to, so that they can be batched.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Written `[frames, height, width]` in a config.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "[usize; 3]", into = "[usize; 3]")]
pub struct Bucket {
    /// Frames of a clip.
    pub frames: usize,
    /// Rows of pixels.
    pub height: usize,
    /// Columns of pixels.
    pub width: usize,
}

impl From<[usize; 3]> for Bucket {
    fn from([frames, height, width]: [usize; 3]) -> Bucket {
        Bucket { frames, height, width }
    }
}

impl From<Bucket> for [usize; 3] {
    fn from(b: Bucket) -> [usize; 3] {
        [b.frames, b.height, b.width]
    }
}

/// Formatted as in a config, so that a message can be searched for.
impl fmt::Display for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "[{}, {}, {}]", self.frames, self.height, self.width)
    }
}

impl JsonSchema for Bucket {
    fn schema_name() -> Cow<'static, str> {
        "Bucket".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A shape that clips are fitted to: [frames, height, width], each at least 1.",
            "type": "array",
            "items": { "type": "integer", "minimum": 1 },
            "minItems": 3,
            "maxItems": 3
        })
    }
}

/// Returns the bucket of a clip with `available` frames of `height` x `width`: of the buckets with no more frames than
/// the clip, those with the most; of these the nearest in aspect ratio, then the nearest in area, then the first
/// listed. `None` if the clip is too short for every bucket.
pub fn choose(buckets: &[Bucket], available: usize, height: usize, width: usize) -> Option<Bucket> {
    let frames = buckets.iter().map(|b| b.frames).filter(|&f| f <= available).max()?;
    let distance = |b: &Bucket| {
        let ratio = |h: usize, w: usize| (w as f64 / h as f64).ln();
        let area = |h: usize, w: usize| (h as f64 * w as f64).ln();
        let turn = (ratio(b.height, b.width) - ratio(height, width)).abs();
        let scale = (area(b.height, b.width) - area(height, width)).abs();
        (turn, scale)
    };
    let nearer = |a: &(f64, f64), b: &(f64, f64)| {
        // Equal ratios such as 2:3 and 480:720 may differ in the last bit.
        let turn = if (a.0 - b.0).abs() < 1e-9 {
            std::cmp::Ordering::Equal
        } else {
            a.0.total_cmp(&b.0)
        };
        turn.then(a.1.total_cmp(&b.1))
    };
    let longest = buckets.iter().filter(|b| b.frames == frames);
    longest.min_by(|a, b| nearer(&distance(a), &distance(b))).copied() // the first of equals
}

/// Returns the bucket with the fewest frames, for reports of clips that fit none.
pub fn shortest(buckets: &[Bucket]) -> Option<Bucket> {
    buckets.iter().min_by_key(|b| b.frames).copied()
}
