//! Profile of ops and kernels, added up by name.

use std::time::{Duration, Instant};

use candle_core::{Device, Error};
use vtrain::ops::profile::{Level, record, span};

fn work(name: &str, least: Duration) {
    let _span = span(Level::Op, &Device::Cpu, || name.into());
    let _inner = span(Level::Kernel, &Device::Cpu, || format!("{name}'s"));
    std::thread::sleep(least);
}

/// A sleep takes as long at least; on a busy machine much longer.
const LEAST: Duration = Duration::from_millis(2);

fn recorded(compute: impl FnOnce()) -> Vec<(Level, String, usize)> {
    let ((), lines) = record::<_, Error>(|| {
        compute();
        Ok(())
    })
    .unwrap();
    assert!(
        lines.iter().all(|line| line.seconds >= 0.002 * line.calls as f64),
        "{lines:?}"
    );
    let lines = lines.into_iter();
    lines.map(|line| (line.level, line.name, line.calls)).collect()
}

#[test]
fn intervals_of_one_name_are_added_up_and_the_longest_come_first() {
    let lines = recorded(|| {
        let started = Instant::now();
        work("short", LEAST);
        let short = started.elapsed();
        (0..3).for_each(|_| work("long", short));
    });
    let count = |level: Level, name: &str| (level, name.to_string(), if name.starts_with("long") { 3 } else { 1 });
    assert_eq!(lines.len(), 4);
    assert_eq!(lines[0], count(Level::Op, "long"));
    assert_eq!(lines[1], count(Level::Kernel, "long's"));
    assert!(lines.contains(&count(Level::Op, "short")) && lines.contains(&count(Level::Kernel, "short's")));
}

#[test]
fn nothing_is_kept_while_nothing_is_recorded_and_names_are_not_even_made() {
    work("before", LEAST);
    let lines = recorded(|| work("within", LEAST));
    assert_eq!(lines.len(), 2, "{lines:?}");
    let failed = record::<(), Error>(|| {
        work("of a failure", LEAST);
        Err(Error::Msg("it failed".into()))
    });
    assert!(failed.is_err());
    let _span = span(Level::Op, &Device::Cpu, || unreachable!("nobody records"));
    assert!(recorded(|| ()).is_empty());
}
