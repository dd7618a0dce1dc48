//! HunyuanVideo, text and image to video. Paper: arXiv:2412.03603. Checkpoints: `hunyuanvideo-community/HunyuanVideo`,
//! `HunyuanVideo-I2V`, `HunyuanVideo-I2V-33ch`.

pub mod dit;
