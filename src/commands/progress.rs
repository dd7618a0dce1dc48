//! Progress on standard error, only where that is a terminal.

use std::io::IsTerminal;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a count that nobody watches says where it is.
const SILENCE: Duration = Duration::from_secs(30);

/// All bars of the process: whoever prints a line has them step aside.
static BARS: LazyLock<MultiProgress> = LazyLock::new(|| {
    MultiProgress::with_draw_target(match std::io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    })
});

/// A bar over `len` things of a kind, hidden where nobody can watch it.
pub fn bar(what: &'static str, len: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} {per_sec} {eta} left")
        .expect("the template is a constant");
    BARS.add(ProgressBar::new(len as u64).with_style(style).with_prefix(what))
}

/// Runs `print` with the bars out of the way.
pub fn above(print: impl FnOnce()) {
    BARS.suspend(print);
}

/// A bar as a report of (done, of how many).
pub fn on(bar: &ProgressBar) -> impl Fn(usize, usize) + Sync {
    |done, of| {
        bar.set_length(of as u64);
        bar.set_position(done as u64);
    }
}

/// Counts things done one after the other: a bar, or a line now and then where nobody could watch one.
pub struct Count {
    what: &'static str,
    bar: ProgressBar,
    started: Instant,
    said: Instant,
}

impl Count {
    pub fn start(what: &'static str, of: usize) -> Self {
        Self {
            what,
            bar: bar(what, of),
            started: Instant::now(),
            said: Instant::now(),
        }
    }

    /// One more is done.
    pub fn step(&mut self) {
        self.bar.inc(1);
        if self.bar.is_hidden() && self.said.elapsed() > SILENCE {
            self.said = Instant::now();
            let (done, of) = (self.bar.position(), self.bar.length().unwrap_or(0));
            let left = self
                .started
                .elapsed()
                .mul_f64(of.saturating_sub(done) as f64 / done as f64);
            let (rate, left) = (self.rate(), HumanDuration(left));
            log::info!("{}: {done} of {of}, {rate} a second, {left} left", self.what);
        }
    }

    /// Says what was done, and how fast.
    pub fn finish(self) {
        self.bar.finish_and_clear();
        let (done, time) = (self.bar.position(), self.started.elapsed().as_secs_f64());
        log::info!("{}: {done} encoded in {time:.1} s, {} a second", self.what, self.rate());
    }

    fn rate(&self) -> String {
        let rate = self.bar.position() as f64 / self.started.elapsed().as_secs_f64().max(1e-9);
        format!("{rate:.*}", if rate < 1.0 { 3 } else { 1 })
    }
}

/// How often a line is logged where nobody can watch it being redrawn.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// One line that tells how work goes: redrawn on a terminal, else logged now and then.
pub struct Line {
    bar: Option<ProgressBar>,
    told: Option<Instant>,
}

impl Line {
    pub fn new() -> Self {
        let style = ProgressStyle::with_template("{msg}").expect("the template is a constant");
        let watched = std::io::stderr().is_terminal();
        Self {
            bar: watched.then(|| BARS.add(ProgressBar::new_spinner().with_style(style))),
            told: None,
        }
    }

    /// Shows how things are now. `last` is shown in any case.
    pub fn tell(&mut self, text: String, last: bool) {
        match &self.bar {
            Some(bar) if !last => {
                bar.set_message(text);
                bar.tick();
            }
            Some(bar) => {
                bar.finish_and_clear();
                log::info!("{text}");
            }
            None if last || self.told.is_none_or(|told| told.elapsed() >= BETWEEN_LINES) => {
                self.told = Some(Instant::now());
                log::info!("{text}");
            }
            None => {}
        }
    }
}

impl Default for Line {
    fn default() -> Self {
        Self::new()
    }
}
