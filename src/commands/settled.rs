//! Settings of a run of which none is left to its plan: what the run file says is `auto` is chosen so that the run fits in
//! memory, or is as in the checkpoint that the run resumes from.

use candle_core::Device;

use super::check::Until;
use super::{Exit, Failure, OrExit};
use crate::config::RunConfig;
use crate::data::Report;
use crate::distributed::Communicator;
use crate::models::Family;
use crate::plan::choice::{self, Stages};
use crate::plan::findings::Findings;
use crate::plan::timeline::Place;
use crate::plan::{Stage, Subject};
use crate::train::chosen::ChosenSettings;
use crate::train::memory;

/// A run's settings, and what was chosen of them.
#[derive(Debug, Clone)]
pub struct Settled {
    /// The settings.
    pub config: RunConfig,
    /// Their values of keys that are `auto` in the run file.
    pub chosen: ChosenSettings,
    /// Findings of the plans that it was chosen by.
    pub findings: Findings,
}

/// Chooses what `auto` stands for; rank 0 does so for all. What was `recorded` of a run that resumes stays. Without a
/// model, which is not downloaded yet, nothing is chosen.
///
/// # Errors
/// Ranks that cannot be reached.
pub fn settle(
    config: &RunConfig,
    until: Until,
    family: Option<&dyn Family>,
    report: &Report,
    recorded: &ChosenSettings,
    ranks: &dyn Communicator,
) -> Result<Settled, Failure> {
    let activations =
        until == Until::Trained && config.leaves_activations_to_plan() && recorded.activation_policy.is_none();
    let is_open = activations || config.leaves_weights_to_plan(recorded);
    let Some(family) = family.filter(|_| is_open) else {
        let config = config.with_chosen(recorded);
        tell_recorded(recorded, ranks);
        return Ok(Settled {
            chosen: *recorded,
            config,
            findings: Findings::default(),
        });
    };
    let device = config.open_device().or_exit(Exit::Usage)?;
    let free = memory::least_free(&device, ranks).or_exit(Exit::Training)?;
    let folder = family.spec().directory.clone();
    let subject = Subject::new(config, folder, Some(family), Some(report), (place(&device), free));
    let subject = subject.with_ranks(ranks.world_size());
    let choose = || chosen(config, until, &subject, recorded);
    let chosen = ranks.is_first().then(choose).unwrap_or_default();
    let chosen = ranks.broadcast_json(&chosen).or_exit(Exit::Training)?;
    Ok(Settled {
        config: config.with_chosen(&chosen),
        chosen,
        findings: subject.findings,
    })
}

/// Returns the place where a run computes.
pub fn place(device: &Device) -> Place {
    match device.is_cpu() {
        true => Place::Host {
            threads: rayon::current_num_threads(),
        },
        false => Place::Gpu,
    }
}

fn tell_recorded(recorded: &ChosenSettings, ranks: &dyn Communicator) {
    let sets = recorded.changed();
    if ranks.is_first() && !sets.is_empty() {
        log::info!("auto: as the run began: {}", sets.join(", "));
    }
}

fn chosen(config: &RunConfig, until: Until, subject: &Subject, recorded: &ChosenSettings) -> ChosenSettings {
    let room = subject.free.unwrap_or(u64::MAX);
    let choice = match until {
        Until::Trained => choice::choose(config, recorded, room, subject),
        Until::Encoded => choice::choose(config, recorded, room, &|config: &RunConfig| encodings(config, subject)),
    };
    match choice {
        Ok(choice) => {
            // Activations that stay as they are by default are no news.
            if config.leaves_weights_to_plan(recorded) || !choice.set.is_empty() {
                log::info!("{}", choice.reason("the run", room));
            }
            config.chosen_in(&choice.config)
        }
        Err(error) => {
            if config.leaves_weights_to_plan(recorded) {
                log::warn!("auto: nothing changes, since there is no plan of the run's memory: {error:#}");
            }
            config.chosen_in(&choice::unchanged(&config.with_chosen(recorded)))
        }
    }
}

/// Returns the stages that come before training.
fn encodings(config: &RunConfig, subject: &Subject) -> anyhow::Result<Stages> {
    let all = subject.plan(config)?.stages().into_iter();
    Ok(all
        .filter(|(stage, _)| matches!(stage, Stage::Text | Stage::Encode))
        .collect())
}
