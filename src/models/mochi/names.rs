//! Layer names of Mochi 1 in its original checkpoint. ComfyUI has the same.
//!
//! Facts: diffusers' script `convert_mochi_to_diffusers`; `dit/joint_model` of <https://github.com/genmoai/mochi>; ComfyUI's
//! `ldm/genmo`. diffusers reads adapters under its own names alone.

use crate::lora::names::Division::{Equal, HalvesSwapped, WiderOrNarrower};
use crate::lora::names::{Fused, Names, same};

/// (diffusers, original), a row a layer.
#[rustfmt::skip]
pub static NAMES: Names = Names {
    family: "mochi",
    title: "Mochi 1",
    alpha_in_diffusers: false,
    diffusers_alone: false,
    layers: &[
        ("time_embed.timestep_embedder.linear_1", "t_embedder.mlp.0"),
        ("time_embed.timestep_embedder.linear_2", "t_embedder.mlp.2"),
        ("time_embed.pooler.to_kv", "t5_y_embedder.to_kv"),
        ("time_embed.pooler.to_q", "t5_y_embedder.to_q"),
        ("time_embed.pooler.to_out", "t5_y_embedder.to_out"),
        ("time_embed.caption_proj", "t5_yproj"),
        ("transformer_blocks.{}.norm1.linear", "blocks.{}.mod_x"),
        ("transformer_blocks.{}.attn1.to_out.0", "blocks.{}.attn.proj_x"),
        ("transformer_blocks.{}.attn1.to_add_out", "blocks.{}.attn.proj_y"),
        ("transformer_blocks.{}.ff.net.2", "blocks.{}.mlp_x.w2"),
        ("transformer_blocks.{}.ff_context.net.2", "blocks.{}.mlp_y.w2"),
        ("proj_out", "final_layer.linear"),
    ],
    fused: &[
        Fused::new("blocks.{}.attn.qkv_x", "transformer_blocks.{}.attn1.", &["to_q", "to_k", "to_v"], Equal),
        Fused::new("blocks.{}.attn.qkv_y", "transformer_blocks.{}.attn1.",
                   &["add_q_proj", "add_k_proj", "add_v_proj"], Equal),
        // The last block's is a norm without a feed-forward layer.
        Fused::new("blocks.{}.mod_y", "transformer_blocks.{}.norm1_context.", &["linear", "linear_1"], WiderOrNarrower),
        Fused::new("blocks.{}.mlp_x.w1", "transformer_blocks.{}.ff.net.0.proj", &[""], HalvesSwapped),
        Fused::new("blocks.{}.mlp_y.w1", "transformer_blocks.{}.ff_context.net.0.proj", &[""], HalvesSwapped),
        Fused::new("final_layer.mod", "norm_out.linear", &[""], HalvesSwapped),
    ],
    others: &[
        ("patch_embed.proj", "x_embedder.proj"),
        ("transformer_blocks.{}.attn1.norm_q", "blocks.{}.attn.q_norm_x"),
        ("transformer_blocks.{}.attn1.norm_k", "blocks.{}.attn.k_norm_x"),
        ("transformer_blocks.{}.attn1.norm_added_q", "blocks.{}.attn.q_norm_y"),
        ("transformer_blocks.{}.attn1.norm_added_k", "blocks.{}.attn.k_norm_y"),
    ],
    tables: &[same("pos_frequencies")],
    comfyui: &[],
    apart: &[],
};
