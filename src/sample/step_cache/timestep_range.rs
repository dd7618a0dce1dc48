//! Range of timesteps, `100..800` in text: those between the two, without them.

use std::fmt;
use std::str::FromStr;

/// Timesteps of which 1000 is noise, whatever a network's own time is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TimestepRange {
    above: f64,
    below: f64,
}

impl TimestepRange {
    /// Timesteps above one and below another.
    pub const fn new(above: f64, below: f64) -> Self {
        Self { above, below }
    }

    /// Returns true for a timestep inside.
    pub fn contains(&self, timestep: f64) -> bool {
        self.above < timestep && timestep < self.below
    }
}

impl FromStr for TimestepRange {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (above, below) = text.split_once("..").ok_or(())?;
        let number = |text: &str| text.parse().ok().filter(|number: &f64| number.is_finite()).ok_or(());
        Ok(Self::new(number(above)?, number(below)?))
    }
}

impl fmt::Display for TimestepRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.above, self.below)
    }
}
