//! Memory of this process in the machine's RAM, as Linux tells it in `/proc/self/status`; elsewhere unknown.

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

/// Lines such as `VmHWM:   123456 kB`, proc_pid_status(5).
fn read(status: &str) -> Option<Resident> {
    let bytes = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        kib.checked_mul(1024)
    };
    let now = bytes("VmRSS:")?;
    Some(Resident {
        now,
        // The two lines are not read at one instant.
        peak: bytes("VmHWM:")?.max(now),
    })
}
