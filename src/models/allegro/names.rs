//! Layer names of Allegro: the makers' checkpoint has those of diffusers, and ComfyUI no model of it.

use crate::lora::names::{Names, same};

/// (diffusers, original)
#[rustfmt::skip]
pub const NAMES: Names = Names {
    family: "allegro",
    title: "Allegro",
    alpha_in_diffusers: false,
    diffusers_alone: true,
    layers: &[
        same("transformer_blocks.{}.attn1.to_q"), same("transformer_blocks.{}.attn1.to_k"),
        same("transformer_blocks.{}.attn1.to_v"), same("transformer_blocks.{}.attn1.to_out.0"),
        same("transformer_blocks.{}.attn2.to_q"), same("transformer_blocks.{}.attn2.to_k"),
        same("transformer_blocks.{}.attn2.to_v"), same("transformer_blocks.{}.attn2.to_out.0"),
        same("transformer_blocks.{}.ff.net.0.proj"), same("transformer_blocks.{}.ff.net.2"),
        same("adaln_single.emb.timestep_embedder.linear_1"), same("adaln_single.emb.timestep_embedder.linear_2"),
        same("adaln_single.linear"), same("caption_projection.linear_1"), same("caption_projection.linear_2"),
        same("proj_out"),
    ],
    fused: &[],
    others: &[same("pos_embed.proj")],
    tables: &[same("scale_shift_table"), same("transformer_blocks.{}.scale_shift_table")],
    comfyui: &[],
    apart: &[],
};
