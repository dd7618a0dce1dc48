//! Facts about the machine of a run. Nothing else of the process's environment is published.

use serde::{Deserialize, Serialize};

/// Names and values, in the order of display.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Environment(pub Vec<(String, String)>);

impl Environment {
    /// Facts about this process, which trains on `device`.
    pub fn here(device: &str, dtype: &str) -> Self {
        let facts = [
            ("vtrain", Some(env!("CARGO_PKG_VERSION").to_string())),
            ("candle", candle().map(String::from)),
            ("device", Some(device.to_string())),
            ("dtype", Some(dtype.to_string())),
            ("threads", Some(rayon::current_num_threads().to_string())),
            ("processor", processor()),
            ("memory", memory()),
            ("system", Some(system())),
            ("build", Some(env!("VTRAIN_PROFILE").to_string())),
        ];
        let known = facts
            .into_iter()
            .filter_map(|(what, value)| Some((what.to_string(), value?)));
        Self(known.collect())
    }
}

/// Returns the version of candle-core in this program: the newest in the lock file, which may hold an older one for
/// tests.
fn candle() -> Option<&'static str> {
    let lock = include_str!("../../Cargo.lock");
    let (_, entry) = lock.rsplit_once("name = \"candle-core\"\n")?;
    entry.strip_prefix("version = \"")?.split('"').next()
}

/// `Debian GNU/Linux 12 (bookworm), Linux 6.1.0 x86_64`
fn system() -> String {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let system = match std::env::consts::OS {
        "linux" => "Linux",
        "macos" => "macOS",
        other => other,
    };
    let machine = format!("{system} {} {}", kernel.trim(), std::env::consts::ARCH).replace("  ", " ");
    match name {
        Some(name) => format!("{}, {machine}", name.trim_matches('"')),
        None => machine,
    }
}

fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

/// Returns the machine's memory.
fn memory() -> Option<String> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(format!("{:.1} GiB", kib / f64::from(1 << 20)))
}
