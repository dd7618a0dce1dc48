//! Sizes at which a pass is recorded, and the weights with which what it took there adds up to what it takes at another size.
//!
//! Every tensor's size is of the first degree in the latent frames F, the patches of a frame P, the tokens of a text T and the
//! rank R of the adapters, and T meets neither F nor P:
//!
//! ```text
//! size = (a + b F + c P + d F P + e T) + R (f + g F + h P + i F P + j T)
//! ```
//!
//! so that passes of a few frames, patches, tokens and ranks tell all ten.

/// Rows of patches of the recorded clips, and their columns. With a single one, tensors that are permuted might be contiguous
/// all the same, and not be copied.
const ROWS: [usize; 2] = [2, 3];
const COLUMNS: usize = 2;

/// Latent frames of them, if there are more, in patches. Those after the first are two, at least, for the same reason.
const FRAMES: [usize; 2] = [3, 4];

/// Tokens of the recorded texts.
const TEXT: [usize; 2] = [2, 4];

/// Ranks of the recorded adapters, if theirs is higher.
const RANKS: [usize; 2] = [2, 3];

/// Size of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassSize {
    /// Latent frames.
    pub frames: usize,
    /// Patches of a frame.
    pub patches: usize,
    /// Tokens of a text.
    pub text: usize,
    /// Rank of the adapters.
    pub rank: usize,
}

impl PassSize {
    /// Rows and columns of patches, of a size that is recorded.
    pub fn rows_and_columns(&self) -> [usize; 2] {
        [self.patches / COLUMNS, COLUMNS]
    }
}

/// One of the four numbers of a size: two values of it that are recorded, or the only one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Axis {
    low: usize,
    high: Option<usize>,
}

impl Axis {
    /// Two values, or the wanted one, if it is not beyond them.
    fn up_to(wanted: usize, [low, high]: [usize; 2]) -> Self {
        match wanted > high {
            true => Self { low, high: Some(high) },
            false => Self {
                low: wanted,
                high: None,
            },
        }
    }

    fn values(self) -> impl Iterator<Item = usize> + Clone {
        [self.low].into_iter().chain(self.high)
    }

    /// Returns the weight of each value in a line through both.
    fn weights(self, wanted: usize) -> Vec<f64> {
        match self.high {
            None => vec![1.0],
            Some(high) => {
                let along = (wanted as f64 - self.low as f64) / (high - self.low) as f64;
                vec![1.0 - along, along]
            }
        }
    }
}

/// Sizes at which a pass is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordedSizes {
    frames: Axis,
    patches: Axis,
    text: Axis,
    rank: Axis,
}

impl RecordedSizes {
    /// Chooses sizes for passes of another one, in which so many latent frames make a patch.
    pub fn of(wanted: PassSize, depth: usize) -> Self {
        let both = |[low, high]: [usize; 2]| Axis { low, high: Some(high) };
        Self {
            frames: Axis::up_to(wanted.frames, FRAMES.map(|frames| frames * depth.max(1))),
            patches: both(ROWS.map(|rows| rows * COLUMNS)),
            text: both(TEXT),
            rank: Axis::up_to(wanted.rank, RANKS),
        }
    }

    /// Returns the lowest rank that is recorded for adapters of a rank.
    pub fn lowest_rank(wanted: usize) -> usize {
        Axis::up_to(wanted, RANKS).low
    }

    /// Returns the sizes: of each rank those of every number of frames and patches, and one with more text.
    pub fn all(&self) -> Vec<PassSize> {
        let text = self.text.low;
        let of_rank = |rank| {
            let clips = self.frames.values().flat_map(move |frames| {
                let patches = self.patches.values();
                patches.map(move |patches| PassSize {
                    frames,
                    patches,
                    text,
                    rank,
                })
            });
            let more_text = self.text.high.map(|text| PassSize {
                frames: self.frames.low,
                patches: self.patches.low,
                text,
                rank,
            });
            clips.chain(more_text)
        };
        self.rank.values().flat_map(of_rank).collect()
    }

    /// Returns the weight of each of [`all`](Self::all) in a wanted size; their sum is 1.
    pub fn weights(&self, wanted: PassSize) -> Vec<f64> {
        let [frames, patches, text, rank] = [
            self.frames.weights(wanted.frames),
            self.patches.weights(wanted.patches),
            self.text.weights(wanted.text),
            self.rank.weights(wanted.rank),
        ];
        let more_text = text.get(1).copied();
        let clips = frames
            .iter()
            .flat_map(|frames| patches.iter().map(move |patches| frames * patches));
        let mut of_rank: Vec<f64> = clips.chain(more_text).collect();
        of_rank[0] -= more_text.unwrap_or(0.0);
        rank.iter()
            .flat_map(|rank| of_rank.iter().map(move |weight| weight * rank))
            .collect()
    }
}
