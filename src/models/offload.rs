//! `model.offload`: where the frozen weights wait while they are not needed.

use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::nn::residency::{Residency, ResidentShare};

/// Frozen weights that leave memory while others compute.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Offload {
    /// A part of the model, once it is loaded, stays until it has done all of its work.
    #[default]
    None,
    /// One part at a time: the transformer's blocks also leave while validation videos are decoded.
    Model,
    /// Blocks of the transformer and of T5 are read from their files while the block before them runs.
    Group,
    /// The first of these with which the run fits in memory by its plan. None until that is made.
    Auto,
}

impl Offload {
    /// Returns where the blocks of a part are that goes once it has done its work. Under `group`, `resident` of them stay
    /// in memory.
    pub fn residency(self, resident: ResidentShare) -> Residency {
        match self {
            Self::None | Self::Auto | Self::Model => Residency::Whole,
            Self::Group => Residency::Streamed(resident),
        }
    }

    /// Returns where the blocks of a part are beside which others work now and then: of a run's transformer.
    pub fn residency_beside_others(self, resident: ResidentShare) -> Residency {
        match self {
            Self::Model => Residency::Streamed(ResidentShare::Share(1.0)),
            Self::None | Self::Auto | Self::Group => self.residency(resident),
        }
    }
}
