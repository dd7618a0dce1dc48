//! Every constant that is a size, and the test that has less and more than it; others, and what they are. A number in a
//! function that looks like one of these has to become one.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use fancy_regex::Regex;

/// Sizes, by the test that has less and more than each.
const THRESHOLDS: &[(&str, &[&str])] = &[
    (
        "activations::feed_forward::never_more_than_two_blocks_of_rows_are_seen_at_a_time",
        &["ops/gemm.rs ROWS"],
    ),
    (
        "gpu_check::row::attention_without_cudnn_fails_for_bf16_heads_of_up_to_128_whatever_its_error",
        &["ops/attention/way.rs WIDEST"],
    ),
    (
        "checks::files::many_tensors_that_do_not_fit_are_counted_and_the_first_are_named",
        &["nn/weights.rs SHOWN"],
    ),
    (
        "cogvideox_vae::clips_of_1_5_9_and_17_frames_encode_as_in_diffusers",
        &["models/cogvideox/vae/coder.rs SAMPLE_FRAMES"],
    ),
    (
        "cogvideox_vae::latents_of_1_2_3_and_5_frames_decode_as_in_diffusers",
        &["models/cogvideox/vae/coder.rs LATENT_FRAMES"],
    ),
    (
        "conv3d::a_convolution_is_what_its_definition_says_with_whatever_vectors",
        &[
            "nn/conv3d/direct.rs PASS",
            "nn/conv3d/direct.rs BLOCK_PIXELS",
            "nn/conv3d/direct.rs STEP_PIXELS",
        ],
    ),
    (
        "conv3d::group_moments_hold_far_from_zero",
        &["nn/conv3d/moments.rs STRETCH"],
    ),
    (
        "data::surveys::clips_are_placed_by_the_size_they_are_shown_at_and_a_note_gathers_them",
        &["data/remarks.rs NAMED"],
    ),
    (
        "faults::room::room_is_counted_in_blocks_where_the_folder_is_or_will_be",
        &["disk/space.rs BLOCK"],
    ),
    (
        "finite::the_first_number_that_is_none_is_found_in_every_format",
        &["finite.rs STRETCH"],
    ),
    (
        "flow_family::guidance_is_the_same_in_one_batch_and_one_prompt_after_the_other",
        &["sample/mod.rs ONE_BATCH"],
    ),
    (
        "lora_formats::rows_behind_the_first_32_mib_of_a_weight_get_their_own_change",
        &["lora/merge.rs CHUNK"],
    ),
    (
        "offload::blocks::as_many_blocks_stay_as_the_share_says_or_as_fit_half_of_the_free_memory",
        &["nn/resident_share.rs PART_OF_FREE"],
    ),
    (
        "offload::ring::four_gib_of_main_memory_are_left_to_all_else",
        &["nn/ring.rs SPARED"],
    ),
    (
        "offload::blocks::streamed_blocks_give_the_same_losses_gradients_and_predictions_in_every_family",
        &["nn/stream.rs SLOTS", "ops/bytes.rs ALIGNMENT"],
    ),
    (
        "ops::attention::a_mask_is_read_at_the_place_of_each_tile_of_keys",
        &[
            "ops/attention/backward.rs QUERIES",
            "ops/attention/backward.rs KEYS",
            "ops/attention/forward.rs QUERIES",
            "ops/attention/forward.rs KEYS",
        ],
    ),
    (
        "ops::attention_bf16::a_mask_is_read_at_the_place_of_each_block",
        &[
            "ops/attention/narrow/backward.rs QUERIES",
            "ops/attention/narrow/backward.rs KEYS",
            "ops/attention/narrow/forward.rs BLOCKS",
        ],
    ),
    (
        "ops::attention_bf16::the_number_of_threads_changes_no_bit",
        &["ops/attention/narrow/forward.rs TASK"],
    ),
    (
        "ops::attention::long_sequences_agree_with_the_whole_matrix_in_f64",
        &["ops/attention/backward.rs PIECE"],
    ),
    (
        "optim::eight_bit::moments_take_8_bits_from_4096_numbers_on",
        &["optim/moments.rs LEAST_FOR_8_BITS"],
    ),
    (
        "sample_prompts::many_prompts_load_each_part_once_and_give_the_clips_of_single_calls",
        &["commands/sample/contact_sheet.rs ROWS"],
    ),
    (
        "storage::written::matrices_of_few_numbers_are_f32_in_gguf",
        &["models/gguf.rs SMALL"],
    ),
    (
        "ops::bf16::products_are_the_sums_in_f64",
        &[
            "ops/bf16/avx512.rs ROWS",
            "ops/bf16/line.rs SIDE",
            "ops/bf16/product.rs CHUNK",
            "ops/bf16/product.rs STRETCH",
            "ops/bf16/product.rs HELD",
            "ops/bf16/product.rs TALLEST",
        ],
    ),
    (
        "ops::bf16::a_right_matrix_may_lie_in_rows_in_columns_or_in_lines",
        &["ops/bf16/product.rs STRIP", "ops/bf16/right.rs PIECE"],
    ),
    (
        "ops::bf16::sums_over_rows_are_added_in_blocks",
        &["ops/bf16/over_rows.rs TILE"],
    ),
    ("ops::norm::a_norm_holds_in_any_form", &["ops/parts.rs ROWS"]),
    ("ops::add::a_sum_holds_in_any_form", &["ops/map.rs PIECE"]),
    (
        "ops::softmax::weights_and_their_sums_are_those_of_f64_whatever_the_vectors",
        &["ops/attention/softmax.rs GROUP"],
    ),
    (
        "ops::tile::products_are_those_of_a_plain_loop",
        &["ops/microkernel.rs PANEL"],
    ),
    (
        "precompute::told::of_many_captions_that_are_cut_the_worst_are_named_by_their_start",
        &[
            "data/cache/record.rs LONGEST_NOTE",
            "commands/precompute/shortened.rs NAMED",
        ],
    ),
    ("rng::seed_0_answers_as_torch", &["rng.rs WIDE_RANGE", "rng.rs BLOCK"]),
    (
        "step_cache::auto_extrapolates_from_50_steps_on",
        &["sample/step_cache/config.rs FINE_STEPS"],
    ),
    (
        "text::embeddings::embeddings_equal_transformers_with_and_without_a_mask",
        &["text/transpose.rs TILE"],
    ),
    (
        "text::tokens::a_rule_writes_1023_bytes_at_most",
        &["text/sentencepiece/normalize.rs MAX_REPLACEMENT_BYTES"],
    ),
    (
        "storage::bitsandbytes::four_bits_are_coded_as_in_bitsandbytes",
        &["nn/storage/bitsandbytes_4bit.rs BLOCK"],
    ),
    (
        "storage::bitsandbytes::magnitudes_of_more_blocks_than_a_nested_block_are_coded_by_the_midpoints",
        &["nn/storage/bitsandbytes_4bit.rs NESTED_BLOCK"],
    ),
    (
        "storage::bitsandbytes::parts_of_four_bits_that_do_not_fit_are_told",
        &["nn/storage/bitsandbytes_4bit.rs LARGEST_BLOCK"],
    ),
    (
        "storage::detect::forms_that_are_not_read_are_named_all_at_once",
        &["nn/storage/detect.rs SHOWN"],
    ),
    (
        "storage::gguf::the_most_that_is_read_is_read",
        &[
            "nn/gguf.rs SHORTEST_PAIR",
            "nn/gguf.rs SHORTEST_TENSOR",
            "nn/gguf.rs MOST_SIDES",
            "nn/gguf.rs LARGEST_ALIGNMENT",
            "nn/gguf/reader.rs DEEPEST",
        ],
    ),
    (
        "storage::gguf::types_that_are_not_read_are_named_all_at_once",
        &["nn/gguf.rs SHOWN"],
    ),
    (
        "storage::products::a_row_is_the_same_alone_and_among_others_that_threads_share_out",
        &["nn/storage.rs CHUNK"],
    ),
    ("text::wan::tidying_ends_on_anything", &["text/clean.rs MAX_ROUNDS"]),
    (
        "thresholds::a_caption_is_the_same_alone_and_in_a_batch_that_threads_share_out",
        &[
            "text/t5/elementwise.rs ROWS",
            "text/t5/elementwise.rs GATED",
            "text/t5/elementwise.rs ADDED",
        ],
    ),
    (
        "thresholds::a_matrix_in_bf16_is_the_same_in_one_strip_and_in_several",
        &["ops/stored.rs STRIP"],
    ),
    (
        "thresholds::configs::as_many_sentinels_are_made_up_as_a_tokenizer_may_ask_for",
        &["text/special.rs MAX_EXTRA_IDS"],
    ),
    (
        "thresholds::configs::entities_are_unescaped_up_to_24_letters",
        &["text/clean.rs LONGEST_NAME"],
    ),
    (
        "thresholds::configs::lists_of_models_end_where_no_checkpoint_has_more",
        &[
            "models/cogvideox/vae/config.rs MAX_BLOCKS",
            "models/hunyuan_video/vae/config.rs MAX_LEVELS",
            "models/ltx_video/vae/config.rs MAX_BLOCKS",
            "models/allegro/vae/config.rs MAX_LEVELS",
            "models/mochi/vae/config.rs MAX_LEVELS",
            "models/wan/vae/config.rs MAX_LEVELS",
        ],
    ),
    (
        "thresholds::configs::run_files_nest_16_deep_and_hold_100_000_values",
        &["config/yaml.rs MAX_DEPTH", "config/yaml.rs MAX_NODES"],
    ),
    (
        "thresholds::configs::sizes_of_a_data_set_end_where_a_typing_error_is_likelier",
        &[
            "data/dataset.rs MOST_REPEATS",
            "data/dataset.rs LARGEST_SIDE",
            "data/dataset.rs MOST_FRAMES",
        ],
    ),
    (
        "thresholds::configs::sizes_of_encoders_end_where_none_has_more",
        &[
            "text/t5/config.rs MAX_BUCKETS",
            "vision/preprocess.rs MAX_ASPECT",
            "vision/preprocess.rs MAX_EDGE",
        ],
    ),
    (
        "thresholds::configs::sizes_of_models_end_where_no_checkpoint_has_more",
        &[
            "diffusion/schedulers/config/mod.rs TIMESTEPS",
            "models/cogvideox/dit/config.rs MAX_TEXT",
            "models/hunyuan_video/vae/config.rs MAX_BLOCKS",
            "models/hunyuan_video/vae/config.rs MAX_WIDTH",
            "models/allegro/vae/config.rs MAX_BLOCKS",
            "models/allegro/vae/config.rs MAX_SIDE",
            "models/allegro/vae/config.rs MAX_WIDTH",
            "models/mochi/vae/config.rs MAX_BLOCKS",
            "models/mochi/vae/config.rs MAX_EXPANSION",
            "models/mochi/vae/config.rs MAX_WIDTH",
            "models/ltx_video/vae/config.rs MAX_PATCH",
            "models/ltx_video/vae/config.rs LAYERS",
            "models/ltx_video/vae/config.rs CHANNELS",
            "models/wan/vae/config.rs MAX_WIDTH",
            "models/wan/vae/config.rs MAX_BLOCKS",
            "diffusers_config.rs SIZE",
        ],
    ),
    (
        "thresholds::dropout_draws_each_number_by_its_place",
        &["ops/dropout.rs CHUNK"],
    ),
    (
        "thresholds::files::a_header_longer_than_any_is_not_read",
        &[
            "lora/merge.rs MAX_HEADER_BYTES",
            "models/single_file.rs MAX_HEADER_BYTES",
        ],
    ),
    (
        "thresholds::files::a_lock_says_who_holds_it_where_its_line_is_no_longer_than_any",
        &["lock.rs LONGEST"],
    ),
    (
        "thresholds::files::a_page_goes_without_settings_or_clips_that_are_too_long",
        &["report/about.rs MAX_BYTES", "report/settings.rs MAX_BYTES"],
    ),
    (
        "thresholds::files::a_record_has_little_more_than_its_numbers",
        &["data/cache/record.rs MAX_HEADER"],
    ),
    (
        "thresholds::files::an_adapter_of_more_than_8_gib_and_a_table_of_more_than_1_gib_are_refused_unread",
        &["data/manifest/text.rs LARGEST", "lora/file.rs MAX_BYTES"],
    ),
    (
        "thresholds::files::files_larger_than_any_of_their_kind_are_refused_by_their_size",
        &[
            "config/located.rs MAX_BYTES",
            "lora/file.rs MAX_CONFIG_BYTES",
            "diffusers_config.rs MAX_BYTES",
            "nn/weight_files.rs MAX_INDEX_BYTES",
            "text/sentencepiece.rs MAX_MODEL_BYTES",
            "text/byte_pairs.rs MAX_BYTES",
            "text/special.rs MAX_SIDE_FILE_BYTES",
            "text/tokenize.rs MAX_JSON_BYTES",
        ],
    ),
    (
        "thresholds::files::records_that_cannot_be_written_wait_up_to_16_mib",
        &["disk/journal.rs MOST"],
    ),
    (
        "thresholds::files::what_a_file_is_stands_in_its_first_64_bytes",
        &["magic.rs LOOKED_AT"],
    ),
    (
        "thresholds::launches_grow_with_what_they_go_through_up_to_what_a_card_takes",
        &[
            "ops/kernel.rs MOST_BLOCKS",
            "ops/kernel.rs WARP",
            "ops/kernel.rs MOST_THREADS",
            "ops/kernel.rs THREADS",
            "ops/kernel/rows.rs SLICE_ROWS",
            "ops/kernel/rows.rs MOST_SLICES",
            "ops/modulate/launch.rs WARPS",
        ],
    ),
    (
        "thresholds::lists::a_log_of_more_than_20_000_steps_is_thinned",
        &["report/curves.rs MOST"],
    ),
    (
        "thresholds::lists::a_loss_is_measured_by_the_hundred_before_it",
        &["train/loss_spikes.rs WINDOW"],
    ),
    (
        "thresholds::lists::a_page_lists_2000_clips_and_1000_characters_of_a_caption",
        &["report/page.rs MOST_CLIPS", "report/page.rs LONGEST_CAPTION"],
    ),
    (
        "thresholds::lists::a_strip_has_as_many_frames_as_the_clip_up_to_four",
        &["train/tensorboard.rs SHOWN"],
    ),
    (
        "thresholds::lists::a_videos_name_takes_whole_words_up_to_40_letters",
        &["train/validate.rs LONGEST"],
    ),
    (
        "thresholds::lists::an_inspection_shows_200_characters_of_a_note_and_20_tensors_that_do_not_apply",
        &[
            "commands/lora/inspect.rs LONGEST_VALUE",
            "commands/lora/inspect.rs LISTED",
        ],
    ),
    (
        "thresholds::lists::last_words_are_the_last_lines_up_to_a_length",
        &["launch/lines.rs LAST", "launch/lines.rs LONGEST"],
    ),
    (
        "thresholds::lists::of_many_clips_that_differ_the_first_ten_are_told",
        &["train/data_diff.rs TOLD"],
    ),
    (
        "thresholds::lists::of_many_files_a_message_names_the_first",
        &["data/manifest/mod.rs SHOWN", "hub/layout.rs SHOWN"],
    ),
    (
        "thresholds::lists::the_first_200_clips_have_pictures_no_narrower_and_no_wider_than_fits_a_page",
        &[
            "report/thumbnails.rs MOST",
            "report/thumbnails.rs HEIGHT",
            "report/thumbnails.rs NARROWEST",
            "report/thumbnails.rs WIDEST",
        ],
    ),
    (
        "thresholds::numbers_in_bf16_are_read_and_written_alike_in_every_chunk",
        &["ops/f32_view.rs CHUNK"],
    ),
    (
        "thresholds::numbers_that_are_made_up_do_not_come_again_after_a_chunk",
        &["nn/random_weights.rs CHUNK"],
    ),
    (
        "thresholds::pictures::a_clip_has_as_many_frames_as_a_day",
        &["video/scan.rs MAX_PACKETS"],
    ),
    (
        "thresholds::pictures::a_gif_has_as_many_colours_as_its_picture_up_to_256",
        &["video/palette.rs COLOURS"],
    ),
    (
        "thresholds::pictures::a_heif_picture_is_told_by_its_first_32_brands",
        &["video/heif.rs MOST_BRANDS"],
    ),
    (
        "thresholds::pictures::a_picture_is_turned_by_exif_that_is_neither_too_long_nor_too_far_behind",
        &["video/exif.rs LONGEST", "video/exif.rs MOST_PARTS"],
    ),
    (
        "thresholds::pictures::pictures_are_read_up_to_16384_a_side_and_64_mi_pixels",
        &["video/libav.rs MAX_PIXELS", "video/libav.rs MAX_SIDE"],
    ),
    (
        "thresholds::pieces_cover_a_length_in_order",
        &["distributed/mpi.rs MOST"],
    ),
    (
        "thresholds::scripts::a_command_line_takes_a_script_of_a_mib",
        &["commands/migrate.rs MOST_BYTES"],
    ),
    (
        "thresholds::scripts::a_data_set_file_of_16_mib_is_read",
        &["migrate/mod.rs MOST_BYTES"],
    ),
    (
        "thresholds::scripts::counts_beyond_the_trainers_own_are_refused",
        &[
            "migrate/finetrainers/validation.rs MOST_VIDEOS",
            "migrate/musubi/dataset.rs MOST_FULL_FRAMES",
        ],
    ),
    (
        "thresholds::scripts::long_sums_and_long_values_are_told_and_not_read",
        &["migrate/shell/expand.rs MOST_CUT", "migrate/shell/word.rs MOST_SUM"],
    ),
    (
        "thresholds::scripts::messages_show_60_characters_of_a_statement_and_100_remarks",
        &["migrate/script.rs MOST_REMARKS", "migrate/script.rs SHOWN"],
    ),
    (
        "thresholds::scripts::scripts_of_a_mib_are_read",
        &["migrate/script.rs MOST_BYTES"],
    ),
    (
        "thresholds::scripts::scripts_within_scripts_are_followed_so_deep",
        &[
            "migrate/batch.rs MOST_DEPTH",
            "migrate/powershell/text.rs MOST_DEPTH",
            "migrate/shell.rs MOST_DEPTH",
            "migrate/shell.rs MOST_FRAMES",
            "migrate/shell.rs MOST_COMMANDS",
        ],
    ),
    (
        "thresholds::scripts::values_within_values_are_read_so_deep",
        &["migrate/arithmetic.rs MOST_DEPTH", "migrate/shell/word.rs MOST_DEPTH"],
    ),
    (
        "thresholds::the_optimiser_and_the_average_move_each_number_by_itself",
        &["optim/in_place.rs CHUNK"],
    ),
    (
        "training::numbers::a_loss_stands_out_from_the_median_of_those_before",
        &["train/loss_spikes.rs FEWEST"],
    ),
    (
        "training::pushed::a_finished_run_is_pushed_in_one_commit_and_again_without_uploading_again",
        &["hub/push.rs SAMPLE", "hub/push.rs STRETCH"],
    ),
    (
        "training::pushed::what_git_lfs_says_of_a_file_is_told_without_the_token",
        &["hub/push.rs TOLD"],
    ),
    (
        "vae_tiles::ltx_video_codes_long_clips_piece_by_piece_as_diffusers_does_whole",
        &["models/ltx_video/vae/coder.rs LATENT_FRAMES"],
    ),
    (
        "video::empty::an_avi_with_empty_chunks_is_whole_and_keeps_its_times",
        &["video/avi.rs DEEPEST"],
    ),
    (
        "video::seeking_gives_the_frames_that_decoding_from_the_start_gives",
        &["video/decode.rs WORTH_A_SEEK"],
    ),
    (
        "wan_vae::clips_and_latents_that_can_not_be_coded_are_refused",
        &["models/wan/vae/config.rs COLOURS"],
    ),
    (
        "plan::auto::auto_takes_the_first_settings_in_the_order_of_their_costs_with_which_a_run_fits",
        &["plan/choice.rs LEFT"],
    ),
    (
        "vae_tiles::a_plan_of_clip_encoding_counts_the_weights_and_the_clip_besides",
        &["plan/coding.rs COLOURS", "plan/coding.rs WIDE"],
    ),
    (
        "vae_tiles::the_cost_read_from_headers_is_within_a_tenth_of_the_bytes_that_are_held",
        &["models/autoencoder.rs FINISHED", "models/wan/vae/coder.rs FINISHED"],
    ),
    (
        "wan_vae::clips_of_1_5_9_and_17_frames_encode_as_in_diffusers",
        &["models/wan/vae/coder.rs SAMPLE_FRAMES"],
    ),
];

/// Constants that are whole numbers and no such sizes, by what they are.
const OTHERS: &[(&str, &[&str])] = &[
    (
        "the layout of a contact sheet, which a test measures",
        &[
            "commands/sample/contact_sheet.rs COLUMNS",
            "commands/sample/contact_sheet.rs HEIGHT",
            "commands/sample/contact_sheet.rs WIDTH",
        ],
    ),
    (
        "the folders of a checkpoint and of its parts",
        &["commands/sample/request_hash.rs DEPTH"],
    ),
    (
        "a part of a plan of memory",
        &[
            "commands/plan.rs DRIVER_BYTES",
            "plan/sizes.rs COLUMNS",
            "ops/bf16/product.rs MANY",
            "process/allocations.rs WIDEST_NUMBER",
            "plan/excerpt.rs EMBEDDING",
            "plan/excerpt.rs FIRST_BLOCK",
            "plan/excerpt.rs SHOWN",
            "plan/mod.rs SLOTS",
            "plan/suggestions.rs FRAME_STEP",
            "plan/suggestions.rs SIDE_STEP",
            "plan/time.rs BLOCKS",
            "plan/time.rs LESS_TEXT",
            "plan/time.rs WORK_COLUMNS",
            "plan/training.rs NUMBER",
        ],
    ),
    (
        "not reached: as many packs are 32 GiB of numbers",
        &["ops/rotary/launch.rs MOST_PACKS"],
    ),
    (
        "not reached yet: no test has a fault behind the first 256 MiB of a clip's pictures",
        &["data/survey.rs AT_ONCE"],
    ),
    (
        "the start of a caption that is cut: whatever has more tokens than a model reads is longer",
        &["commands/precompute/shortened.rs SHOWN"],
    ),
    (
        "steps that are measured, whatever their size",
        &["commands/bench.rs TIMES", "commands/bench/profile.rs STEPS"],
    ),
    (
        "a queue: clips wait in it, and none is lost",
        &["commands/precompute.rs AHEAD"],
    ),
    ("a seed", &["commands/train/build.rs INIT"]),
    ("a share of time", &["report/live.rs SHARE"]),
    ("a share of a side", &["sample/step_cache/low_pass.rs SHARE"]),
    (
        "a number of a format",
        &[
            "commands/sample/request_hash.rs FORMAT",
            "sample/step_cache/halved.rs BLOCK",
            "data/cache/key.rs FORMAT",
            "nn/quantized_cache.rs FORMAT",
            "models/gguf.rs QUANTIZATION_VERSION",
            "nn/gguf.rs DEFAULT_ALIGNMENT",
            "nn/gguf/writer.rs TEXT",
            "nn/gguf/writer.rs U32",
            "nn/gguf/writer.rs VERSION",
            "nn/safetensors_writer.rs LENGTH",
            "nn/storage/ggml.rs MOST_BLOCK",
            "nn/storage/layout.rs LONGEST_NUMBER",
            "nn/storage/quantize.rs SCALE",
            "optim/dynamic_map.rs BLOCK",
            "optim/dynamic_map.rs DECADES",
            "nn/gguf/reader.rs SHORTEST",
            "nn/storage/bitsandbytes_4bit.rs BYTES",
            "nn/storage/bitsandbytes_4bit.rs CODES",
            "nn/storage/float8.rs BYTES",
            "nn/storage/ggml/k_quants.rs BLOCK",
            "nn/storage/ggml/k_quants.rs PACKED",
            "nn/storage/ggml/k_quants.rs PART",
            "nn/storage/ggml/k_quants.rs QUARTERS",
            "nn/storage/ggml/k_quants.rs ROW",
            "nn/storage/ggml/legacy.rs BLOCK",
            "nn/storage/ggml/legacy.rs PAIRS",
            "train/checkpoint/snapshot.rs FORMAT",
            "train/checkpoint/snapshot.rs WITHOUT_SAMPLES",
        ],
    ),
    (
        "mochi_dit::configs_and_inputs_that_do_not_fit_are_refused_by_key",
        &["models/mochi/dit/config.rs POOL_HEADS"],
    ),
    (
        "hunyuan_video_dit::every_kind_predicts_what_diffusers_predicts",
        &[
            "models/hunyuan_video/dit/config.rs TIME_WIDTH",
            "nn/token_refiner.rs MLP_RATIO",
        ],
    ),
    (
        "hunyuan_video_sample::a_prompt_that_is_too_long_loses_its_end_like_in_diffusers",
        &["models/llama_conditioner.rs CLIP_TOKENS"],
    ),
    (
        "hunyuan_video_sample::image_to_video_with_an_image_in_channels_equals_diffusers",
        &[
            "models/hunyuan_video/family.rs DROPPED_FRAMES",
            "models/llava.rs VISION_FEATURE_LAYER",
            "models/llava_conditioner.rs ANSWER_HEADER",
            "models/llava_conditioner.rs HEADERS",
        ],
    ),
    (
        "hunyuan_video_sample::text_to_video_equals_diffusers_at_a_guidance_scale",
        &["models/llama_conditioner.rs SKIPPED_BLOCKS"],
    ),
    (
        "hunyuan_video_vae::clips_and_latents_that_can_not_be_coded_are_refused",
        &[
            "models/hunyuan_video/vae/config.rs COLOURS",
            "models/hunyuan_video/vae/config.rs TEMPORAL_COMPRESSION",
        ],
    ),
    (
        "migrate::meaning::the_script_for_mochi_becomes_a_run",
        &[
            "migrate/finetrainers/mochi.rs VIDEO_FRAMES",
            "migrate/finetrainers/mochi.rs VIDEO_STEPS",
        ],
    ),
    (
        "allegro_vae::clips_and_latents_that_can_not_be_coded_are_refused",
        &["models/allegro/vae/config.rs COLOURS"],
    ),
    (
        "text::caption::captions_are_cleaned_as_in_diffusers_with_bs4_and_ftfy",
        &["text/clean/caption.rs HYPHENS"],
    ),
    (
        "mochi_vae::clips_and_latents_that_can_not_be_coded_are_refused",
        &["models/mochi/vae/config.rs COLOURS"],
    ),
    (
        "mochi_vae::clips_of_1_7_and_13_frames_are_coded_as_in_diffusers",
        &[
            "models/mochi/vae/config.rs GROUPS",
            "models/mochi/vae/config.rs HEAD_WIDTH",
        ],
    ),
    (
        "mochi_vae::latent_frames_are_decoded_one_by_one_and_the_first_five_frames_are_dropped",
        &["models/mochi/vae/coder.rs LATENT_FRAMES"],
    ),
    (
        "hunyuan_video_vae::the_published_config_is_read",
        &["models/hunyuan_video/vae/config.rs IN_TIME"],
    ),
    (
        "text::hunyuan_video::an_end_token_that_is_named_is_the_first_of_its_kind",
        &["text/clip_text.rs LARGEST"],
    ),
    ("a span of time", &["disk/hash_cache.rs GRAIN"]),
    (
        "what a file takes besides its numbers, for an estimate",
        &[
            "commands/quantize.rs HEADERS",
            "data/cache/record.rs USUAL_HEADER",
            "train/checkpoint.rs ROOM_FOR_FOLDER",
        ],
    ),
    ("tries", &["hub/fetch.rs RETRIES"]),
    ("POSIX's length of a name", &["lock.rs HOST_BYTES"]),
    ("a limit: iterations end there", &["lora/svd.rs SWEEPS"]),
    (
        "of the randomised decomposition, whose error the tests of residual adapters bound",
        &["lora/svd.rs ITERATIONS", "lora/svd.rs OVERSAMPLING"],
    ),
    (
        "how many blocks a thread stores: the codes are the same",
        &["nn/storage/bitsandbytes_4bit.rs LEAST_BLOCKS"],
    ),
    (
        "not reached yet: the tests' matrices are smaller, and no transformer has so many problems",
        &["nn/rewrite/summary.rs STRIP", "models/gguf.rs SHOWN"],
    ),
    ("a default of the trainer's", &["migrate/musubi/dataset.rs MOST_FRAMES"]),
    (
        "of the model",
        &[
            "models/allegro/dit/config.rs AXES",
            "models/allegro/dit/mod.rs SINUSOID",
            "models/allegro/dit/mod.rs TEXT_TOKENS",
            "models/ltx_video/dit/mod.rs SINUSOID",
            "models/ltx_video/dit/positions.rs TEMPORAL_COMPRESSION",
            "models/ltx_video/dit/positions.rs SPATIAL_COMPRESSION",
            "models/hunyuan_video/dit/mod.rs TEXT_TOKENS",
            "models/hunyuan_video/mod.rs POOLED_WIDTH",
            "models/hunyuan_video/mod.rs TEXT_WIDTH",
            "models/llava.rs IMAGE_TOKEN_INDEX",
            "models/ltx_video/dit/mod.rs TEXT_TOKENS",
            "models/ltx_video/vae/resnet.rs TIME_PROJ",
            "models/mochi/dit/mod.rs TEXT_TOKENS",
            "models/mochi/mod.rs TEXT_WIDTH",
            "models/synthetic.rs IMAGE_TOKENS",
            "models/wan/dit/mod.rs TEXT_TOKENS",
        ],
    ),
    (
        "channels beside the others, whatever their number",
        &["nn/conv3d/by_candle.rs ONES"],
    ),
    (
        "products on a GPU: too large to be reached here, so that tests give smaller numbers",
        &[
            "nn/conv3d/by_candle.rs STACK",
            "nn/frame_attention.rs SCORES",
            "nn/temporal_attention.rs TOGETHER",
        ],
    ),
    (
        "on a GPU only: what its kernels take, and gpu_check has both sides",
        &["ops/attention.rs WIDEST"],
    ),
    (
        "the distance between rows, of which a part is read",
        &["ops/attention/backward.rs WEIGHTS", "ops/attention/forward.rs SCORES"],
    ),
    (
        "how many pieces there are at most; long sequences have them",
        &["ops/attention/backward.rs PIECES"],
    ),
    (
        "of a launch: tests/kernels.rs has sizes on both sides",
        &[
            "ops/attention/launch.rs SIDE",
            "ops/kernel/rows.rs MOST_PARTS",
            "nn/storage/launch.rs PACK",
            "optim/launch.rs PIECE",
            "ops/norm/launch.rs THREADS",
            "optim/launch.rs THREADS",
        ],
    ),
    ("of SplitMix64", &["ops/dropout.rs GAMMA"]),
    (
        "how threads share a product out: the bits are the same",
        &["ops/bf16/product.rs TASKS", "ops/bf16/product.rs WIDEST"],
    ),
    (
        "threads of a block, whatever the width",
        &["ops/kernel/rows.rs THREADS"],
    ),
    (
        "the width of a vector: all sizes of tests go beside it",
        &[
            "ops/simd.rs COUNT",
            "ops/simd.rs WIDEST",
            "ops/aligned.rs LINE",
            "ops/attention/narrow/soften.rs COUNT",
            "ops/microkernel.rs COLUMNS",
            "ops/simd_math.rs LANES",
            "text/t5/elementwise.rs LANES",
        ],
    ),
    (
        "the order of additions: optim holds norms of all lengths",
        &["optim/clip.rs LANES"],
    ),
    (
        "points of a stretch of a thinned log: its last, its highest, its lowest, its largest norm",
        &["report/curves.rs A_STRETCH"],
    ),
    ("of torch's generator", &["rng.rs MASK", "rng.rs N", "rng.rs M"]),
    ("of T5", &["text/special.rs DEFAULT_EXTRA_IDS"]),
    ("a default", &["train/config.rs DEFAULT_STEPS"]),
    ("bytes of TensorBoard's format", &["train/tensorboard.rs FRAME"]),
    (
        "how many threads decode: the pictures are the same",
        &["video/decode.rs LARGE_FRAME"],
    ),
    ("threads: the file is the same", &["video/encode.rs THREADS"]),
    (
        "bound for libav, from the largest picture",
        &["video/libav.rs MAX_BLOCK"],
    ),
    (
        "cells of the histogram",
        &["video/palette.rs BITS", "video/palette.rs CELLS"],
    ),
];

/// Numbers in functions that look like sizes, by what they are: where a line of a file begins so.
const BARE: &[(&str, &[&str])] = &[
    ("bits of a processor's answer", &["ops/bf16/amx.rs: let both"]),
    (
        "lines of a tile",
        &[
            "ops/bf16/avx512.rs: for pair in",
            "ops/bf16/pack.rs: for (tile, lines)",
            "ops/bf16/pack.rs: for i in",
        ],
    ),
    (
        "a part of a hash",
        &["data/cache/encoded.rs: let short", "report/thumbnails.rs: format!"],
    ),
    (
        "a limit of the schema, from the constant beside it",
        &["data/dataset.rs: #[schemars"],
    ),
    (
        "a formula's: what its values are bounded by",
        &[
            "diffusion/schedulers/alphas.rs: (0..num)",
            "nn/conv3d/simd.rs: let x = x.clamp",
            "ops/simd_math.rs: let clamped",
            "text/t5/elementwise.rs: let x = x.clamp",
        ],
    ),
    (
        "a default, or what published models have",
        &[
            "diffusion/schedulers/config/flow_match_euler.rs: max_image_seq_len",
            "models/allegro/",
            "models/cogvideox/",
            "models/hunyuan_video/dit/config.rs: text_embed_dim",
            "models/ltx_video/",
            "models/mochi/dit/config.rs: text_embed_dim",
            "models/wan/",
            "text/llama/config.rs: hidden_size",
            "text/llama/config.rs: vocab_size",
            "text/t5/config.rs: d_ff",
        ],
    ),
    (
        "a status of HTTP, or of a process",
        &[
            "hub/push.rs: 200..300",
            "hub/push.rs: Ok(answer",
            "hub/push.rs: let refused",
            "launch/mpirun.rs: (None, Termination::Exit",
        ],
    ),
    (
        "a value for a key of the run file",
        &["migrate/finetrainers.rs: self.set", "migrate/musubi.rs: self.set"],
    ),
    (
        "the width of a vector",
        &[
            "nn/conv3d/direct.rs: ",
            "nn/conv3d/moments.rs: .par_chunks",
            "nn/conv3d/simd.rs: Self::",
            "nn/conv3d/simd.rs: let (stretches",
        ],
    ),
    (
        "of the system: a page where it does not say, a unit, a message",
        &[
            "nn/tensor_file.rs: let page",
            "process/memory.rs: kib",
            "process/allocator.rs: let mut text",
            "report/environment.rs: Some",
            "train/progress.rs: ",
        ],
    ),
    (
        "bytes or pieces of a format",
        &[
            "nn/storage/layout.rs: if (-4..16)",
            "optim/dynamic_map.rs: ",
            "text/sentencepiece.rs: let mut ids",
            "video/convert.rs: let (unit",
            "video/orientation.rs: if bytes",
            "video/heif.rs: file.take",
            "protobuf_wire.rs: for shift",
        ],
    ),
    ("frames a second", &["video/encode.rs: if !fps"]),
];

/// The sources, by path below `src`, without what runs on GPUs only: its sizes are those of a card.
fn sources() -> Vec<(String, String)> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut found, mut waiting) = (Vec::new(), vec![source.clone()]);
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            waiting.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let name = path.strip_prefix(&source).unwrap().to_str().unwrap().to_string();
        if name.ends_with(".rs") && !["cuda", "cudnn", "gpu_check"].iter().any(|only| name.contains(only)) {
            found.push((name, fs::read_to_string(path).unwrap()));
        }
    }
    found
}

/// Constants that are whole numbers or ranges of them, wherever they stand.
fn constants() -> BTreeSet<String> {
    let constant =
        Regex::new(r"(?m)^ *(?:pub(?:\(\w+\))? )?const (\w+): (?:usize|u64|u32|i64|RangeInclusive<usize>) = ").unwrap();
    let of = |(name, text): &(String, String)| {
        let found = constant
            .captures_iter(text)
            .map(|found| format!("{name} {}", &found.unwrap()[1]));
        found.collect::<Vec<_>>()
    };
    sources().iter().flat_map(of).collect()
}

#[test]
fn every_size_has_a_test_on_both_sides() {
    let there = constants();
    let others: BTreeSet<String> = OTHERS
        .iter()
        .flat_map(|(_, names)| *names)
        .map(|name| name.to_string())
        .collect();
    let gone: Vec<_> = others.difference(&there).collect();
    assert!(gone.is_empty(), "{gone:?}");
    let there = there.difference(&others).cloned().collect();
    let table = THRESHOLDS
        .iter()
        .flat_map(|(test, names)| names.iter().map(|name| (name.to_string(), *test)));
    let faults = crate::settings::faults(&there, table);
    assert!(faults.is_empty(), "tests/thresholds/table.rs:\n{}", faults.join("\n"));
}

/// Numbers of two digits and more where something is cut, taken, reserved or compared; shifts; powers of ten and two.
#[test]
fn no_size_stands_in_a_function_without_a_name() {
    let sizes = [
        r"\.(?:take|skip|(?:par_|as_)?chunks\w*|step_by|with_m\w+_len|with_capacity|min|max|clamp|truncate)(?:::<)?\(?[^()]*?\b\d[\d_]+\b",
        r"(?<![<>=-])(?:<=|>=|<|>|==) \d[\d_]+\b",
        r"\.\.=?(?:\d[\d_]+\b|\d+ << \d)",
        r"\b\d+ << \d\d",
        r"; (?:\d{3,}|\d+ << \d+)\]",
        r"\b(?:\d+_000|1024|4096|65_?536)\b",
    ];
    let size = Regex::new(&sizes.join("|")).unwrap();
    let aside = Regex::new(r#"//.*|"(?:[^"\\]|\\.)*"|^ *(?:pub(?:\(\w+\))? )?(?:const|static|type) .*"#).unwrap();
    let mut found = BTreeSet::new();
    for (name, text) in sources() {
        for line in text.lines() {
            let line = aside.replace_all(line, "").trim().to_string();
            if size.is_match(&line).unwrap() {
                found.insert(format!("{name}: {line}"));
            }
        }
    }
    let (mut unused, mut bare) = (Vec::new(), found);
    for start in BARE.iter().flat_map(|(_, starts)| *starts) {
        let before = bare.len();
        bare.retain(|line| !line.starts_with(start));
        if bare.len() == before {
            unused.push(start);
        }
    }
    let bare: Vec<_> = bare.into_iter().collect();
    assert!(unused.is_empty(), "not there: {unused:?}");
    assert!(bare.is_empty(), "name these:\n{}", bare.join("\n"));
}
