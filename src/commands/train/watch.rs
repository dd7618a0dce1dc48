//! Progress of a run on the terminal and the page, and the signals that ask it to stop.

use crate::commands::interrupt::Interrupt;
use crate::commands::progress::{self, Line};
use crate::report::live::LivePage;
use crate::train::metrics::Record;
use crate::train::observer::Observer;
use crate::train::progress::Progress;
use crate::train::run::Run;

/// Watches a run from the outside.
pub struct Watch<'a> {
    interrupt: &'a Interrupt,
    total_steps: u64,
    progress: Progress,
    line: Line,
    /// Rank 0 writes it.
    page: Option<LivePage>,
}

impl<'a> Watch<'a> {
    /// Begins to watch a run that is about to start.
    pub fn start(run: &Run, interrupt: &'a Interrupt) -> Self {
        let total_steps = run.schedule.total_steps;
        let page = || LivePage::start(&run.validation.validator, total_steps);
        Self {
            interrupt,
            total_steps,
            progress: Progress::new(total_steps),
            line: Line::new(),
            page: run.ranks.is_first().then(page),
        }
    }

    /// Writes the last page, with all pictures where the run is complete.
    pub fn finish(self, complete: bool) {
        if let Some(page) = self.page {
            page.finish(complete);
        }
    }
}

impl Observer for Watch<'_> {
    fn asks_to_stop(&self) -> bool {
        self.interrupt.asked()
    }

    fn logged(&mut self, record: &Record) {
        self.line
            .tell(self.progress.line(record), record.step == self.total_steps);
        if let Some(page) = &mut self.page {
            page.keep_up();
        }
    }

    fn refresh(&mut self) {
        if let Some(page) = &mut self.page {
            page.write();
        }
    }

    fn denoising(&self, steps: usize) -> Box<dyn Fn(usize, usize)> {
        Box::new(progress::on(&progress::bar("validation", steps)))
    }
}
