//! The table of flags and arguments of all commands, as clap has them. A new one gets a line: the command, the flag or the
//! argument's name, and the test that fails when its value does not arrive.

use std::collections::BTreeSet;

use clap::{Arg, Command, CommandFactory};
use vtrain::cli::Cli;

use super::faults;

const FLAGS: &[(&str, &str)] = &[
    (
        "vtrain --quiet",
        "cli::a_table_goes_to_standard_output_and_the_rest_to_standard_error",
    ),
    (
        "vtrain --verbose",
        "precompute::each_clip_that_is_encoded_is_named_where_more_is_to_be_said",
    ),
    ("bench --bucket", "bench::transformers_of_all_families_are_measured"),
    ("bench --config", "bench::a_config_is_enough_to_measure_a_step"),
    (
        "bench --forward",
        "bench::a_sampling_step_has_neither_adapters_nor_a_way_back",
    ),
    ("bench --json", "bench::a_config_is_enough_to_measure_a_step"),
    (
        "bench --profile",
        "bench::a_profile_tells_what_each_op_and_product_of_a_step_takes",
    ),
    ("bench --random-weights", "bench::a_config_is_enough_to_measure_a_step"),
    ("bench --set", "bench::a_config_is_enough_to_measure_a_step"),
    ("bench --steps", "bench::a_config_is_enough_to_measure_a_step"),
    ("check-dataset --config", "cli::json_parses_and_holds_every_clip"),
    (
        "check-dataset --decode",
        "cli::damage_inside_a_clip_is_found_by_decoding_it",
    ),
    ("check-dataset --json", "cli::json_parses_and_holds_every_clip"),
    (
        "check-dataset --set",
        "cli::every_command_that_reads_a_run_file_takes_overrides",
    ),
    (
        "check-dataset FOLDER",
        "cli::a_bad_clip_stops_a_run_with_3_unless_it_may_be_skipped",
    ),
    ("completions SHELL", "cli::completions_and_manual_pages_are_made"),
    (
        "launch --backend",
        "dist::launching::ranks_that_nothing_connects_say_what_to_build_or_choose",
    ),
    (
        "launch --log-dir",
        "dist::launching::one_process_needs_nothing_to_be_launched",
    ),
    (
        "launch --master-addr",
        "dist::launching::a_rank_is_told_where_rank_0_is",
    ),
    (
        "launch --master-port",
        "dist::launching::a_rank_is_told_where_rank_0_is",
    ),
    (
        "launch --max-restarts",
        "dist::deaths::killing_any_rank_at_any_time_ends_all_and_a_restart_finishes_the_run",
    ),
    ("launch --nnodes", "dist::launching::what_launch_cannot_do_is_said"),
    ("launch --node-rank", "dist::launching::what_launch_cannot_do_is_said"),
    (
        "launch --nproc-per-node",
        "dist::launching::what_launch_cannot_do_is_said",
    ),
    (
        "launch --rdzv-id",
        "dist::launching::one_process_needs_nothing_to_be_launched",
    ),
    (
        "launch ARGS",
        "dist::launching::one_process_needs_nothing_to_be_launched",
    ),
    ("lora convert --to", "lora_formats::the_verbs_say_what_they_did"),
    ("lora convert INPUT", "lora_formats::the_verbs_say_what_they_did"),
    ("lora convert OUTPUT", "lora_formats::the_verbs_say_what_they_did"),
    ("lora inspect --json", "lora_formats::the_verbs_say_what_they_did"),
    ("lora inspect --model", "lora_formats::the_verbs_say_what_they_did"),
    ("lora inspect FILE", "lora_formats::the_verbs_say_what_they_did"),
    (
        "lora merge --lora",
        "lora_formats::a_merged_checkpoint_is_the_model_under_its_adapters",
    ),
    (
        "lora merge --dtype",
        "storage::merged::merged_dense_it_predicts_what_the_base_in_few_bits_does_under_the_adapter",
    ),
    (
        "lora merge --quantization",
        "storage::merged::merged_into_another_form_it_is_stored_and_read_in_that_one",
    ),
    (
        "lora merge --model",
        "lora_formats::a_merged_checkpoint_is_the_model_under_its_adapters",
    ),
    (
        "lora merge --variant",
        "variants::a_merged_variant_leaves_no_index_of_other_weights",
    ),
    (
        "lora merge OUTPUT",
        "lora_formats::a_merged_checkpoint_is_the_model_under_its_adapters",
    ),
    ("lora resize --rank", "lora_formats::the_verbs_say_what_they_did"),
    ("lora resize INPUT", "lora_formats::the_verbs_say_what_they_did"),
    ("lora resize OUTPUT", "lora_formats::the_verbs_say_what_they_did"),
    ("man FOLDER", "cli::completions_and_manual_pages_are_made"),
    ("migrate finetrainers --from", MIGRATED),
    ("migrate finetrainers --output", MIGRATED),
    ("migrate finetrainers --var", MIGRATED),
    ("migrate finetrainers SCRIPT", MIGRATED),
    ("migrate musubi --dataset-config", MIGRATED),
    ("migrate musubi --from", MIGRATED),
    ("migrate musubi --output", MIGRATED),
    ("migrate musubi --var", MIGRATED),
    ("migrate musubi SCRIPT", MIGRATED),
    (
        "plan --config",
        "plan::a_plan_names_every_stage_and_what_training_is_made_of",
    ),
    (
        "plan --configs-only",
        "plan::the_longest_bucket_counts_and_a_calibration_gives_times",
    ),
    ("plan --device-memory", "plan::suggestions_fit_when_they_are_applied"),
    (
        "plan --json",
        "plan::a_plan_names_every_stage_and_what_training_is_made_of",
    ),
    (
        "plan --no-calibration",
        "plan::the_longest_bucket_counts_and_a_calibration_gives_times",
    ),
    ("plan --set", "plan::suggestions_fit_when_they_are_applied"),
    (
        "precompute --config",
        "precompute::the_command_says_what_it_does_and_lists_files_as_json",
    ),
    (
        "precompute --json",
        "precompute::the_command_says_what_it_does_and_lists_files_as_json",
    ),
    (
        "precompute --set",
        "cli::every_command_that_reads_a_run_file_takes_overrides",
    ),
    (
        "report --output",
        "report::report_compares_runs_and_links_to_their_videos",
    ),
    ("report RUNS", "report::report_compares_runs_and_links_to_their_videos"),
    (
        "quantize --dtype",
        "storage::written::a_whole_checkpoint_becomes_one_with_its_text_encoder",
    ),
    (
        "quantize --no-double-quant",
        "storage::written::folders_are_what_the_programs_themselves_write",
    ),
    (
        "quantize --text-encoder",
        "storage::written::a_whole_checkpoint_becomes_one_with_its_text_encoder",
    ),
    (
        "quantize --to",
        "storage::written::folders_are_what_the_programs_themselves_write",
    ),
    (
        "quantize --variant",
        "storage::written::the_variant_that_is_chosen_is_stored_under_the_usual_name",
    ),
    (
        "quantize INPUT",
        "storage::written::folders_are_what_the_programs_themselves_write",
    ),
    (
        "quantize OUTPUT",
        "storage::written::folders_are_what_the_programs_themselves_write",
    ),
    (
        "sample --device",
        "settings::flags::a_device_that_is_not_there_is_refused_by_sample",
    ),
    ("sample --dtype", SAMPLED),
    ("sample --dynamic-guidance", SAMPLED),
    ("sample --fps", PROMPTS),
    ("sample --guidance-scale", PROMPTS),
    ("sample --height", PROMPTS),
    ("sample --sigmas", DISTILLED),
    ("sample --timesteps", DISTILLED),
    (
        "sample --cache",
        "step_cache::ratios_are_measured_as_in_diffusers_and_written",
    ),
    (
        "sample --calibrate-magcache",
        "step_cache::ratios_are_measured_as_in_diffusers_and_written",
    ),
    (
        "sample --compare",
        "sample_prompts::a_comparison_shows_the_plain_clip_beside_the_cached_one_and_tells_their_difference",
    ),
    (
        "sample --prompts",
        "sample_prompts::many_prompts_load_each_part_once_and_give_the_clips_of_single_calls",
    ),
    (
        "sample --text-cache",
        "sample_prompts::a_prompt_that_a_run_embedded_is_not_embedded_again",
    ),
    (
        "sample --json",
        "step_cache::ratios_are_measured_as_in_diffusers_and_written",
    ),
    (
        "sample --guidance-interval",
        "guidance_rules::flags_of_guidance_reach_the_sampler",
    ),
    (
        "sample --guidance-rule",
        "guidance_rules::flags_of_guidance_reach_the_sampler",
    ),
    (
        "sample --scheduler",
        "guidance_rules::flags_of_guidance_reach_the_sampler",
    ),
    ("sample --true-cfg-scale", DISTILLED),
    (
        "sample --image",
        "settings::prompts::a_video_starts_from_the_image_that_its_prompt_names",
    ),
    ("sample --latents", SAMPLED),
    ("sample --lora", SAMPLED),
    ("sample --model", PROMPTS),
    ("sample --negative-prompt", PROMPTS),
    ("sample --num-frames", PROMPTS),
    (
        "sample --offload",
        "offload::runs::a_sampled_clip_is_the_same_wherever_weights_wait",
    ),
    ("sample --output", PROMPTS),
    ("sample --output-latents", SAMPLED),
    ("sample --prompt", PROMPTS),
    (
        "sample --revision",
        "settings::runs::a_revision_is_asked_of_the_hub_and_named",
    ),
    ("sample --seed", PROMPTS),
    ("sample --quantization", STORED),
    (
        "sample --quantization-cache",
        "storage::cache::sampling_says_what_it_writes_and_reads_and_none_keeps_nothing",
    ),
    ("sample --text-encoder-quantization", STORED),
    (
        "sample --vae-tiling",
        "vae_tiles::the_program_decodes_in_tiles_where_it_is_told_to",
    ),
    (
        "sample --transformer",
        "storage::other_transformer::sampling_takes_another_transformer",
    ),
    ("sample --steps", PROMPTS),
    ("sample --strength", SAMPLED),
    ("sample --variant", "variants::sample_reads_the_variant_that_is_chosen"),
    ("sample --video", SAMPLED),
    ("sample --width", PROMPTS),
    ("train --config", "cli::the_verb_train_may_be_left_out"),
    ("train --dry-run", "cli::the_verb_train_may_be_left_out"),
    (
        "train --resume",
        "training::checkpoints::a_changed_setting_is_refused_with_the_difference_and_never_starts_anew_beside_it",
    ),
    (
        "train --set",
        "training::checkpoints::a_changed_setting_is_refused_with_the_difference_and_never_starts_anew_beside_it",
    ),
];

const PROMPTS: &str = "settings::prompts::videos_of_the_base_model_are_the_clips_that_sampling_makes_key_by_key";
const DISTILLED: &str =
    "settings::prompts::scales_and_sigmas_of_a_distilled_model_reach_its_videos_from_prompts_and_flags_alike";
const MIGRATED: &str = "migrate::each_option_of_migrate_reaches_the_run_file";
const STORED: &str = "storage::on_the_fly::sampling_stores_weights_as_its_flags_say";
const SAMPLED: &str = "settings::prompts::flags_of_sample_that_no_prompt_has_reach_the_sampler";

/// `launch --nnodes`, `man FOLDER`: all that a command and those below it take, by the names that clap has for them.
fn flags(command: &Command, path: &str) -> BTreeSet<String> {
    let shown = |argument: &&Arg| !argument.is_global_set() || path == "vtrain";
    let own = command
        .get_arguments()
        .filter(shown)
        .map(|argument| match argument.get_long() {
            Some(long) => format!("{path} --{long}"),
            None => format!("{path} {}", argument.get_id().as_str().to_uppercase()),
        });
    let mut flags: BTreeSet<String> = own.collect();
    // Commands that are hidden are for ourselves.
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        let name = below.get_name();
        let path = if path == "vtrain" {
            name.to_string()
        } else {
            format!("{path} {name}")
        };
        flags.extend(self::flags(below, &path));
    }
    flags
}

/// Flags of the whole program. `vtrain` alone takes what `vtrain train` takes.
fn all() -> BTreeSet<String> {
    let mut flags = flags(&Cli::command(), "vtrain");
    let train: Vec<String> = flags
        .iter()
        .filter_map(|flag| flag.strip_prefix("train ").map(String::from))
        .collect();
    for flag in train {
        assert!(flags.remove(&format!("vtrain {flag}")), "vtrain {flag}");
    }
    flags
}

fn table() -> impl Iterator<Item = (String, &'static str)> {
    FLAGS.iter().map(|(flag, test)| (flag.to_string(), *test))
}

#[test]
fn every_flag_has_a_test_that_fails_when_its_value_does_not_arrive() {
    let faults = faults(&all(), table());
    assert!(faults.is_empty(), "tests/settings/flags.rs:\n{}", faults.join("\n"));
}

#[test]
fn a_flag_without_a_line_is_found() {
    let planted = Command::new("planted")
        .arg(Arg::new("new").long("new"))
        .arg(Arg::new("file"));
    let mut there = all();
    there.extend(flags(&Command::new("vtrain").subcommand(planted), "vtrain"));
    let without = "has no test that fails when its value does not arrive";
    let expected = [format!("planted --new {without}"), format!("planted FILE {without}")];
    assert_eq!(faults(&there, table()), expected);
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_device_that_is_not_there_is_refused_by_sample() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_vtrain"))
        .args("sample --model nowhere --prompt x --output a.mp4 --device cuda:3".split(' '))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("cuda:3"), "{said}");
}
