//! Layer names of HunyuanVideo in its original checkpoint, and in ComfyUI.
//!
//! Facts: `convert_hunyuan_video_transformer_to_diffusers` and `_convert_hunyuan_video_lora_to_diffusers` of diffusers;
//! ComfyUI's `ldm/hunyuan_video`, `HunyuanVideo.process_unet_state_dict` and `model_lora_keys_unet`.

use crate::lora::names::Division::{Equal, HalvesSwapped, SquaresAndRest};
use crate::lora::names::{Fused, Names};

/// Parts of a fused attention.
const QKV: &[&str] = &["to_q", "to_k", "to_v"];

/// (diffusers, original), a row a layer.
#[rustfmt::skip]
pub static NAMES: Names = Names {
    family: "hunyuan_video",
    title: "HunyuanVideo",
    alpha_in_diffusers: false,
    diffusers_alone: false,
    layers: &[
        ("time_text_embed.timestep_embedder.linear_1", "time_in.mlp.0"),
        ("time_text_embed.timestep_embedder.linear_2", "time_in.mlp.2"),
        ("time_text_embed.guidance_embedder.linear_1", "guidance_in.mlp.0"),
        ("time_text_embed.guidance_embedder.linear_2", "guidance_in.mlp.2"),
        ("time_text_embed.text_embedder.linear_1", "vector_in.in_layer"),
        ("time_text_embed.text_embedder.linear_2", "vector_in.out_layer"),
        ("context_embedder.time_text_embed.timestep_embedder.linear_1", "txt_in.t_embedder.mlp.0"),
        ("context_embedder.time_text_embed.timestep_embedder.linear_2", "txt_in.t_embedder.mlp.2"),
        ("context_embedder.time_text_embed.text_embedder.linear_1", "txt_in.c_embedder.linear_1"),
        ("context_embedder.time_text_embed.text_embedder.linear_2", "txt_in.c_embedder.linear_2"),
        ("context_embedder.proj_in", "txt_in.input_embedder"),
        ("context_embedder.token_refiner.refiner_blocks.{}.attn.to_out.0",
         "txt_in.individual_token_refiner.blocks.{}.self_attn_proj"),
        ("context_embedder.token_refiner.refiner_blocks.{}.ff.net.0.proj",
         "txt_in.individual_token_refiner.blocks.{}.mlp.fc1"),
        ("context_embedder.token_refiner.refiner_blocks.{}.ff.net.2",
         "txt_in.individual_token_refiner.blocks.{}.mlp.fc2"),
        ("context_embedder.token_refiner.refiner_blocks.{}.norm_out.linear",
         "txt_in.individual_token_refiner.blocks.{}.adaLN_modulation.1"),
        ("transformer_blocks.{}.norm1.linear", "double_blocks.{}.img_mod.linear"),
        ("transformer_blocks.{}.norm1_context.linear", "double_blocks.{}.txt_mod.linear"),
        ("transformer_blocks.{}.attn.to_out.0", "double_blocks.{}.img_attn_proj"),
        ("transformer_blocks.{}.attn.to_add_out", "double_blocks.{}.txt_attn_proj"),
        ("transformer_blocks.{}.ff.net.0.proj", "double_blocks.{}.img_mlp.fc1"),
        ("transformer_blocks.{}.ff.net.2", "double_blocks.{}.img_mlp.fc2"),
        ("transformer_blocks.{}.ff_context.net.0.proj", "double_blocks.{}.txt_mlp.fc1"),
        ("transformer_blocks.{}.ff_context.net.2", "double_blocks.{}.txt_mlp.fc2"),
        ("single_transformer_blocks.{}.norm.linear", "single_blocks.{}.modulation.linear"),
        ("single_transformer_blocks.{}.proj_out", "single_blocks.{}.linear2"),
        ("proj_out", "final_layer.linear"),
    ],
    fused: &[
        Fused::new("txt_in.individual_token_refiner.blocks.{}.self_attn_qkv",
                   "context_embedder.token_refiner.refiner_blocks.{}.attn.", QKV, Equal),
        Fused::new("double_blocks.{}.img_attn_qkv", "transformer_blocks.{}.attn.", QKV, Equal),
        Fused::new("double_blocks.{}.txt_attn_qkv", "transformer_blocks.{}.attn.",
                   &["add_q_proj", "add_k_proj", "add_v_proj"], Equal),
        Fused::new("single_blocks.{}.linear1", "single_transformer_blocks.{}.",
                   &["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"], SquaresAndRest(4)),
        Fused::new("final_layer.adaLN_modulation.1", "norm_out.linear", &[""], HalvesSwapped),
    ],
    others: &[
        ("x_embedder.proj", "img_in.proj"),
        ("context_embedder.token_refiner.refiner_blocks.{}.norm1", "txt_in.individual_token_refiner.blocks.{}.norm1"),
        ("context_embedder.token_refiner.refiner_blocks.{}.norm2", "txt_in.individual_token_refiner.blocks.{}.norm2"),
        ("transformer_blocks.{}.attn.norm_q", "double_blocks.{}.img_attn_q_norm"),
        ("transformer_blocks.{}.attn.norm_k", "double_blocks.{}.img_attn_k_norm"),
        ("transformer_blocks.{}.attn.norm_added_q", "double_blocks.{}.txt_attn_q_norm"),
        ("transformer_blocks.{}.attn.norm_added_k", "double_blocks.{}.txt_attn_k_norm"),
        ("single_transformer_blocks.{}.attn.norm_q", "single_blocks.{}.q_norm"),
        ("single_transformer_blocks.{}.attn.norm_k", "single_blocks.{}.k_norm"),
    ],
    tables: &[],
    comfyui: &[
        ("_in.mlp.0", "_in.in_layer"), ("_in.mlp.2", "_in.out_layer"),
        ("t_embedder.mlp.0", "t_embedder.in_layer"), ("t_embedder.mlp.2", "t_embedder.out_layer"),
        ("c_embedder.linear_1", "c_embedder.in_layer"), ("c_embedder.linear_2", "c_embedder.out_layer"),
        ("mlp.fc1", "mlp.0"), ("mlp.fc2", "mlp.2"), ("_attn_qkv", "_attn.qkv"), ("_attn_proj", "_attn.proj"),
        ("_mod.linear", "_mod.lin"), (".modulation.linear", ".modulation.lin"),
        (".q_norm", ".norm.query_norm"), (".k_norm", ".norm.key_norm"),
        ("_attn_q_norm", "_attn.norm.query_norm"), ("_attn_k_norm", "_attn.norm.key_norm"), ("_norm.weight", "_norm.scale"),
    ],
    // diffusers splits the refiner's lora_A, and the last one's, in parts; ComfyUI has other names for embedders.
    apart: &[
        "txt_in.individual_token_refiner.blocks.{}.self_attn_qkv", "txt_in.t_embedder.mlp.{}", "time_in.mlp.{}",
        "txt_in.c_embedder.linear_{}", "guidance_in.mlp.{}", "final_layer.adaLN_modulation.{}",
    ],
};
