//! The table of keys. A new key gets a line: its path in the schema, a value that is not its default, what else must be set
//! with it, whether it changes what a run learns, and the test that fails when the value does not arrive.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;
use vtrain::config::RunConfig;

use super::faults;

/// Detection of a changed key when a run resumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resumed {
    /// By the checkpoint's settings: the run is refused.
    Settings,
    /// By the fingerprint of the data or of the model, where it changes these.
    Fingerprint,
    /// Irrelevant to it.
    Free,
}

use Resumed::{Fingerprint, Free, Settings};

/// Path, value, companions, what a resumed run makes of it, test.
type Line = (
    &'static str,
    &'static str,
    &'static [&'static str],
    Resumed,
    &'static str,
);

const LOGIT: &[&str] = &["diffusion.timesteps=logit_normal"];
const COSINE: &[&str] = &["lr_scheduler.name=cosine"];
const RESTARTS: &[&str] = &["lr_scheduler.name=cosine_with_restarts"];

const DATASETS: &str = "settings::datasets::every_key_of_a_data_set_changes_what_is_listed";
const SEEDED: &str = "settings::trainer::the_seed_decides_the_order_the_draws_and_the_adapters_first_values";
const SIZES: &str = "settings::trainer::micro_batches_are_as_large_and_a_step_has_as_many_as_the_run_file_says";
const ADAPTERS: &str = "settings::trainer::adapters_have_the_rank_the_scale_and_the_layers_of_the_run_file";
const KEPT: &str = "settings::trainer::what_is_kept_between_the_passes_is_as_the_run_file_says";
const TRAINED_ON: &str = "settings::trainer::what_a_step_is_trained_on_is_as_the_run_file_says";
const TIMESTEPS: &str = "settings::trainer::timesteps_are_drawn_as_the_run_file_says";
const NOISE: &str = "training::trajectory::so_does_noise_that_allegro_predicts";
const OPTIMIZER: &str = "settings::trainer::the_optimiser_moves_the_adapters_as_the_run_file_says";
const WHOLE_RUN: &str = "settings::runs::rates_checkpoints_and_logs_come_as_the_run_file_says";
const PROMPTS: &str = "settings::prompts::videos_of_the_base_model_are_the_clips_that_sampling_makes_key_by_key";
const DISTILLED: &str =
    "settings::prompts::scales_and_sigmas_of_a_distilled_model_reach_its_videos_from_prompts_and_flags_alike";
const STORED: &str = "storage::on_the_fly::a_run_file_says_how_weights_are_stored";
const PUSHED: &str = "training::pushed::a_finished_run_is_pushed_in_one_commit_and_again_without_uploading_again";
const NONFINITE: &str = "training::numbers::a_loss_that_is_not_finite_is_left_out_or_ends_the_run_as_the_run_file_says";

const REFUSED: &str = "plan::a_run_that_cannot_fit_is_refused_before_anything_is_loaded_unless_the_run_file_wants_it";

const KEYS: &[Line] = &[
    ("output_dir", "other", &[], Free, "cli::the_verb_train_may_be_left_out"),
    ("seed", "7", &[], Settings, SEEDED),
    (
        "device",
        "cpu",
        &[],
        Free,
        "cuda::a_build_without_cuda_says_so_in_one_line",
    ),
    (
        "deterministic",
        "true",
        &[],
        Free,
        "config::opening_the_device_of_a_deterministic_run_makes_the_process_so",
    ),
    (
        "model.family",
        "wan",
        &[],
        Free,
        "settings::runs::a_family_that_a_checkpoint_is_not_of_is_refused",
    ),
    (
        "model.path",
        "./elsewhere",
        &[],
        Fingerprint,
        "precompute::moved_folders_and_renamed_clips_are_known_again",
    ),
    (
        "model.revision",
        "v2",
        &[],
        Fingerprint,
        "settings::runs::a_revision_is_asked_of_the_hub_and_named",
    ),
    (
        "model.variant",
        "fp16",
        &[],
        Fingerprint,
        "variants::a_run_file_chooses_a_variant",
    ),
    (
        "model.transformer",
        "other.gguf",
        &[],
        Fingerprint,
        "storage::other_transformer::a_run_file_takes_another_transformer_from_its_own_folder",
    ),
    (
        "model.dtype",
        "f32",
        &[],
        Settings,
        "precompute::a_change_misses_what_it_concerns_and_nothing_else",
    ),
    ("model.quantization", "nf4", &[], Settings, STORED),
    ("model.text_encoder_quantization", "int8", &[], Fingerprint, STORED),
    (
        "model.quantization_cache",
        "none",
        &["model.quantization=nf4"],
        Free,
        "storage::cache::a_run_file_says_where_the_cache_is_from_its_own_folder",
    ),
    (
        "model.sharding",
        "full",
        &[],
        Free,
        "dist::trajectories::a_base_that_is_shared_out_keeps_no_block_for_the_way_back",
    ),
    (
        "model.offload",
        "model",
        &[],
        Free,
        "offload::runs::a_run_with_streamed_blocks_learns_the_same_and_may_go_on_with_others",
    ),
    (
        "model.offload_resident",
        "0.5",
        &["model.offload=group"],
        Free,
        "offload::runs::a_run_with_streamed_blocks_learns_the_same_and_may_go_on_with_others",
    ),
    ("datasets[].path", "elsewhere", &[], Fingerprint, DATASETS),
    ("datasets[].layout", "pairs", &[], Fingerprint, DATASETS),
    ("datasets[].captions", "c.txt", &[], Fingerprint, DATASETS),
    ("datasets[].videos", "v.txt", &[], Fingerprint, DATASETS),
    ("datasets[].metadata", "m.csv", &[], Fingerprint, DATASETS),
    ("datasets[].caption_column", "c", &[], Fingerprint, DATASETS),
    ("datasets[].video_column", "v", &[], Fingerprint, DATASETS),
    ("datasets[].id_token", "BALL", &[], Fingerprint, DATASETS),
    ("datasets[].repeats", "3", &[], Fingerprint, DATASETS),
    ("datasets[].buckets", "[[9, 32, 48]]", &[], Fingerprint, DATASETS),
    ("datasets[].fps", "8", &[], Fingerprint, DATASETS),
    ("datasets[].frames", "head", &[], Fingerprint, DATASETS),
    ("datasets[].crop", "fit", &[], Fingerprint, DATASETS),
    ("datasets[].remove_caption_prefixes", "true", &[], Fingerprint, DATASETS),
    ("datasets[].on_invalid_clip", "skip", &[], Fingerprint, DATASETS),
    ("datasets[].follow_links", "true", &[], Fingerprint, DATASETS),
    (
        "precompute.dir",
        "cache",
        &[],
        Free,
        "precompute::moved_folders_and_renamed_clips_are_known_again",
    ),
    ("precompute.latents", "mode", &[], Settings, TRAINED_ON),
    (
        "precompute.vae_tiling",
        "false",
        &[],
        Fingerprint,
        "precompute::the_encoder_tiles_and_slices_as_the_run_file_says",
    ),
    (
        "precompute.vae_slicing",
        "false",
        &[],
        Free,
        "precompute::the_encoder_tiles_and_slices_as_the_run_file_says",
    ),
    ("lora.rank", "8", &[], Settings, ADAPTERS),
    ("lora.alpha", "4", &[], Settings, ADAPTERS),
    ("lora.use_rslora", "true", &[], Settings, ADAPTERS),
    (
        "lora.dropout",
        "0.1",
        &[],
        Settings,
        "settings::trainer::each_micro_batch_of_a_step_has_a_dropout_of_its_own",
    ),
    ("lora.target_modules", "[to_q]", &[], Settings, ADAPTERS),
    (
        "lora.frozen",
        "[a.safetensors=0.5]",
        &[],
        Settings,
        "settings::trainer::frozen_adapters_lie_under_those_that_learn",
    ),
    (
        "lora.init",
        "a.safetensors",
        &[],
        Free,
        "settings::trainer::adapters_begin_as_the_file_that_the_run_file_names_has_them",
    ),
    (
        "train.steps",
        "7",
        COSINE,
        Settings,
        "training::run::fifty_steps_over_two_buckets_leave_what_was_promised",
    ),
    (
        "train.epochs",
        "7",
        COSINE,
        Settings,
        "settings::runs::epochs_are_counted_in_micro_batches_of_all_ranks",
    ),
    ("train.batch_size", "2", &[], Settings, SIZES),
    ("train.gradient_accumulation_steps", "2", &[], Settings, SIZES),
    ("train.gradient_checkpointing", "false", &[], Free, KEPT),
    ("train.activation_policy", "inputs", &[], Free, KEPT),
    ("train.max_grad_norm", "0.5", &[], Settings, TRAINED_ON),
    ("train.caption_dropout", "0.5", &[], Settings, TRAINED_ON),
    ("train.first_frame_conditioning_p", "0.5", &[], Settings, TRAINED_ON),
    (
        "train.guidance_embedding",
        "3.5",
        &[],
        Settings,
        "training::trajectory::so_does_flow_matching_of_hunyuan_video_from_text",
    ),
    ("train.on_nonfinite", "stop", &[], Free, NONFINITE),
    ("train.max_consecutive_nonfinite", "5", &[], Free, NONFINITE),
    ("train.on_too_little_memory", "warn", &[], Free, REFUSED),
    (
        "train.loss_spike",
        "3",
        &[],
        Free,
        "training::numbers::a_resumed_run_tells_of_the_same_losses_that_stand_out",
    ),
    ("diffusion.timesteps", "mode", &[], Settings, TIMESTEPS),
    ("diffusion.logit_mean", "1", LOGIT, Settings, TIMESTEPS),
    ("diffusion.logit_std", "0.5", LOGIT, Settings, TIMESTEPS),
    (
        "diffusion.mode_scale",
        "0.5",
        &["diffusion.timesteps=mode"],
        Settings,
        TIMESTEPS,
    ),
    ("diffusion.shift", "3", &[], Settings, TIMESTEPS),
    ("diffusion.weighting", "cosmap", &[], Settings, TIMESTEPS),
    ("diffusion.min_snr_gamma", "3", &[], Settings, NOISE),
    ("diffusion.noise_offset", "0.1", &[], Settings, NOISE),
    ("optimizer.name", "adamw8bit", &[], Settings, OPTIMIZER),
    ("optimizer.lr", "0.01", &[], Settings, WHOLE_RUN),
    ("optimizer.beta1", "0.5", &[], Settings, OPTIMIZER),
    ("optimizer.beta2", "0.5", &[], Settings, OPTIMIZER),
    ("optimizer.weight_decay", "0.5", &[], Settings, OPTIMIZER),
    ("optimizer.epsilon", "0.5", &[], Settings, OPTIMIZER),
    (
        "optimizer.ema",
        "0.9",
        &[],
        Settings,
        "settings::runs::the_finished_adapter_is_the_moving_average_where_there_is_one",
    ),
    ("lr_scheduler.name", "cosine", &[], Settings, WHOLE_RUN),
    ("lr_scheduler.warmup_steps", "1", &[], Settings, WHOLE_RUN),
    (
        "lr_scheduler.warmup_ratio",
        "0.5",
        COSINE,
        Settings,
        "optim::a_warm_up_given_as_a_share_is_as_many_steps_of_the_run",
    ),
    ("lr_scheduler.num_cycles", "3", RESTARTS, Settings, WHOLE_RUN),
    ("lr_scheduler.power", "2", &[], Settings, WHOLE_RUN),
    ("checkpoint.every", "4", &[], Free, WHOLE_RUN),
    ("checkpoint.limit", "3", &[], Free, WHOLE_RUN),
    ("checkpoint.comfyui", "true", &[], Free, PUSHED),
    (
        "validation.every",
        "2",
        &[],
        Free,
        "settings::runs::videos_come_every_so_many_steps_and_at_both_ends",
    ),
    ("validation.prompts[].prompt", "a cube", &[], Free, PROMPTS),
    ("validation.prompts[].negative_prompt", "rain", &[], Free, PROMPTS),
    ("validation.prompts[].num_frames", "9", &[], Free, PROMPTS),
    ("validation.prompts[].height", "48", &[], Free, PROMPTS),
    ("validation.prompts[].width", "64", &[], Free, PROMPTS),
    ("validation.prompts[].steps", "3", &[], Free, PROMPTS),
    ("validation.prompts[].guidance_scale", "4", &[], Free, PROMPTS),
    ("validation.prompts[].true_cfg_scale", "4", &[], Free, DISTILLED),
    ("validation.prompts[].sigmas", "[1.0, 0.5]", &[], Free, DISTILLED),
    ("validation.prompts[].timesteps", "[1000, 500]", &[], Free, DISTILLED),
    (
        "validation.cache",
        "first-block:threshold=0.1",
        &[],
        Free,
        "settings::prompts::a_cache_between_steps_reaches_the_videos_of_a_run_as_it_does_the_clips_of_sample",
    ),
    ("validation.prompts[].seed", "6", &[], Free, PROMPTS),
    ("validation.prompts[].fps", "20", &[], Free, PROMPTS),
    (
        "validation.prompts[].image",
        "a.png",
        &[],
        Free,
        "settings::prompts::a_video_starts_from_the_image_that_its_prompt_names",
    ),
    ("tracking.tensorboard", "false", &[], Free, WHOLE_RUN),
    ("hub.push", "true", &["hub.repo=a/b"], Free, PUSHED),
    ("hub.repo", "a/b", &[], Free, PUSHED),
    (
        "hub.private",
        "false",
        &[],
        Free,
        "training::pushed::a_repository_is_made_as_private_as_the_run_file_says",
    ),
    (
        "dist.timeout",
        "5",
        &[],
        Free,
        "dist::deaths::a_rank_that_hangs_is_named_when_the_time_is_up",
    ),
];

/// The paths of all keys of a schema, `[]` for items of lists.
fn keys(schema: &Value) -> BTreeSet<String> {
    fn walk(schema: &Value, node: &Value, path: &str, keys: &mut BTreeSet<String>) {
        let reference = node["$ref"].as_str().and_then(|reference| reference.strip_prefix('#'));
        let node = reference.map_or(node, |pointer| {
            schema.pointer(pointer).expect("a reference leads somewhere")
        });
        let alternatives = ["anyOf", "oneOf", "allOf"]
            .iter()
            .filter_map(|kind| node[*kind].as_array());
        alternatives.flatten().for_each(|node| walk(schema, node, path, keys));
        if node["items"]["properties"].is_object() || node["items"]["$ref"].is_string() {
            walk(schema, &node["items"], &format!("{path}[]"), keys);
        }
        let Some(properties) = node["properties"].as_object() else {
            return;
        };
        keys.remove(path);
        for (key, node) in properties {
            let path = if path.is_empty() {
                key.clone()
            } else {
                format!("{path}.{key}")
            };
            keys.insert(path.clone());
            walk(schema, node, &path, keys);
        }
        // A list of tables is its items' keys.
        keys.remove(path.strip_suffix("[]").unwrap_or(path));
    }
    let mut keys = BTreeSet::new();
    walk(schema, schema, "", &mut keys);
    keys
}

fn schema() -> Value {
    serde_json::from_str(&RunConfig::schema()).unwrap()
}

fn table() -> impl Iterator<Item = (String, &'static str)> {
    KEYS.iter().map(|(key, .., test)| (key.to_string(), *test))
}

#[test]
fn every_key_has_a_test_that_fails_when_its_value_does_not_arrive() {
    let faults = faults(&keys(&schema()), table());
    assert!(faults.is_empty(), "tests/settings/keys.rs:\n{}", faults.join("\n"));
}

#[test]
fn a_key_without_a_line_and_a_line_without_a_test_or_a_key_are_found() {
    let mut schema = schema();
    let lora = schema["properties"]["lora"]["$ref"].as_str().unwrap()[1..].to_string();
    let planted = serde_json::json!({"type": "integer"});
    schema.pointer_mut(&lora).unwrap()["properties"]["planted"] = planted.clone();
    schema["properties"]["also_planted"] = planted;
    let stray = [
        ("lora.gone".to_string(), DATASETS),
        ("seed".to_string(), "settings::nothing"),
    ];
    let mut faults = faults(&keys(&schema), table().filter(|(key, _)| key != "seed").chain(stray));
    faults.sort();
    let without = "has no test that fails when its value does not arrive";
    assert_eq!(
        faults,
        [
            format!("also_planted {without}"),
            "lora.gone is in the table, and nowhere else".into(),
            format!("lora.planted {without}"),
            "seed: there is no test settings::nothing".into(),
        ]
    );
}

/// A run file with one data set and one prompt, and these overrides.
fn parse(sets: &[String]) -> RunConfig {
    let text = "model: {path: a/b}\ndatasets: [{path: data}]\nvalidation: {prompts: [{prompt: a ball}]}\n";
    RunConfig::parse(text, Path::new("run.yaml"), Path::new("/runs"), sets).unwrap_or_else(|wrong| panic!("{wrong}"))
}

/// Plain values of a configuration by their paths, `[]` for items of lists of tables.
fn flat(config: &RunConfig) -> BTreeMap<String, Value> {
    fn walk(path: &str, value: &Value, flat: &mut BTreeMap<String, Value>) {
        match value {
            Value::Object(keys) => keys.iter().for_each(|(key, value)| {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                walk(&path, value, flat);
            }),
            Value::Array(items) if items.iter().any(Value::is_object) => {
                items.iter().for_each(|item| walk(&format!("{path}[]"), item, flat));
            }
            value => drop(flat.insert(path.into(), value.clone())),
        }
    }
    let mut all = BTreeMap::new();
    walk("", &serde_json::to_value(config).unwrap(), &mut all);
    all
}

/// Each key of the table by itself: it changes itself, and the settings that a resumed run is held to where the table says so.
#[test]
fn each_key_alone_changes_the_settings_of_a_checkpoint_or_does_not_as_the_table_says() {
    for (key, value, companions, resumed, _) in KEYS {
        let mut sets: Vec<String> = companions.iter().map(ToString::to_string).collect();
        let before = parse(&sets);
        sets.push(format!("{}={value}", key.replace("[]", ".0")));
        let after = parse(&sets);
        let (flat_before, flat_after) = (flat(&before), flat(&after));
        let changed: Vec<_> = flat_after
            .iter()
            .filter(|(path, value)| flat_before.get(*path) != Some(*value))
            .collect();
        let changed: Vec<&str> = changed.into_iter().map(|(path, _)| path.as_str()).collect();
        if *key == "optimizer.name" {
            continue; // there is one only
        }
        assert_eq!(changed, [*key], "{key}={value}");
        let differ = before.hyperparameters(1) != after.hyperparameters(1);
        assert_eq!(differ, *resumed == Settings, "{key}={value}: {resumed:?}");
    }
    // The micro-batches of a step are counted over all ranks.
    let one = parse(&[]);
    let two = parse(&["train.gradient_accumulation_steps=2".into()]);
    assert_eq!(one.hyperparameters(2), two.hyperparameters(1));
    assert_ne!(one.hyperparameters(2), one.hyperparameters(1));
}
