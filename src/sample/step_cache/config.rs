//! Choice of a cache: `first-block:threshold=0.08`, in a run file and on the command line.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::faster_cache::{self, FasterCache};
use super::mag_cache::{self, Calibration, MagCache};
use super::pyramid::{self, Pyramid};
use super::taylorseer::{self, TaylorSeer};
use super::{NoCache, Step, StepCache, TimestepRange, first_block::FirstBlock};
use crate::named_settings::NamedSettings;

/// A cache between steps, with its settings.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub enum Config {
    /// `none`
    #[default]
    None,
    /// `auto`: what our own measurement says.
    Auto,
    /// `first-block:threshold=`
    FirstBlock {
        /// Largest change of the first block's work under which the others are skipped.
        threshold: f64,
    },
    /// `taylorseer:interval=,order=,before=,after=,of=`
    TaylorSeer(taylorseer::Settings),
    /// `magcache:ratios=FILE,threshold=,max-skips=,retention=`
    MagCache {
        /// File of the model's ratios.
        ratios: PathBuf,
        /// Other settings.
        settings: mag_cache::Settings,
    },
    /// `pab:skip=,cross=,range=`
    Pyramid(pyramid::Settings),
    /// `fastercache:skip=,range=,weight=,negative-skip=,negative-range=,low=,high=`
    FasterCache(faster_cache::Settings),
    /// `--calibrate-magcache`
    CalibrateMagCache,
}

/// Caches to choose from, for messages.
const NAMES: &str = "none, auto, first-block, taylorseer, magcache, pab or fastercache";

/// Steps from which on `auto` extrapolates: with fewer, consecutive ones differ too much.
const FINE_STEPS: usize = 50;

/// Returns what `auto` stands for: what saved most at 35 dB or more in every clip of `datasets/tiny-world`, by
/// `scripts/bench/step_caches.py` (docs/benchmarks.md).
fn measured(num_steps: usize) -> Config {
    if num_steps < FINE_STEPS {
        return Config::FirstBlock { threshold: 0.1 };
    }
    Config::TaylorSeer(taylorseer::Settings {
        interval: 3,
        order: 1,
        before: (num_steps * 6).div_ceil(25), // 12 of 50
        after: Some(num_steps * 21 / 25),     // 42 of 50
        of: taylorseer::Outputs::Network,
    })
}

impl Config {
    /// Returns the cache at the start of a run of these steps.
    ///
    /// # Errors
    /// Fails for a table of ratios that cannot be read.
    pub fn start(&self, steps: &[Step]) -> anyhow::Result<Box<dyn StepCache>> {
        Ok(match self {
            Self::None => Box::new(NoCache),
            Self::Auto => return measured(steps.len()).start(steps),
            Self::FirstBlock { threshold } => Box::new(FirstBlock::new(*threshold)),
            Self::TaylorSeer(settings) => Box::new(TaylorSeer::new(*settings, steps)),
            Self::MagCache { ratios, settings } => {
                Box::new(MagCache::new(*settings, &mag_cache::read_ratios(ratios)?, steps.len()))
            }
            Self::Pyramid(settings) => Box::new(Pyramid::new(*settings, steps)),
            Self::FasterCache(settings) => Box::new(FasterCache::new(*settings, steps)),
            Self::CalibrateMagCache => Box::new(Calibration::default()),
        })
    }
}

impl FromStr for Config {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut settings = NamedSettings::parse(text)?;
        let (config, known) = match settings.name {
            "none" => (Self::None, ""),
            "auto" => (Self::Auto, ""),
            "first-block" => {
                let threshold = at_least_0(&mut settings, "threshold", 0.05)?;
                (Self::FirstBlock { threshold }, "threshold")
            }
            "taylorseer" => taylorseer(&mut settings)?,
            "magcache" => mag_cache(&mut settings)?,
            "pab" => pyramid(&mut settings)?,
            "fastercache" => faster_cache(&mut settings)?,
            other => return Err(format!("'{other}' is no cache between steps; take {NAMES}")),
        };
        settings.finish(known)?;
        Ok(config)
    }
}

/// A cache, and the names of its settings.
type Parsed = Result<(Config, &'static str), String>;

fn at_least_0(settings: &mut NamedSettings, key: &str, default: f64) -> Result<f64, String> {
    let value = settings.take(key)?.unwrap_or(default);
    match value >= 0.0 && value.is_finite() {
        true => Ok(value),
        false => Err(format!("{}: {key} must be 0 or more, got {value}", settings.name)),
    }
}

fn at_least_1(settings: &mut NamedSettings, key: &str, default: usize) -> Result<usize, String> {
    match settings.take(key)?.unwrap_or(default) {
        0 => Err(format!("{}: {key} must be at least 1", settings.name)),
        value => Ok(value),
    }
}

fn taylorseer(settings: &mut NamedSettings) -> Parsed {
    let chosen = taylorseer::Settings {
        interval: at_least_1(settings, "interval", 5)?,
        order: settings.take("order")?.unwrap_or(1),
        before: settings.take("before")?.unwrap_or(3),
        after: settings.take("after")?,
        of: settings.take("of")?.unwrap_or_default(),
    };
    Ok((Config::TaylorSeer(chosen), "interval, order, before, after and of"))
}

fn mag_cache(settings: &mut NamedSettings) -> Parsed {
    let ratios = settings
        .take("ratios")?
        .ok_or("magcache needs ratios=FILE, which --calibrate-magcache writes")?;
    let threshold = at_least_0(settings, "threshold", 0.06)?;
    let retention: f64 = settings.take("retention")?.unwrap_or(0.2);
    if !(0.0..=1.0).contains(&retention) {
        return Err(format!("magcache: retention must be within 0 and 1, got {retention}"));
    }
    let settings = mag_cache::Settings {
        threshold: threshold as f32,
        max_skips: settings.take("max-skips")?.unwrap_or(3),
        retention,
    };
    Ok((
        Config::MagCache { ratios, settings },
        "ratios, threshold, max-skips and retention",
    ))
}

fn pyramid(settings: &mut NamedSettings) -> Parsed {
    let skip = at_least_1(settings, "skip", 2)?;
    let chosen = pyramid::Settings {
        skip,
        cross: at_least_1(settings, "cross", skip)?,
        range: settings.take("range")?.unwrap_or(TimestepRange::new(100.0, 800.0)),
    };
    Ok((Config::Pyramid(chosen), "skip, cross and range"))
}

fn faster_cache(settings: &mut NamedSettings) -> Parsed {
    let range = |below| TimestepRange::new(-1.0, below);
    let chosen = faster_cache::Settings {
        skip: at_least_1(settings, "skip", 2)?,
        range: settings.take("range")?.unwrap_or(range(681.0)),
        weight: at_least_0(settings, "weight", 0.5)?,
        negative_skip: at_least_1(settings, "negative-skip", 5)?,
        negative_range: settings.take("negative-range")?.unwrap_or(range(641.0)),
        low: at_least_0(settings, "low", 1.1)?,
        high: at_least_0(settings, "high", 1.1)?,
    };
    Ok((
        Config::FasterCache(chosen),
        "skip, range, weight, negative-skip, negative-range, low and high",
    ))
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Auto => f.write_str("auto"),
            Self::FirstBlock { threshold } => write!(f, "first-block:threshold={threshold}"),
            Self::TaylorSeer(settings) => {
                let taylorseer::Settings {
                    interval,
                    order,
                    before,
                    after,
                    of,
                } = settings;
                write!(f, "taylorseer:interval={interval},order={order},before={before}")?;
                after.map_or(Ok(()), |after| write!(f, ",after={after}"))?;
                match of {
                    taylorseer::Outputs::Network => Ok(()),
                    of => write!(f, ",of={of}"),
                }
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
            Self::Pyramid(pyramid::Settings { skip, cross, range }) => {
                write!(f, "pab:skip={skip},cross={cross},range={range}")
            }
            Self::FasterCache(settings) => {
                let faster_cache::Settings {
                    skip,
                    range,
                    weight,
                    negative_skip,
                    negative_range,
                    low,
                    high,
                } = settings;
                write!(f, "fastercache:skip={skip},range={range},weight={weight},")?;
                write!(
                    f,
                    "negative-skip={negative_skip},negative-range={negative_range},low={low},high={high}"
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
