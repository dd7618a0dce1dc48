//! Clips that leave nothing to learn: a model that always starts from an image is given the first latent frame, so of a
//! clip with no other it is shown all that it should answer.

use anyhow::ensure;

use super::recipe::Config;
use crate::data::Bucket;
use crate::models::Family;
use crate::models::family::TakesImage;

/// Checks clips, one bucket each; returns a warning where some are of no use to such a model.
///
/// # Errors
/// None of the clips is of use; a setting that pictures alone give no meaning to.
pub fn check(
    family: &dyn Family,
    buckets: impl Iterator<Item = Bucket>,
    config: &Config,
) -> anyhow::Result<Option<String>> {
    let single = |bucket: Bucket| {
        // Buckets that the model cannot make are told elsewhere.
        let canvas = family.canvas(bucket.frames, bucket.height, bucket.width);
        canvas.is_ok_and(|canvas| canvas.encoded()[1] == 1)
    };
    let (mut pictures, mut all) = (0, 0);
    for bucket in buckets {
        all += 1;
        pictures += usize::from(single(bucket));
    }
    if pictures == 0 {
        return Ok(None);
    }
    match family.takes_image() {
        TakesImage::Always => ensure!(
            pictures < all,
            "datasets: all {all} clips are single pictures, and this checkpoint is given the first picture of each: there is \
             nothing left to learn. Train on films, in buckets of more frames, or take a text-to-video checkpoint"
        ),
        TakesImage::Either => {
            let share = config.first_frame;
            ensure!(
                pictures < all || share == 0.0,
                "train.first_frame: {share}: all {all} clips are single pictures, of which none is given; remove it, or \
                 train on films"
            );
            return Ok(None);
        }
        TakesImage::Never => return Ok(None),
    }
    Ok(Some(format!(
        "{pictures} of {all} clips are single pictures, of which this checkpoint learns nothing: it is given the first \
         picture of each clip"
    )))
}
