//! What the layers of each family are called in the checkpoints that its makers, or ComfyUI, use.
//!
//! Facts: `convert_ltx_transformer_checkpoint_to_diffusers` and `convert_wan_transformer_to_diffusers` of diffusers, and
//! the module names of ComfyUI's `ldm/cogvideo`, `ldm/lightricks` and `ldm/wan`. None of them joins query, key and value:
//! only CogVideoX's first release (SAT) did, which ComfyUI does not load.

use super::FamilyName;
use crate::lora::names::Names;

/// Every family, in the order of `rooms`.
pub static FAMILIES: &[&Names] = &[&COGVIDEOX, &LTX_VIDEO, &WAN];

/// The names of one family; none for `auto`.
pub fn of(family: FamilyName) -> Option<&'static Names> {
    match family {
        FamilyName::Auto => None,
        FamilyName::CogVideoX => Some(&COGVIDEOX),
        FamilyName::LtxVideo => Some(&LTX_VIDEO),
        FamilyName::Wan => Some(&WAN),
    }
}

static COGVIDEOX: Names = Names {
    family: "cogvideox",
    title: "CogVideoX",
    layers: &[
        ("transformer_blocks.{}.attn1.to_q", "blocks.{}.q"),
        ("transformer_blocks.{}.attn1.to_k", "blocks.{}.k"),
        ("transformer_blocks.{}.attn1.to_v", "blocks.{}.v"),
        ("transformer_blocks.{}.attn1.to_out.0", "blocks.{}.attn_out"),
        ("transformer_blocks.{}.ff.net.0.proj", "blocks.{}.ff_proj"),
        ("transformer_blocks.{}.ff.net.2", "blocks.{}.ff_out"),
        ("transformer_blocks.{}.norm1.linear", "blocks.{}.norm1.linear"),
        ("transformer_blocks.{}.norm2.linear", "blocks.{}.norm2.linear"),
        ("patch_embed.proj", "patch_embed.proj"),
        ("patch_embed.text_proj", "patch_embed.text_proj"),
        ("time_embedding.linear_1", "time_embedding_linear_1"),
        ("time_embedding.linear_2", "time_embedding_linear_2"),
        ("ofs_embedding.linear_1", "ofs_embedding_linear_1"),
        ("ofs_embedding.linear_2", "ofs_embedding_linear_2"),
        ("norm_out.linear", "norm_out.linear"),
        ("proj_out", "proj_out"),
    ],
};

static LTX_VIDEO: Names = Names {
    family: "ltx_video",
    title: "LTX-Video",
    layers: &[
        ("transformer_blocks.{}.attn1.to_q", "transformer_blocks.{}.attn1.to_q"),
        ("transformer_blocks.{}.attn1.to_k", "transformer_blocks.{}.attn1.to_k"),
        ("transformer_blocks.{}.attn1.to_v", "transformer_blocks.{}.attn1.to_v"),
        (
            "transformer_blocks.{}.attn1.to_out.0",
            "transformer_blocks.{}.attn1.to_out.0",
        ),
        ("transformer_blocks.{}.attn2.to_q", "transformer_blocks.{}.attn2.to_q"),
        ("transformer_blocks.{}.attn2.to_k", "transformer_blocks.{}.attn2.to_k"),
        ("transformer_blocks.{}.attn2.to_v", "transformer_blocks.{}.attn2.to_v"),
        (
            "transformer_blocks.{}.attn2.to_out.0",
            "transformer_blocks.{}.attn2.to_out.0",
        ),
        (
            "transformer_blocks.{}.ff.net.0.proj",
            "transformer_blocks.{}.ff.net.0.proj",
        ),
        ("transformer_blocks.{}.ff.net.2", "transformer_blocks.{}.ff.net.2"),
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
        ("caption_projection.linear_1", "caption_projection.linear_1"),
        ("caption_projection.linear_2", "caption_projection.linear_2"),
        ("proj_out", "proj_out"),
    ],
};

static WAN: Names = Names {
    family: "wan",
    title: "Wan",
    layers: &[
        ("blocks.{}.attn1.to_q", "blocks.{}.self_attn.q"),
        ("blocks.{}.attn1.to_k", "blocks.{}.self_attn.k"),
        ("blocks.{}.attn1.to_v", "blocks.{}.self_attn.v"),
        ("blocks.{}.attn1.to_out.0", "blocks.{}.self_attn.o"),
        ("blocks.{}.attn2.to_q", "blocks.{}.cross_attn.q"),
        ("blocks.{}.attn2.to_k", "blocks.{}.cross_attn.k"),
        ("blocks.{}.attn2.to_v", "blocks.{}.cross_attn.v"),
        ("blocks.{}.attn2.to_out.0", "blocks.{}.cross_attn.o"),
        ("blocks.{}.attn2.add_k_proj", "blocks.{}.cross_attn.k_img"),
        ("blocks.{}.attn2.add_v_proj", "blocks.{}.cross_attn.v_img"),
        ("blocks.{}.ffn.net.0.proj", "blocks.{}.ffn.0"),
        ("blocks.{}.ffn.net.2", "blocks.{}.ffn.2"),
        ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
        ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
        ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
        ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
        ("condition_embedder.time_proj", "time_projection.1"),
        ("condition_embedder.image_embedder.ff.net.0.proj", "img_emb.proj.1"),
        ("condition_embedder.image_embedder.ff.net.2", "img_emb.proj.3"),
        ("proj_out", "head.head"),
    ],
};
