//! Detects clips without anything to learn: a model that always starts from an image gets the first latent frame as
//! input, so a clip with no other frame has no target left.

use anyhow::ensure;

use super::config::Config;
use crate::data::Bucket;
use crate::models::Family;
use crate::models::family::ImageMode;

/// Checks clips, given the bucket of each; returns a warning if some are useless to such a model.
///
/// # Errors
/// Fails if all clips are useless, and for a setting that is meaningless for single pictures.
pub fn check(
    family: &dyn Family,
    buckets: impl Iterator<Item = Bucket>,
    config: &Config,
) -> anyhow::Result<Option<String>> {
    let single = |bucket: Bucket| {
        // Unsupported buckets are reported elsewhere.
        let canvas = family.latent_size(bucket.frames, bucket.height, bucket.width);
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
    match family.spec().image_mode {
        ImageMode::Always => ensure!(
            pictures < all,
            "datasets: all {all} clips are single pictures, and this checkpoint gets the first picture of each as input: there is \
             nothing left to learn. Train on videos, in buckets of more frames, or take a text-to-video checkpoint"
        ),
        ImageMode::Either => {
            let share = config.first_frame_conditioning_p;
            ensure!(
                pictures < all || share == 0.0,
                "train.first_frame_conditioning_p: {share}: all {all} clips are single pictures, of which none can be given; remove it, or \
                 train on videos"
            );
            return Ok(None);
        }
        ImageMode::Never => return Ok(None),
    }
    Ok(Some(format!(
        "{pictures} of {all} clips are single pictures, from which this checkpoint learns nothing: it gets the first \
         picture of each clip"
    )))
}
