//! Input shapes that a transformer accepts. Other input is rejected with a message, before candle fails with bare
//! shapes.

use candle_core::{Error, Result, Tensor};

use super::denoiser::Input;
use super::family::Layout;

/// Input shapes that a transformer accepts, checked before the forward pass.
#[derive(Debug, Clone, Copy)]
pub struct InputSpec {
    /// Order of the latents' axes.
    pub layout: Layout,
    /// Channels of the latents; in image-to-video the image's channels follow the clip's.
    pub channels: usize,
    /// Latent frames, rows and columns per token.
    pub patch: [usize; 3],
    /// Maximum tokens along an axis.
    pub axis: usize,
    /// Width of a text token.
    pub text_width: usize,
    /// True if a mask of text tokens is taken.
    pub text_mask: bool,
    /// True if each latent frame may have its own timestep.
    pub frame_timesteps: bool,
    /// True if positions count seconds.
    pub frame_rates: bool,
    /// True if `ofs` is embedded.
    pub ofs: bool,
    /// Image embedding for cross-attention, if any.
    pub image: Option<ImageTokensSpec>,
}

/// Tokens of an image embedding.
#[derive(Debug, Clone, Copy)]
pub struct ImageTokensSpec {
    /// Number of tokens; None: any.
    pub tokens: Option<usize>,
    /// Width of a token.
    pub width: usize,
}

impl InputSpec {
    /// Spec for latents, their timesteps and text alone.
    pub fn new(layout: Layout, channels: usize, patch: [usize; 3], text_width: usize) -> Self {
        Self {
            layout,
            channels,
            patch,
            axis: usize::MAX,
            text_width,
            text_mask: false,
            frame_timesteps: false,
            frame_rates: false,
            ofs: false,
            image: None,
        }
    }

    /// Checks an input against these shapes.
    ///
    /// # Errors
    /// Names the first part of the input that does not fit, and what is accepted.
    pub fn check(&self, input: &Input) -> Result<()> {
        let (batch, _, _, height, width) = input.latents.dims5()?;
        let frames = input.latents.dim(self.layout.frames())?;
        let channels = input.latents.dim(self.layout.channels())?;
        if channels != self.channels {
            return refuse(format!(
                "latents of {channels} channels for a model of {} (in image to video, what the image says comes behind \
                 the clip's)",
                self.channels
            ));
        }
        if batch == 0 {
            return refuse("no clips: latents without any numbers".into());
        }
        self.check_size([frames, height, width])?;
        self.check_text(batch, frames, input)?;
        self.check_image(batch, input.image.as_ref())?;
        match &input.ofs {
            None if self.ofs => refuse("this model needs ofs; its pipeline gives 2.0".into()),
            Some(_) if !self.ofs => refuse("this model has no ofs".into()),
            Some(ofs) if ![1, batch].contains(&ofs.dims1()?) => {
                refuse(format!("{batch} clips and {} ofs", ofs.elem_count()))
            }
            _ => Ok(()),
        }
    }

    /// Checks that these latent frames, rows and columns divide into patches that have positions.
    pub fn check_size(&self, [frames, height, width]: [usize; 3]) -> Result<()> {
        let [depth, rows, columns] = self.patch;
        for (what, size, patch) in [
            ("latent frames", frames, depth),
            ("latent rows", height, rows),
            ("latent columns", width, columns),
        ] {
            if size == 0 {
                return refuse(format!("0 {what}: latents without any numbers"));
            }
            if !size.is_multiple_of(patch) {
                return refuse(format!("{size} {what} do not fall into patches of {patch}"));
            }
            if size / patch > self.axis {
                return refuse(format!(
                    "{size} {what} are more than the {} patches of {patch} that this model has positions for",
                    self.axis
                ));
            }
        }
        Ok(())
    }

    /// Checks the text, and that there is one timestep and frame rate for each clip.
    fn check_text(&self, batch: usize, frames: usize, input: &Input) -> Result<()> {
        let (text_batch, tokens, text_width) = input.text.hidden.dims3()?;
        if text_width != self.text_width {
            return refuse(format!("text of width {text_width} for a model of {}", self.text_width));
        }
        let timesteps = input.timestep.dims();
        if text_batch != batch || (timesteps != [batch] && !(self.frame_timesteps && timesteps == [batch, frames])) {
            return refuse(match self.frame_timesteps {
                true => format!(
                    "{batch} clips of {frames} latent frames, {text_batch} texts and timesteps {timesteps:?}: one for each \
                     clip or one for each of its latent frames are needed"
                ),
                false => format!(
                    "{batch} clips, {text_batch} texts and timesteps {timesteps:?}: one for each clip is needed"
                ),
            });
        }
        match &input.text.mask {
            Some(_) if !self.text_mask => return refuse("this model takes no text mask".into()),
            Some(mask) if mask.dims() != [batch, tokens] => {
                return refuse(format!("a mask {:?} for {batch} texts of {tokens} tokens", mask.dims()));
            }
            _ => {}
        }
        let right = |rate: &f64| rate.is_finite() && *rate > 0.0;
        match &input.frame_rates {
            None if self.frame_rates => {
                refuse("this model's positions count seconds: it needs the clips' frame rates".into())
            }
            Some(rates) if self.frame_rates && (rates.len() != batch || !rates.iter().all(right)) => {
                refuse(format!("frame rates {rates:?} for {batch} clips"))
            }
            _ => Ok(()),
        }
    }

    fn check_image(&self, batch: usize, image: Option<&Tensor>) -> Result<()> {
        match (image, self.image) {
            (None, None) => Ok(()),
            (None, Some(_)) => refuse("this model needs an encoded image".into()),
            (Some(_), None) => refuse("this model takes no encoded image".into()),
            (Some(image), Some(ImageTokensSpec { tokens, width })) => {
                let wanted = tokens.unwrap_or(image.dims3()?.1);
                if image.dims() != [batch, wanted, width] {
                    return refuse(format!(
                        "encoded images {:?} for {batch} clips and a model of {wanted} tokens of width {width}",
                        image.dims()
                    ));
                }
                Ok(())
            }
        }
    }
}

fn refuse(what: String) -> Result<()> {
    Err(Error::Msg(what))
}
