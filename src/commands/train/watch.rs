//! Progress of a run on the terminal and the page, and the signals that ask it to stop.

use indicatif::BinaryBytes;

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
    memory: Memory,
}

/// Peak of the run's memory.
struct Memory {
    planned: Option<u64>,
    measured: Option<u64>,
}

impl<'a> Watch<'a> {
    /// Begins to watch a run that is about to start, and is planned to take so many bytes.
    pub fn start(run: &Run, interrupt: &'a Interrupt, planned: Option<u64>) -> Self {
        let total_steps = run.schedule.total_steps;
        let page = || {
            let page = LivePage::start(&run.validation.validator, total_steps);
            page.note_chosen(&run.state.chosen.changed());
            page
        };
        Self {
            interrupt,
            total_steps,
            progress: Progress::new(total_steps),
            line: Line::new(),
            page: run.ranks.is_first().then(page),
            memory: Memory {
                planned,
                measured: None,
            },
        }
    }

    /// Writes the last page, with all pictures where the run is complete.
    pub fn finish(self, complete: bool) {
        if let Some(page) = self.page {
            if let Memory {
                planned: Some(planned),
                measured: Some(measured),
            } = self.memory
            {
                log::info!(
                    "memory: {} planned, {} measured at most",
                    BinaryBytes(planned),
                    BinaryBytes(measured)
                );
                page.note_memory(planned, measured);
            }
            page.finish(complete);
        }
    }
}

impl Observer for Watch<'_> {
    fn asks_to_stop(&self) -> bool {
        self.interrupt.asked()
    }

    fn logged(&mut self, record: &Record) {
        self.memory.measured = record.peak_memory_bytes.max(self.memory.measured);
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
