//! Keys that affect training, in the trainer made from a run file: in its numbers if they show there.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use candle_core::{DType, Device, Tensor, Var};
use vtrain::commands::train::build::trainer;
use vtrain::commands::{check_dataset, precompute};
use vtrain::config::RunConfig;
use vtrain::data::Order;
use vtrain::data::cache::Latents;
use vtrain::diffusion::objective::Objective;
use vtrain::diffusion::timesteps::{Config, Density, Shift, Weighting};
use vtrain::distributed::Single;
use vtrain::lora::trainable::LoraPair;
use vtrain::models::denoiser::TextEmbeds;
use vtrain::optim::adamw::{self, AdamW};
use vtrain::rng::Rng;
use vtrain::train::offload::OffloadTo;
use vtrain::train::segments::{ActivationBudget, SavedActivations};
use vtrain::train::step::Trainer;

use crate::training::{Run, fixture, model, relative, root, shapes};

/// Two clips, a checkpoint without weights of meaning, and adapters of rank 4.
fn run(model: &Path) -> Run {
    let run = Run::new("");
    shapes(&run.folder.path().join("data"), 2);
    let text = format!(
        "output_dir: out\ndevice: cpu\nmodel: {{path: {}, dtype: f32}}\n\
         datasets: [{{path: data, buckets: [[9, 64, 96]]}}]\nprecompute: {{latents: mode}}\nlora: {{rank: 4, alpha: 4}}\n",
        model.display()
    );
    std::fs::write(run.file(), text).unwrap();
    run
}

/// A checkpoint of flow matching.
fn flow() -> PathBuf {
    root().join("tests/fixtures/ltx_video/ltx-0.9.0")
}

/// Calls `look` with the trainer of a run file with these overrides.
fn with<T>(run: &Run, sets: &[&str], look: impl FnOnce(&mut Trainer, &[LoraPair]) -> T) -> T {
    let sets: Vec<String> = sets.iter().map(ToString::to_string).collect();
    let config = RunConfig::load(&run.file(), &sets).unwrap();
    let report = check_dataset::survey(&config.datasets, false);
    let family = precompute::open_model(&config).unwrap();
    let encoded = precompute::precompute(&config, &*family, &report, &[], &AtomicBool::new(false), &Single).unwrap();
    let (mut trainer, pairs) = trainer(&config, &*family, &encoded, &Device::Cpu, &Single).unwrap();
    look(&mut trainer, &pairs)
}

fn randn(seed: u64, like: &Tensor) -> Tensor {
    let numbers = Rng::new(seed).randn(like.elem_count());
    Tensor::from_vec(numbers, like.dims(), &Device::Cpu).unwrap()
}

/// Sets all B, which begin with zeros, so that the adapters do something.
fn fill(pairs: &[LoraPair], factor: f64) {
    for (seed, pair) in pairs.iter().enumerate() {
        pair.b.set(&(randn(seed as u64, &pair.b) * factor).unwrap()).unwrap();
    }
}

fn loss(trainer: &mut Trainer, i: u64) -> f32 {
    let micro_batch = trainer.source.micro_batch(i).unwrap();
    trainer.pass(&micro_batch).unwrap().loss.to_scalar().unwrap()
}

#[test]
fn the_seed_decides_the_order_the_draws_and_the_adapters_first_values() {
    let run = run(&model());
    let first_values = |seed: u64| {
        with(&run, &[&format!("seed={seed}")], |trainer, pairs| {
            let samples = trainer.source.encoded.samples.iter();
            let order = Order::new(samples.map(|sample| (sample.bucket, sample.repeats)), 1, seed);
            for epoch in 0..8 {
                assert_eq!(trainer.source.order.epoch(epoch), order.epoch(epoch), "seed {seed}");
            }
            let micro_batch = trainer.source.micro_batch(3).unwrap();
            assert_eq!(micro_batch.seed, seed + 3);
            let timestep = Rng::new(seed + 3).randint(0, 1000, 1)[0];
            assert_eq!(
                micro_batch.timesteps.values,
                [timestep as f64],
                "nothing is drawn before"
            );
            pairs[0].a.as_tensor().copy().unwrap()
        })
    };
    assert!(relative(&first_values(7), &first_values(8)) > 0.5);
    assert_eq!(relative(&first_values(7), &first_values(7)), 0.0);
}

#[test]
fn micro_batches_are_as_large_and_a_step_has_as_many_as_the_run_file_says() {
    let run = run(&model());
    for (batch_size, accumulation) in [(1, 1), (2, 1), (1, 3)] {
        let sets = [
            format!("train.batch_size={batch_size}"),
            format!("train.gradient_accumulation_steps={accumulation}"),
        ];
        with(&run, &[&sets[0], &sets[1]], |trainer, _| {
            let outcome = trainer.step(0, 1e-3).unwrap();
            let sizes: Vec<usize> = outcome.seen.iter().map(|seen| seen.samples.len()).collect();
            assert_eq!(sizes, vec![batch_size; accumulation]);
        });
    }
}

/// The adapters come from a file, so that B is not zero and dropout shows in the first loss.
#[test]
fn each_micro_batch_of_a_step_has_a_dropout_of_its_own() {
    let run = run(&model());
    let init = format!("lora.init={}", fixture("init.safetensors").display());
    let sets = [
        init.as_str(),
        "lora.alpha=8",
        "lora.dropout=0.5",
        "train.gradient_accumulation_steps=2",
    ];
    with(&run, &sets, |trainer, _| {
        let without = [0, 1].map(|m| loss(trainer, m));
        let mut under = |m: u64, seed_of: u64| {
            let seed = trainer.source.seed + seed_of;
            trainer.dropout.set(Some(seed));
            let loss = loss(trainer, m);
            trainer.dropout.set(None);
            loss
        };
        let (own, others) = ([under(0, 0), under(1, 1)], [under(0, 1), under(1, 0)]);
        for (own, (without, others)) in own.iter().zip(without.iter().zip(&others)) {
            assert!(own != without && own != others, "dropout does nothing");
        }
        let outcome = trainer.step(0, 1e-3).unwrap();
        let losses: Vec<f32> = outcome.seen.iter().map(|seen| seen.loss as f32).collect();
        assert_eq!(losses, own);
        assert_eq!(loss(trainer, 5), loss(trainer, 5), "nothing is dropped between steps");
    });
}

#[test]
fn adapters_have_the_rank_the_scale_and_the_layers_of_the_run_file() {
    let run = run(&model());
    with(&run, &["lora.rank=6"], |_, pairs| {
        assert!(pairs.iter().all(|pair| pair.a.dims()[0] == 6 && pair.b.dims()[1] == 6));
    });
    with(&run, &["lora.target_modules=[to_q]"], |_, pairs| {
        assert!(!pairs.is_empty() && pairs.iter().all(|pair| pair.layer.ends_with("to_q")));
    });
    // Of rank 4: alpha / 4, or alpha / 2 if rank-stabilised.
    let scaled = |sets: &[&str], factor: f64| {
        with(&run, sets, |trainer, pairs| {
            fill(pairs, factor);
            loss(trainer, 0)
        })
    };
    let twice = scaled(&[], 2.0);
    let near = |a: f32, b: f32| (a / b - 1.0).abs() < 1e-5;
    assert!(!near(scaled(&[], 1.0), twice));
    assert!(near(scaled(&["lora.alpha=8"], 1.0), twice));
    assert!(near(scaled(&["lora.use_rslora=true"], 1.0), twice));
}

/// Two halves of a frozen adapter are the same one that a run starts from, and what learns has its own numbers.
#[test]
fn frozen_adapters_lie_under_those_that_learn() {
    let run = run(&model());
    let file = fixture("init.safetensors").display().to_string();
    let started = |sets: &[&str]| with(&run, sets, |trainer, _| loss(trainer, 0));
    let plain = started(&["lora.alpha=8"]);
    let init = started(&["lora.alpha=8", &format!("lora.init={file}")]);
    let near = |a: f32, b: f32| (a / b - 1.0).abs() < 1e-5;
    assert!(!near(plain, init), "{plain} {init}");
    // The file's own alpha and rank scale it when it is frozen, which are the run's here.
    let frozen = started(&["lora.alpha=8", &format!("lora.frozen=[\"{file}=0.5\", \"{file}=0.5\"]")]);
    assert!(near(frozen, init), "{frozen} {init}");
    with(
        &run,
        &["lora.alpha=8", &format!("lora.frozen=[\"{file}=1\"]")],
        |trainer, pairs| {
            let before = loss(trainer, 0);
            fill(pairs, 1.0);
            assert!(!near(loss(trainer, 0), before), "what learns changes nothing");
        },
    );
}

#[test]
fn adapters_begin_as_the_file_that_the_run_file_names_has_them() {
    let run = run(&model());
    let file = fixture("init.safetensors");
    let expected = candle_core::safetensors::load(&file, &Device::Cpu).unwrap();
    let init = format!("lora.init={}", file.display());
    with(&run, &[&init, "lora.alpha=8"], |_, pairs| {
        for pair in pairs {
            for (half, var) in [("lora_A", &pair.a), ("lora_B", &pair.b)] {
                let name = format!("transformer.{}.{half}.weight", pair.layer);
                assert_eq!(relative(var, &expected[&name]), 0.0, "{name}");
            }
        }
    });
}

#[test]
fn what_is_kept_between_the_passes_is_as_the_run_file_says() {
    let run = run(&model());
    let nothing = SavedActivations::Within(ActivationBudget::default());
    let attention = SavedActivations::Within(ActivationBudget {
        attention: usize::MAX,
        ..Default::default()
    });
    let offloaded = SavedActivations::Offloaded(OffloadTo::FileIn(run.out()));
    for (set, expected) in [
        ("train.gradient_checkpointing=false", SavedActivations::All),
        ("train.activation_policy=all", SavedActivations::All),
        ("train.activation_policy=inputs", nothing),
        ("train.activation_policy=inputs+attention", attention),
        ("train.activation_policy=offloaded", offloaded),
    ] {
        with(&run, &[set], |trainer, _| {
            assert_eq!(trainer.saved_activations, expected, "{set}")
        });
    }
}

#[test]
fn what_a_step_is_trained_on_is_as_the_run_file_says() {
    let run = run(&model());
    let hidden = |sets: &[&str]| {
        with(&run, sets, |trainer, _| {
            let text = trainer.source.micro_batch(0).unwrap().input.text;
            let empty = TextEmbeds::stack(
                &[trainer.source.encoded.empty_caption().unwrap()],
                &trainer.source.family.spec().text(),
            )
            .unwrap();
            relative(&text.hidden, &empty.hidden)
        })
    };
    assert_eq!(hidden(&["train.caption_dropout=1"]), 0.0);
    assert!(hidden(&[]) > 0.0);
    for (set, expected) in [
        ("precompute.latents=mode", Latents::Mode),
        ("precompute.latents=sample", Latents::Sample),
    ] {
        with(&run, &[set], |trainer, _| assert_eq!(trainer.source.latents, expected));
    }
    with(&run, &["train.max_grad_norm=0.25"], |trainer, _| {
        assert_eq!(trainer.max_grad_norm, Some(0.25));
    });
    let run = self::run(&flow());
    with(&run, &["train.first_frame_conditioning_p=1"], |trainer, _| {
        let timestep = trainer.source.micro_batch(0).unwrap().input.timestep;
        assert_eq!(timestep.dims().len(), 2, "a timestep for each frame");
        let first = timestep.narrow(1, 0, 1).unwrap().flatten_all().unwrap();
        assert_eq!(first.to_vec1::<f32>().unwrap(), [0.0]);
    });
}

/// `diffusion:` decides what is drawn from the same generator, each key by itself.
#[test]
fn timesteps_are_drawn_as_the_run_file_says() {
    let run = run(&flow());
    let usual = Config {
        shift: Shift::Fixed(1.0),
        ..Config::default()
    };
    let drawn = |config: Option<&Config>, trainer: &Trainer| {
        let own = config.map(|config| Objective::new(&trainer.source.family.scheduler().unwrap(), config).unwrap());
        let objective = own.as_ref().unwrap_or(&trainer.source.objective);
        objective.draw(5, Some(1000), &mut Rng::new(9)).unwrap().values
    };
    let normal = Config {
        timesteps: Density::LogitNormal,
        ..usual.clone()
    };
    let mode = Config {
        timesteps: Density::Mode,
        ..usual.clone()
    };
    let (with_mean, with_std, with_scale, with_shift) = (
        Config {
            logit_mean: 1.0,
            ..normal.clone()
        },
        Config {
            logit_std: 0.5,
            ..normal.clone()
        },
        Config {
            mode_scale: 0.5,
            ..mode.clone()
        },
        Config {
            shift: Shift::Fixed(5.0),
            ..usual.clone()
        },
    );
    for (sets, expected, without) in [
        (&["timesteps=logit_normal"][..], &normal, &usual),
        (&["timesteps=logit_normal", "logit_mean=1"], &with_mean, &normal),
        (&["timesteps=logit_normal", "logit_std=0.5"], &with_std, &normal),
        (&["timesteps=mode", "mode_scale=0.5"], &with_scale, &mode),
        (&["shift=5"], &with_shift, &usual),
    ] {
        let sets: Vec<String> = ["shift=1"]
            .iter()
            .chain(sets)
            .map(|set| format!("diffusion.{set}"))
            .collect();
        let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
        with(&run, &sets, |trainer, _| {
            assert_eq!(drawn(None, trainer), drawn(Some(expected), trainer), "{sets:?}");
            assert_ne!(drawn(None, trainer), drawn(Some(without), trainer), "{sets:?}");
        });
    }
    with(&run, &["diffusion.weighting=cosmap"], |trainer, _| {
        let micro_batch = trainer.source.micro_batch(0).unwrap();
        let sigma = micro_batch.timesteps.values[0] as f32 / 1000.0;
        let weight = micro_batch
            .weight
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        assert!(
            (weight[0] / Weighting::Cosmap.at(sigma) - 1.0).abs() < 1e-4,
            "{weight:?}"
        );
    });
}

/// Three steps over the same gradients, key by key.
#[test]
fn the_optimiser_moves_the_adapters_as_the_run_file_says() {
    let run = run(&model());
    let usual = adamw::Config::default();
    let config = |change: fn(&mut adamw::Config)| {
        let mut config = usual.clone();
        change(&mut config);
        config
    };
    for (set, expected) in [
        ("beta1=0.5", config(|config| config.beta1 = 0.5)),
        ("beta2=0.5", config(|config| config.beta2 = 0.5)),
        ("weight_decay=0.5", config(|config| config.weight_decay = 0.5)),
        ("epsilon=0.5", config(|config| config.epsilon = 0.5)),
        ("name=adamw8bit", config(|config| config.name = adamw::Name::Adamw8bit)),
    ] {
        // Moments of A take 8 bits from 4096 numbers on.
        with(&run, &["lora.rank=128", &format!("optimizer.{set}")], |trainer, _| {
            let first = trainer.vars[0].as_tensor().copy().unwrap();
            let gradients: Vec<Vec<Tensor>> = (0..3)
                .map(|step| trainer.vars.iter().map(|var| randn(step, var)).collect())
                .collect();
            let reference = |config: &adamw::Config| {
                let var = Var::from_tensor(&first).unwrap();
                let mut optimizer = AdamW::new(vec![var.clone()], config).unwrap();
                for gradients in &gradients {
                    optimizer.step(&gradients[..1], 1.0, 0.1).unwrap();
                }
                var.as_tensor().clone()
            };
            for gradients in &gradients {
                trainer.optimizer.step(gradients, 1.0, 0.1).unwrap();
            }
            let found = trainer.vars[0].as_tensor();
            assert_eq!(found.dtype(), DType::F32);
            assert_eq!(relative(found, &reference(&expected)), 0.0, "{set}");
            assert!(relative(found, &reference(&usual)) > 1e-3, "{set}");
        });
    }
}
