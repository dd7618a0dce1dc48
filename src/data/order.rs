//! The order of batches: derived from the seed and the epoch alone, so that every rank and every resumed run computes
//! the same.
//!
//! An epoch is drawn from one `Rng::new(mix(seed, epoch))`:
//! 1. The items are the samples in order, each repeated `repeats` times. They are dealt out in the order of
//!    `randperm(items)`, each to the pile of its bucket.
//! 2. A pile of `batch_size` items is a batch. The rest of each pile at the end is a short batch, in the order in which
//!    the buckets first occur among the samples: nothing is dropped.
//! 3. `randperm(batches)` is the order of the batches.
//!
//! `mix(seed, epoch) = splitmix64(splitmix64(seed) + epoch)`: the seeds of neighbouring epochs are unrelated to each
//! other, and to the seeds `seed + i` of the training steps.
//!
//! Every epoch has the same number of batches, so the epoch of the i-th batch is known directly.

use super::bucket::Bucket;
use super::survey::Sample;
use crate::rng::Rng;

/// Samples of one bucket that form a training batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Bucket that all samples share.
    pub bucket: Bucket,
    /// Indices into the surveyed samples.
    pub samples: Vec<usize>,
}

/// All batches of all epochs, each epoch drawn on demand.
#[derive(Debug, Clone)]
pub struct Order {
    seed: u64,
    batch_size: usize,
    /// Buckets, in order of first occurrence.
    buckets: Vec<Bucket>,
    /// A sample and the index of its bucket, once for each repeat.
    items: Vec<(usize, usize)>,
    batches_per_epoch: usize,
    drawn: Option<(u64, Vec<Batch>)>,
}

impl Order {
    /// An order of `samples` in batches of one bucket each, shuffled anew in each epoch by `seed`.
    pub fn of(samples: &[Sample], batch_size: usize, seed: u64) -> Order {
        Order::new(samples.iter().map(|s| (s.bucket, s.repeats)), batch_size, seed)
    }

    /// Order of samples given as their buckets and repeats.
    pub fn new(samples: impl IntoIterator<Item = (Bucket, usize)>, batch_size: usize, seed: u64) -> Order {
        let (mut buckets, mut items, mut counts) = (Vec::new(), Vec::new(), Vec::new());
        for (sample, (bucket, repeats)) in samples.into_iter().enumerate() {
            let known = buckets.iter().position(|b| *b == bucket);
            let place = known.unwrap_or(buckets.len());
            if known.is_none() {
                buckets.push(bucket);
                counts.push(0_usize);
            }
            counts[place] += repeats;
            items.extend(std::iter::repeat_n((sample, place), repeats));
        }
        let batches_per_epoch = match batch_size {
            0 => 0,
            size => counts.iter().map(|count| count.div_ceil(size)).sum(),
        };
        Order {
            seed,
            batch_size,
            buckets,
            items,
            batches_per_epoch,
            drawn: None,
        }
    }

    /// Returns the number of batches in an epoch; 0 without samples or with a `batch_size` of 0.
    pub fn batches_per_epoch(&self) -> usize {
        self.batches_per_epoch
    }

    /// Returns the batches of one epoch, from 0.
    pub fn epoch(&self, epoch: u64) -> Vec<Batch> {
        if self.batch_size == 0 {
            return Vec::new();
        }
        let mut rng = Rng::new(mix(self.seed, epoch));
        let mut batches = Vec::new();
        let mut piles = vec![Vec::new(); self.buckets.len()];
        for item in rng.randperm(self.items.len()) {
            let (sample, place) = self.items[item];
            piles[place].push(sample);
            if piles[place].len() == self.batch_size {
                batches.push(Batch {
                    bucket: self.buckets[place],
                    samples: std::mem::take(&mut piles[place]),
                });
            }
        }
        let left = piles.into_iter().enumerate().filter(|(_, samples)| !samples.is_empty());
        batches.extend(left.map(|(place, samples)| Batch {
            bucket: self.buckets[place],
            samples,
        }));
        rng.randperm(batches.len())
            .into_iter()
            .map(|place| batches[place].clone())
            .collect()
    }

    /// Returns the i-th batch, counted from 0 through all epochs: the data of the micro-batch with global index i.
    /// `None` if there are no batches.
    pub fn batch_at(&mut self, i: u64) -> Option<&Batch> {
        let per_epoch = self.batches_per_epoch as u64;
        let epoch = i.checked_div(per_epoch)?;
        if self.drawn.as_ref().is_none_or(|(drawn, _)| *drawn != epoch) {
            self.drawn = Some((epoch, self.epoch(epoch)));
        }
        let (_, batches) = self.drawn.as_ref()?;
        batches.get((i % per_epoch) as usize)
    }
}

fn mix(seed: u64, epoch: u64) -> u64 {
    splitmix64(splitmix64(seed).wrapping_add(epoch))
}

/// Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.
fn splitmix64(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
