//! Memory of this process and its machine, from `/proc` and control groups on Linux; unknown elsewhere.

use std::fmt;
use std::path::Path;

use indicatif::BinaryBytes;

/// Resident memory in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resident {
    /// Memory held at present.
    pub now: u64,
    /// Peak since the process started.
    pub peak: u64,
}

/// Memory available to this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Free {
    /// Available bytes.
    pub bytes: u64,
    /// The tightest limit.
    pub limit: Limit,
}

/// Limits of a process's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Memory of the machine.
    Machine,
    /// The limit of a control group: of a container or a batch system's job.
    ControlGroup,
    /// `ulimit -v`, which also counts mapped files.
    AddressSpace,
}

/// Error for something that does not fit in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TooLittle {
    /// Name of what does not fit.
    pub what: String,
    /// Bytes needed.
    pub needed: u64,
    /// Available memory.
    pub free: Free,
    /// Description of what would fit instead.
    pub instead: Option<String>,
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Machine => "the machine has no more",
            Self::ControlGroup => "the control group's limit allows no more",
            Self::AddressSpace => "ulimit -v allows no more",
        })
    }
}

impl fmt::Display for TooLittle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (needed, free) = (BinaryBytes(self.needed), BinaryBytes(self.free.bytes));
        let Self { what, instead, .. } = self;
        write!(
            f,
            "too little memory: {what} takes {needed}, and {free} are available: {}",
            self.free.limit
        )?;
        match instead {
            Some(instead) => write!(f, "; {instead}"),
            None => write!(
                f,
                "; at least {} more is needed",
                BinaryBytes(self.needed - self.free.bytes)
            ),
        }
    }
}

impl std::error::Error for TooLittle {}

/// Returns the memory that this process holds, if the system reports it.
pub fn resident() -> Option<Resident> {
    read(&std::fs::read_to_string("/proc/self/status").ok()?)
}

/// Returns the memory that this process can still use at full speed, if the system reports it: without swap.
pub fn free() -> Option<Free> {
    free_in(Path::new("/"), address_space_limit(), false)
}

/// Returns the memory that this process can still use at all, if the system reports it: with swap.
pub fn most() -> Option<Free> {
    free_in(Path::new("/"), address_space_limit(), true)
}

/// Same as [`free`] or, with `swap`, [`most`], from the `proc` and `sys` below `root` and a limit on the process's
/// address space.
pub fn free_in(root: &Path, address_space: Option<u64>, swap: bool) -> Option<Free> {
    let text = |path: &str| std::fs::read_to_string(root.join(path)).ok();
    let meminfo = text("proc/meminfo")?;
    let swap = swap.then(|| line(&meminfo, "SwapFree:")).flatten();
    let machine = line(&meminfo, "MemAvailable:")?.saturating_add(swap.unwrap_or(0));
    let groups = text("proc/self/cgroup").unwrap_or_default();
    let group = groups.lines().filter_map(|line| left_in(root, line)).min();
    let used = text("proc/self/status").and_then(|status| line(&status, "VmSize:"));
    let mapped = address_space.zip(used).map(|(limit, used)| limit.saturating_sub(used));
    let limits = [
        (Some(machine), Limit::Machine),
        (group, Limit::ControlGroup),
        (mapped, Limit::AddressSpace),
    ];
    let free = limits.into_iter().filter_map(|(bytes, limit)| {
        let bytes = bytes?;
        Some(Free { bytes, limit })
    });
    free.min_by_key(|free| free.bytes)
}

/// Memory files of a control group.
struct Files {
    base: &'static str,
    limit: &'static str,
    used: &'static str,
    /// Entries of `memory.stat`: pages of files, which can be reclaimed.
    pages: [&'static str; 2],
}

const VERSION_1: Files = Files {
    base: "sys/fs/cgroup/memory",
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    pages: ["total_inactive_file", "total_active_file"],
};

const VERSION_2: Files = Files {
    base: "sys/fs/cgroup",
    limit: "memory.max",
    used: "memory.current",
    pages: ["inactive_file", "active_file"],
};

/// Returns the remainder under the tightest limit of a group and its ancestors, given the group's line in
/// `/proc/self/cgroup`: cgroups(7). In a container the group may appear as the root.
fn left_in(root: &Path, line: &str) -> Option<u64> {
    let mut fields = line.splitn(3, ':');
    let (number, controllers, group) = (fields.next()?, fields.next()?, fields.next()?);
    let files = match controllers.split(',').any(|name| name == "memory") {
        true => &VERSION_1,
        false if number == "0" => &VERSION_2,
        false => return None,
    };
    let base = root.join(files.base);
    let groups = Path::new(group.trim_start_matches('/')).ancestors();
    groups.filter_map(|group| files.left(&base.join(group))).min()
}

impl Files {
    fn left(&self, group: &Path) -> Option<u64> {
        let text = |name: &str| std::fs::read_to_string(group.join(name)).ok();
        let number = |name: &str| text(name)?.trim().parse::<u64>().ok();
        let (limit, used) = (number(self.limit)?, number(self.used)?);
        let stat = text("memory.stat").unwrap_or_default();
        let pages = self.pages.iter().filter_map(|key| {
            let line = stat
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?;
            line.trim().parse::<u64>().ok()
        });
        Some(limit.saturating_sub(used.saturating_sub(pages.sum())))
    }
}

#[cfg(target_os = "linux")]
fn address_space_limit() -> Option<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the result is valid for writes.
    let told = unsafe { libc::getrlimit(libc::RLIMIT_AS, &mut limit) } == 0;
    (told && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

#[cfg(not(target_os = "linux"))]
fn address_space_limit() -> Option<u64> {
    None
}

fn read(status: &str) -> Option<Resident> {
    let now = line(status, "VmRSS:")?;
    Some(Resident {
        now,
        // The two lines are not read at the same instant.
        peak: line(status, "VmHWM:")?.max(now),
    })
}

/// Returns the bytes of a line such as `VmHWM:   123456 kB`, proc_pid_status(5).
fn line(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}
