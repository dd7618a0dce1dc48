//! CLIP's vision transformer up to its second-to-last block: the picture embedding of Wan's image-to-video
//! transformers. arXiv:2103.00020; equals `CLIPVisionModel(...).hidden_states[-2]` of transformers.
//!
//! Patches, each embedded by a matrix, after a learnt class token; learnt positions; then blocks x +=
//! attention(norm(x)); x += mlp(norm(x)). The last block and the final norm are neither run nor loaded.
//!
//! Shapes: B pictures, S = image_size, G = floor(S / patch_size), N = G^2 + 1 tokens, D = hidden_size.

use std::path::Path;

use anyhow::{Context, ensure};
use candle_core::{Result, Tensor};
use serde::Deserialize;

use crate::diffusers_config::{self as config, SIZE};
use crate::nn::clip_layer::{ClipLayer, ClipLayerSpec};
use crate::nn::{Norm, Weights};
use crate::ops::linear::Frozen;

pub use crate::nn::clip_layer::Activation;

/// Keys of CLIP's vision configs that have no effect on the computation.
const WITHOUT_EFFECT: [&str; 19] = [
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "chunk_size_feed_forward",
    "dropout",
    "dtype",
    "id2label",
    "initializer_factor",
    "initializer_range",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "projection_dim",
    "quantization_config",
    "return_dict",
    "torch_dtype",
    "transformers_version",
    "vocab_size",
];

/// Sizes that the computation depends on; the defaults are transformers'.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    model_type: ModelType,
    /// Width of a token.
    pub hidden_size: usize,
    /// Width inside of the feed-forward layers.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Heads of the attention.
    pub num_attention_heads: usize,
    num_channels: usize,
    /// Rows, and columns, of the picture in pixels.
    pub image_size: usize,
    /// Rows, and columns, of a patch in pixels.
    pub patch_size: usize,
    /// Activation of the feed-forward layers.
    pub hidden_act: Activation,
    /// Epsilon of the norms.
    pub layer_norm_eps: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ModelType {
    ClipVisionModel,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            model_type: ModelType::ClipVisionModel,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 32,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
        }
    }
}

impl Config {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// Names the file and key: another model than a CLIP vision model, or one that makes no sense.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        config::text(path)
            .and_then(|text| Self::parse(&text))
            .with_context(|| path.display().to_string())
    }

    /// Parses the text of a `config.json`.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let config: Self = config::of_transformers(text, &WITHOUT_EFFECT)?;
        config.check()?;
        Ok(config)
    }

    /// Checks that an encoder can have these sizes.
    pub fn check(&self) -> anyhow::Result<()> {
        for (key, size) in [
            ("num_hidden_layers", self.num_hidden_layers),
            ("image_size", self.image_size),
            ("patch_size", self.patch_size),
        ] {
            ensure!(SIZE.contains(&size), "{key}: {size} is not a valid size");
        }
        ensure!(
            self.num_channels == 3,
            "num_channels: pictures have 3, not {}",
            self.num_channels
        );
        ensure!(
            self.patch_size <= self.image_size,
            "patch_size: {} is larger than the image_size {}",
            self.patch_size,
            self.image_size
        );
        self.layer().check()
    }

    fn layer(&self) -> ClipLayerSpec {
        ClipLayerSpec {
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_attention_heads: self.num_attention_heads,
            hidden_act: self.hidden_act,
            layer_norm_eps: self.layer_norm_eps,
        }
    }

    /// Returns the patches along a side.
    fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Returns the number of embeddings of a picture: N.
    pub fn tokens(&self) -> usize {
        self.grid() * self.grid() + 1
    }
}

/// The encoder with its weights.
#[derive(Debug)]
pub struct ClipVision {
    config: Config,
    patch_embedding: Frozen,    // (D, 3 p p)
    class_embedding: Tensor,    // (1, 1, D)
    position_embedding: Tensor, // (1, N, D)
    pre_layrnorm: Norm,
    layers: Vec<ClipLayer>,
}

impl ClipVision {
    /// Reads the weights from the root of their checkpoint, with or without a prefix `vision_model`.
    ///
    /// # Errors
    /// Fails for a missing tensor, one of another shape than in the config, or an unexpected one.
    pub fn new(config: &Config, weights: Weights) -> anyhow::Result<Self> {
        let (this, unused) = Self::read(config, &weights)?;
        weights.finish(&unused.iter().map(String::as_str).collect::<Vec<_>>())?;
        Ok(this)
    }

    /// Same as [`new`](Self::new), within a checkpoint that has other parts as well: returns the tensors that it leaves
    /// unread, by the starts of their names.
    pub fn read(config: &Config, weights: &Weights) -> anyhow::Result<(Self, Vec<String>)> {
        config.check()?;
        let published = weights.pp("vision_model");
        let root = match published.contains("embeddings.class_embedding") {
            true => published,
            false => weights.clone(),
        };
        let embeddings = root.pp("embeddings");
        let (width, p) = (config.hidden_size, config.patch_size);
        let patch = embeddings.pp("patch_embedding").get((width, 3, p, p), "weight")?;
        let positions = embeddings
            .pp("position_embedding")
            .get((config.tokens(), width), "weight")?;
        let last = config.num_hidden_layers - 1;
        let layers = root.pp("encoder.layers");
        let this = Self {
            patch_embedding: Frozen::new(patch.reshape((width, 3 * p * p))?, None),
            class_embedding: embeddings.get(width, "class_embedding")?.reshape((1, 1, width))?,
            position_embedding: positions.unsqueeze(0)?,
            pre_layrnorm: Norm::layer(width, config.layer_norm_eps, root.pp("pre_layrnorm"))?,
            layers: (0..last)
                .map(|i| ClipLayer::new(config.layer(), &layers.pp(i)))
                .collect::<Result<_>>()?,
            config: config.clone(),
        };
        let below = |name: &str| match root.prefix() {
            "" => name.to_string(),
            prefix => format!("{prefix}.{name}"),
        };
        let unused = vec![
            below(&format!("encoder.layers.{last}.")),
            below("post_layernorm."),
            below("embeddings.position_ids"),
            "visual_projection.".to_string(),
        ];
        Ok((this, unused))
    }

    /// Returns the input of the last block: pixels (B, 3, S, S), as preprocessed -> (B, N, D) of the weights' type.
    ///
    /// # Errors
    /// Fails for pictures of another size.
    pub fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let (size, grid, p) = (self.config.image_size, self.config.grid(), self.config.patch_size);
        let (batch, channels, height, width) = pixels.dims4()?;
        if (channels, height, width) != (3, size, size) {
            candle_core::bail!("this encoder takes pictures of {size}x{size}, not {:?}", pixels.dims());
        }
        let patches = pixels
            .to_device(self.class_embedding.device())?
            .to_dtype(self.class_embedding.dtype())?
            .narrow(2, 0, grid * p)?
            .narrow(3, 0, grid * p)?
            .reshape(vec![batch, 3, grid, p, grid, p])?
            .permute([0, 2, 4, 1, 3, 5])? // (B, G, G, 3, p, p)
            .reshape((batch, grid * grid, 3 * p * p))?;
        let patches = self.patch_embedding.forward(&patches)?; // (B, G G, D)
        let class = self.class_embedding.repeat((batch, 1, 1))?;
        let x = Tensor::cat(&[class, patches], 1)?.broadcast_add(&self.position_embedding)?; // (B, N, D)
        let mut x = self.pre_layrnorm.forward(&x)?;
        for layer in &self.layers {
            x = layer.forward(x, None)?;
        }
        Ok(x)
    }
}
