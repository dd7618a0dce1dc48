//! Panics are bugs: each is reported in a line, and the process ends with exit code 70, on whichever thread it
//! happened.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::cell::Cell;
use std::io::Write;
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::process::ExitCode;
use std::thread;

/// Exit code (EX_SOFTWARE of sysexits.h).
pub const EXIT: u8 = super::exit::Exit::Bug as u8;

thread_local! {
    /// True while this thread is in [`contained`].
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Runs the program's work on this thread. If it panics here, its values are dropped first (unfinished files vanish);
/// if it panics on any other thread, the process ends at once, so that nothing waits for that thread forever.
pub fn guarded(work: impl FnOnce() -> ExitCode) -> ExitCode {
    let here = thread::current().id();
    panic::set_hook(Box::new(move |panic| {
        if CONTAINED.get() {
            return;
        }
        tell(panic);
        if thread::current().id() != here {
            end();
        }
    }));
    panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or(ExitCode::from(EXIT))
}

/// Runs code of another crate that is known to panic on damaged input; `None` if it did. Nothing is printed.
pub fn contained<T>(work: impl FnOnce() -> T) -> Option<T> {
    let before = CONTAINED.replace(true);
    let done = panic::catch_unwind(AssertUnwindSafe(work));
    CONTAINED.set(before);
    done.ok()
}

fn tell(panic: &PanicHookInfo) {
    let payload = panic.payload();
    let said = payload
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".into());
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    let at = panic.location().map_or_else(String::new, |at| format!(" at {at}"));
    let backtrace = Backtrace::capture();
    let told = backtrace.status() == BacktraceStatus::Captured;
    let next = match told {
        true => "please report it with the command and the backtrace below",
        false => "run it again with RUST_BACKTRACE=1, and report it with the command and the backtrace",
    };
    let mut text = format!("error: a bug in vtrain: {said}{at}; {next}\n");
    if told {
        text += &backtrace.to_string();
    }
    // Standard error may be closed.
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// Ends the process without joining the other threads, which may wait for this one.
fn end() -> ! {
    #[cfg(unix)]
    // SAFETY: ends the process; nothing runs afterwards.
    unsafe {
        libc::_exit(EXIT.into())
    }
    #[cfg(not(unix))]
    std::process::exit(EXIT.into())
}
