//! Flags of musubi-tuner that have no key in a run file, and why.

/// Names, separated by spaces, and the reason.
pub const REASONS: &[(&str, &str)] = &[
    (
        "dit",
        "is a transformer alone: give it as model.transformer, beside the family's diffusers directory as model.path",
    ),
    (
        "vae t5 clip text_encoder text_encoder1 text_encoder2 dit_high_noise",
        "vtrain takes every part from model.path, a diffusers directory; give your own there",
    ),
    (
        "fp8_base fp8_scaled fp8_t5 fp8_llm fp8_text_encoder dit_dtype vae_dtype text_encoder_dtype \
         mixed_precision full_bf16 full_fp16",
        "frozen weights are kept in model.dtype, bf16 or f32, or in few bits by model.quantization (fp8 among others) and \
         model.text_encoder_quantization; adapters are trained in f32",
    ),
    (
        "sdpa flash_attn flash3 sage_attn xformers split_attn compile compile_backend compile_mode \
         compile_dynamic compile_fullgraph cuda_allow_tf32 cuda_cudnn_benchmark compile_cache_size_limit \
         dynamo_backend dynamo_mode dynamo_fullgraph dynamo_dynamic",
        "is about PyTorch's kernels; vtrain has its own",
    ),
    (
        "blocks_to_swap img_in_txt_in_offloading use_pinned_memory_for_block_swap offload_inactive_dit",
        "model.offload: group streams blocks from main memory; train.activation_policy decides what a step keeps",
    ),
    (
        "vae_cache_cpu vae_chunk_size",
        "clips are coded a few frames at a time in any case",
    ),
    ("network_dropout", "drops other numbers than lora.dropout does"),
    (
        "network_args",
        "vtrain's adapters have no such settings; lora.target_modules selects their layers",
    ),
    ("dim_from_weights", "the rank is lora.rank"),
    (
        "min_timestep max_timestep preserve_distribution_shape timestep_boundary",
        "vtrain draws from all timesteps",
    ),
    ("num_timestep_buckets show_timesteps", "vtrain has no such setting"),
    (
        "max_data_loader_n_workers persistent_data_loader_workers",
        "encoded clips are read during training, without workers",
    ),
    (
        "save_every_n_epochs save_last_n_epochs save_last_n_epochs_state save_last_n_steps \
         save_last_n_steps_state",
        "vtrain counts checkpoints in steps: write checkpoint.every and checkpoint.limit",
    ),
    (
        "save_state save_state_on_train_end",
        "every checkpoint of vtrain can be resumed from",
    ),
    (
        "save_precision no_metadata training_comment",
        "adapter files are f32, with their settings in the header",
    ),
    ("resume", "a run is resumed by `vtrain train --config FILE --resume`"),
    (
        "sample_every_n_epochs",
        "vtrain counts in steps: write validation.every",
    ),
    ("sample_at_first", "vtrain validates behind steps"),
    (
        "logging_dir log_prefix log_tracker_name log_tracker_config wandb_run_name wandb_api_key log_config",
        "vtrain logs every step into output_dir",
    ),
    (
        "metadata_title metadata_author metadata_description metadata_license metadata_tags metadata_reso \
         metadata_arch",
        "vtrain writes a model card in place of these",
    ),
    (
        "huggingface_repo_id huggingface_token huggingface_path_in_repo huggingface_repo_type \
         huggingface_repo_visibility async_upload save_state_to_huggingface resume_from_huggingface",
        "vtrain does not upload it: upload output_dir with `hf upload`",
    ),
    ("scale_weight_norms", "vtrain does not scale adapters down"),
    (
        "ddp_timeout ddp_gradient_as_bucket_view ddp_static_graph",
        "is about several processes; vtrain is one",
    ),
    ("guidance_scale", "is for models with guidance built in"),
    ("dit_in_channels", "is what the checkpoint's config says"),
    ("one_frame force_v2_1_time_embedding", "vtrain has no such variant"),
    (
        "lr_decay_steps lr_scheduler_timescale lr_scheduler_min_lr_ratio",
        "is for schedules that vtrain does not have",
    ),
    ("disable_numpy_memmap", "is about how files are read"),
    (
        "base_weights base_weights_multiplier",
        "vtrain trains on model.path as it is: merge them into it by `vtrain lora merge` first",
    ),
];
