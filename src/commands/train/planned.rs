//! The plan of a run's memory before it loads anything: logged, and the reason to refuse what cannot fit.

use candle_core::Device;
use indicatif::BinaryBytes;

use crate::commands::settled::place;
use crate::commands::{Exit, Failure};
use crate::config::RunConfig;
use crate::data::Report;
use crate::models::Family;
use crate::plan::findings::Findings;
use crate::plan::refusal::TooLarge;
use crate::plan::suggestions::suggestions;
use crate::plan::timeline::Place;
use crate::plan::{Extent, Plan, Subject};
use crate::process::memory as host;
use crate::train::config::OnTooLittleMemory;
use crate::train::memory;

/// Bytes that a run takes on its device.
#[derive(Debug, Clone, Copy)]
pub struct Planned {
    /// Peak, with what the process takes before; None without a plan.
    pub peak_bytes: Option<u64>,
}

/// Plans a run of so many ranks, some of whose passes are known, and logs it.
///
/// # Errors
/// Fails for a run that cannot fit, unless `train.on_too_little_memory` is `warn`.
pub fn plan(
    config: &RunConfig,
    family: &dyn Family,
    report: &Report,
    (device, ranks): (&Device, usize),
    findings: &Findings,
) -> Result<Planned, Failure> {
    let nothing = Ok(Planned { peak_bytes: None });
    let place = place(device);
    let free = memory::free(device);
    let folder = family.spec().directory.clone();
    let subject = Subject::new(config, folder, Some(family), Some(report), (place, free)).with_ranks(ranks);
    let subject = Subject {
        findings: findings.clone(),
        ..subject
    };
    let plan = match subject.plan(config) {
        Ok(plan) => plan,
        Err(error) => {
            log::warn!("there is no plan of the run's memory: {error:#}");
            return nothing;
        }
    };
    tell(&plan, free);
    refuse(config, &subject, &plan, device)?;
    let before = match place {
        Place::Host { .. } => host::resident().map_or(0, |resident| resident.now),
        Place::Gpu => 0,
    };
    Ok(Planned {
        peak_bytes: Some(plan.largest().1.peak_bytes + before),
    })
}

fn tell(plan: &Plan, free: Option<u64>) {
    let stages = plan.stages().into_iter();
    let stages = stages.map(|(stage, memory)| format!("{} {}", stage.name(), BinaryBytes(memory.peak_bytes)));
    let free = free.map_or(String::new(), |free| format!("; {} are free", BinaryBytes(free)));
    log::info!("planned memory: {}{free}", stages.collect::<Vec<_>>().join(", "));
}

/// Refuses a run that cannot fit even into what is swapped out on the CPU.
fn refuse(config: &RunConfig, subject: &Subject, plan: &Plan, device: &Device) -> Result<(), Failure> {
    let most = match device.is_cpu() {
        true => host::most().map(|most| most.bytes),
        false => subject.free,
    };
    let Some(most) = most else {
        return Ok(());
    };
    let suggest = || suggestions(subject, config, most, Extent::Training);
    match (TooLarge::check(plan, most, suggest), config.train.on_too_little_memory) {
        (None, _) => Ok(()),
        (Some(error), OnTooLittleMemory::Stop) => Err(Failure {
            exit: Exit::Training,
            error: error.into(),
        }),
        (Some(error), OnTooLittleMemory::Warn) => {
            log::warn!("{error}");
            Ok(())
        }
    }
}
