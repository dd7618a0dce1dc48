//! Sampling of one or many requests with one load of each part of the checkpoint: texts come embedded, images and clips to
//! start from are encoded before the transformer loads, and the caller decodes once it is dropped.

use super::request::{Start, check};
use super::start_encoder::StartEncoder;
use super::{Prepared, Progress, Request, Sampled};
use crate::models::Family;
use crate::models::denoiser::TextEmbeds;
use crate::nn::Load;

/// A request with its embedded prompts.
#[derive(Debug, Clone)]
pub struct Embedded {
    /// The request.
    pub request: Request,
    /// Its prompts in their order, (1 or 2, L, D) on any device.
    pub text: TextEmbeds,
}

/// Runs text encoding and denoising, with the adapters of `load`; each model is dropped before the next loads.
///
/// # Errors
/// Fails for a request that the checkpoint cannot fulfil, and for missing or broken files of the checkpoint.
pub fn sample(family: &dyn Family, load: &Load, request: Request, progress: Progress) -> anyhow::Result<Sampled> {
    check(family, &request)?;
    let text = family.embed(load, &request.prompts_with_pictures())?;
    let mut sampled = None;
    let requests = vec![Embedded { request, text }];
    sample_all(family, load, requests, progress, &mut |_, latents| {
        sampled = Some(latents);
        Ok(())
    })?;
    Ok(sampled.expect("the one request was denoised"))
}

/// Denoises requests in their order, with the adapters of `load`; calls `done` with the place and the latents of each as they
/// come, while the transformer is still loaded.
///
/// # Errors
/// As [`sample`]; and those of `done`.
pub fn sample_all(
    family: &dyn Family,
    load: &Load,
    requests: Vec<Embedded>,
    progress: Progress,
    done: &mut dyn FnMut(usize, Sampled) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut encoder = StartEncoder::new(family, load);
    let prepare = |encoder: &mut StartEncoder, Embedded { request, text }: Embedded| {
        Prepared::with_encoder(encoder, request, text.to_device(&load.device)?)
    };
    let mut waiting = Vec::new();
    for request in requests {
        // Texts and noise of the others need not be on the device yet.
        waiting.push(match request.request.start {
            Start::Text => Err(request),
            Start::Image(_) | Start::Clip(..) => Ok(prepare(&mut encoder, request)?),
        });
    }
    encoder = StartEncoder::new(family, load); // frees the models before the transformer loads
    log::info!("loading the transformer");
    let denoiser = family.denoiser(load)?;
    for (place, prepared) in waiting.into_iter().enumerate() {
        let prepared = match prepared {
            Ok(prepared) => prepared,
            Err(request) => prepare(&mut encoder, request)?,
        };
        done(place, prepared.denoise(&*denoiser, progress)?)?;
    }
    Ok(())
}
