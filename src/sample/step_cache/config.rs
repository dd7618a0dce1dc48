//! Choice of a cache: `first-block:threshold=0.08`, in a run file and on the command line.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::mag_cache::{self, Calibration, MagCache};
use super::taylorseer::{self, TaylorSeer};
use super::{NoCache, StepCache, first_block::FirstBlock};
use crate::named_settings::NamedSettings;

/// A cache between steps, with its settings.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub enum Config {
    /// `none`
    #[default]
    None,
    /// `first-block:threshold=`
    FirstBlock {
        /// Largest change of the first block's work under which the others are skipped.
        threshold: f64,
    },
    /// `taylorseer:interval=,order=,before=,after=`
    TaylorSeer(taylorseer::Settings),
    /// `magcache:ratios=FILE,threshold=,max-skips=,retention=`
    MagCache {
        /// File of the model's ratios.
        ratios: PathBuf,
        /// Other settings.
        settings: mag_cache::Settings,
    },
    /// `--calibrate-magcache`
    CalibrateMagCache,
}

/// Caches to choose from, for messages.
const NAMES: &str = "none, first-block, taylorseer or magcache";

impl Config {
    /// Returns the cache at the start of a run of `num_steps`.
    ///
    /// # Errors
    /// Fails for a table of ratios that cannot be read.
    pub fn start(&self, num_steps: usize) -> anyhow::Result<Box<dyn StepCache>> {
        Ok(match self {
            Self::None => Box::new(NoCache),
            Self::FirstBlock { threshold } => Box::new(FirstBlock::new(*threshold)),
            Self::TaylorSeer(settings) => Box::new(TaylorSeer::new(*settings)),
            Self::MagCache { ratios, settings } => {
                Box::new(MagCache::new(*settings, &mag_cache::read_ratios(ratios)?, num_steps))
            }
            Self::CalibrateMagCache => Box::new(Calibration::default()),
        })
    }
}

impl FromStr for Config {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut settings = NamedSettings::parse(text)?;
        let name = settings.name;
        let at_least_0 = |key: &str, value: f64| match value >= 0.0 && value.is_finite() {
            true => Ok(value),
            false => Err(format!("{name}: {key} must be 0 or more, got {value}")),
        };
        let (config, known) = match name {
            "none" => (Self::None, ""),
            "first-block" => {
                let threshold = at_least_0("threshold", settings.take("threshold")?.unwrap_or(0.05))?;
                (Self::FirstBlock { threshold }, "threshold")
            }
            "taylorseer" => {
                let interval = settings.take("interval")?.unwrap_or(5);
                if interval == 0 {
                    return Err("taylorseer: interval must be at least 1".into());
                }
                let chosen = taylorseer::Settings {
                    interval,
                    order: settings.take("order")?.unwrap_or(1),
                    before: settings.take("before")?.unwrap_or(3),
                    after: settings.take("after")?,
                };
                (Self::TaylorSeer(chosen), "interval, order, before and after")
            }
            "magcache" => {
                let ratios = settings
                    .take("ratios")?
                    .ok_or("magcache needs ratios=FILE, which --calibrate-magcache writes")?;
                let threshold = at_least_0("threshold", settings.take("threshold")?.unwrap_or(0.06))?;
                let retention: f64 = settings.take("retention")?.unwrap_or(0.2);
                if !(0.0..=1.0).contains(&retention) {
                    return Err(format!("magcache: retention must be within 0 and 1, got {retention}"));
                }
                let chosen = mag_cache::Settings {
                    threshold: threshold as f32,
                    max_skips: settings.take("max-skips")?.unwrap_or(3),
                    retention,
                };
                (
                    Self::MagCache {
                        ratios,
                        settings: chosen,
                    },
                    "ratios, threshold, max-skips and retention",
                )
            }
            other => return Err(format!("'{other}' is no cache between steps; take {NAMES}")),
        };
        settings.finish(known)?;
        Ok(config)
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::FirstBlock { threshold } => write!(f, "first-block:threshold={threshold}"),
            Self::TaylorSeer(settings) => {
                let taylorseer::Settings {
                    interval,
                    order,
                    before,
                    after,
                } = settings;
                write!(f, "taylorseer:interval={interval},order={order},before={before}")?;
                after.map_or(Ok(()), |after| write!(f, ",after={after}"))
            }
            Self::MagCache { ratios, settings } => {
                let mag_cache::Settings {
                    threshold,
                    max_skips,
                    retention,
                } = settings;
                let ratios = ratios.display();
                write!(
                    f,
                    "magcache:ratios={ratios},threshold={threshold},max-skips={max_skips},retention={retention}"
                )
            }
            Self::CalibrateMagCache => f.write_str("calibrate-magcache"),
        }
    }
}

impl TryFrom<String> for Config {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Config> for String {
    fn from(config: Config) -> Self {
        config.to_string()
    }
}
