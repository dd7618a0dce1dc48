//! Steps and schedulers that a request chooses, against diffusers. Numbers are from
//!
//! ```python
//! UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3).set_timesteps(
//!     sigmas=np.array([1, .6, .3]))
//! FlowMatchEulerDiscreteScheduler(shift=3).set_timesteps(sigmas=[1, .75, .5, .25])  # shifted; with shift=1 as given
//! DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3).set_timesteps(5)
//! ```

use candle_core::{Device, Tensor};
use vtrain::diffusion::schedulers::{Config, Run, Scheduler, SchedulerName, StepList};

const UNIPC: &str = r#"{"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction",
    "use_flow_sigmas": true, "flow_shift": 3.0}"#;
const EULER: &str = r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}"#;
const MOCHI: &str = r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": true}"#;
const DYNAMIC: &str = r#"{"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": true}"#;
const DDIM: &str = r#"{"_class_name": "CogVideoXDDIMScheduler", "prediction_type": "v_prediction"}"#;
const ANCESTRAL: &str = r#"{"_class_name": "EulerAncestralDiscreteScheduler"}"#;

fn scheduler(config: &str) -> Scheduler {
    Scheduler::new(Config::parse(config).unwrap()).unwrap()
}

fn close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (a, b) in found.iter().zip(expected) {
        assert!((a - b).abs() <= 2e-7 * b.abs().max(1.0), "{found:?} {expected:?}");
    }
}

fn check(run: &Run, sigmas: &[f32], timesteps: &[f64]) {
    close(run.sigmas().unwrap(), sigmas);
    let timesteps: Vec<f32> = timesteps.iter().map(|t| *t as f32 / 1000.0).collect();
    let found: Vec<f32> = run.timesteps().iter().map(|t| *t as f32 / 1000.0).collect();
    close(&found, &timesteps);
}

#[test]
fn listed_sigmas_are_shifted_by_every_scheduler_of_flow_matching() {
    let list = StepList::Sigmas(vec![1.0, 0.6, 0.3]);
    let unipc = scheduler(UNIPC);
    check(
        &unipc.start_with(&list, None).unwrap(),
        &[0.999_999, 0.818_181_8, 0.5625, 0.0],
        &[999.0, 818.0, 562.0],
    );
    let euler = scheduler(EULER);
    let list = StepList::Sigmas(vec![1.0, 0.75, 0.5, 0.25]);
    check(
        &euler.start_with(&list, None).unwrap(),
        &[1.0, 0.9, 0.75, 0.5, 0.0],
        &[1000.0, 900.0, 750.0, 500.0],
    );
}

#[test]
fn listed_timesteps_are_what_the_network_sees_and_nothing_is_applied_to_them() {
    let list = StepList::Timesteps(vec![1000.0, 750.0, 500.0, 250.0]);
    let seen = [1000.0, 750.0, 500.0, 250.0];
    let euler = scheduler(EULER);
    check(
        &euler.start_with(&list, None).unwrap(),
        &[1.0, 0.75, 0.5, 0.25, 0.0],
        &seen,
    );
    let unipc = scheduler(UNIPC);
    let run = unipc.start_with(&list, None).unwrap();
    check(&run, &[0.999_999, 0.75, 0.5, 0.25, 0.0], &seen);
}

#[test]
fn lists_that_no_scheduler_can_take_are_refused() {
    let timesteps = |list: &[f64]| StepList::Timesteps(list.to_vec());
    for (config, list, said) in [
        (EULER, timesteps(&[]), "timesteps must descend"),
        (EULER, timesteps(&[1001.0, 5.0]), "from 1000 (noise) at most"),
        (UNIPC, timesteps(&[500.0, 500.0]), "timesteps must descend"),
        (UNIPC, StepList::Sigmas(vec![0.5, 0.0]), "sigmas must descend"),
        (MOCHI, timesteps(&[900.0]), "list sigmas instead"),
        (
            DDIM,
            timesteps(&[900.0]),
            "lists of steps are for schedulers of flow matching",
        ),
        (ANCESTRAL, StepList::Sigmas(vec![1.0]), "leave them out"),
    ] {
        let error = scheduler(config).start_with(&list, None).unwrap_err().to_string();
        assert!(error.contains(said), "{list:?}: {error}");
    }
}

#[test]
fn another_scheduler_keeps_the_settings_of_the_checkpoints_own() {
    let name = |scheduler: &Scheduler| format!("{scheduler:?}").split('(').next().unwrap().to_string();
    for (config, chosen, expected) in [
        (EULER, SchedulerName::UniPc, "UniPc"),
        (EULER, SchedulerName::Euler, "FlowMatchEuler"),
        (EULER, SchedulerName::DpmPlusPlus, "DpmSolver"),
        (UNIPC, SchedulerName::DpmPlusPlus, "DpmSolver"),
        (DDIM, SchedulerName::Dpm, "Dpm"),
        (DDIM, SchedulerName::Ddim, "Ddim"),
    ] {
        assert_eq!(name(&scheduler(config).replaced(chosen).unwrap()), expected);
    }
    // Each by the same shift as the other's own.
    let (given, unipc) = (
        scheduler(EULER).replaced(SchedulerName::UniPc).unwrap(),
        scheduler(UNIPC),
    );
    let sigmas = |scheduler: &Scheduler| scheduler.start(6, None).unwrap().sigmas().unwrap().to_vec();
    assert_eq!(sigmas(&given), sigmas(&unipc));
    let given = unipc.replaced(SchedulerName::Euler).unwrap();
    assert_eq!(sigmas(&given), sigmas(&scheduler(EULER)));
    for (config, chosen, said) in [
        (DDIM, SchedulerName::UniPc, "takes ddim or dpm"),
        (UNIPC, SchedulerName::Ddim, "takes euler, unipc or dpm++"),
        (
            DYNAMIC,
            SchedulerName::UniPc,
            "use_dynamic_shifting, which only euler has",
        ),
        (MOCHI, SchedulerName::DpmPlusPlus, "invert_sigmas, which only euler has"),
        (ANCESTRAL, SchedulerName::Dpm, "its own scheduler alone"),
    ] {
        let error = scheduler(config).replaced(chosen).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn steps_by_dpm_solver_are_those_of_diffusers() {
    let dpm = scheduler(UNIPC).replaced(SchedulerName::DpmPlusPlus).unwrap();
    let mut run = dpm.start(5, None).unwrap();
    check(
        &run,
        &[0.999_666_45, 0.922_721_7, 0.817_809_7, 0.666_296_1, 0.428_265_2, 0.0],
        &[999.0, 922.0, 817.0, 666.0, 428.0],
    );
    let mut sample = Tensor::new(&[[1f32, -2.0, 0.5]], &Device::Cpu).unwrap();
    for (output, expected) in [
        ([0.5f32, -1.0, 0.25], [0.961_527_6f32, -1.923_055_2, 0.480_763_8]),
        ([0.3, -0.8, 0.5], [0.931_911_6, -1.840_983_2, 0.425_985_84]),
        ([0.2, -0.5, 0.6], [0.908_024_3, -1.784_187_7, 0.328_626_63]),
        ([0.1, -0.2, 0.7], [0.900_011_8, -1.783_891_7, 0.146_206_74]),
        ([0.0, 0.1, 0.8], [0.900_011_8, -1.826_718_2, -0.196_405_44]),
    ] {
        let output = Tensor::new(&[output], &Device::Cpu).unwrap();
        sample = run.step(&output, &sample, None).unwrap().sample;
        let found = sample.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() <= 5e-6, "{found:?} {expected:?}");
        }
    }
}
