//! Layer names of LTX-Video in its original checkpoint, and in ComfyUI.
//!
//! Facts: `convert_ltx_transformer_checkpoint_to_diffusers` of diffusers and ComfyUI's `ldm/lightricks`.

use crate::lora::names::{Names, same};

/// (diffusers, original)
pub const NAMES: Names = Names {
    family: "ltx_video",
    title: "LTX-Video",
    alpha_in_diffusers: false,
    diffusers_alone: false,
    layers: &[
        same("transformer_blocks.{}.attn1.to_q"),
        same("transformer_blocks.{}.attn1.to_k"),
        same("transformer_blocks.{}.attn1.to_v"),
        same("transformer_blocks.{}.attn1.to_out.0"),
        same("transformer_blocks.{}.attn2.to_q"),
        same("transformer_blocks.{}.attn2.to_k"),
        same("transformer_blocks.{}.attn2.to_v"),
        same("transformer_blocks.{}.attn2.to_out.0"),
        same("transformer_blocks.{}.ff.net.0.proj"),
        same("transformer_blocks.{}.ff.net.2"),
        ("proj_in", "patchify_proj"),
        (
            "time_embed.emb.timestep_embedder.linear_1",
            "adaln_single.emb.timestep_embedder.linear_1",
        ),
        (
            "time_embed.emb.timestep_embedder.linear_2",
            "adaln_single.emb.timestep_embedder.linear_2",
        ),
        ("time_embed.linear", "adaln_single.linear"),
        same("caption_projection.linear_1"),
        same("caption_projection.linear_2"),
        same("proj_out"),
    ],
    fused: &[],
    others: &[
        (
            "transformer_blocks.{}.attn1.norm_q",
            "transformer_blocks.{}.attn1.q_norm",
        ),
        (
            "transformer_blocks.{}.attn1.norm_k",
            "transformer_blocks.{}.attn1.k_norm",
        ),
        (
            "transformer_blocks.{}.attn2.norm_q",
            "transformer_blocks.{}.attn2.q_norm",
        ),
        (
            "transformer_blocks.{}.attn2.norm_k",
            "transformer_blocks.{}.attn2.k_norm",
        ),
    ],
    tables: &[
        same("transformer_blocks.{}.scale_shift_table"),
        same("scale_shift_table"),
    ],
    comfyui: &[],
    apart: &[],
};
