//! Exit codes of the program.

use serde::{Deserialize, Serialize};

/// Exit code of the program, other than 0 for success.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// Error on the command line or in the configuration.
    Usage = 2,
    /// The data set is unusable.
    Data = 3,
    /// The model's files are missing or broken.
    Model = 4,
    /// Training failed, or its output could not be written; or disk or memory was too small for it.
    Training = 5,
    /// A panic: a bug of vtrain.
    Bug = 70,
    /// Ctrl-C or SIGTERM; completed work is kept.
    Interrupted = 130,
}
