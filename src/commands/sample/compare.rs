//! `--compare`: what a cache between steps gains and loses. The plain clip and the cached one side by side in one video, with
//! the time of each and `PSNR = 10 log10(255^2 / MSE)` over all pixels of all frames.

use std::cell::Cell;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use serde_json::{Value, json};

use crate::models::Family;
use crate::nn::Load;
use crate::sample::{self, Embedded, Progress, Sampled, step_cache};
use crate::video::Writer;

/// A denoised clip, and the time of its steps.
pub struct Timed {
    sampled: Sampled,
    time: Duration,
}

/// Denoises a request with its cache and without. The one with comes first: the time that a device needs to warm up is not to
/// count in its favour.
///
/// # Errors
/// As [`sample::sample_all`].
pub fn denoise(family: &dyn Family, load: &Load, cached: Embedded, progress: Progress) -> anyhow::Result<[Timed; 2]> {
    let mut plain = cached.clone();
    plain.request.cache = step_cache::Config::None;
    let started = Cell::new(Instant::now());
    let timed = |done, of| {
        if done == 0 {
            started.set(Instant::now());
        }
        progress(done, of)
    };
    let mut both = Vec::new();
    sample::sample_all(family, load, vec![cached, plain], &timed, &mut |_, sampled| {
        load.device.synchronize()?;
        let time = started.get().elapsed();
        both.push(Timed { sampled, time });
        Ok(())
    })?;
    let mut both = both.into_iter();
    let (Some(cached), Some(plain)) = (both.next(), both.next()) else {
        bail!("one of two clips was not denoised");
    };
    Ok([plain, cached])
}

/// Decodes both, writes them side by side, and returns what there is to say.
///
/// # Errors
/// Fails where the autoencoder does, and where the video cannot be written.
pub fn write(
    family: &dyn Family,
    load: &Load,
    [plain, cached]: &[Timed; 2],
    width: usize,
    mut writer: Writer,
) -> anyhow::Result<Value> {
    let decoder = family.video_decoder(load)?;
    let mut left = Vec::new();
    sample::decode(&*decoder, &plain.sampled, |frame| {
        left.push(frame.to_vec());
        Ok(())
    })?;
    let mut plain_frames = left.into_iter();
    let (mut squares, mut numbers) = (0, 0);
    let frames = sample::decode(&*decoder, &cached.sampled, |right| {
        let left = plain_frames.next().unwrap_or_default();
        ensure!(left.len() == right.len(), "the clips have other sizes");
        squares += left
            .iter()
            .zip(right)
            .map(|(a, b)| u64::from(a.abs_diff(*b)).pow(2))
            .sum::<u64>();
        numbers += left.len();
        let rows = left.chunks_exact(width * 3).zip(right.chunks_exact(width * 3));
        let both: Vec<u8> = rows.flat_map(|(left, right)| [left, right].concat()).collect();
        Ok(writer.push(&both)?)
    })?;
    writer.finish()?;
    let psnr = psnr(squares, numbers);
    let [slow, fast] = [plain, cached].map(|clip| clip.time.as_secs_f64());
    log::info!(
        "plain: {slow:.2} s; cached: {fast:.2} s, {:.2}x as fast; {}",
        slow / fast.max(f64::MIN_POSITIVE),
        psnr.map_or("the same frames".into(), |psnr| format!("PSNR {psnr:.1} dB"))
    );
    let side = |clip: &Timed| json!({"seconds": clip.time.as_secs_f64(), "steps": clip.sampled.steps});
    Ok(json!({"frames": frames, "psnr": psnr, "plain": side(plain), "cached": side(cached)}))
}

/// Returns the PSNR in dB for the sum of squared differences of so many bytes; None for equal ones.
fn psnr(squares: u64, numbers: usize) -> Option<f64> {
    const PEAK: f64 = 255.0;
    (squares > 0).then(|| 10.0 * (PEAK * PEAK * numbers as f64 / squares as f64).log10())
}
