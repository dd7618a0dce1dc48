//! Flags of finetrainers and its predecessors that have no key in a run file, and why.

/// Names, separated by spaces, and the reason.
pub const REASONS: &[(&str, &str)] = &[
    (
        "parallel_backend pp_degree dp_degree dp_shards cp_degree tp_degree",
        "vtrain trains on one device; with more devices before, more gradient_accumulation_steps make the same step",
    ),
    ("variant", "vtrain reads the files that the checkpoint's index names"),
    ("cache_dir", "vtrain shares the Hub's cache: set HF_HOME"),
    (
        "tokenizer_id tokenizer_2_id tokenizer_3_id text_encoder_id text_encoder_2_id text_encoder_3_id \
         transformer_id vae_id",
        "vtrain takes every part from model.path: put them together in one diffusers directory",
    ),
    (
        "text_encoder_dtype text_encoder_2_dtype text_encoder_3_dtype vae_dtype",
        "vtrain has one dtype for all frozen weights, model.dtype",
    ),
    (
        "mixed_precision",
        "frozen weights are kept in model.dtype, and adapters are trained in f32",
    ),
    (
        "layerwise_upcasting_modules layerwise_upcasting_storage_dtype \
         layerwise_upcasting_skip_modules_pattern",
        "vtrain keeps frozen weights in bf16 or f32, not in 8 bits",
    ),
    (
        "precompute_conditions enable_precomputation precomputation_once precomputation_reuse",
        "vtrain always encodes clips and captions once, and uses what it has encoded again",
    ),
    (
        "precomputation_items",
        "vtrain encodes the whole data set before the first step",
    ),
    ("dataset_shuffle_buffer_size", "vtrain shuffles the whole data set"),
    (
        "dataloader_num_workers pin_memory",
        "encoded clips are read during training, without workers",
    ),
    ("max_data_samples", "vtrain trains on the whole data set"),
    (
        "flow_base_image_seq_len flow_max_image_seq_len flow_base_seq_len flow_max_seq_len flow_base_shift \
         flow_max_shift",
        "diffusion.shift: auto takes these from the checkpoint's scheduler",
    ),
    (
        "skip_frames_start skip_frames_end",
        "vtrain takes frames from the whole clip: where this is not 0, cut the clips first",
    ),
    ("random_flip", "vtrain does not mirror clips"),
    (
        "noised_image_dropout",
        "vtrain always gives the first frame, as it was; nor does it leave it out in some steps",
    ),
    ("use_dynamic_cfg", "vtrain's videos have the same guidance at each step"),
    (
        "dataset_config_name load_tensors",
        "vtrain encodes clips and captions itself, from a folder",
    ),
    (
        "use_8bit use_4bit use_torchao use_cpu_offload_optimizer offload_gradients",
        "vtrain's AdamW keeps its moments in f32",
    ),
    (
        "prodigy_decouple prodigy_use_bias_correction prodigy_safeguard_warmup",
        "is for Prodigy, which vtrain does not have",
    ),
    (
        "resume_from_checkpoint",
        "a run is resumed by `vtrain train --config FILE --resume`",
    ),
    ("beta3", "is for Prodigy, which vtrain does not have"),
    (
        "scale_lr",
        "vtrain takes optimizer.lr as it is: multiply it by devices, batch and accumulation yourself",
    ),
    (
        "enable_model_cpu_offload",
        "vtrain loads encoders only while they encode",
    ),
    (
        "tracker_name logging_dir logging_steps verbose",
        "vtrain logs every step into output_dir; -v says more",
    ),
    (
        "hub_token",
        "vtrain takes the token from HF_TOKEN, and writes it nowhere",
    ),
    (
        "allow_tf32 compile_dit float32_matmul_precision compile_modules compile_scopes attn_provider_training \
         attn_provider_inference",
        "is about PyTorch's kernels; vtrain has its own",
    ),
    ("nccl_timeout init_timeout", "is about several processes; vtrain is one"),
    (
        "control_type train_qk_norm frame_conditioning_type frame_conditioning_index \
         frame_conditioning_concatenate_mask",
        "vtrain has no control training; train.first_frame_conditioning_p trains on clips that start from an image",
    ),
    ("training_type", "vtrain trains LoRA adapters"),
    ("list_models", "prints a list and trains nothing"),
];
