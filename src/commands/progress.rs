//! Progress on standard error, only where that is a terminal.

use std::io::IsTerminal;
use std::sync::LazyLock;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

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
