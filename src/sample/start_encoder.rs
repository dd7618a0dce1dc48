//! Encoder of images and clips to start from, loaded when the first one needs it.

use crate::models::Family;
use crate::models::family::VideoEncoder;
use crate::nn::Load;

/// Video encoder of a checkpoint, until it is dropped.
pub(super) struct StartEncoder<'a> {
    pub family: &'a dyn Family,
    pub load: &'a Load,
    encoder: Option<Box<dyn VideoEncoder>>,
}

impl<'a> StartEncoder<'a> {
    /// Encoder that is not loaded yet.
    pub fn new(family: &'a dyn Family, load: &'a Load) -> Self {
        Self {
            family,
            load,
            encoder: None,
        }
    }

    /// Returns the encoder.
    ///
    /// # Errors
    /// Fails for missing or broken files of the checkpoint.
    pub fn loaded(&mut self) -> anyhow::Result<&dyn VideoEncoder> {
        if self.encoder.is_none() {
            log::info!("loading the VAE's encoder");
            self.encoder = Some(self.family.video_encoder(self.load)?);
        }
        Ok(&**self.encoder.as_ref().expect("it was loaded just now"))
    }
}
