//! Progress on standard error, only if that is a terminal.

use std::io::IsTerminal;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Interval of the log lines of a count without a terminal.
const SILENCE: Duration = Duration::from_secs(30);

/// All bars of the process, so that they can be hidden while a line is printed.
static BARS: LazyLock<MultiProgress> = LazyLock::new(|| {
    MultiProgress::with_draw_target(match std::io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    })
});

/// Progress bar over `len` items, hidden without a terminal.
pub fn bar(what: &'static str, len: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} {per_sec} {eta} left")
        .expect("the template is a constant");
    BARS.add(ProgressBar::new(len as u64).with_style(style).with_prefix(what))
}

/// Runs `print` with the bars hidden.
pub fn above(print: impl FnOnce()) {
    BARS.suspend(print);
}

/// A bar as a report of (done, of how many). Whoever holds neither clears it.
pub fn on(bar: &ProgressBar) -> impl Fn(usize, usize) + Sync + use<> {
    let bar = bar.clone();
    move |done, of| {
        bar.set_length(of as u64);
        bar.set_position(done as u64);
    }
}

/// Counter of finished items: a bar, or occasional log lines without a terminal.
pub struct Count {
    what: &'static str,
    bar: ProgressBar,
    started: Instant,
    said: Instant,
}

impl Count {
    /// Starts a count to `of` items called `what`.
    pub fn start(what: &'static str, of: usize) -> Self {
        Self {
            what,
            bar: bar(what, of),
            started: Instant::now(),
            said: Instant::now(),
        }
    }

    /// Counts one more item.
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

    /// Ends the count without a word.
    pub fn clear(self) {
        self.bar.finish_and_clear();
    }

    /// Logs the total and the rate.
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

/// Interval of log lines without a terminal.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// A progress line: redrawn on a terminal, else logged occasionally.
pub struct Line {
    bar: Option<ProgressBar>,
    told: Option<Instant>,
}

impl Line {
    /// Empty line.
    pub fn new() -> Self {
        let style = ProgressStyle::with_template("{msg}").expect("the template is a constant");
        let watched = std::io::stderr().is_terminal();
        Self {
            bar: watched.then(|| BARS.add(ProgressBar::new_spinner().with_style(style))),
            told: None,
        }
    }

    /// Shows the current text. `last` forces it to be shown.
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
