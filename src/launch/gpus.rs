//! Number of GPUs of a machine, without querying their driver.

/// Counts the GPUs in `CUDA_VISIBLE_DEVICES`, else those that NVIDIA's driver lists under `/proc`.
pub fn count() -> usize {
    match std::env::var("CUDA_VISIBLE_DEVICES") {
        Ok(named) => visible(&named),
        Err(_) => std::fs::read_dir("/proc/driver/nvidia/gpus").map_or(0, Iterator::count),
    }
}

/// CUDA stops at the first negative number.
fn visible(named: &str) -> usize {
    let named = named.split(',').map(str::trim);
    named
        .take_while(|name| !name.is_empty() && !name.starts_with('-'))
        .count()
}
