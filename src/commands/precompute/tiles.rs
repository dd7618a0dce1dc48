//! Tiles that the clips of each bucket are encoded in, and the names that their records have.
//!
//! A record says what was done: an earlier run with another choice, or with more memory, has left another record. A
//! whole clip's record serves `auto` whatever fits now.

use std::collections::BTreeMap;

use crate::commands::{Exit, Failure, OrExit};
use crate::data::Bucket;
use crate::data::cache::{Cache, EncodedTiles};
use crate::models::Family;
use crate::models::family::{Parts, Tiling};
use crate::models::tiling::Cuts;
use crate::nn::Load;
use crate::nn::vae_memory::VaeTiling;

/// Names of tiles for the clips of a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TileNames {
    /// Name of what is encoded now.
    pub made: EncodedTiles,
    /// Names of what serves as well if it is there, best first.
    pub accepted: Vec<EncodedTiles>,
}

/// Returns the names for each bucket, given how the VAE will be loaded. Reads headers only. If the VAE is gone, `auto`
/// takes what there is.
///
/// # Errors
/// Fails for a VAE that cannot be read.
pub fn of_buckets<'b>(
    family: &dyn Family,
    load: &Load,
    cache: &Cache,
    buckets: impl Iterator<Item = &'b Bucket>,
) -> Result<BTreeMap<Bucket, TileNames>, Failure> {
    let spec = family.spec();
    let there = cache.has_parts(&spec.directory, &["vae"]).unwrap_or(false);
    let names = |bucket: &Bucket| {
        let clip = [bucket.frames, bucket.height, bucket.width];
        let tiling = spec.tiling.filter(|tiling| tiling.splits(clip));
        let Some(tiling) = tiling else {
            return Ok((*bucket, TileNames::whole(true)));
        };
        let names = match load.vae.tiling {
            _ if tiling.cuts == Cuts::Always => TileNames::cut(&tiling),
            VaeTiling::Always(false) => TileNames::whole(!tiling.unnamed),
            VaeTiling::Always(true) => TileNames::cut(&tiling),
            VaeTiling::AUTO => {
                let cost = there.then(|| family.vae_cost(Parts::Encoder, load, clip)).transpose();
                TileNames::auto(&tiling, cost.or_exit(Exit::Model)?.map(|cost| cost.cuts))
            }
        };
        Ok((*bucket, names))
    };
    buckets.map(names).collect()
}

impl TileNames {
    /// Names of whole clips. Before families other than the first had tiles, their records said true of whole clips, as
    /// do those of frames that are no larger than a tile.
    fn whole(may_say_true: bool) -> Self {
        let names = [EncodedTiles::Some(false), EncodedTiles::Some(true)];
        Self {
            made: EncodedTiles::Some(false),
            accepted: names.into_iter().take(1 + usize::from(may_say_true)).collect(),
        }
    }

    /// Names of clips in tiles.
    fn cut(tiling: &Tiling) -> Self {
        Self {
            made: match tiling.unnamed {
                true => EncodedTiles::Some(true),
                false => EncodedTiles::Named(tiling.name()),
            },
            accepted: Vec::new(),
        }
    }

    /// Names of clips that are whole where possible; `cuts` is None if nothing can be encoded.
    fn auto(tiling: &Tiling, cuts: Option<bool>) -> Self {
        let (mut whole, cut) = (Self::whole(!tiling.unnamed), Self::cut(tiling));
        match cuts {
            Some(false) => whole,
            Some(true) => Self {
                accepted: whole.accepted,
                ..cut
            },
            None => {
                whole.accepted.push(cut.made);
                whole
            }
        }
    }
}
