//! Preprocessing of a picture for an image encoder, by `image_processor/preprocessor_config.json`: the same as
//! transformers' CLIPImageProcessor.
//!
//! The shorter side is resized to a size (bicubic, antialiased, in whole bytes), the centre is cropped, and each
//! channel is scaled: (factor byte - mean) / std.

use std::path::Path;

use anyhow::{Context, ensure};
use candle_core::{DType, Device, Tensor};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::diffusers_config as config;
use crate::video::Fit;

/// Limit for the aspect ratio; longer pictures would exhaust memory when resized.
const MAX_ASPECT: usize = 64;

/// Limit for the short side of a resized picture.
const MAX_EDGE: usize = 4096;

/// Keys that have no effect on the computation.
const WITHOUT_EFFECT: [&str; 14] = [
    "_valid_processor_keys",
    "data_format",
    "default_to_square",
    "device",
    "disable_grouping",
    "do_convert_rgb",
    "feature_extractor_type",
    "image_processor_type",
    "image_seq_length",
    "input_data_format",
    "processor_class",
    "return_tensors",
    "size_divisor",
    "pad_size",
];

/// Settings, with the class's defaults.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Preprocessor {
    size: Size,
    crop_size: CropSize,
    image_mean: [f64; 3],
    image_std: [f64; 3],
    rescale_factor: f64,
    /// Pillow's number of the resampling filter.
    resample: u8,
    do_resize: bool,
    do_center_crop: bool,
    do_rescale: bool,
    do_normalize: bool,
    do_pad: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Size {
    shortest_edge: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct CropSize {
    height: usize,
    width: usize,
}

impl Default for Preprocessor {
    fn default() -> Self {
        Self {
            size: Size { shortest_edge: 224 },
            crop_size: CropSize {
                height: 224,
                width: 224,
            },
            image_mean: [0.48145466, 0.4578275, 0.40821073],
            image_std: [0.26862954, 0.26130258, 0.27577711],
            rescale_factor: 1.0 / 255.0,
            resample: 3,
            do_resize: true,
            do_center_crop: true,
            do_rescale: true,
            do_normalize: true,
            do_pad: None,
        }
    }
}

impl Preprocessor {
    /// Reads `preprocessor_config.json` in `folder`.
    ///
    /// # Errors
    /// Names the file and key: a missing file, an unknown key, or an unsupported step.
    pub fn load(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join("preprocessor_config.json");
        let read = || Self::parse(&config::text(&path)?);
        read().with_context(|| path.display().to_string())
    }

    /// Parses the text of a `preprocessor_config.json`.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut keys: Map<String, Value> = serde_json::from_str(text).context("not a JSON object")?;
        keys.retain(|key, _| !WITHOUT_EFFECT.contains(&key.as_str()));
        let this: Self = serde_path_to_error::deserialize(Value::Object(keys))?;
        this.check()?;
        Ok(this)
    }

    fn check(&self) -> anyhow::Result<()> {
        for (key, done) in [
            ("do_resize", self.do_resize),
            ("do_center_crop", self.do_center_crop),
            ("do_rescale", self.do_rescale),
            ("do_normalize", self.do_normalize),
        ] {
            ensure!(done, "{key}: false is not supported; set it to true");
        }
        ensure!(
            self.do_pad != Some(true),
            "do_pad: true is not supported; set it to false"
        );
        ensure!(
            self.resample == 3,
            "resample: only 3 (bicubic) is supported, got {}",
            self.resample
        );
        let edge = self.size.shortest_edge;
        ensure!(
            (1..=MAX_EDGE).contains(&edge),
            "size.shortest_edge: {edge} is not a valid size"
        );
        for (key, side) in [("height", self.crop_size.height), ("width", self.crop_size.width)] {
            ensure!(
                (1..=edge).contains(&side),
                "crop_size.{key}: must be within 1 and size.shortest_edge ({edge}), got {side}"
            );
        }
        let finite = |numbers: &[f64]| numbers.iter().all(|number| number.is_finite());
        ensure!(
            finite(&self.image_mean),
            "image_mean: {:?} are not finite numbers",
            self.image_mean
        );
        ensure!(
            finite(&self.image_std) && self.image_std.iter().all(|std| *std > 0.0),
            "image_std: must be above 0, got {:?}",
            self.image_std
        );
        ensure!(
            self.rescale_factor.is_finite(),
            "rescale_factor: {} is not a finite number",
            self.rescale_factor
        );
        Ok(())
    }

    /// Converts a picture (height, width, 3) of bytes, red first, to (1, 3, crop height, crop width) in f32.
    ///
    /// # Errors
    /// Fails for a wrong number of bytes, and if one side is over 64 times the other.
    pub fn pixels(&self, picture: &[u8], (height, width): (usize, usize), device: &Device) -> anyhow::Result<Tensor> {
        ensure!(
            height > 0 && width > 0 && picture.len() == height * width * 3,
            "{} bytes are not a picture of {height}x{width} (height x width)",
            picture.len()
        );
        let (short, long) = (height.min(width), height.max(width));
        ensure!(
            long / short < MAX_ASPECT,
            "a picture of {height}x{width} (height x width) is too narrow; cut it"
        );
        let edge = self.size.shortest_edge;
        let longer = ((edge * long) as f64 / short as f64) as usize;
        let (resize_height, resize_width) = if width <= height {
            (longer, edge)
        } else {
            (edge, longer)
        };
        let CropSize {
            height: rows,
            width: columns,
        } = self.crop_size;
        let fit = Fit {
            resize_height,
            resize_width,
            top: (resize_height - rows) / 2,
            left: (resize_width - columns) / 2,
            height: rows,
            width: columns,
        };
        // Rows first, like Pillow and torch: with whole bytes, an edge's overshoot is clipped between the two passes.
        let between = (height, resize_width);
        let bytes = Fit::squash(between)
            .picture(picture, (height, width))
            .and_then(|picture| fit.picture(&picture, between))
            .map_err(anyhow::Error::msg)?;
        let pixels = Tensor::from_vec(bytes, (rows, columns, 3), &Device::Cpu)?.to_dtype(DType::F32)?;
        let channel = |numbers: [f64; 3]| {
            let numbers = numbers.map(|number| (number / self.rescale_factor) as f32);
            Tensor::new(&numbers, &Device::Cpu) // (3)
        };
        let pixels = pixels
            .broadcast_sub(&channel(self.image_mean)?)?
            .broadcast_div(&channel(self.image_std)?)?; // (H, W, 3)
        Ok(pixels
            .permute((2, 0, 1))?
            .unsqueeze(0)?
            .contiguous()?
            .to_device(device)?)
    }

    /// Same as [`Self::pixels`], for a black picture.
    pub fn black(&self, device: &Device) -> anyhow::Result<Tensor> {
        let edge = self.size.shortest_edge;
        self.pixels(&vec![0; edge * edge * 3], (edge, edge), device)
    }

    /// Same as [`Self::pixels`], for a picture (1, 3, H, W) of -1..1, rounded to the original bytes.
    pub fn of_tensor(&self, picture: &Tensor) -> anyhow::Result<Tensor> {
        let (_, _, height, width) = picture.dims4()?;
        let bytes = ((picture.to_dtype(DType::F32)? + 1.0)? * 127.5)?
            .clamp(0f32, 255f32)?
            .round()?;
        let bytes = bytes.get(0)?.permute((1, 2, 0))?.to_dtype(DType::U8)?; // (H, W, 3)
        let bytes: Vec<u8> = bytes.flatten_all()?.to_vec1()?;
        self.pixels(&bytes, (height, width), picture.device())
    }
}
