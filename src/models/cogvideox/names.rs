//! Layer names of CogVideoX in its original checkpoint, and in ComfyUI.
//!
//! Facts: the module names of ComfyUI's `ldm/cogvideo`. CogVideoX's first release (SAT) joined query, key and value;
//! ComfyUI does not load it.

use crate::lora::names::{Names, same};

/// (diffusers, original)
pub const NAMES: Names = Names {
    family: "cogvideox",
    title: "CogVideoX",
    alpha_in_diffusers: true,
    diffusers_alone: false,
    layers: &[
        ("transformer_blocks.{}.attn1.to_q", "blocks.{}.q"),
        ("transformer_blocks.{}.attn1.to_k", "blocks.{}.k"),
        ("transformer_blocks.{}.attn1.to_v", "blocks.{}.v"),
        ("transformer_blocks.{}.attn1.to_out.0", "blocks.{}.attn_out"),
        ("transformer_blocks.{}.ff.net.0.proj", "blocks.{}.ff_proj"),
        ("transformer_blocks.{}.ff.net.2", "blocks.{}.ff_out"),
        ("transformer_blocks.{}.norm1.linear", "blocks.{}.norm1.linear"),
        ("transformer_blocks.{}.norm2.linear", "blocks.{}.norm2.linear"),
        same("patch_embed.proj"),
        same("patch_embed.text_proj"),
        ("time_embedding.linear_1", "time_embedding_linear_1"),
        ("time_embedding.linear_2", "time_embedding_linear_2"),
        ("ofs_embedding.linear_1", "ofs_embedding_linear_1"),
        ("ofs_embedding.linear_2", "ofs_embedding_linear_2"),
        same("norm_out.linear"),
        same("proj_out"),
    ],
    fused: &[],
    others: &[
        ("transformer_blocks.{}.attn1.norm_q", "blocks.{}.norm_q"),
        ("transformer_blocks.{}.attn1.norm_k", "blocks.{}.norm_k"),
        ("transformer_blocks.{}.norm1.norm", "blocks.{}.norm1.norm"),
        ("transformer_blocks.{}.norm2.norm", "blocks.{}.norm2.norm"),
        same("norm_final"),
        same("norm_out.norm"),
    ],
    tables: &[same("patch_embed.pos_embedding")],
    comfyui: &[],
    apart: &[],
};
