//! Input shapes that a transformer accepts. Other input is rejected with a message, before candle fails with bare
//! shapes.

use candle_core::{Error, Result, Tensor};

use super::denoiser::{Input, Scalar};
use super::latent_size::Layout;
use super::text_embeds::TextShape;

/// Input shapes that a transformer accepts, checked before the forward pass.
#[derive(Debug, Clone, Copy)]
pub struct InputSpec {
    /// Order of the latents' axes.
    pub layout: Layout,
    /// Channels of the latents; in image-to-video the image's channels follow the clip's.
    pub channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// Latent frames, rows and columns per token.
    pub patch: [usize; 3],
    /// Maximum tokens along an axis.
    pub axis: usize,
    /// Embedded prompts; another number of tokens is accepted as well.
    pub text: TextShape,
    /// True if each latent frame may have its own timestep.
    pub frame_timesteps: bool,
    /// Other numbers that are needed.
    pub scalars: &'static [Scalar],
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
    /// Spec for latents of these input and output channels, their timesteps and text alone.
    pub fn new(layout: Layout, [channels, out_channels]: [usize; 2], patch: [usize; 3], text: TextShape) -> Self {
        Self {
            layout,
            channels,
            out_channels,
            patch,
            axis: usize::MAX,
            text,
            frame_timesteps: false,
            scalars: &[],
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
        self.check_scalars(batch, input)
    }

    fn check_scalars(&self, batch: usize, input: &Input) -> Result<()> {
        if input.scalars.get(Scalar::Ofs).is_some() && !self.scalars.contains(&Scalar::Ofs) {
            return refuse("this model has no ofs".into());
        }
        for scalar in self.scalars {
            let values = input.scalars.get(*scalar);
            let counted = values.is_some_and(|values| [1, batch].contains(&values.len()));
            let right = |value: &f64| value.is_finite() && (*scalar != Scalar::FrameRate || *value > 0.0);
            if !counted || !values.is_some_and(|values| values.iter().all(right)) {
                let found = values.map_or("none".to_string(), |values| format!("{values:?}"));
                return refuse(match scalar {
                    Scalar::FrameRate => format!(
                        "frame rates {found} for {batch} clips: this model's positions count seconds, so it needs their frame rates"
                    ),
                    Scalar::Ofs => {
                        format!("ofs {found} for {batch} clips: this model needs it; its pipeline gives 2.0")
                    }
                    Scalar::Guidance => {
                        format!(
                            "guidance scales {found} for {batch} clips: this model needs them; its pipeline gives 6.0"
                        )
                    }
                });
            }
        }
        Ok(())
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

    /// Checks the text, and that there is one timestep for each clip.
    fn check_text(&self, batch: usize, frames: usize, input: &Input) -> Result<()> {
        let (text_batch, tokens, text_width) = input.text.hidden.dims3()?;
        if text_width != self.text.width {
            return refuse(format!("text of width {text_width} for a model of {}", self.text.width));
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
            Some(_) if !self.text.masked => return refuse("this model takes no text mask".into()),
            Some(mask) if mask.dims() != [batch, tokens] => {
                return refuse(format!("a mask {:?} for {batch} texts of {tokens} tokens", mask.dims()));
            }
            _ => {}
        }
        let pooled = input.text.pooled.as_ref().map(Tensor::dims);
        match self.text.pooled {
            Some(width) if pooled != Some(&[batch, width]) => refuse(format!(
                "pooled text {pooled:?} for {batch} clips and a model of width {width}"
            )),
            None if pooled.is_some() => refuse("this model takes no pooled text".into()),
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
