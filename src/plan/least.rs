//! Least memory of a run: what is certain of its plan before all of its passes are recorded. Settings that are too large
//! even so are tried no further.

use super::choice::{Candidates, Stages};
use super::training::{self, Standing};
use super::{Extent, Subject};
use crate::config::RunConfig;
use crate::models::family::Parts;

impl Subject<'_> {
    /// True if a run takes more than `room` on the device whatever else its plan says: the cheapest stages are asked first.
    ///
    /// # Errors
    /// Same as [`plan`](Self::plan).
    pub fn exceeds(&self, config: &RunConfig, extent: Extent, room: u64) -> anyhow::Result<bool> {
        let family = self.family.filter(|_| extent == Extent::Run);
        if let Some(family) = family
            && self.text(config, family)?.peak_bytes > room
        {
            return Ok(true);
        }
        let transformer = self.transformer(config)?;
        if Standing::new(config, &transformer.held()?, transformer.ranks).bytes() > room {
            return Ok(true);
        }
        if let (Some(family), Some(longest)) = (family, self.longest())
            && self.coding(config, family, longest, Parts::Encoder)?.peak_bytes > room
        {
            return Ok(true);
        }
        for clips in self.largest_clips(config) {
            if training::least(config, &transformer, clips)?.memory.peak_bytes > room {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

impl Candidates for Subject<'_> {
    fn stages(&self, config: &RunConfig) -> anyhow::Result<Stages> {
        Ok(self.plan(config)?.stages())
    }

    fn exceeds(&self, config: &RunConfig, room: u64) -> anyhow::Result<bool> {
        Subject::exceeds(self, config, Extent::Run, room)
    }
}
