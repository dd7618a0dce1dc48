//! Memory of this process and of its machine, as Linux tells of it in `/proc` and control groups; elsewhere unknown. Of a
//! GPU, as its driver tells.

use std::path::Path;

use candle_core::Device;

/// In bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resident {
    pub now: u64,
    /// The most there was since the process started.
    pub peak: u64,
}

/// What this process holds, where the system tells.
pub fn resident() -> Option<Resident> {
    read(&std::fs::read_to_string("/proc/self/status").ok()?)
}

/// How many bytes this process may still take, where the system tells: what the machine has, or what is left of the
/// control group's limit.
pub fn free() -> Option<u64> {
    let machine = line(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")?;
    let number = |path: &str| -> Option<u64> { std::fs::read_to_string(Path::new(path)).ok()?.trim().parse().ok() };
    let group = number("/sys/fs/cgroup/memory.max")
        .zip(number("/sys/fs/cgroup/memory.current"))
        .or_else(|| {
            number("/sys/fs/cgroup/memory/memory.limit_in_bytes")
                .zip(number("/sys/fs/cgroup/memory/memory.usage_in_bytes"))
        })
        .map(|(limit, used)| limit.saturating_sub(used));
    Some(group.map_or(machine, |group| group.min(machine)))
}

/// The most bytes that were in use at once where a run computes: of this process, or of the GPU's pool.
pub fn peak_on(device: &Device) -> Option<u64> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        return crate::ops::cuda::memory::peak(device).ok();
    }
    device.is_cpu().then(|| resident().map(|memory| memory.peak)).flatten()
}

/// How many bytes may still be taken where a run computes.
pub fn free_on(device: &Device) -> Option<u64> {
    #[cfg(feature = "cuda")]
    if let Device::Cuda(device) = device {
        return crate::ops::cuda::memory::free(device).ok();
    }
    device.is_cpu().then(free).flatten()
}

fn read(status: &str) -> Option<Resident> {
    let now = line(status, "VmRSS:")?;
    Some(Resident {
        now,
        // The two lines are not read at one instant.
        peak: line(status, "VmHWM:")?.max(now),
    })
}

/// The bytes of a line such as `VmHWM:   123456 kB`, proc_pid_status(5).
fn line(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}
