//! Memory of this process and of its machine, as Linux tells of it in `/proc` and control groups; elsewhere unknown.

use std::path::Path;

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
