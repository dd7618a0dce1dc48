//! `FILE[=SCALE]` on the command line: an adapter file and its scale.

use crate::hub;
use crate::lora::adapters::AdapterFile;
use crate::lora::file;
use crate::lora::scaled_file::ScaledFile;
use crate::models::registry;

/// Reads an adapter file, of any format; a name that is not on disk may be on the Hub.
///
/// # Errors
/// Fails for a file that cannot be read, or not applied completely.
pub fn read(lora: &ScaledFile) -> anyhow::Result<AdapterFile> {
    let path = match lora.path.exists() {
        true => lora.path.clone(),
        false => hub::fetch::adapter(&lora.path.to_string_lossy())?,
    };
    file::read(&path, &registry::names())?.apply(&lora.path, lora.scale)
}
